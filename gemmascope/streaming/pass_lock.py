"""The lock of a layer stream: one pass at a time, in order of arrival, and no interrupt can leave it locked.

Python may raise KeyboardInterrupt between any two steps of the main thread, even between taking a lock and recording its
owner, so no ordinary lock is held here. Passes stand in a queue, and a pass has its turn once every pass before it is over.
A pass is over when it says so; and also when its generator has ended or was collected, when its thread or process is
gone, or when the function of this package that consumed its layers has returned without closing them.

Signals only save time: a waiting thread looks again after POLL_SECONDS in any case.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import threading
from collections import deque
from collections.abc import Generator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING
from weakref import ref

from gemmascope.errors import DeviceError

if TYPE_CHECKING:
    from gemmascope.model.gemma2 import Layer

# Seconds until a waiting thread looks again.
POLL_SECONDS = 0.05

_PACKAGE = str(Path(__file__).parents[1]) + os.sep
_SUSPENDABLE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class Signal:
    """Wakes every thread that waits for it, now or later."""

    def __init__(self) -> None:
        self._unset = threading.Lock()
        self._unset.acquire()

    def set(self) -> None:
        with contextlib.suppress(RuntimeError):  # it is already set
            self._unset.release()

    def wait(self, seconds: float = POLL_SECONDS) -> None:
        if self._unset.acquire(timeout=seconds):
            self.set()  # wake the other waiting threads


class QueuedPass:
    """A pass in the queue. generator: the generator of its layers."""

    def __init__(self, generator: ref[Generator[Layer]]) -> None:
        self.generator = generator
        self.thread, self.process = threading.current_thread(), os.getpid()
        self.consumer = _consumer()
        self.in_package = self.consumer is not None
        self.ended, self.end_signal = False, Signal()

    def end(self) -> None:
        """Let the next pass begin. May be called repeatedly and from any thread."""
        self.ended = True
        self.consumer = None  # a frame that is held keeps its variables, the generator among them
        self.end_signal.set()

    def settle(self) -> None:
        """Called by the next pass before it begins: wait until nothing is written for this one any more."""

    @property
    def gone(self) -> bool:
        """Whether it has ended or can never continue: its generator has ended, or it belongs to another process."""
        generator = self.generator()
        return self.ended or generator is None or getattr(generator, "gi_frame", None) is None or self.process != os.getpid()

    @property
    def over(self) -> bool:
        """Whether nobody consumes its layers any more."""
        return self.gone or not self.thread.is_alive() or not self._is_consumed()

    def _is_consumed(self) -> bool:
        """Whether the function of this package that consumes the layers still runs. True for a user's own function.

        A stored traceback, as notebooks keep them, keeps the generator of an interrupted pass alive. Python clears no frame
        that runs, in whichever thread, and says so; walking another thread's frames instead reads freed memory at times.
        """
        consumer = self.consumer
        if consumer is None:
            return True
        try:
            consumer.clear()
        except RuntimeError:
            return True
        return False


class PassLock:
    """Held by one pass at a time."""

    def __init__(self) -> None:
        self._queue: deque[QueuedPass] = deque()  # each of its methods is atomic

    def acquire(self, mine: QueuedPass) -> None:
        """Wait for this pass's turn. Ends passes of the same thread that were left open.

        Raises DeviceError if a pass of the same thread is still running, because a function called within it began this one.
        """
        self._queue.append(mine)
        while waiting := [one for one in self._before(mine) if not one.over]:
            own = [one for one in waiting if one.thread is mine.thread]
            if any(one.in_package for one in own):
                raise DeviceError(
                    "a pass over this model's layers is under way in this thread, and a function that it calls (an edit's, "
                    "a tap's or a metric's) began another: layers that stream serve one pass at a time. Run the model "
                    "before, and let the function use what came out"
                )
            for one in own:
                one.end()
            if not own:
                waiting[0].end_signal.wait()
        for one in self._before(mine):
            one.end()
            one.settle()
            self._remove(one)

    def release(self, mine: QueuedPass) -> None:
        """End a pass, and let the next one begin."""
        mine.end()
        mine.settle()
        self._remove(mine)

    def locked(self) -> bool:
        """Whether a pass is under way."""
        return any(not one.over for one in list(self._queue.copy()))

    def held_here(self) -> bool:
        """Whether a pass of this thread is under way."""
        return any(one.thread is threading.current_thread() and not one.over for one in list(self._queue.copy()))

    def _before(self, mine: QueuedPass) -> list[QueuedPass]:
        queue = list(self._queue.copy())
        return queue[: queue.index(mine)]

    def _remove(self, one: QueuedPass) -> None:
        with contextlib.suppress(ValueError):  # another thread was faster
            self._queue.remove(one)


def _consumer() -> FrameType | None:
    """The frame of the function of this package that consumes the layers, which closes their generator when it returns.

    Called within that generator. None for a function outside this package, which may pass the generator on and continue it
    from anywhere.
    """
    frame: FrameType | None = sys._getframe(1)
    inside = True  # still between here and the generator
    while frame is not None:
        suspendable = bool(frame.f_code.co_flags & _SUSPENDABLE)
        inside = inside and not suspendable
        if not inside and not suspendable:
            return frame if frame.f_code.co_filename.startswith(_PACKAGE) else None
        frame = frame.f_back
    return None

"""The lock of a stream: one pass holds it at a time, first come, first served, and nothing can leave it held.

Python raises KeyboardInterrupt between any two steps of the main thread, also between taking a lock and noting who took it.
So nothing here is held that has to be given back. A pass stands in a queue, and it is its turn once every pass before it is
over. A pass is over when it says so, and just as well when its generator has ended or was collected, when its thread or its
process is gone, or when the function of this package that went through its layers has returned without closing them.

The bells only save time: whoever waits for one looks again after PATIENCE, whether it rang or not.
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
from typing import Any
from weakref import ref

from gemmascope.errors import DeviceError

# Seconds until a waiting thread looks again.
PATIENCE = 0.05

_PACKAGE = str(Path(__file__).parents[1]) + os.sep
_SUSPENDABLE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class Bell:
    """Wakes those who wait for it, now and from now on."""

    def __init__(self) -> None:
        self._silent = threading.Lock()
        self._silent.acquire()

    def ring(self) -> None:
        with contextlib.suppress(RuntimeError):  # it rang before
            self._silent.release()

    def wait(self, seconds: float = PATIENCE) -> None:
        if self._silent.acquire(timeout=seconds):
            self.ring()  # for the others


class Holder:
    """A pass in the queue. generator: what goes through its layers."""

    def __init__(self, generator: ref[Generator[Any]]) -> None:
        self.generator = generator
        self.thread, self.process = threading.current_thread(), os.getpid()
        self.consumer, self.root = _consumer()
        self.ended, self.end_bell = False, Bell()

    def end(self) -> None:
        """From here on nobody waits for it. May be called again, and from any thread."""
        self.ended = True
        self.end_bell.ring()

    def settle(self) -> None:
        """Called by the next pass before it begins: wait until nothing writes for this one any more."""

    @property
    def gone(self) -> bool:
        """Whether it has ended, or can never go on: its generator has ended, or it is another process's."""
        generator = self.generator()
        return self.ended or generator is None or getattr(generator, "gi_frame", None) is None or self.process != os.getpid()

    @property
    def over(self) -> bool:
        """Whether nobody goes through its layers any more."""
        return self.gone or not self.thread.is_alive() or not self._is_consumed()

    def _is_consumed(self) -> bool:
        """Whether the function of this package that goes through the layers still runs. True for a user's own: it may go on.

        A traceback that is held, as notebooks do, keeps the generator of an interrupted pass alive.
        """
        if self.consumer is None:
            return True
        frame = sys._current_frames().get(self.thread.ident or 0)
        while frame is not None:
            if id(frame) == self.consumer:
                return True
            if id(frame) == self.root:
                return False
            frame = frame.f_back
        return True  # the thread went on while it was looked at


class PassLock:
    """Held by one pass at a time."""

    def __init__(self) -> None:
        self._queue: deque[Holder] = deque()  # its methods are single steps: no interrupt and no thread comes between

    def acquire(self, mine: Holder) -> None:
        """Wait for this pass's turn. Passes of the same thread that were left open are ended.

        Raises DeviceError where a pass of the same thread is still at work: this one is begun by a function within it.
        """
        self._queue.append(mine)
        while waiting := [one for one in self._before(mine) if not one.over]:
            own = [one for one in waiting if one.thread is mine.thread]
            if any(one.consumer is not None for one in own):
                raise DeviceError(
                    "a pass over this model's layers is under way in this thread, and a function that it calls (an edit's, "
                    "a tap's or a metric's) began another: layers that stream serve one pass at a time. Run the model "
                    "before, and let the function use what came out"
                )
            for one in own:
                one.end()
            if not own:
                waiting[0].end_bell.wait()
        for one in self._before(mine):
            one.end()
            one.settle()
            self._remove(one)

    def release(self, mine: Holder) -> None:
        """End a pass, and let the next one begin."""
        mine.end()
        mine.settle()
        self._remove(mine)

    def locked(self) -> bool:
        """Whether a pass is under way."""
        return any(not one.over for one in list(self._queue.copy()))

    def _before(self, mine: Holder) -> list[Holder]:
        queue = list(self._queue.copy())
        return queue[: queue.index(mine)]

    def _remove(self, one: Holder) -> None:
        with contextlib.suppress(ValueError):  # another thread was faster
            self._queue.remove(one)


def _consumer() -> tuple[int | None, int]:
    """The function of this package that goes through the layers, and the outermost one of the thread, by their frames' ids.

    Called within the generator that gives the layers. A frame's id is its own for as long as its function runs. None for a
    function outside this package: it may hand the generator on, to go on later from anywhere.
    """
    frame: FrameType | None = sys._getframe(1)
    inside, found, outermost = True, None, 0
    while frame is not None:
        suspendable = bool(frame.f_code.co_flags & _SUSPENDABLE)
        inside = inside and not suspendable  # what made the Holder, up to the generator
        if found is None and not inside and not suspendable:
            found = frame
        outermost, frame = id(frame), frame.f_back
    ours = found is not None and found.f_code.co_filename.startswith(_PACKAGE)
    return (id(found) if ours else None), outermost

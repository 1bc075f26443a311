"""The thread that loads a pass's next layers while the pass computes with the current one.

It holds no lock, and its current request is visible: the next pass waits until the buffer of that request is filled,
whatever became of the pass that made it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

import torch
from torch import Tensor

from gemmascope.errors import DeviceError
from gemmascope.streaming.pass_lock import Signal

# Recorded when a buffer has been filled; None where it is filled already.
Arrival = torch.cuda.Event

# Seconds after which an idle thread checks whether its pass still exists.
IDLE = 1.0


class LayerRequest:
    """A buffer to fill with a layer."""

    def __init__(self, index: int, buffer: Tensor) -> None:
        self.index, self.buffer = index, buffer
        self.arrival: Arrival | None = None
        self.error: BaseException | None = None
        self.done, self.signal = False, Signal()


class Prefetcher:
    """Loads layers in a thread. fill: fills a buffer with a layer. abandoned: whether the pass is gone."""

    def __init__(self, fill: Callable[[int, Tensor], Arrival | None], abandoned: Callable[[], bool]) -> None:
        self.fill, self.abandoned = fill, abandoned
        self.requests: SimpleQueue[LayerRequest | None] = SimpleQueue()
        self.current: LayerRequest | None = None
        self.ended = False
        self.process = os.getpid()
        self.thread = threading.Thread(target=self._work, name="gemmascope-stream", daemon=True)

    def request(self, index: int, buffer: Tensor) -> LayerRequest:
        """Queue a request to fill a buffer with a layer."""
        request = LayerRequest(index, buffer)
        self.requests.put(request)
        return request

    def result(self, request: LayerRequest) -> Arrival | None:
        """Wait until a request is done. Raises the error it met."""
        while not request.done:
            if self.ended or self.process != os.getpid() or sys.is_finalizing():
                raise DeviceError("this pass was ended, or its process was forked in the middle of it: begin another")
            request.signal.wait()
        error, request.error = request.error, None
        if error is not None:
            raise error
        return request.arrival

    def stop(self) -> None:
        """Begin no further request. May be called repeatedly and from any thread."""
        self.ended = True
        self.requests.put(None)

    def wait(self) -> None:
        """After `stop`: wait until no buffer is written to. The thread checks `ended` after it has set `current`."""
        while (request := self.current) is not None and self.process == os.getpid() and not sys.is_finalizing():
            request.signal.wait()

    def join(self) -> None:
        """After `stop`: let the thread end. Nothing depends on it."""
        here = threading.current_thread()
        if self.thread.is_alive() and self.thread is not here and self.process == os.getpid() and not sys.is_finalizing():
            self.thread.join(timeout=IDLE)

    def _work(self) -> None:
        while not self.ended:
            try:
                request = self.requests.get(timeout=IDLE)
            except Empty:
                if self.abandoned():
                    return
                continue
            if request is None:
                return
            self._serve(request)
            del request  # it holds a buffer, and perhaps an error with its traceback

    def _serve(self, request: LayerRequest) -> None:
        self.current = request
        try:
            if not self.ended:
                request.arrival = self.fill(request.index, request.buffer)
        except BaseException as error:  # raised again in the pass
            request.error = error
        finally:
            self.current, request.done = None, True
            request.signal.set()

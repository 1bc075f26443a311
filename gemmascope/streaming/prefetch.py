"""The thread of a pass that brings layers, one after the other, while the pass computes with those that are there.

It holds no lock, and what it is at can be seen: a pass that follows waits for the slot that is being filled, whatever became
of the pass that asked for it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from torch import Tensor

from gemmascope.errors import DeviceError
from gemmascope.streaming.pass_lock import Bell

Arrival = Any

# Seconds after which a thread without work looks whether its pass is still there.
IDLE = 1.0


class Job:
    """A slot to be filled with a layer."""

    def __init__(self, index: int, slot: Tensor) -> None:
        self.index, self.slot = index, slot
        self.arrival: Arrival = None
        self.error: BaseException | None = None
        self.done, self.bell = False, Bell()


class Bringer:
    """bring: fills a slot. abandoned: whether the pass is gone, and nobody waits for what is brought."""

    def __init__(self, bring: Callable[[int, Tensor], Arrival], abandoned: Callable[[], bool]) -> None:
        self.bring, self.abandoned = bring, abandoned
        self.jobs: SimpleQueue[Job | None] = SimpleQueue()
        self.current: Job | None = None
        self.ended = False
        self.process = os.getpid()
        self.thread = threading.Thread(target=self._work, name="gemmascope-stream", daemon=True)

    def ask(self, index: int, slot: Tensor) -> Job:
        """Have a slot filled when those asked for before are."""
        job = Job(index, slot)
        self.jobs.put(job)
        return job

    def result(self, job: Job) -> Arrival:
        """Wait until the slot is filled. Raises what went wrong."""
        while not job.done:
            if self.ended or self.process != os.getpid() or sys.is_finalizing():
                raise DeviceError("this pass was ended, or its process was forked in the middle of it: begin another")
            job.bell.wait()
        error, job.error = job.error, None
        if error is not None:
            raise error
        return job.arrival

    def stop(self) -> None:
        """Begin no further job. May be called again, and from any thread."""
        self.ended = True
        self.jobs.put(None)

    def wait(self) -> None:
        """After `stop`: wait until no slot is written to. The thread looks at `ended` after it has said what it is at."""
        while (job := self.current) is not None and self.process == os.getpid() and not sys.is_finalizing():
            job.bell.wait()

    def join(self) -> None:
        """After `stop`: let the thread end, for tidiness. Nothing depends on it."""
        here = threading.current_thread()
        if self.thread.is_alive() and self.thread is not here and self.process == os.getpid() and not sys.is_finalizing():
            self.thread.join(timeout=IDLE)

    def _work(self) -> None:
        while not self.ended:
            try:
                job = self.jobs.get(timeout=IDLE)
            except Empty:
                if self.abandoned():
                    return
                continue
            if job is None:
                return
            self._fill(job)
            del job  # with its slot, and an error with all that its traceback holds

    def _fill(self, job: Job) -> None:
        self.current = job
        try:
            if not self.ended:
                job.arrival = self.bring(job.index, job.slot)
        except BaseException as error:  # whatever it is, it is the pass's
            job.error = error
        finally:
            self.current, job.done = None, True
            job.bell.ring()

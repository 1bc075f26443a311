"""Follower: what a lab shows, done again whenever a setting changes. The latest settings win.

Its jobs run in a thread of their own, a step at a time; what an older one is at ends with its step.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator

from gemmascope.errors import GemmascopeError
from gemmascope.labs.patching.session import LONG, told
from gemmascope.labs.worker import Job, Worker
from gemmascope.model.model import Model


class Follower:
    """steps_of: makes the steps that follow from the settings as they are; error: what went wrong last, with what to do.

    listener: called, in the thread that it comes from, whenever there is something new. number: counts how often that was.
    """

    def __init__(self, model: Model, steps_of: Callable[[], Generator[None]]) -> None:
        self.steps_of = steps_of
        self.guard = threading.RLock()
        self.listener: Callable[[], None] = lambda: None
        self.number = self.seq = 0
        self.error: str | None = None
        self._failed: BaseException | None = None
        self._worker = Worker(model, self._ended)

    @property
    def is_busy(self) -> bool:
        return self._worker.is_busy

    def ask(self) -> None:
        """The settings have changed: end what is under way, and do it again."""
        self.require_open()
        with self.guard:
            self._worker.cancel()
            self.seq += 1
            self.error = self._failed = None
            self._worker.submit(Job("what follows from the settings", LONG, self._steps(self.seq), self.seq))
        self.tell()

    def cancel(self) -> None:
        """End what is under way, after its step."""
        self._worker.cancel()

    def require_open(self) -> None:
        """LabError once the lab is closed."""
        self._worker.require_open()

    def close(self) -> None:
        """End what is under way, for good."""
        self._worker.close()

    def refuse(self, error: BaseException) -> None:
        """Show an error of something that was asked for and cannot be."""
        self.error = told(error)
        self.tell()

    def wait_for_first(self, timeout: float) -> None:
        """Wait until nothing is under way, but not longer than so many seconds. Nothing is raised."""
        for job in self._worker.jobs:
            job.ended.wait(timeout)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until nothing is under way. Raises what went wrong; GemmascopeError when the time is up."""
        self.require_open()
        for job in self._worker.jobs:
            if not job.ended.wait(timeout):
                raise GemmascopeError(f"{job.name} took longer than {timeout} s; it goes on: wait() waits, cancel() ends it")
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed

    def tell(self) -> None:
        """Tell the listener that there is something new."""
        with self.guard:
            self.number += 1
        try:
            self.listener()
        except Exception:  # a front end that is gone does not end a computation
            logging.getLogger(__name__).exception("the listener of a lab failed")

    def _steps(self, seq: int) -> Generator[None]:
        """The steps of one question, as long as it is the latest. A step stores nothing before it has what it stores."""
        for _ in self.steps_of():
            if seq != self.seq:
                return
            self.tell()
            yield

    def _ended(self, job: Job) -> None:
        if job.seq != self.seq:
            return
        if job.failed is not None:
            self._failed, self.error = job.failed, told(job.failed)
        self.tell()

"""What every lab has without a front end: a worker for its jobs, numbered questions, and events for a listener."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator
from typing import TypedDict

from gemmascope.errors import GemmascopeError, SweepError
from gemmascope.labs.worker import Job, Worker
from gemmascope.model.model import Model

# Ranks of jobs: lower ones run first, so a click is answered between two chunks of a long job.
# Another model is looked for and loaded before a long job goes on, since what that finds would be let go of.
PREPARE, CLICK, MODELS, LONG = range(4)


class Event(TypedDict):
    """Something that changed in a lab.

    seq: the question it belongs to. number: counts the events. what: the name of the job that ended, "" for other kinds.
    """

    seq: int
    number: int
    kind: str
    what: str


class Session:
    """A lab's jobs, in a thread of their own, and the events that say what changed.

    Every change of the settings is a new question with its own `seq`. Results of an older question raise no events.

    listener: called with every event, in the thread that caused it; it should be quick. number: of the latest event.
    error: what went wrong last, and what to do about it.
    """

    def __init__(self, model: Model, listener: Callable[[Event], None] | None = None) -> None:
        self.model = model
        self.listener = listener
        self.guard = threading.RLock()
        self.seq = self.number = 0
        self.error: str | None = None
        self._failed: BaseException | None = None
        self._worker = Worker(model, self._ended)

    @property
    def is_busy(self) -> bool:
        """Whether a job is waiting or under way."""
        return self._worker.is_busy

    def cancel(self) -> None:
        """End the jobs, the running one after its present step. Finished results stay."""
        self._worker.cancel()

    def wait_until_prepared(self, timeout: float | None = None) -> None:
        """Wait until a question can be shown: whether it can be run is known. Raises nothing.

        Args:
            timeout: At most so many seconds; None waits for as long as it takes.
        """
        for job in self._worker.jobs:
            if job.rank == PREPARE:
                job.ended.wait(timeout)

    def show_error(self, error: BaseException) -> None:
        """Show an error where it was caused, such as of a message of the page, which nobody waits for in Python.

        Args:
            error: What was raised.
        """
        self.error = error_text(error)
        self.notify("refused", self.seq)

    def notify(self, kind: str, seq: int, what: str = "") -> None:
        """Call the listener with an event, unless it is about an older question.

        Args:
            kind: What happened, such as "done".
            seq: The question that it is about.
            what: The name of the job that ended; empty for other kinds.
        """
        with self.guard:
            if seq != self.seq:
                return
            self.number += 1
            event = Event(seq=seq, number=self.number, kind=kind, what=what)
            listener = self.listener
        if listener is not None:
            try:
                listener(event)
            except Exception:  # a closed front end must not end the computation
                logging.getLogger(__name__).exception("the listener of a lab failed")

    def _wait(self, timeout: float | None) -> None:
        """Wait until no job is left. Raises the error of a job, and SweepError when the time is up."""
        self._worker.require_open()
        while jobs := self._worker.jobs:  # one that loads another model begins others as it ends
            for job in jobs:
                wait_for(job, timeout)
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed

    def _next_question(self) -> None:
        """Cancel the jobs of the present question and begin the next one."""
        self._worker.cancel(keeps_outlasting=True)
        self.seq += 1
        self.error = self._failed = None

    def _submit(self, name: str, rank: int, steps: Generator[None]) -> Job:
        return self._worker.submit(Job(name, rank, steps, self.seq))

    def _ended(self, job: Job) -> None:
        with self.guard:
            if job.outlasts:
                job.seq = self.seq
            if job.seq != self.seq:
                return
            if job.failed is not None:
                self._failed, self.error = job.failed, error_text(job.failed)
        self.notify("error" if job.failed is not None else "cancelled" if job.cancelled else "done", job.seq, job.name)


def wait_for(job: Job, timeout: float | None) -> None:
    """Wait until a job ended. SweepError when the time is up."""
    if not job.ended.wait(timeout):
        raise SweepError(f"{job.name} did not end within {timeout} s; it goes on: lab.wait() or lab.cancel()")


def error_text(error: BaseException) -> str:
    """An error as a lab shows it. Our own errors say what to do; others are shown with their class."""
    if isinstance(error, GemmascopeError):
        return str(error)
    return f"{type(error).__name__}: {error}. The settings are not to blame: lab.run() in Python shows where it comes from"

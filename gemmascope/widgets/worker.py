"""Workers: a thread for each lab that does its jobs step by step, and turns on each model, of a step each.

So labs of one model take turns, a click is answered between two chunks of a long sweep, and a cancel waits for one step.
"""

from __future__ import annotations

import atexit
import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary, WeakSet

import torch

from gemmascope.model.model import Model

# An idle thread ends after so many seconds, and is made anew when there is something to do.
LINGER = 5.0


class Turns:
    """A lock whose waiters go in the order in which they came: whoever gives it back and asks again goes last."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextmanager
    def turn(self) -> Iterator[None]:
        with self._changed:
            me = object()
            self._waiting.append(me)
            self._changed.wait_for(lambda: self._waiting[0] is me)
        try:
            yield
        finally:
            self.give_back()

    def take_if_free(self) -> bool:
        """Take a turn at once; False, and none taken, if there are others."""
        with self._changed:
            if self._waiting:
                return False
            self._waiting.append(object())
            return True

    def give_back(self) -> None:
        with self._changed:
            self._waiting.popleft()
            self._changed.notify_all()


_TURNS: WeakKeyDictionary[Model, Turns] = WeakKeyDictionary()
_GUARD = threading.Lock()
_WORKERS: WeakSet[Worker] = WeakSet()


def turns_of(model: Model) -> Turns:
    """Whose turn it is on a model: one for each model, however many labs there are."""
    with _GUARD:
        return _TURNS.setdefault(model, Turns())


@dataclass(eq=False)
class Job:
    """Something to be done in steps. Lower ranks go first, also between two steps of another job. seq: whose it is.

    over: whether it is done, failed or was cancelled; ended: set when whoever hears of that has heard. failed: what a step
    raised.
    """

    name: str
    rank: int
    steps: Generator[None]
    seq: int = 0
    number: int = 0
    cancelled: bool = False
    over: bool = False
    failed: BaseException | None = None
    ended: threading.Event = field(default_factory=threading.Event)


class Worker:
    """Does jobs in a thread of its own. on_end: told of every job that ended, in the thread that ended it."""

    def __init__(self, model: Model, on_end: Callable[[Job], None]) -> None:
        self.turns, self.on_end = turns_of(model), on_end
        self._jobs: list[Job] = []
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None
        _WORKERS.add(self)

    @property
    def jobs(self) -> list[Job]:
        """Those that have not ended, the next one first."""
        with self._changed:
            return sorted(self._jobs, key=lambda job: (job.rank, job.number))

    @property
    def is_busy(self) -> bool:
        return not all(job.over for job in self.jobs)

    def submit(self, job: Job) -> Job:
        with self._changed:
            job.number = next(self._numbers)
            self._jobs.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="gemmascope lab", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return job

    def now(self, job: Job) -> bool:
        """Do a short job in the calling thread, if nothing is under way anywhere on the model; else False."""
        with self._changed:
            if self._jobs or not self.turns.take_if_free():
                return False
        try:
            while self._step(job):
                pass
        finally:
            self.turns.give_back()
        self._end(job)
        return True

    def cancel(self) -> None:
        """End every job, the one under way after its step. What is done is kept."""
        with self._changed:
            for job in self._jobs:
                job.cancelled = True
            self._changed.notify_all()

    def end(self, timeout: float) -> None:
        """End every job and wait so many seconds for the step that is under way."""
        self.cancel()
        for job in self.jobs:
            job.ended.wait(timeout)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            if not job.cancelled:
                with self.turns.turn():
                    more = not job.cancelled and self._step(job)
            if job.cancelled or not more:
                self._end(job)

    def _next(self) -> Job | None:
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._jobs), timeout=LINGER):
                self._thread = None
                return None
        return self.jobs[0]

    def _step(self, job: Job) -> bool:
        """Take a job's next step; whether there are more. The grad mode is the thread's own, so it is set here."""
        try:
            with torch.no_grad():
                next(job.steps)
        except StopIteration:
            return False
        except Exception as error:  # whatever it is, it belongs to whoever asked, not to this thread
            job.failed = error
            return False
        return True

    def _end(self, job: Job) -> None:
        job.steps.close()
        job.over = True
        try:
            self.on_end(job)
        finally:
            with self._changed:
                self._jobs = [other for other in self._jobs if other is not job]
            job.ended.set()


@atexit.register
def _end_all() -> None:
    """An interpreter that ends while a thread computes can crash."""
    for worker in list(_WORKERS):
        worker.end(timeout=10.0)

"""Workers: each lab has a thread that runs its jobs step by step, and the labs of one model take turns after every step.

So a click is answered between two chunks of a long sweep, and a cancel waits for one step.
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

from gemmascope.errors import LabError
from gemmascope.model.model import Model
from gemmascope.model.shutdown import stopping_at_exit

CLOSED = "this lab is closed: what it found can still be read, and nothing more is computed; make a new one"

# An idle thread ends after so many seconds; the next job starts a new one.
IDLE_SECONDS = 5.0


class Turns:
    """A fair lock: waiters get it in the order in which they came."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextmanager
    def turn(self) -> Iterator[None]:
        with self._changed:
            ticket = object()
            self._waiting.append(ticket)
            self._changed.wait_for(lambda: self._waiting[0] is ticket)
        try:
            yield
        finally:
            self.give_back()

    def take_if_free(self) -> bool:
        """Take a turn if nobody has one or waits for one; whether it was taken."""
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
    """The turns on a model, which all its labs share."""
    with _GUARD:
        return _TURNS.setdefault(model, Turns())


@dataclass(eq=False)
class Job:
    """Work in steps. Jobs of a lower rank run first, also between two steps of another job. seq: the question it is for.

    outlasts: whether it goes on when the settings change.
    over: whether it is done, failed or was cancelled; ended: set after on_end was called. failed: what a step raised.
    """

    name: str
    rank: int
    steps: Generator[None]
    seq: int = 0
    outlasts: bool = False
    number: int = 0
    cancelled: bool = False
    over: bool = False
    failed: BaseException | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    on_end: Callable[[Job], None] | None = None


class Queue:
    """The jobs of a worker that have not ended, and the thread that runs them.

    The thread refers to the queue and not to the worker, so only a job refers to its lab: one without jobs can be collected
    while the thread waits.
    """

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.jobs: list[Job] = []
        self.changed = threading.Condition()
        self.thread: threading.Thread | None = None
        self.is_closed = False

    def add(self, job: Job) -> None:
        """Add a job, and start the thread if there is none. LabError once the lab is closed."""
        with self.changed:
            if self.is_closed:
                raise LabError(CLOSED)
            self.jobs.append(job)
            if self.thread is None:
                self.thread = threading.Thread(target=_run_queue, args=(self,), name="gemmascope lab", daemon=True)
                self.thread.start()
            self.changed.notify_all()

    def listed(self) -> list[Job]:
        """The jobs, the next one first."""
        with self.changed:
            return sorted(self.jobs, key=lambda job: (job.rank, job.number))

    def next(self) -> Job | None:
        """Wait for the next job. None if there was nothing to do for a while: then the thread must end."""
        with self.changed:
            self.changed.wait_for(lambda: bool(self.jobs) or self.is_closed, timeout=IDLE_SECONDS)
            if not self.jobs:
                self.thread = None
                return None
        return self.listed()[0]

    def end(self, job: Job) -> None:
        """Mark a job as over: call its on_end, then wake whoever waits for it."""
        job.steps.close()
        job.over = True
        on_end, job.on_end = job.on_end, None
        try:
            if on_end is not None:
                on_end(job)
        finally:
            with self.changed:
                self.jobs = [other for other in self.jobs if other is not job]
            job.ended.set()


class Worker:
    """Runs a lab's jobs in a thread. on_end: called with every job that ended, in the thread that ended it."""

    def __init__(self, model: Model, on_end: Callable[[Job], None]) -> None:
        self.on_end = on_end
        self._queue = Queue(turns_of(model))
        self._numbers = itertools.count()
        _WORKERS.add(self)

    @property
    def jobs(self) -> list[Job]:
        """The jobs that have not ended, the next one first."""
        return self._queue.listed()

    @property
    def is_busy(self) -> bool:
        return not all(job.over for job in self.jobs)

    @property
    def is_closed(self) -> bool:
        return self._queue.is_closed

    def require_open(self) -> None:
        """LabError once the lab is closed."""
        if self.is_closed:
            raise LabError(CLOSED)

    def serve(self, model: Model) -> None:
        """Take the turns of another model from the next step on."""
        self._queue.turns = turns_of(model)

    def submit(self, job: Job) -> Job:
        job.number, job.on_end = next(self._numbers), self.on_end
        self._queue.add(job)
        return job

    def run_now(self, job: Job) -> bool:
        """Run a short job in the calling thread if no lab of the model is busy; whether it was run."""
        turns = self._queue.turns
        with self._queue.changed:
            if self._queue.is_closed or self._queue.jobs or not turns.take_if_free():
                return False
        job.on_end = self.on_end
        try:
            while _step(job):
                pass
        finally:
            turns.give_back()
        self._queue.end(job)
        return True

    def cancel(self, *, keeps_outlasting: bool = False) -> None:
        """End every job, the running one after its present step; if asked, not those that outlast a question."""
        with self._queue.changed:
            for job in self._queue.jobs:
                job.cancelled = job.cancelled or not (keeps_outlasting and job.outlasts)
            self._queue.changed.notify_all()

    def end(self, timeout: float) -> None:
        """End every job, and wait at most so many seconds for the running step."""
        self.cancel()
        for job in self.jobs:
            job.ended.wait(timeout)

    def close(self, timeout: float = 10.0) -> None:
        """End every job and the thread, and accept no more jobs. Waits at most so many seconds for the running step."""
        with self._queue.changed:
            self._queue.is_closed = True
        self.cancel()
        thread = self._queue.thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)


def _run_queue(queue: Queue) -> None:
    while _run_step(queue):
        pass


def _run_step(queue: Queue) -> bool:
    """Take one step of the next job; False if the thread must end. While it waits, no variable here refers to a job."""
    job = queue.next()
    if job is None:
        return False
    more = False
    if not job.cancelled:
        with queue.turns.turn():
            more = not job.cancelled and _step(job)
    if job.cancelled or not more:
        queue.end(job)
    return True


def _step(job: Job) -> bool:
    """Take a job's next step; whether there are more. The grad mode is set here because it belongs to the thread."""
    try:
        with stopping_at_exit(), torch.no_grad():
            next(job.steps)
    except StopIteration:
        return False
    except Exception as error:  # raised again where the job is waited for
        job.failed = error
        return False
    return True


@atexit.register
def _end_all() -> None:
    """End all jobs before the interpreter ends: one that ends while a thread computes can crash."""
    for worker in list(_WORKERS):
        worker.end(timeout=10.0)

"""The driver: gives jobs to workers as they become free, and gives their answers in the order of the jobs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass

from gemmascope.arguments import short_repr
from gemmascope.errors import WorkersError, warn
from gemmascope.workers.packing import pack, unpack
from gemmascope.workers.pool import About, Answer, Answered, Event, Failed, Job, Lost, Pool, Ready, Waiting

# How often a job is given out before it counts as what ends its workers, such as one that takes too much memory.
MOST_TRIES = 3

# How many workers may be lost while they start, one after the other, before that is an error.
MOST_LOST_STARTS = 3

# See run_jobs.
AHEAD = 4

# The jobs of a call, from what the first worker says of itself.
JobsOf = Callable[[About], Iterable[Job]]


@dataclass
class _Given:
    """number: its place in the order. tries: how often it was given out."""

    number: int
    data: bytes
    tries: int = 0


def run_jobs(
    pool: Pool,
    model: bytes,
    task: bytes,
    jobs_of: JobsOf,
    describe: Callable[[Job], str] = short_repr,
    *,
    ahead: int = AHEAD,
) -> Generator[Answer]:
    """Have the pool's workers do jobs.

    Args:
        pool: The workers.
        model: What they load (ModelSource), packed.
        task: What they do, packed.
        jobs_of: Makes the jobs, from the `about` of the first worker that is ready.
        describe: Names a job in an error.
        ahead: How many jobs for each worker may be ahead of the first one without an answer. Answers ahead of it are held in
            memory, and a driver that is killed loses them.

    Yields:
        The jobs' answers, in the order of the jobs, whatever the order in which they came.

    Raises:
        WorkersError: No worker can load the model, or one job has ended several workers. What a job raises is raised here.
    """
    try:
        yield from _Driver(pool, model, task, jobs_of, describe, ahead).answers()
    finally:
        pool.finish()


class _Driver:
    def __init__(
        self, pool: Pool, model: bytes, task: bytes, jobs_of: JobsOf, describe: Callable[[Job], str], ahead: int
    ) -> None:
        self.pool, self.jobs_of, self.describe, self.ahead = pool, jobs_of, describe, ahead
        self.starting = set(pool.start(model, task))
        self.idle: deque[int] = deque()
        self.at_work: dict[int, _Given] = {}
        self.again: deque[_Given] = deque()  # whose worker was lost
        self.jobs: Iterator[Job] | None = None
        self.n_made = self.n_yielded = self.n_lost_starts = 0
        self.answered: dict[int, Answer] = {}
        self.failed_starts: list[Failed] = []
        self.has_waited = False
        self.fault: Exception | None = None  # of the next job: raised when all before it have their answers

    def answers(self) -> Iterator[Answer]:
        while True:
            self._give_out()
            while self.n_yielded in self.answered:
                self.n_yielded += 1
                yield self.answered.pop(self.n_yielded - 1)
                self._give_out()  # the oldest answer makes room for a job
            if self.jobs is not None and not self.at_work and not self.again and not self.answered and self._ended:
                if self.fault is not None:
                    raise self.fault
                return
            self._take(self.pool.wait())

    @property
    def _ended(self) -> bool:
        """Whether there are no more jobs: a worker was free for one, and got none."""
        return bool(self.idle)

    def _give_out(self) -> None:
        while self.idle and (job := self._next_job()) is not None:
            worker = self.idle.popleft()
            job.tries += 1
            self.at_work[worker] = job
            self.pool.give(worker, job.data)

    def _next_job(self) -> _Given | None:
        if self.again:
            return self.again.popleft()
        if self.jobs is None or self.fault is not None or self.n_made >= self.n_yielded + self.ahead * self.pool.n:
            return None
        try:
            job = next(self.jobs)
        except StopIteration:
            return None
        except Exception as error:
            self.fault = error
            return None
        self.n_made += 1
        return _Given(self.n_made - 1, pack(job, None))

    def _take(self, event: Event) -> None:
        if isinstance(event, Ready):
            self.starting.discard(event.worker)
            self.n_lost_starts = 0
            self.idle.append(event.worker)
            if self.jobs is None:
                self.jobs = iter(self.jobs_of(event.about))
        elif isinstance(event, Answered):
            self.answered[self.at_work.pop(event.worker).number] = event.answer
            self.idle.append(event.worker)
        elif isinstance(event, Failed):
            self._failed(event)
        elif isinstance(event, Lost):
            self._lost(event)
        elif isinstance(event, Waiting) and event.why and self.jobs is None and not self.has_waited:
            self.has_waited = True
            warn(f"no worker has started yet: {event.why}")

    def _failed(self, event: Failed) -> None:
        if event.worker in self.at_work:
            raise event.error from WorkersError(f"in worker {event.worker}:\n{event.trace}")
        self.starting.discard(event.worker)
        self.pool.drop(event.worker)
        self.failed_starts.append(event)
        if self.starting or self.idle or self.at_work:
            if len(self.failed_starts) == 1:
                warn(f"a worker cannot begin, and the others go on without it: {event.error}")
            return
        first = self.failed_starts[0]
        raise WorkersError(f"no worker can begin: {first.error}") from WorkersError(f"in a worker:\n{first.trace}")

    def _lost(self, event: Lost) -> None:
        job = self.at_work.pop(event.worker, None)
        if event.worker in self.idle:
            self.idle.remove(event.worker)
        if job is not None and job.tries >= MOST_TRIES:
            raise WorkersError(
                f"{job.tries} workers in a row ended in the same job, {self._named(job)}: {event.why}. If it takes too much "
                "memory, give a smaller memory=, or fewer workers a machine"
            )
        if job is not None:
            self.again.append(job)
        elif event.worker in self.starting:
            self.n_lost_starts += 1
            if self.n_lost_starts >= MOST_LOST_STARTS:
                raise WorkersError(
                    f"{self.n_lost_starts} workers ended while they loaded the model: {event.why}. If memory is short, have "
                    "fewer workers a machine, or load the model with memory= or weights='int8'"
                )
        self.starting.discard(event.worker)
        self.starting.add(self.pool.replace(event.worker))

    def _named(self, job: _Given) -> str:
        return self.describe(unpack(job.data))

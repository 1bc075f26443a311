"""A pool of workers in this process, for tests of what is shared among workers: no engine, and events in any order."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import gemmascope as gs
from gemmascope.workers.host import Host
from gemmascope.workers.packing import PicklerClass
from gemmascope.workers.pool import Answered, Event, Failed, Lost, Ready, Waiting

# Whether a worker is lost in place of an event: (its number, how many jobs it has done, whether it starts).
Kills = Callable[[int, int, bool], bool]


class LocalPool:
    """See Pool. The work of a worker is done when its event is taken; the seed draws whose event comes next.

    kills: which workers are lost. room: how many workers the machines hold at once; others wait. log: what happened, as
    words.
    """

    n_gpus = 0.0
    pickler_class: PicklerClass = pickle.Pickler

    def __init__(self, n: int, seed: int = 0, kills: Kills = lambda worker, done, starts: False, room: int = 1000) -> None:
        self.room = room
        self.n, self.kills, self.random, self.log = n, kills, random.Random(seed), list[str]()
        self.hosts: dict[int, Host] = {}
        self.done: dict[int, int] = {}
        self.pending: dict[int, bytes | None] = {}  # a job, or None for a start
        self.call = b"", b""
        self.n_started = self.n_finished = 0

    def start(self, model: bytes, task: bytes) -> Sequence[int]:
        self.call = model, task
        return [self._new() for _ in range(self.n)]

    def replace(self, worker: int) -> int:
        del self.hosts[worker]
        return self._new()

    def drop(self, worker: int) -> None:
        del self.hosts[worker]

    def give(self, worker: int, job: bytes) -> None:
        assert worker not in self.pending, "a worker at work was given a job"
        self.pending[worker] = job

    def wait(self) -> Event:
        assert self.pending, "the driver waits, and nobody has anything to do"
        if self.random.random() < 0.1:
            return Waiting()
        with_room = list(self.hosts)[: self.room]
        able = [worker for worker in self.pending if worker in with_room]
        assert able, "the driver waits for workers that have no room"
        worker = self.random.choice(able)
        job = self.pending.pop(worker)
        if self.kills(worker, self.done[worker], job is None):
            self.log.append(f"lost {worker}")
            return Lost(worker, "it was killed")
        host = self.hosts[worker]
        outcome = host.open(*self.call) if job is None else host.run(job)
        if outcome[0] == "error":
            return Failed(worker, *outcome[1:])
        self.done[worker] += job is not None
        return Ready(worker, outcome[1]) if job is None else Answered(worker, outcome[1])

    def finish(self) -> None:
        self.n_finished += 1
        self.hosts.clear()
        self.pending.clear()

    def _new(self) -> int:
        self.n_started += 1
        self.hosts[self.n_started], self.done[self.n_started] = Host(), 0
        self.pending[self.n_started] = None
        return self.n_started


class LocalWorkers(gs.RayWorkers):
    """What workers= takes, with a LocalPool behind it."""

    def __init__(self, n: int = 3, **options: object) -> None:
        super().__init__(None, n, None, 1, {})
        self.pools: list[LocalPool] = []
        self.options = options

    @contextmanager
    def pool(self) -> Iterator[LocalPool]:  # type: ignore[override]
        self.pools.append(LocalPool(self.n, **self.options))  # type: ignore[arg-type]
        yield self.pools[-1]

"""Task and Pool: what workers do, and what a driver needs of the engine that runs them. Knows no engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from gemmascope.model.model import Model

# What a task makes of them: a job, its answer, and what the driver must know of a worker before it makes jobs.
Job: TypeAlias = Any
Answer: TypeAlias = Any
About: TypeAlias = Any


class OpenedTask(Protocol):
    """A task in a worker, with its model."""

    @property
    def about(self) -> About: ...
    def run(self, job: Job) -> Answer:
        """The answer to a job. It depends on the job alone, not on the worker or on the jobs before."""


class Task(Protocol):
    """What every worker of a call does. A dataclass, which is pickled; its fields are named in errors."""

    def open(self, model: Model) -> OpenedTask: ...


@dataclass(frozen=True)
class Ready:
    """A worker has its model and its task."""

    worker: int
    about: About


@dataclass(frozen=True)
class Answered:
    """A worker has done its job and is free."""

    worker: int
    answer: Answer


@dataclass(frozen=True)
class Failed:
    """An exception in a worker, at its start or in a job. It would come again. trace: the worker's traceback, as text."""

    worker: int
    error: Exception
    trace: str


@dataclass(frozen=True)
class Lost:
    """A worker has ended, and with it what it was doing. why: what the engine says of it."""

    worker: int
    why: str


@dataclass(frozen=True)
class Waiting:
    """Nothing has happened for a while. why: what the engine lacks to start workers; empty if they are at work."""

    why: str = ""


Event = Ready | Answered | Failed | Lost | Waiting


class Pool(Protocol):
    """Workers of one engine. They have numbers, which are not given twice.

    n: how many there should be.
    """

    @property
    def n(self) -> int: ...
    def start(self, model: bytes, task: bytes) -> Sequence[int]:
        """Begin one call: have all workers load the model and open the task. Each then is Ready or has Failed."""

    def replace(self, worker: int) -> int:
        """Start another worker in the place of one that was lost."""

    def drop(self, worker: int) -> None:
        """End a worker that cannot begin. What it had of a machine may then start one that waits for room."""

    def give(self, worker: int, job: bytes) -> None:
        """Give a free worker a job."""

    def wait(self) -> Event:
        """The next event. It returns often enough, with Waiting, for an interrupt to be heard."""

    def finish(self) -> None:
        """End the call. Workers that are still at work are ended, and so are all where nothing keeps them."""

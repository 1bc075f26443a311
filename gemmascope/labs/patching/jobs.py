"""The jobs of a patching lab: generators that its worker takes one step at a time.

Results for settings that have changed since stay in their experiment and raise no events.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from gemmascope.labs.patching.cell_grid import Part
from gemmascope.labs.patching.detail import detail_of
from gemmascope.labs.patching.experiment import Experiment
from gemmascope.sweeps.result import Array

if TYPE_CHECKING:
    from gemmascope.labs.patching.session import LabSession


class Progress(TypedDict):
    """How far a long job is: `done` of `total` cells have a number, and the others take about so many seconds."""

    what: str
    done: int
    total: int
    seconds: float | None


def preparing(session: LabSession, seq: int) -> Generator[None]:
    """Create the experiment of the settings, then run its two prompts."""
    try:
        experiment = Experiment(session.settings, session.model)
    except Exception as error:
        with session.guard:
            if seq == session.seq:
                session.refused = error
        raise
    with session.guard:
        if seq != session.seq:
            return
        session.experiment = experiment
    session.tell("prepared", seq)
    yield
    experiment.run_baselines()
    session.tell("baselines", seq)


def running(session: LabSession, seq: int, part: Part, cells: Array | None) -> Generator[None]:
    """Exact numbers of a part of the grid, chunk by chunk. cells: its cells; None if the grid was not known yet."""
    experiment = session.current(seq)
    if experiment is None:
        return
    cells = part.cells(experiment.shape) if cells is None else cells
    total, _ = experiment.expected(cells)
    with _under_way(session, experiment, cells):
        _tell_progress(session, seq, experiment, part, cells, total)
        for numbers in experiment.run_chunks(cells):
            _store(session, experiment, numbers)
            _tell_progress(session, seq, experiment, part, cells, total)
            yield


def looking(session: LabSession, seq: int, part: Part, cells: Array | None) -> Generator[None]:
    """One cell's number, then its detail, from one patched run. cells: as in running."""
    experiment = session.current(seq)
    if experiment is None:
        return
    cells = part.cells(experiment.shape) if cells is None else cells
    number = int(np.flatnonzero(cells)[0])
    with _under_way(session, experiment, cells):
        session.tell("cells", seq)
        experiment.run_baselines()
        patched = experiment.run_cell(number)
        _store(session, experiment, [number])
    session.tell("cells", seq)
    yield
    detail = detail_of(experiment, *divmod(number, experiment.shape[1]), patched)
    with session.guard:
        if seq == session.seq:
            session.detail = detail
    session.tell("detail", seq)


def estimating(session: LabSession, seq: int) -> Generator[None]:
    """The gradient estimate of all cells: one step."""
    experiment = session.current(seq)
    if experiment is None:
        return
    with session.guard:
        session.progress = Progress(what="estimate", done=0, total=1, seconds=None)
    session.tell("progress", seq)
    estimated = experiment.estimate()
    with session.guard:
        experiment.estimated, experiment.cell_grid.estimate = estimated, estimated.effect.values
    session.tell("cells", seq)
    yield


@contextmanager
def _under_way(session: LabSession, experiment: Experiment, cells: Array) -> Iterator[None]:
    with session.guard:
        experiment.cell_grid.under_way |= cells & experiment.runnable
    try:
        yield
    finally:
        with session.guard:
            experiment.cell_grid.under_way[cells] = False


def _store(session: LabSession, experiment: Experiment, numbers: list[int]) -> None:
    with session.guard:
        experiment.cell_grid.exact.flat[numbers] = experiment.effects(numbers)
        experiment.cell_grid.under_way.flat[numbers] = False


def _tell_progress(session: LabSession, seq: int, experiment: Experiment, part: Part, cells: Array, total: int) -> None:
    left, seconds = experiment.expected(cells)
    if part.what != "cell":
        with session.guard:
            if seq == session.seq:
                session.progress = Progress(what=part.what, done=total - left, total=total, seconds=seconds)
    session.tell("cells", seq)

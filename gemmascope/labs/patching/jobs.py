"""The jobs of a patching lab: generators that its worker takes one step at a time.

Results for settings that have changed since stay in their experiment and raise no events.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol, TypedDict

import numpy as np

from gemmascope.errors import GemmascopeError
from gemmascope.labs.patching.cell_grid import Part, is_inside
from gemmascope.labs.patching.detail import Detail, detail_of
from gemmascope.labs.patching.experiment import Experiment
from gemmascope.labs.patching.settings import Settings
from gemmascope.model.model import Model
from gemmascope.values import Array

# A grid that takes no longer than this is computed without being asked for, in seconds.
MOMENT_SECONDS = 2.0


class Progress(TypedDict):
    """How far a long job is: `done` of `total` cells have a number, and the others take about so many seconds."""

    what: str
    done: int
    total: int
    seconds: float | None


class LabState(Protocol):
    """What a job reads and writes of its lab, whose settings may change while it runs."""

    model: Model
    settings: Settings
    seq: int
    experiment: Experiment | None
    detail: Detail | None
    progress: Progress | None
    refused: BaseException | None
    begins_at_once: bool

    @property
    def guard(self) -> AbstractContextManager[object]: ...

    def current(self, seq: int) -> Experiment | None: ...

    def notify(self, kind: str, seq: int) -> None: ...

    def keep(self, experiment: Experiment) -> None: ...

    def start_at_once(self) -> None: ...


def preparing(lab: LabState, seq: int) -> Generator[None]:
    """Create the experiment of the settings, unless there is one, then run its two prompts."""
    if lab.experiment is None:
        try:
            experiment = Experiment(lab.settings, lab.model)
        except Exception as error:
            with lab.guard:
                if seq == lab.seq:
                    lab.refused = error
            raise
        with lab.guard:
            if seq != lab.seq:
                return
            lab.experiment = experiment
            lab.keep(experiment)
        lab.notify("prepared", seq)
        yield
    prepared = lab.current(seq)
    if prepared is None:
        return
    prepared.run_baselines()
    lab.notify("baselines", seq)
    yield  # a lab that was cancelled meanwhile begins nothing new
    if lab.begins_at_once:
        lab.start_at_once()


def at_once(lab: LabState, seq: int) -> Generator[None]:
    """Estimate the grid, then compute all of it, each only if it takes a moment: what to look at, before any click.

    Nobody asked for it, so an estimate that fails is left out: the button that asks for one shows why.
    """
    experiment = lab.current(seq)
    if experiment is None or experiment.throughput.streams:
        return
    if experiment.estimated is None and (experiment.throughput.estimate_seconds() or 0.0) <= MOMENT_SECONDS:
        with suppress(GemmascopeError):
            yield from estimating(lab, seq)
    part = Part("all")
    _, seconds = experiment.expected(part.cells(experiment.shape))
    if seconds is not None and seconds <= MOMENT_SECONDS:
        yield from running(lab, seq, part, None)


def running(lab: LabState, seq: int, part: Part, cells: Array | None) -> Generator[None]:
    """Exact numbers of a part of the grid, chunk by chunk. cells: its cells; None if the grid was not known yet."""
    experiment = lab.current(seq)
    if experiment is None:
        return
    cells = part.cells(experiment.shape) if cells is None else cells
    total, _ = experiment.expected(cells)
    with _under_way(lab, experiment, cells):
        _notify_progress(lab, seq, experiment, part, cells, total)
        for numbers in experiment.run_chunks(cells):
            _store(lab, experiment, numbers)
            _notify_progress(lab, seq, experiment, part, cells, total)
            yield


def looking(lab: LabState, seq: int, part: Part, cells: Array | None, *, in_a_blink: bool = False) -> Generator[None]:
    """One cell's number, then its detail, from one patched run. cells: as in running.

    in_a_blink: whether that takes so little time that nobody need see the cell under way.
    """
    experiment = lab.current(seq)
    if experiment is None:
        return
    cells = part.cells(experiment.shape) if cells is None else cells
    number = int(np.flatnonzero(cells)[0])
    with _under_way(lab, experiment, cells):
        if not in_a_blink:
            lab.notify("cells", seq)
        experiment.run_baselines()
        patched = experiment.run_cell(number)
        _store(lab, experiment, [number])
    lab.notify("number", seq)
    yield
    detail = detail_of(experiment, *divmod(number, experiment.shape[1]), patched)
    with lab.guard:
        if seq == lab.seq:
            lab.detail = detail
    lab.notify("detail", seq)


def looking_if_there(lab: LabState, seq: int, part: Part) -> Generator[None]:
    """As a click, for a cell that was clicked before the grid was known: nothing if there is no grid or no such place."""
    experiment = lab.experiment
    if experiment is not None and is_inside(experiment.shape, part.row, part.column):
        steps = running if experiment.throughput.streams else looking
        yield from steps(lab, seq, part, None)


def estimating(lab: LabState, seq: int) -> Generator[None]:
    """The gradient estimate of all cells: one step."""
    experiment = lab.current(seq)
    if experiment is None:
        return
    with lab.guard:
        lab.progress = Progress(what="estimate", done=0, total=1, seconds=None)
    lab.notify("progress", seq)
    estimated = experiment.estimate()
    with lab.guard:
        experiment.estimated, experiment.cell_grid.estimate = estimated, estimated.effect.values
    lab.notify("cells", seq)
    yield


@contextmanager
def _under_way(lab: LabState, experiment: Experiment, cells: Array) -> Iterator[None]:
    with lab.guard:
        experiment.cell_grid.under_way |= cells & experiment.runnable
    try:
        yield
    finally:
        with lab.guard:
            experiment.cell_grid.under_way[cells] = False


def _store(lab: LabState, experiment: Experiment, numbers: list[int]) -> None:
    with lab.guard:
        experiment.cell_grid.exact.flat[numbers] = experiment.effects(numbers)
        experiment.cell_grid.under_way.flat[numbers] = False


def _notify_progress(lab: LabState, seq: int, experiment: Experiment, part: Part, cells: Array, total: int) -> None:
    n_pending, seconds = experiment.expected(cells)
    if part.what != "cell":
        with lab.guard:
            if seq == lab.seq:
                lab.progress = Progress(what=part.what, done=total - n_pending, total=total, seconds=seconds)
    lab.notify("cells", seq)

"""A sweep that is shared among workers.

Workers get the chunks that one process would run, one pass each, and their numbers are filled in in the order of the chunks:
products of other row counts round differently, so that other chunks would give other numbers.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from gemmascope.errors import warn
from gemmascope.memory.limits import microbatch_rows, rows_within
from gemmascope.model.model import Model
from gemmascope.sweeps.cells import CellRun, chunked, cost_of, pending_cells
from gemmascope.sweeps.journal_lines import SweepNumbers
from gemmascope.sweeps.metadata import SweepMetadata
from gemmascope.sweeps.pairs import pairs_of
from gemmascope.sweeps.result import SweepResult
from gemmascope.sweeps.running.runner import At, SweepRunner
from gemmascope.sweeps.sets.filling import Filling
from gemmascope.sweeps.sets.numbers import SetQuestion
from gemmascope.sweeps.sets.result import SweepSet
from gemmascope.sweeps.spec import SweepSpec
from gemmascope.workers.choice import RayWorkers
from gemmascope.workers.driver import run_jobs
from gemmascope.workers.packing import ModelSource, pack, pack_task


@dataclass(frozen=True)
class SweepTask:
    """What a worker needs to run any chunk. clean, corrupt: from listed_pairs. question: of the driver's result."""

    clean: object
    corrupt: object
    metric: object
    spec: SweepSpec
    memory: int | str | None
    question: SweepMetadata | SetQuestion

    def open(self, model: Model) -> SweepWorker:
        return SweepWorker(self, model)


@dataclass(frozen=True)
class ChunkNumbers:
    """The numbers of a chunk. values: (row, cell, metric); baselines: (row, of the patched run, of the source)."""

    values: list[tuple[int, int, float]]
    baselines: list[tuple[int, float, float]]


class SweepWorker:
    """A sweep in a worker. about: how many rows one pass may carry on the worker's device."""

    def __init__(self, task: SweepTask, model: Model) -> None:
        pairs = pairs_of(task.clean, task.corrupt, task.metric, task.spec, model)
        n_pairs = len(pairs) // len(task.spec.each_site())
        question, self.about = task.question, rows_within(task.memory, model)
        result = SweepSet(question, n_pairs) if isinstance(question, SetQuestion) else SweepResult.empty(question, n_pairs)
        self._filling = Filling(pairs, result)
        n_at_once = microbatch_rows(model, task.memory)
        self._runner = SweepRunner(pairs, [pair.edits_of for pair in pairs], result, model, self.about, n_at_once=n_at_once)

    def run(self, job: Sequence[At]) -> ChunkNumbers:
        """Run a chunk of cells."""
        runner, numbers = self._runner, self._runner.numbers
        numbers.source_metric[:] = np.nan  # a baseline that is there is not measured again
        cells = [(pair, number, runner.pairs[pair].grid.cell(number)) for pair, number in job]
        chunk = [CellRun(pair, number, runner.edits_of[pair](cell), 0) for pair, number, cell in cells]
        runner.run_chunk(chunk, self._filling)
        done = [at for pair, number in job for at in self._filling.rows_of(pair, number)]
        rows = sorted({row for row, _ in done})
        return ChunkNumbers(
            [(row, cell, float(numbers.values[row].flat[cell])) for row, cell in done],
            [(row, float(numbers.base_metric[row]), float(numbers.source_metric[row])) for row in rows],
        )


def chunks_on_workers(runner: SweepRunner, task: SweepTask, workers: RayWorkers) -> Generator[list[At]]:
    """As SweepRunner.chunks, with the chunks run by workers."""
    filling = Filling(runner.pairs, runner.result)
    numbers, jobs = runner.numbers, list[list[At]]()

    def jobs_of(max_rows: int) -> Iterator[list[At]]:
        for chunk in chunked(_sized(runner, filling), lambda: min(max_rows, runner.max_rows)):
            jobs.append([(cell.pair, cell.number) for cell in chunk])
            yield jobs[-1]

    if not any(True for _ in jobs_of(1)):  # all cells have a value
        return
    jobs.clear()
    with workers.pool() as pool:
        source = pack(ModelSource.of(runner.model, pool.n_gpus), None)
        packed = pack_task(task, runner.model, pool.pickler_class)
        with closing(run_jobs(pool, source, packed, jobs_of, partial(_named, runner))) as answers:
            for answer in answers:
                _fill(numbers, answer)
                done = [(row, cell) for row, cell, _ in answer.values]
                runner.journal.write(numbers, done)
                yield done
    if len(jobs) < workers.n:
        warn(
            f"this was {len(jobs)} pass{'es' if len(jobs) > 1 else ''}: {len(jobs)} of {workers.n} workers had work. A "
            "smaller memory= makes more passes, of fewer rows, whose products round otherwise"
        )


class _SizedCell(NamedTuple):
    """A cell that waits for a worker: the rows of its run, without the edits, which the worker makes."""

    pair: int
    number: int
    n_rows: int


def _sized(runner: SweepRunner, filling: Filling) -> Iterator[_SizedCell]:
    """The cells that cell_runs gives, with the rows that their runs take."""
    for pair, number, cell in pending_cells(runner.pairs, filling.pending, None):
        cost = cost_of(runner.pairs[pair], cell)
        if cost.n_cells:
            yield _SizedCell(pair, number, cost.n_rows)


def _fill(numbers: SweepNumbers, answer: ChunkNumbers) -> None:
    """As a pass in this process fills them: the baseline of a source is that of the first chunk."""
    for row, cell, value in answer.values:
        numbers.values[row].flat[cell] = value
    for row, base, source in answer.baselines:
        numbers.base_metric[row] = base
        if np.isnan(numbers.source_metric[row]):
            numbers.source_metric[row] = source


def _named(runner: SweepRunner, job: Sequence[At]) -> str:
    """A chunk in an error: its first cell and its last."""
    ends = []
    for pair, number in (job[0], job[-1]):
        grid = runner.pairs[pair].grid
        places = ", ".join(f"{axis} {grid.cell(number)[axis][0]}" for axis in grid.axes)
        ends.append(f"{grid.site.name} at {places} of pair {pair // _n_grids(runner)}")
    return f"{len(job)} cells from {ends[0]} to {ends[1]}"


def _n_grids(runner: SweepRunner) -> int:
    return sum(pair.base is runner.pairs[0].base for pair in runner.pairs)

"""SweepRunner: a sweep that is ready to run, chunk by chunk; with a progress bar, and what an interrupt leaves of it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

from gemmascope.errors import warn
from gemmascope.model.model import Model
from gemmascope.run.passes import require_finite_end
from gemmascope.sweeps.cells import CellRun, EditsOf, cell_runs, chunked, pending_cells
from gemmascope.sweeps.journal import NOWHERE, Journal, JournalStopped
from gemmascope.sweeps.pairs import Pair
from gemmascope.sweeps.result import SweepResult
from gemmascope.sweeps.sets.filling import Filling
from gemmascope.sweeps.sets.numbers import SetNumbers
from gemmascope.sweeps.sets.result import SweepSet
from gemmascope.sweeps.variants import Variant, final_residuals
from gemmascope.values import Array

# A cell, by the number of its pair (with its grid) and its own.
At = tuple[int, int]


@dataclass(frozen=True)
class SweepRunner:
    """A sweep that is ready to run, all of it or some of its cells, chunk by chunk into one result.

    pairs: the grids of one pair stand side by side. edits_of: for each of them, what makes the edits of a cell. max_rows:
    how many rows one pass may carry. journal: where finished cells are written. n_at_once: how many rows go through a
    layer at once; None: as suits the device.
    """

    pairs: Sequence[Pair]
    edits_of: Sequence[EditsOf]
    result: SweepResult | SweepSet
    model: Model
    max_rows: int
    journal: Journal = NOWHERE
    n_at_once: int | None = None

    @property
    def single(self) -> SweepResult:
        """The result of a sweep of one site and one metric."""
        assert isinstance(self.result, SweepResult)
        return self.result

    @property
    def numbers(self) -> SweepResult | SetNumbers:
        """The result's numbers, for a file and for the progress."""
        return self.result if isinstance(self.result, SweepResult) else self.result.numbers

    def chunks(
        self, cells: Array | None = None, row_limit: Callable[[], int] | None = None
    ) -> Generator[list[tuple[int, int]]]:
        """Run the cells that have no value yet, and fill the result. Each step runs a chunk and gives its (pair, cell).

        cells: which to run, bool [*grid]; None for all. row_limit: called before each chunk, for how many rows it may
        carry; never more than max_rows. The caller may stop after any step: the cells of that step are in the result.
        """

        def limit() -> int:
            return self.max_rows if row_limit is None else min(row_limit(), self.max_rows)

        filling = Filling(self.pairs, self.result)
        runs = cell_runs(self.pairs, self.edits_of, pending_cells(self.pairs, filling.pending, cells))
        for chunk in chunked(runs, limit):
            self.run_chunk(chunk, filling)
            done = [at for run in chunk for at in filling.rows_of(run.pair, run.number)]
            self.journal.write(self.numbers, done)
            yield done

    def run_chunk(self, chunk: Sequence[CellRun], filling: Filling) -> None:
        """Run a chunk of cells beside the runs of their pairs, each once, in one pass, and fill the result."""
        model, numbers = self.model, sorted({run.pair for run in chunk})
        bases = list({id(base): base for number in numbers if (base := self.pairs[number].base)}.values())
        index = {id(base): i for i, base in enumerate(bases)}
        variants = [Variant(index[id(self.pairs[run.pair].base)], run.edits) for run in chunk]
        sources = {id(source): source for number in numbers if (source := self.pairs[number].source_run) is not None}
        finals = final_residuals(model, bases, variants, list(sources.values()), self.n_at_once)
        of_sources = dict(zip(sources, finals.sources, strict=True))
        for base, rows in zip(bases, finals.bases, strict=True):
            require_finite_end(model, base.ids, rows[-1], base.edits)
        for number in numbers:
            pair = self.pairs[number]
            if pair.source_run is not None:
                filling.source(number, of_sources[id(pair.source_run)], model)
            of_base = finals.bases[index[id(pair.base)]]
            of_pair = [i for i, run in enumerate(chunk) if run.pair == number]
            filling.cells(number, [chunk[i].number for i in of_pair], of_base, finals.of(of_pair), model)


# -- with a bar --


def run_all(runner: SweepRunner, progress: bool, chunks: Generator[list[At]] | None = None) -> None:
    """Run the cells that have no value yet. An interrupt, or a file that takes no more, ends the run with a warning."""
    try:
        run_cells(runner, progress, chunks)
    except KeyboardInterrupt:
        warn(f"interrupted: {runner.result.progress_text()}; the other cells are NaN")
    except JournalStopped as stopped:
        journal, result = runner.journal, runner.numbers
        warn(
            f"{journal.path} stopped at {journal.n_cells} of {result.question.n_cells} cells: {stopped}. The sweep "
            f"ended there: {result.progress_text()}; the other cells are NaN. A second call with the same file goes on"
        )


def run_cells(runner: SweepRunner, progress: bool, chunks: Generator[list[At]] | None = None) -> None:
    """Run the cells that have no value yet. progress: whether to show a bar. chunks: how; None: in this process."""
    from tqdm.auto import tqdm

    # The bar appears after a second: a quick sweep shows nothing.
    result = runner.numbers
    with (
        closing(runner.chunks() if chunks is None else chunks) as steps,
        tqdm(total=result.question.n_cells, desc="sweep", unit="cell", delay=1.0, leave=False, disable=not progress) as bar,
    ):
        bar.update(int(result.finished.sum()))
        for done in steps:
            bar.update(len(done))

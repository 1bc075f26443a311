"""The patching lab without a front end: its settings, its jobs, and what they found."""

from __future__ import annotations

from gemmascope.errors import SweepError, warn
from gemmascope.labs.patching.cell_grid import CellGrid, Part
from gemmascope.labs.patching.experiment import Experiment
from gemmascope.labs.patching.jobs import at_once, estimating, looking, looking_if_there, running
from gemmascope.labs.patching.question import QuestionSession
from gemmascope.labs.session import CLICK, LONG, wait_for
from gemmascope.labs.worker import Job
from gemmascope.sweeps.result import SweepResult
from gemmascope.values import Array

# A click that takes no longer than this is answered in the calling thread, in seconds.
AT_ONCE_SECONDS = 0.06


class LabSession(QuestionSession):
    """A question that is computed on demand, cell by cell, in jobs."""

    # -- running --

    def run(self, what: str = "all", row: object = None, column: object = None, timeout: float | None = None) -> SweepResult:
        """Compute a part of the grid, and wait for it. An interrupt cancels the rest and keeps what is done.

        Args:
            what: "all", "cell", "row", "column" or "rectangle" for exact effects, "estimate" for gradients of all cells.
            row: Counted from 0 along the grid's first axis, for a cell or a row; (first, last) for a rectangle.
            column: The same along the second axis, for a cell or a column.
            timeout: At most so many seconds; None waits for as long as it takes.

        Returns:
            The estimate, or everything that is exact so far, other cells NaN.

        Raises:
            SweepError: There is no such part of the grid, the settings cannot be run, or the time is up.
            GemmascopeError: What gs.sweep would raise.
        """
        self._worker.require_open()
        self._raise_checks()
        job = self.start(what, row, column)
        try:
            wait_for(job, timeout)
        except KeyboardInterrupt:
            self.cancel()
            job.ended.wait()
            warn("interrupted: what was done is kept")
        if job.failed is not None:
            self._failed = None
            raise job.failed
        experiment = self._prepared()
        return experiment.estimated if what == "estimate" and experiment.estimated is not None else experiment.result

    def start(self, what: str = "all", row: object = None, column: object = None) -> Job:
        """Begin to compute, as in run, without waiting."""
        self._worker.require_open()
        part = Part(what, row, column)
        if part.what == "estimate":
            return self._submit("the estimate", LONG, estimating(self, self.seq))
        rank = CLICK if part.what == "cell" else LONG
        return self._submit(part.name, rank, running(self, self.seq, part, self._cells_of(part)))

    def click(self, row: object, column: object) -> None:
        """A cell's exact number and its detail: in the calling thread if that takes no longer than a blink, else in a job.

        Of a streamed model the number alone: its detail would read weights again.
        """
        self._worker.require_open()
        part, experiment = Part("cell", row, column), self.experiment
        cells = self._cells_of(part)
        if experiment is not None and experiment.throughput.streams:
            self.start("cell", row, column)
        elif experiment is None or cells is None or not experiment.traces:
            self.look(row, column)
        elif self.detail is None or not cells[self.detail.row, self.detail.column]:
            job = Job(part.name, CLICK, looking(self, self.seq, part, cells, in_a_blink=True), self.seq)
            if experiment.throughput.baseline_seconds() > AT_ONCE_SECONDS or not self._worker.run_now(job):
                self.look(row, column)

    def click_later(self, row: object, column: object) -> None:
        """As click, for a cell that was clicked while the question changed: that of the new grid, if it has the place.

        However long the new grid takes: the job stands behind the one that prepares it.
        """
        self._worker.require_open()
        part = Part("cell", row, column)
        self._submit(part.name, CLICK, looking_if_there(self, self.seq, part))

    def compute_at_once(self) -> None:
        """From now on, estimate a grid and compute it exactly as soon as its prompts were run, if each takes a moment."""
        with self.guard:
            self.begins_at_once = True
            is_ready = self.experiment is not None and self.experiment.baselines is not None
        if is_ready:
            self.start_at_once()

    def start_at_once(self) -> None:
        self._submit("the grid", LONG, at_once(self, self.seq))

    def look(self, row: object, column: object) -> Job:
        """Run a cell's patch for its exact number and for `detail`: its head's patterns and the likeliest answers."""
        self._worker.require_open()
        part = Part("cell", row, column)
        return self._submit(part.name, CLICK, looking(self, self.seq, part, self._cells_of(part)))

    def wait(self, timeout: float | None = None) -> SweepResult | None:
        """Wait until no job is left; the result so far. Raises what a job raised, and SweepError when the time is up."""
        self._wait(timeout)
        return self.result

    def _end(self) -> None:
        """End the jobs for good, and let go of the two runs and of the detail; the numbers stay."""
        self._worker.close()
        with self.guard:
            if self.experiment is not None:
                self.experiment.forget_runs()
            self.detail = None

    # -- results --

    @property
    def result(self) -> SweepResult | None:
        """Everything that is exact so far, other cells NaN; None before the question is prepared."""
        return None if self.experiment is None else self.experiment.result

    def cell_grid(self) -> CellGrid | None:
        """A copy of every cell's number and what it is."""
        with self.guard:
            return None if self.experiment is None else self.experiment.cell_grid.copy()

    def expected(self, what: str = "all", row: object = None, column: object = None) -> tuple[int, float | None]:
        """How many cells this would run, and about how many seconds it would take (None before the prompts were run)."""
        self.wait_until_prepared()
        experiment = self._prepared()
        return experiment.expected(Part(what, row, column).cells(experiment.shape))

    def code(self) -> str:
        """The Python that repeats the experiment. Raises what gs.sweep would."""
        self._raise_checks()
        return self._prepared().result.code()

    # -- for the jobs --

    def current(self, seq: int) -> Experiment | None:
        """The experiment of a job's question; None if the settings have changed since."""
        with self.guard:
            return self._prepared() if seq == self.seq else None

    def _ended(self, job: Job) -> None:
        if not self.is_busy:
            self.progress = None
        super()._ended(job)

    def _prepared(self) -> Experiment:
        if self.experiment is None:
            self._worker.require_open()
            self._raise_checks()
            raise SweepError("the question is still being prepared: lab.wait() waits for it")
        return self.experiment

    def _cells_of(self, part: Part) -> Array | None:
        """The cells of a part, so that a wrong place raises here; None before the grid is known: then its job raises."""
        return None if self.experiment is None else part.cells(self.experiment.shape)

    def _raise_checks(self) -> None:
        """Raise what gs.sweep would raise for settings that cannot be run."""
        if self.refused is not None:
            raise self.refused
        errors = [remark for remark in self.checks if remark.level == "error"]
        if errors:
            Experiment(self.settings, self.model)
            raise SweepError("; ".join(remark.text for remark in errors))

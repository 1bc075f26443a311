"""The patching lab without a front end: its settings, its jobs, and what they found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gemmascope.errors import SweepError, warn
from gemmascope.labs.choice import ChoosingSession
from gemmascope.labs.patching.cell_grid import CellGrid, Part
from gemmascope.labs.patching.checks import check
from gemmascope.labs.patching.detail import Detail
from gemmascope.labs.patching.experiment import Experiment
from gemmascope.labs.patching.jobs import Progress, estimating, looking, preparing, running
from gemmascope.labs.patching.settings import Settings
from gemmascope.labs.session import CLICK, LONG, PREPARE, Event, wait_for
from gemmascope.labs.worker import Job
from gemmascope.loading.default import model_or_nano
from gemmascope.model.model import Model, Prompt
from gemmascope.run.metric import Answer
from gemmascope.sweeps.remarks import Remark
from gemmascope.sweeps.result import SweepResult
from gemmascope.values import Array

# A click that takes no longer than this is answered in the calling thread, in seconds.
AT_ONCE_SECONDS = 0.06


class LabSession(ChoosingSession):
    """Two prompts, two answers, and a grid of patches, computed on demand.

    checks: what to know before anything runs. experiment: that of the present settings, once it is prepared. detail: of
    the cell that was clicked last. progress: of the long job under way. history: experiments of earlier settings.
    refused: why the present settings cannot be run, if that shows only when they are prepared.
    """

    def __init__(
        self,
        clean: Prompt,
        corrupt: Prompt,
        answer: Answer,
        against: Answer,
        model: Model | None = None,
        listener: Callable[[Event], None] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(model_or_nano(model), listener)
        self.settings = Settings(clean, corrupt, answer, against).changed(**settings)
        self.checks: list[Remark] = []
        self.experiment: Experiment | None = None
        self.compared: Experiment | None = None
        self.detail: Detail | None = None
        self.progress: Progress | None = None
        self.history: list[Experiment] = []
        self.refused: BaseException | None = None
        self._begin()
        self.notify("settings", self.seq)

    # -- settings --

    def set(self, **changes: Any) -> None:
        """Change settings: a new question; the jobs of the old one end. Errors as in Settings.changed."""
        self._worker.require_open()
        with self.guard:
            new = self.settings.changed(**changes)
            if new == self.settings:
                return
            self.settings = new
            self._begin()
        self.notify("settings", self.seq)

    def swap(self) -> None:
        """Exchange the two answers."""
        self.set(answer=self.settings.against, against=self.settings.answer)

    @property
    def can_run(self) -> bool:
        return self.refused is None and not any(remark.level == "error" for remark in self.checks)

    def _begin(self) -> None:
        """Begin a new question: check it, and prepare it if it can be run.

        The caller notifies once it has left the guard: a page is drawn under a lock of its own, and then reads the lab.
        """
        with self.guard:
            self._next_question()
            if self.experiment is not None and not self.experiment.cell_grid.is_blank:
                self.experiment.forget_runs()
                self.history.append(self.experiment)
            self.experiment = self.detail = self.progress = self.refused = None
            self.checks = check(self.settings, self.model)
            if self.can_run:
                self._submit("prepare", PREPARE, preparing(self, self.seq))

    def _token_settings(self) -> Mapping[str, object]:
        s = self.settings
        return {"clean": s.clean, "corrupt": s.corrupt, "answer": s.answer, "against": s.against}

    def _take_model(self, model: Model, changes: Mapping[str, object]) -> None:
        """Settings that cannot be run on it are shown as in a lab that is opened on it."""
        with self.guard:
            self.settings = self.settings.changed(**changes)
            self._switch_to(model)
            self.experiment = self.compared = None
            self.history.clear()
            self._begin()
        self.notify("settings", self.seq)

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
        if experiment is None or cells is None or not experiment.traces or experiment.throughput.streams:
            self.start("cell", row, column)
        elif self.detail is None or not cells[self.detail.row, self.detail.column]:
            job = Job(part.name, CLICK, looking(self, self.seq, part, cells), self.seq)
            if experiment.throughput.baseline_seconds() > AT_ONCE_SECONDS or not self._worker.run_now(job):
                self.look(row, column)

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

    def experiments(self) -> list[Experiment]:
        """The experiments so far that have a number at least, the present one last."""
        with self.guard:
            now = [self.experiment] if self.experiment is not None and not self.experiment.cell_grid.is_blank else []
            return [*self.history, *now]

    def lay_beside(self, index: int | None) -> None:
        """Show one of experiments() beside the present one, on one scale; None shows none."""
        self.compared = None if index is None else self.experiments()[index]
        self.notify("compared", self.seq)

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

"""A patching lab without a front end: its settings, what is under way, what was found, and how others hear of it.

What changed is told to a listener as small numbered events. Each question has a number of its own, `seq`; what was computed
for an older one is kept in the history and not told.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from gemmascope.arguments import equals_text
from gemmascope.errors import GemmascopeError, SweepError, warn
from gemmascope.labs.patching.cell_grid import CellGrid, cells_of
from gemmascope.labs.patching.checks import check
from gemmascope.labs.patching.detail import Detail
from gemmascope.labs.patching.experiment import Experiment
from gemmascope.labs.patching.jobs import Steps, estimating, looking, preparing, running
from gemmascope.labs.patching.settings import Settings
from gemmascope.labs.worker import Job, Worker
from gemmascope.loading.default import model_or_nano
from gemmascope.model.model import Model
from gemmascope.sweeps.remarks import Remark
from gemmascope.sweeps.result import SweepResult

Event = dict[str, Any]

# Ranks of jobs: a click is answered between two chunks of what takes long.
FIRST, CLICK, LOOK, LONG = range(4)

# An exact cell that takes no longer than this is answered by the thread that was told of the click, in seconds.
AT_ONCE = 0.06


class LabSession:
    """Two prompts, two answers, and a grid of patches; computed in a thread of its own, as it is asked for.

    listener: called with every event, {"seq", "number", "kind", ...}, in the thread that it comes from; it should be quick.
    checks: what to know before anything runs. experiment: the question's, once it is prepared. detail: of the cell looked
    at last. error: what went wrong last, and what to do. progress: of the long job under way. history: earlier questions.
    """

    def __init__(
        self,
        clean: Any,
        corrupt: Any,
        answer: Any,
        against: Any,
        model: Model | None = None,
        listener: Callable[[Event], None] | None = None,
        **settings: Any,
    ) -> None:
        self.model = model_or_nano(model)
        self.settings = Settings(clean, corrupt, answer, against).changed(**settings)
        self.listener = listener
        self.guard = threading.RLock()
        self.seq = self.number = 0
        self.checks: list[Remark] = []
        self.experiment: Experiment | None = None
        self.detail: Detail | None = None
        self.error: str | None = None
        self.progress: dict[str, Any] | None = None
        self.history: list[Experiment] = []
        self._failed: BaseException | None = None
        self._refused: BaseException | None = None
        self._worker = Worker(self.model, self._ended)
        self._ask()

    # -- settings --

    def set(self, **changes: Any) -> None:
        """Change settings: a new question; what is under way for the old one ends. Errors as in Settings.changed."""
        self._worker.require_open()
        with self.guard:
            new = self.settings.changed(**changes)
            if new != self.settings:
                self.settings = new
                self._ask()

    def swap(self) -> None:
        """Exchange the two answers."""
        self.set(answer=self.settings.against, against=self.settings.answer)

    @property
    def can_run(self) -> bool:
        return self._refused is None and not any(remark.level == "error" for remark in self.checks)

    def _ask(self) -> None:
        """A new question: check it, and prepare it if it can be run."""
        with self.guard:
            self._worker.cancel()
            self._keep()
            self.seq += 1
            self.experiment = self.detail = self.error = self.progress = self._failed = self._refused = None
            self.checks = check(self.settings, self.model)
            if self.can_run:
                self._submit("prepare", FIRST, preparing(self, self.seq))
        self.tell("settings", self.seq)

    def _keep(self) -> None:
        """Keep the experiment that ends in the history, if it found anything."""
        if self.experiment is not None and not self.experiment.board.is_blank:
            self.experiment.forget_runs()
            self.history.append(self.experiment)

    # -- what there is to do --

    def run(self, what: str = "all", row: Any = None, column: Any = None, timeout: float | None = None) -> SweepResult:
        """Compute, and wait for it. what: "all", "estimate", "cell", "row", "column" or "rectangle".

        row, column: where, counted from 0 along the grid; (first, last) for a rectangle. Returns the estimate, or all that
        is exact so far. Raises what gs.sweep would; an interrupt ends the computing and keeps what is done.
        """
        self._worker.require_open()
        self._raise_checks()
        job = self.start(what, row, column)
        try:
            _wait(job, timeout)
        except KeyboardInterrupt:
            self.cancel()
            job.ended.wait()
            warn("interrupted: what was done is kept")
        if job.failed is not None:
            self._failed = None
            raise job.failed
        found = self._experiment()
        return found.estimated if what == "estimate" and found.estimated is not None else found.result

    def start(self, what: str = "all", row: Any = None, column: Any = None) -> Job:
        """Begin to compute, as in run, and do not wait."""
        self._worker.require_open()
        self._check_place(what, row, column)
        if what == "estimate":
            return self._submit("the estimate", LONG, estimating(self, self.seq))
        rank = CLICK if what == "cell" else LONG
        return self._submit(_name(what, row, column), rank, running(self, self.seq, what, row, column))

    def click(self, row: int, column: int) -> None:
        """One exact cell: at once, in this thread, where that takes no longer than a blink; else by the worker."""
        self._worker.require_open()
        self._check_place("cell", row, column)
        found = self.experiment
        if found is not None and found.traces and not found.pace.streams:
            n_cells, seconds = self.expected("cell", row, column)
            job = Job(_name("cell", row, column), CLICK, running(self, self.seq, "cell", row, column), self.seq)
            if not n_cells or (seconds is not None and seconds <= AT_ONCE and self._worker.now(job)):
                return
        self.start("cell", row, column)

    def look(self, row: int, column: int) -> Job:
        """Look into a cell: `detail` then holds its head's patterns and the likeliest answers."""
        self._worker.require_open()
        self._check_place("cell", row, column)
        return self._submit(f"the look at cell {row}, {column}", LOOK, looking(self, self.seq, row, column))

    def cancel(self) -> None:
        """End what is under way, after the chunk that runs. What is done is kept."""
        self._worker.cancel()

    def _end(self) -> None:
        """End what is under way, for good, and let go of the two runs and of what was seen of a cell; the numbers stay."""
        self._worker.close()
        with self.guard:
            if self.experiment is not None:
                self.experiment.forget_runs()
            self.detail = None

    def wait(self, timeout: float | None = None) -> SweepResult | None:
        """Wait until nothing is under way; the result so far. Raises what a job raised, and SweepError when time is up."""
        self._worker.require_open()
        for job in self._worker.jobs:
            _wait(job, timeout)
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed
        return self.result

    def wait_until_prepared(self, timeout: float | None = None) -> None:
        """Wait until it is known whether the question can be run, and its prompts were; or for so many seconds."""
        for job in self._worker.jobs:
            if job.rank == FIRST:
                job.ended.wait(timeout)

    # -- what was found --

    @property
    def result(self) -> SweepResult | None:
        """All that is exact so far, other cells NaN; None before the question was prepared."""
        return None if self.experiment is None else self.experiment.result

    @property
    def is_busy(self) -> bool:
        return self._worker.is_busy

    def board(self) -> CellGrid | None:
        """A copy of every cell's number and what it is."""
        with self.guard:
            return None if self.experiment is None else self.experiment.board.copy()

    def expected(self, what: str = "all", row: Any = None, column: Any = None) -> tuple[int, float | None]:
        """How many cells this would run, and about how many seconds it would take (None before the prompts were run)."""
        self.wait_until_prepared()
        found = self._experiment()
        return found.expected(cells_of(found.shape, what, row, column))

    def code(self) -> str:
        """The Python that repeats the experiment. Raises what gs.sweep would."""
        self._raise_checks()
        return self._experiment().result.code()

    def experiments(self) -> list[Experiment]:
        """What was found before, and now: every experiment with a number at least."""
        with self.guard:
            now = [self.experiment] if self.experiment is not None and not self.experiment.board.is_blank else []
            return [*self.history, *now]

    # -- for the jobs --

    def current(self, seq: int) -> Experiment | None:
        """The experiment that a job is for; None if the question is another by now."""
        with self.guard:
            return self._experiment() if seq == self.seq else None

    def install(self, seq: int, made: Experiment) -> bool:
        """Take a prepared experiment, unless the question is another by now."""
        with self.guard:
            if seq == self.seq:
                self.experiment = made
            return seq == self.seq

    def refuse(self, seq: int, error: BaseException) -> None:
        """Keep why the question cannot be run."""
        with self.guard:
            if seq == self.seq:
                self._refused = error

    def note(self, seq: int, progress: dict[str, Any]) -> None:
        with self.guard:
            if seq == self.seq:
                self.progress = progress

    def tell(self, kind: str, seq: int, **more: Any) -> None:
        """Tell the listener what happened, unless the question is another by now."""
        with self.guard:
            if seq != self.seq:
                return
            self.number += 1
            event = {"seq": seq, "number": self.number, "kind": kind, **more}
            listener = self.listener
        if listener is not None:
            try:
                listener(event)
            except Exception:  # a front end that is gone does not end a computation
                logging.getLogger(__name__).exception("the listener of a patching lab failed")

    def _submit(self, name: str, rank: int, steps: Steps) -> Job:
        return self._worker.submit(Job(name, rank, steps, self.seq))

    def _ended(self, job: Job) -> None:
        with self.guard:
            if job.seq != self.seq:
                return
            if not self._worker.is_busy:
                self.progress = None
            if job.failed is not None:
                self._failed, self.error = job.failed, told(job.failed)
        kind = "error" if job.failed is not None else "cancelled" if job.cancelled else "done"
        self.tell(kind, job.seq, what=job.name)

    def _experiment(self) -> Experiment:
        if self.experiment is None:
            self._worker.require_open()
            self._raise_checks()
            raise SweepError("the question is still being prepared: lab.wait() waits for it")
        return self.experiment

    def _check_place(self, what: str, row: Any, column: Any) -> None:
        """A wrong place is told here and now; of a question that is being prepared, when it is known."""
        if self.experiment is not None and not equals_text(what, "estimate"):
            cells_of(self.experiment.shape, what, row, column)

    def _raise_checks(self) -> None:
        """Raise what gs.sweep would raise for settings that cannot be run; nothing for those that can."""
        if self._refused is not None:
            raise self._refused
        wrong = [remark for remark in self.checks if remark.level == "error"]
        if wrong:
            Experiment(self.settings, self.model)
            raise SweepError("; ".join(remark.text for remark in wrong))


def told(error: BaseException) -> str:
    """An error as a lab shows it: our own say what to do; of others, what they are."""
    if isinstance(error, GemmascopeError):
        return str(error)
    return f"{type(error).__name__}: {error}. The settings are not to blame: lab.run() in Python shows where it comes from"


def _wait(job: Job, timeout: float | None) -> None:
    if not job.ended.wait(timeout):
        raise SweepError(f"{job.name} did not end within {timeout} s; it goes on: lab.wait() or lab.cancel()")


def _name(what: str, row: Any, column: Any) -> str:
    return {"cell": f"cell {row}, {column}", "row": f"row {row}", "column": f"column {column}"}.get(what, f"{what} cells")

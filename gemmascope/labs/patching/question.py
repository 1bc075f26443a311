"""The question of a patching lab: its settings, what was asked before, and the cells that were found for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gemmascope.arguments import one_of, short_repr, whole_number, whole_text
from gemmascope.edits.call_text import plain
from gemmascope.errors import SweepError
from gemmascope.labs.choice import ChoosingSession
from gemmascope.labs.history import History
from gemmascope.labs.patching.align_tokens import with_token
from gemmascope.labs.patching.checks import check
from gemmascope.labs.patching.detail import Detail
from gemmascope.labs.patching.experiment import Experiment
from gemmascope.labs.patching.jobs import Progress, preparing
from gemmascope.labs.patching.settings import FAMILIES, Settings, pair_of_family
from gemmascope.labs.session import PREPARE, Event
from gemmascope.loading.default import model_or_nano
from gemmascope.model.model import Model, Prompt
from gemmascope.run.metric import Answer
from gemmascope.sweeps.remarks import Remark


def key_of(settings: Settings) -> str:
    """Settings as a text that is equal for equal settings, whatever type their token ids have."""
    return repr(_spelled(plain(vars(settings))))


def _spelled(value: object) -> object:
    """A value with its whole numbers as code, which Python writes at any size in base 16 only."""
    if isinstance(value, int):
        return whole_text(value)
    if isinstance(value, dict):
        return {name: _spelled(one) for name, one in value.items()}
    return [type(value).__name__, *map(_spelled, value)] if isinstance(value, (list, tuple)) else value


class QuestionSession(ChoosingSession):
    """Two prompts, two answers, and a grid of patches; each question that was asked keeps its cells.

    checks: what to know before anything runs. experiment: that of the present settings, once it is prepared. compared: an
    experiment that is shown beside it. detail: of the cell that was clicked last. progress: of the long job under way.
    refused: why the present settings cannot be run, if that shows only when they are prepared. begins_at_once: whether a
    small grid is computed as soon as its prompts were run. family: the prompts that next_pair draws from.
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
        self.refused: BaseException | None = None
        self.begins_at_once = False
        self.family = "ioi"
        self._drawn: dict[str, int] = {}
        self._asked: dict[str, Experiment] = {}  # by key_of, in the order in which they were first asked
        self._history: History[Settings] = History()
        self._begin()
        self.notify("settings", self.seq)

    # -- settings --

    def set(self, **changes: Any) -> None:
        """Change settings: a new question; the jobs of the old one end. Cells that were found for it earlier are there
        again. Errors as in Settings.changed.
        """
        self._worker.require_open()
        with self.guard:
            new = self.settings.changed(**changes)
            if key_of(new) == key_of(self.settings):
                return
            self._history.record(self.settings)
            self.settings = new
            self._begin()
        self.notify("settings", self.seq)

    def swap(self) -> None:
        """Exchange the two answers."""
        self.set(answer=self.settings.against, against=self.settings.answer)

    def undo(self) -> None:
        """Go back to the settings before the latest change. SweepError if there was none."""
        self._worker.require_open()
        with self.guard:
            if not self._history.can_undo:
                raise SweepError("there is nothing to undo: the settings were not changed")
            self.settings = self._history.undo(self.settings)
            self._begin()
        self.notify("settings", self.seq)

    def next_pair(self, family: str | None = None) -> None:
        """Ask about the next pair of prompts of a family that fits the model's tokenizer.

        Args:
            family: The name of a family of gs.prompts, such as "facts"; None means the one that was drawn from last.

        Raises:
            SweepError: There is no such family, or none of its pairs fits the model.
        """
        family = self.family if family is None else family
        one_of(family, "a family", FAMILIES, error=SweepError)
        n_drawn = self._drawn.get(family, 0)
        pair = pair_of_family(family, n_drawn, self.model)
        if pair is None:
            raise SweepError(f"no further pair of {family!r} fits the tokenizer of {self.model.name!r}: take another family")
        self.family, self._drawn[family] = family, n_drawn + 1
        self.set(clean=pair.clean, corrupt=pair.corrupt, answer=pair.answer, against=pair.against)

    def swap_token(self, position: int, *, clean: str | None = None, corrupt: str | None = None) -> None:
        """Write another token at a position of the clean prompt, the corrupted prompt, or both.

        A word that follows a space keeps its space. PromptError where it is no token, SweepError for a place that is none.
        """
        s = self.settings
        new = {name: text for name, text in {"clean": clean, "corrupt": corrupt}.items() if text is not None}
        self.set(**{name: with_token(getattr(s, name), position, text, self.model) for name, text in new.items()})

    @property
    def can_run(self) -> bool:
        return self.refused is None and not any(remark.level == "error" for remark in self.checks)

    @property
    def can_undo(self) -> bool:
        return self._history.can_undo

    # -- earlier questions --

    def experiments(self) -> list[Experiment]:
        """The experiments so far that have a number at least, the present one last."""
        with self.guard:
            with_numbers = [experiment for experiment in self._asked.values() if not experiment.is_blank]
            return sorted(with_numbers, key=lambda experiment: experiment is self.experiment)

    def reopen(self, index: int) -> None:
        """Go back to one of experiments(), with its cells. SweepError for a number that has none."""
        self.set(**vars(self._numbered(index).settings))

    def lay_beside(self, index: int | None) -> None:
        """Show one of experiments() beside the present one, and how they differ; None shows none."""
        self.compared = None if index is None else self._numbered(index)
        self.notify("compared", self.seq)

    def keep(self, experiment: Experiment) -> None:
        """Keep an experiment, so that going back to its settings finds it."""
        with self.guard:
            self._asked[key_of(experiment.settings)] = experiment

    def asked(self, settings: Settings) -> Experiment | None:
        """The experiment that is kept for these settings."""
        return self._asked.get(key_of(settings))

    def show_kept(self, settings: Settings) -> None:
        """Show a question with the cells that are kept for it, also if it is the present one and they are new."""
        with self.guard:
            if key_of(settings) != key_of(self.settings):
                self._history.record(self.settings)
            self.settings = settings
            self._begin()
        self.notify("settings", self.seq)

    def _numbered(self, index: object) -> Experiment:
        experiments = self.experiments()
        number = whole_number(index, "an experiment", error=SweepError)
        if not -len(experiments) <= number < len(experiments):
            raise SweepError(f"there are {len(experiments)} experiments with numbers; given {short_repr(index)}")
        return experiments[number]

    # -- a new question --

    def _begin(self) -> None:
        """Begin a new question: check it, and prepare it if it can be run.

        The caller notifies once it has left the guard: a page is drawn under a lock of its own, and then reads the lab.
        """
        with self.guard:
            self._next_question()
            if self.experiment is not None:
                self.experiment.forget_runs()
            self.experiment = self._asked.get(key_of(self.settings))
            self.compared = self.detail = self.progress = self.refused = None
            self.checks = check(self.settings, self.model)
            if self.can_run:
                self._submit("prepare", PREPARE, preparing(self, self.seq))

    def start_at_once(self) -> None:
        raise NotImplementedError

    def current(self, seq: int) -> Experiment | None:
        raise NotImplementedError

    def _token_settings(self) -> Mapping[str, object]:
        s = self.settings
        return {"clean": s.clean, "corrupt": s.corrupt, "answer": s.answer, "against": s.against}

    def _take_model(self, model: Model, changes: Mapping[str, object]) -> None:
        """Settings that cannot be run on it are shown as in a lab that is opened on it."""
        with self.guard:
            self.settings = self.settings.changed(**changes)
            self._switch_to(model)
            self.experiment = None
            self._asked.clear()
            self._history.clear()
            self._begin()
        self.notify("settings", self.seq)

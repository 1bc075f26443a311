"""RecomputingLab: what gs.head_lab, gs.steer_lab and gs.graph_lab share. Every change of a setting runs the prompt again."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from gemmascope.edits.call_text import prompt_text, script_text
from gemmascope.edits.edit import Edit
from gemmascope.errors import GemmascopeError, LabError, SweepError, warn
from gemmascope.labs.base import LabBase
from gemmascope.labs.before_after import BeforeAfter
from gemmascope.labs.history import History
from gemmascope.labs.session import PREPARE
from gemmascope.labs.typed import read_typed
from gemmascope.model.model import Model, Prompt
from gemmascope.run.metric import Answer
from gemmascope.run.trace import Trace
from gemmascope.sweeps.remarks import Remark

if TYPE_CHECKING:
    from gemmascope.labs.widget import Handlers, Trait


class HasQuestion(Protocol):
    """The settings of a lab: the value of a dataclass, which is never changed."""

    @property
    def prompt(self) -> Prompt: ...

    @property
    def answer(self) -> Answer | None: ...

    @property
    def against(self) -> Answer | None: ...


LabT = TypeVar("LabT", bound="RecomputingLab[Any]")
SettingsT = TypeVar("SettingsT", bound=HasQuestion)
ValueT = TypeVar("ValueT")


class RecomputingLab(LabBase, Generic[SettingsT]):
    """A lab that computes everything anew when a setting changes. The latest settings win; older ones end after a step.

    A subclass says which steps follow from the settings (`_steps`), what its page shows (`_state`, `_pictures`), what it is
    called (KIND) and which settings `set` takes (SETTINGS). Those in TYPED are typed; those in OPTIONAL may be left empty.
    """

    KIND = ""
    SETTINGS: Sequence[str] = ()
    TYPED: Sequence[str] = ("prompt", "answer", "against")
    OPTIONAL: Sequence[str] = ("answer", "against")
    _run: BeforeAfter
    _now: SettingsT

    def __init__(self, model: Model, max_new_tokens: int) -> None:
        super().__init__(model)
        self.max_new_tokens = max_new_tokens
        self._history: History[SettingsT] = History()

    @property
    def prompt(self) -> Prompt:
        """The prompt, as it was set last."""
        return self._now.prompt

    @property
    def answer(self) -> Answer | None:
        """The answer that is followed; None for the likeliest token."""
        return self._now.answer

    @property
    def against(self) -> Answer | None:
        """The answer whose logit is subtracted; None for none."""
        return self._now.against

    def wait(self: LabT, timeout: float | None = None) -> LabT:
        """Wait until everything is computed for the present settings.

        Args:
            timeout: At most so many seconds; None waits for as long as it takes.

        Returns:
            The lab itself.

        Raises:
            SweepError: The time is up; the lab goes on.
            GemmascopeError: What went wrong while it computed.
        """
        self._wait(timeout)
        return self

    def undo(self) -> None:
        """Take the last change of the settings back, and compute again. A knob that was turned goes back at once.

        Raises:
            LabError: Nothing was changed since the lab was opened, or since another model was chosen.
        """
        self._worker.require_open()
        if not self._history.can_undo:
            raise LabError("there is nothing to undo: no setting was changed since the lab was opened on this model")
        self._go_back(self._history.undo)

    def redo(self) -> None:
        """Make the change again that was undone last, and compute again.

        Raises:
            LabError: Nothing was undone, or a setting was changed since.
        """
        self._worker.require_open()
        if not self._history.can_redo:
            raise LabError("there is nothing to redo: no change was undone, or a setting was changed since")
        self._go_back(self._history.redo)

    @property
    def trace(self) -> Trace:
        """The prompt's trace with the change; waits for it."""
        return self._waited(lambda run: run.after)

    @property
    def base(self) -> Trace:
        """The prompt's trace without the change; waits for it."""
        return self._waited(lambda run: run.before)

    @property
    def text(self) -> str:
        """What the model writes after the prompt with the change; waits for it."""
        self.wait()
        return self._run.text_after or ""

    @property
    def base_text(self) -> str:
        """What the model writes after the prompt without the change; waits for it."""
        self.wait()
        return self._run.text_before or ""

    # -- what a lab does --

    def _steps(self) -> Generator[None]:
        """Compute what follows from the settings. A step stores nothing before it has what it stores."""
        raise NotImplementedError

    def _state(self) -> dict[str, object]:
        """What the page shows, without pictures, as JSON."""
        raise NotImplementedError

    def _pictures(self) -> dict[str, object]:
        """The page's pictures, with a "number" that changes when they do."""
        return {}

    def _begun(self, settings: SettingsT, model: Model) -> BeforeAfter:
        """The runs of these settings, of which nothing is run. Raises for settings that cannot be run."""
        raise NotImplementedError

    # -- changing the settings --

    def _changed(self, changes: Mapping[str, Any]) -> SettingsT:
        """The present settings with these changes, as `set` takes them. SweepError for a setting that there is not."""
        if unknown := sorted(set(changes) - set(self.SETTINGS)):
            raise SweepError(f"a {self.KIND} has no {unknown[0]!r}; it has {', '.join(self.SETTINGS)}")
        changed: SettingsT = replace(self._now, **changes)  # type: ignore[type-var]  # settings are dataclasses
        return changed

    def _change(self, settings: SettingsT, model: Model, key: Hashable = None) -> None:
        """Go on with other settings. key: as in History.record. What `_begun` raises changes nothing."""
        is_new = model is not self.model or not hasattr(self, "_now")
        run = self._begun(settings, model)
        with self.guard:
            if is_new:
                self._history.clear()
            else:
                self._history.record(self._now, key)
            self._now, self._run = settings, run
            if model is not self.model:
                self._switch_to(model)
        self._recompute()

    def _go_back(self, step: Callable[[SettingsT], SettingsT]) -> None:
        with self.guard:
            settings = step(self._now)
            self._run = self._begun(settings, self.model)
            self._now = settings
        self._recompute()

    def _recompute(self) -> None:
        """The settings have changed: end what is under way and begin again."""
        self._worker.require_open()
        with self.guard:
            self._next_question()
            self._submit("what follows from the settings", PREPARE, self._told(self._steps(), self.seq))
        self.notify("settings", self.seq)

    def _told(self, steps: Generator[None], seq: int) -> Generator[None]:
        """The same steps, each told to the page, as long as the question is the present one."""
        for _ in steps:
            if seq != self.seq:
                return
            self.notify("step", seq)
            yield

    def _waited(self, value_of: Callable[[BeforeAfter], ValueT | None]) -> ValueT:
        self.wait()
        value = value_of(self._run)
        assert value is not None
        return value

    def _end(self) -> None:
        self._worker.close()
        self._history.clear()
        self._run.forget_runs()

    # -- the page --

    def _snapshot(self) -> dict[str, Trait]:
        with self.guard:
            undo = {"can_undo": self._history.can_undo, "can_redo": self._history.can_redo}
        own = {"number": self.number, "seq": self.seq, "busy": self.is_busy, "error": self.error}
        return {"state": {**self._state(), **undo, **own}, "pictures": self._pictures()}

    def _handlers(self) -> Handlers:
        return {
            "set": lambda m: self._typed(m["name"], lambda: self._read_typed(m["name"], m["text"])),
            "undo": lambda _: self.undo() if self._history.can_undo else None,
            "redo": lambda _: self.redo() if self._history.can_redo else None,
        }

    def _read_typed(self, name: str, text: str) -> object:
        return read_typed(text, self._typed_settings()[name], self.model, is_optional=name in self.OPTIONAL)

    def _token_settings(self) -> Mapping[str, object]:
        return self._typed_settings()

    def _typed_settings(self) -> Mapping[str, object]:
        return {name: getattr(self._now, name) for name in self.TYPED}

    def _warn(self, remarks: Sequence[Remark]) -> None:
        """Give warnings: in the lab for what was typed there, else as Python's."""
        for text in dict.fromkeys(remark.text for remark in remarks if remark.level == "warning"):
            if self._is_typed:
                self.show_error(GemmascopeError(text))
            else:
                warn(text)

    def _script(self, edits: Sequence[Edit] | str, before: str = "", after: str = "") -> str:
        """Python that runs the prompt with these edits, or code for them, and writes the text. before, after: more of it."""
        code = edits if isinstance(edits, str) else repr(list(edits))
        return script_text(
            self.model,
            f"{before}prompt = {prompt_text(self._run.prompt)}\n"
            f"edits = {code}\ntrace = gs.trace(prompt, model=model, edits=edits)\n"
            f"text = gs.generate(prompt, model=model, edits=edits, max_new_tokens={self.max_new_tokens}).text\n{after}",
        )

"""RecomputingLab: what gs.head_lab and gs.steer_lab share. Every change of a setting runs and writes the prompt again."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, TypeVar

from gemmascope.edits.call_text import load_text, prompt_text
from gemmascope.errors import GemmascopeError, warn
from gemmascope.labs.base import LabBase
from gemmascope.labs.before_after import BeforeAfter
from gemmascope.labs.session import PREPARE
from gemmascope.model.model import Model
from gemmascope.run.trace import Trace
from gemmascope.sweeps.remarks import Remark

if TYPE_CHECKING:
    from gemmascope.labs.widget import Trait

LabT = TypeVar("LabT", bound="RecomputingLab")
ValueT = TypeVar("ValueT")


class RecomputingLab(LabBase):
    """A lab that computes everything anew when a setting changes. The latest settings win; older ones end after a step.

    A subclass says which steps follow from the settings (`_steps`) and what its page shows (`_state`, `_pictures`).
    """

    _run: BeforeAfter

    def __init__(self, model: Model, max_new_tokens: int) -> None:
        super().__init__(model)
        self.max_new_tokens = max_new_tokens

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

    def _steps(self) -> Generator[None]:
        """Compute what follows from the settings. A step stores nothing before it has what it stores."""
        raise NotImplementedError

    def _state(self) -> dict[str, object]:
        """What the page shows, without pictures, as JSON."""
        raise NotImplementedError

    def _pictures(self) -> dict[str, object]:
        """The page's pictures, with a "number" that changes when they do."""
        return {}

    def _recompute(self) -> None:
        """The settings have changed: end what is under way and begin again."""
        self._worker.require_open()
        with self.guard:
            self._next_question()
            self._submit("what follows from the settings", PREPARE, self._told_steps(self.seq))
        self.notify("settings", self.seq)

    def _told_steps(self, seq: int) -> Generator[None]:
        for _ in self._steps():
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
        self._run.forget_runs()

    def _snapshot(self) -> dict[str, Trait]:
        own = {"number": self.number, "seq": self.seq, "busy": self.is_busy, "error": self.error}
        return {"state": {**self._state(), **own}, "pictures": self._pictures()}

    def _warn(self, remarks: Sequence[Remark]) -> None:
        """Give warnings: in the lab for what was typed there, else as Python's."""
        for text in dict.fromkeys(remark.text for remark in remarks if remark.level == "warning"):
            if self._is_typed:
                self.show_error(GemmascopeError(text))
            else:
                warn(text)

    def _script(self, edits: Sequence[str], comment: str = "") -> str:
        """Python that runs the prompt with these edits and writes the text. comment: on what the edits name."""
        return (
            f"import gemmascope as gs\n\n{load_text(self.model)}{comment}prompt = {prompt_text(self._run.prompt)}\n"
            f"edits = [{', '.join(edits)}]\ntrace = gs.trace(prompt, model=model, edits=edits)\n"
            f"text = gs.generate(prompt, model=model, edits=edits, max_new_tokens={self.max_new_tokens}).text\n"
        )

"""What gs.head_lab and gs.steer_lab share: a prompt, run and gone on with before a change and after it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from gemmascope.arguments import finite_number
from gemmascope.edits.call_text import load_text, prompt_text
from gemmascope.errors import EditError, GemmascopeError, warn
from gemmascope.labs.before_after import After
from gemmascope.labs.display import Shown
from gemmascope.labs.recompute import Follower
from gemmascope.labs.static_fallback import Still
from gemmascope.model.model import Model
from gemmascope.run.trace import Trace
from gemmascope.sweeps.remarks import Remark

if TYPE_CHECKING:
    from gemmascope.labs.widget import Wishes

# How long a notebook waits for the first picture of a lab, in seconds: what comes later is in the live widget alone.
FIRST = 2.0

LabT = TypeVar("LabT", bound="FollowingLab")


class FollowingLab(Shown):
    """A lab in which all follows from its settings, and is done again when one of them changes.

    A lab of this kind says what can be set, and begins anew with `_follower.ask()`; which steps follow (`_steps`); and how
    it is shown: the file of its page (LIVE), the page's state, its wishes and its pictures, the controls above it, and the
    HTML of its still. close(), or `with`, frees it. When the cell that shows it is run again, its widgets are closed, and
    what it was computing ends; the lab itself goes once nothing refers to it.
    """

    LIVE: ClassVar[str]
    _after: After

    def __init__(self, model: Model, max_new_tokens: int) -> None:
        self.model, self.max_new_tokens = model, max_new_tokens
        self._still = Still(self._still_html, lambda: repr(self))
        self._follower = Follower(model, self._steps)
        self._is_typed = False  # whether a control of the lab, and no line of Python, changes a setting

    def set(self, **changes: Any) -> None:
        raise NotImplementedError

    def wait(self: LabT, timeout: float | None = None) -> LabT:
        """Wait until all follows from what was asked. Raises what went wrong, GemmascopeError when the time is up."""
        self._follower.wait(timeout)
        return self

    def cancel(self) -> None:
        """End what is under way; what is done stays."""
        self._follower.cancel()

    @property
    def trace(self) -> Trace:
        """The prompt's trace, with the change."""
        self.wait()
        assert self._after.after is not None
        return self._after.after

    @property
    def base(self) -> Trace:
        """Its trace without the change."""
        self.wait()
        assert self._after.before is not None
        return self._after.before

    @property
    def text(self) -> str:
        """What the model goes on with, with the change."""
        self.wait()
        return self._after.text_after or ""

    @property
    def base_text(self) -> str:
        """What it goes on with when nothing is changed."""
        self.wait()
        return self._after.text_before or ""

    def _parts(self) -> tuple[Sequence[Any], Callable[[], None]]:
        from gemmascope.labs.widget import FollowerEnd

        wishes = {"cancel": lambda _: self.cancel(), **self._wishes()}
        end = FollowerEnd(self.LIVE, self._follower, self._state, wishes, self._still, self._pictures)
        return [*self._controls(), end.widget], self._silent

    def _silent(self) -> None:
        self._follower.listener = lambda: None
        self._still.end()

    def _end(self) -> None:
        self._follower.close()
        self._after.forget_runs()

    def _ipython_display_(self) -> None:
        """The live widget, and a still for notebooks that are saved, exported or have no front end for it."""
        self._follower.wait_for_first(FIRST)
        self._still.show(lambda: self.widget)

    def _typed(self, name: str, read: Callable[[], Any]) -> None:
        """A control was changed. What cannot be read or set is shown in the lab."""
        self._is_typed = True
        try:
            self.set(**{name: read()})
        except GemmascopeError as error:
            self._follower.refuse(error)
        finally:
            self._is_typed = False

    def _warn(self, remarks: Sequence[Remark]) -> None:
        """Say what may not be meant: in the lab of what was typed there, else as a warning of Python's."""
        for text in dict.fromkeys(remark.text for remark in remarks if remark.level == "warning"):
            if self._is_typed:
                self._follower.refuse(GemmascopeError(text))
            else:
                warn(text)

    def _script(self, edits: Sequence[str], note: str = "") -> str:
        """Python that runs the prompt with these edits, and goes on with it. note: a comment on what they name."""
        return (
            f"import gemmascope as gs\n\n{load_text(self.model)}{note}prompt = {prompt_text(self._after.prompt)}\n"
            f"edits = [{', '.join(edits)}]\ntrace = gs.trace(prompt, model=model, edits=edits)\n"
            f"text = gs.generate(prompt, model=model, edits=edits, max_new_tokens={self.max_new_tokens}).text\n"
        )

    def _steps(self) -> Generator[None]:
        raise NotImplementedError

    def _state(self) -> dict[str, Any]:
        raise NotImplementedError

    def _controls(self) -> Sequence[Any]:
        raise NotImplementedError

    def _still_html(self) -> str:
        raise NotImplementedError

    def _wishes(self) -> Wishes:
        return {}

    def _pictures(self) -> dict[str, Any]:
        return {}


def finite(name: str, given: Any) -> float:
    """A number that is one. EditError for anything else."""
    return finite_number(given, name, error=EditError)

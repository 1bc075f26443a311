"""How a lab that follows its settings is shown: text fields over its page, and what stands there without a kernel."""

from __future__ import annotations

import ast
import threading
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from numbers import Real
from typing import TYPE_CHECKING, Any

from gemmascope.errors import EditError, PromptError, SweepError
from gemmascope.model.model import Model
from gemmascope.run.code import plain, prompt_text
from gemmascope.widgets.follower import Follower
from gemmascope.widgets.still import Still

if TYPE_CHECKING:
    import ipywidgets

    from gemmascope.widgets.follower_end import Wishes

# How long a notebook waits for the first picture of a lab, in seconds: what comes later is in the live widget alone.
FIRST = 2.0


class Fields:
    """Text fields of a lab's settings. values: the settings as they are; typed: called with (name, value) that was typed.

    A field that is empty is None, but for a prompt. What is no text - token ids - is written and read as Python.
    """

    def __init__(self, model: Model, values: Callable[[], Mapping[str, Any]], typed: Callable[[str, Any], None]) -> None:
        import ipywidgets as w

        self.model, self.values, self.typed = model, values, typed
        self._showing = threading.local()
        wide = {"layout": w.Layout(width="98%"), "style": {"description_width": "70px"}}
        short = {"layout": w.Layout(width="200px"), "style": {"description_width": "70px"}}
        self.fields = {
            name: w.Text(description=name, continuous_update=False, **(wide if name == "prompt" else short))
            for name in values()
        }
        self.show()
        for field in self.fields.values():
            field.observe(self._changed, names="value")

    def show(self) -> None:
        """Show the settings as they are."""
        self._showing.now = True
        try:
            for name, value in self.values().items():
                self.fields[name].value = "" if value is None else value if isinstance(value, str) else repr(plain(value))
        finally:
            self._showing.now = False

    def box(self) -> ipywidgets.Widget:
        import ipywidgets as w

        first, *others = self.fields.values()
        return w.VBox([first, w.HBox(others, layout=w.Layout(flex_flow="row wrap"))]) if others else first

    def _changed(self, change: Any) -> None:
        if getattr(self._showing, "now", False):
            return
        name = next(name for name, field in self.fields.items() if field is change["owner"])
        try:
            value = self._read(name, change["new"])
        except PromptError as error:
            self.typed(name, error)
        else:
            self.typed(name, value)

    def _read(self, name: str, text: str) -> Any:
        if not text and name != "prompt":
            return None
        if self.model.has_tokenizer:
            return text
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError) as error:
            raise PromptError(f"{self.model.name!r} has no tokenizer: write token ids, such as [2, 5, 9]") from error


def shown_lab(
    live: str,
    follower: Follower,
    fields: Callable[[], Sequence[Any]],
    state: Callable[[], dict[str, Any]],
    wishes: Wishes,
    still: Still,
    pictures: Callable[[], dict[str, Any]] = dict,
) -> ipywidgets.Widget:
    """The live widget: fields (ipywidgets, made here) over the page. SweepError where the packages for it are missing."""
    try:
        import ipywidgets

        from gemmascope.widgets.follower_end import FollowerEnd

        end = FollowerEnd(live, follower, state, wishes, still, pictures)
    except ImportError as error:
        raise SweepError(f"the live widget needs ipywidgets and anywidget: pip install gemmascope[lab] ({error})") from error
    return ipywidgets.VBox([*fields(), end.widget])


def display_lab(lab: Any, follower: Follower, still: Still) -> None:
    """Show a lab as the output of a cell: live, and beside it a still for when there is no kernel."""
    follower.wait_for_first(FIRST)
    try:
        widget = lab.widget
    except SweepError:
        widget = None
    still.show(widget)


def text_of(token_id: int, model: Model) -> str:
    """A token's text; without a tokenizer, its id."""
    return model.tokenizer.text(token_id) if model.has_tokenizer else str(token_id)


def script(model: Model, prompt: Any, edits: Sequence[str], max_new_tokens: int) -> str:
    """Python that runs a prompt with these edits, and goes on with it."""
    given = "".join(f", {name}={value!r}" for name, value in model.asked.items())
    return (
        f"import gemmascope as gs\n\nmodel = gs.load({model.name!r}{given})\nprompt = {prompt_text(prompt)}\n"
        f"edits = [{', '.join(edits)}]\ntrace = gs.trace(prompt, model=model, edits=edits)\n"
        f"text = gs.generate(prompt, model=model, edits=edits, max_new_tokens={max_new_tokens}).text\n"
    )


def finite(name: str, given: Any) -> float:
    """A number that is one. EditError for anything else."""
    if isinstance(given, bool) or not isinstance(given, Real) or not isfinite(given):
        raise EditError(f"{name}: a number is needed; given {given!r}")
    return float(given)

"""Text fields of labs: what is written in them for a setting, and which setting was meant by what was typed."""

from __future__ import annotations

import ast
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gemmascope.edits.call_text import plain
from gemmascope.errors import PromptError
from gemmascope.model.model import Model

if TYPE_CHECKING:
    import ipywidgets


def written(value: Any) -> str:
    """A setting as a field holds it: a text as it is, token ids as Python."""
    return value if isinstance(value, str) else repr(plain(value))


def read(text: str, was: Any, model: Model) -> Any:
    """What was typed: a text; of what was no text, or for a model without a tokenizer, ids. PromptError for neither."""
    if isinstance(was, str) and model.has_tokenizer:
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        if model.has_tokenizer:
            return text
        raise PromptError(f"{model.name!r} has no tokenizer: write token ids, such as [2, 5, 9]") from error


class Fields:
    """Text fields of a lab's settings. values: the settings as they are; typed: called with a name and what reads its value.

    A field that is empty is None, but for a prompt.
    """

    def __init__(
        self, model: Model, values: Callable[[], Mapping[str, Any]], typed: Callable[[str, Callable[[], Any]], None]
    ) -> None:
        import ipywidgets as w

        self.model, self.values, self.typed = model, values, typed
        self._showing = threading.local()
        style = {"description_width": "70px"}
        self.fields = {
            name: w.Text(
                description=name,
                continuous_update=False,
                layout=w.Layout(width="98%" if name == "prompt" else "200px"),
                style=style,
            )
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
                self.fields[name].value = "" if value is None else written(value)
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
        self.typed(name, lambda: self._read(name, change["new"]))

    def _read(self, name: str, text: str) -> Any:
        if not text and name != "prompt":
            return None
        was = self.values()[name]
        return read(text, "" if was is None else was, self.model)

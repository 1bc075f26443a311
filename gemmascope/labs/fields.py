"""The controls of a lab: ipywidgets that change its settings, and show them when they change in Python."""

from __future__ import annotations

import ast
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

from gemmascope.edits.call_text import plain
from gemmascope.errors import PromptError
from gemmascope.model.model import Model

if TYPE_CHECKING:
    import ipywidgets

LABEL_STYLE = {"description_width": "70px"}


class Change(TypedDict):
    """What ipywidgets says of a control that changed, as far as it is read here."""

    owner: object
    new: object


class Fields:
    """A control for each setting.

    settings: their present values by name. change: called with a name and a function that reads the new value, which may
    raise PromptError. rows: the controls by name, row by row. optional: settings for which an empty text means None.
    """

    def __init__(
        self,
        model: Model,
        controls: Mapping[str, ipywidgets.Widget],
        rows: Sequence[Sequence[str]],
        settings: Callable[[], Mapping[str, object]],
        change: Callable[[str, Callable[[], object]], None],
        optional: Sequence[str] = (),
    ) -> None:
        self.model, self.controls, self.rows = model, controls, rows
        self.settings, self.change, self.optional = settings, change, optional
        self._showing = threading.local()
        self.show()
        for name in self._names():
            controls[name].observe(self._changed, names="value")

    def show(self) -> None:
        """Show the settings as they are."""
        self._showing.now = True
        try:
            self._show()
        finally:
            self._showing.now = False

    def box(self) -> ipywidgets.Widget:
        import ipywidgets as w

        rows = [[self.controls[name] for name in row] for row in self.rows]
        return w.VBox(
            [row[0] if len(row) == 1 else w.HBox(row, layout=w.Layout(width="100%", flex_flow="row wrap")) for row in rows]
        )

    def _show(self) -> None:
        settings = self.settings()
        for name in self._names():
            self.controls[name].value = _written(settings[name]) if self._is_text(name) else settings[name]

    def _names(self) -> list[str]:
        """The settings that have a control; other controls are buttons."""
        return [name for name in self.settings() if name in self.controls]

    def _is_text(self, name: str) -> bool:
        import ipywidgets as w

        return isinstance(self.controls[name], w.Text)

    def _changed(self, change: Change) -> None:
        if getattr(self._showing, "now", False):
            return
        name = next(name for name, control in self.controls.items() if control is change["owner"])
        new = change["new"]
        self.change(name, lambda: self._read(name, new) if isinstance(new, str) and self._is_text(name) else new)

    def _read(self, name: str, text: str) -> object:
        """The setting that was typed: a text, or token ids if the setting holds ids or the model has no tokenizer."""
        if not text and name in self.optional:
            return None
        before = self.settings()[name]
        if (before is None or isinstance(before, str)) and self.model.has_tokenizer:
            return text
        try:
            value: object = ast.literal_eval(text)
        except (ValueError, SyntaxError) as error:
            if self.model.has_tokenizer:
                return text
            raise PromptError(f"{self.model.name!r} has no tokenizer: write token ids, such as [2, 5, 9]") from error
        return value


def text_field(label: str, *, is_wide: bool = False) -> ipywidgets.Text:
    """A text that changes its setting when it is left, or with Enter."""
    import ipywidgets as w

    layout = w.Layout(width="98%" if is_wide else "200px")
    return w.Text(description=label, continuous_update=False, layout=layout, style=LABEL_STYLE)


def _written(setting: object) -> str:
    """A setting as a field holds it: a text as it is, token ids as Python, "" for None."""
    return setting if isinstance(setting, str) else "" if setting is None else repr(plain(setting))

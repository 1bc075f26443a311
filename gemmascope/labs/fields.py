"""The controls of a lab: ipywidgets that change its settings, and show them when they change in Python."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

from gemmascope.labs.typed import as_typed, read_typed
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
            self.controls[name].value = as_typed(settings[name]) if self._is_text(name) else settings[name]

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
        return read_typed(text, self.settings()[name], self.model, is_optional=name in self.optional)


def text_field(label: str, *, is_wide: bool = False) -> ipywidgets.Text:
    """A text that changes its setting when it is left, or with Enter."""
    import ipywidgets as w

    layout = w.Layout(width="98%" if is_wide else "200px")
    return w.Text(description=label, continuous_update=False, layout=layout, style=LABEL_STYLE)

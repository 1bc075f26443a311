"""How the workshop shows its widgets, so that a saved or exported notebook has their text and no list of their parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ipywidgets


def bundle_of(widget: ipywidgets.Widget, text: str) -> dict[str, object]:
    """What a front end is sent of a widget, with a text for those that draw no widgets.

    ipywidgets' own text lists all parts of a widget, "VBox(children=(HTML(value=...".
    """
    data = widget._repr_mimebundle_()
    return {**(data if isinstance(data, dict) else data[0]), "text/plain": text}


def show_widget(widget: ipywidgets.Widget, text: str) -> None:
    """Show a widget in the running cell, and the text where widgets are not drawn."""
    from IPython.display import display

    display(bundle_of(widget, text), raw=True)

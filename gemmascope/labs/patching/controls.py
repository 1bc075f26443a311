"""The controls of a patching lab: ipywidgets that set its settings, and show them when they change in Python."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from gemmascope.errors import GemmascopeError
from gemmascope.labs.fields import read, written
from gemmascope.labs.patching.session import LabSession
from gemmascope.labs.patching.settings import LAYERS, METRICS, grids_of
from gemmascope.sites import LAYER_SITES, SITES

if TYPE_CHECKING:
    import ipywidgets

INTO = {"the corrupted run (what restores the answer?)": "corrupt", "the clean run (what breaks it?)": "clean"}
WORDS = {"logit_diff": "logit difference", "answer_prob": "probability", "answer_logprob": "log probability"}
TEXTS = ("clean", "corrupt", "answer", "against")


class Panel:
    """The controls. changed: called after every change that a control made, or failed to make."""

    def __init__(self, lab: LabSession, changed: Any) -> None:
        self.lab, self.changed = lab, changed
        self._showing = threading.local()
        self.controls = _controls()
        self.show()
        for name, control in self.controls.items():
            if name != "swap":
                control.observe(self._set, names="value")
        self.controls["swap"].on_click(self._swap)

    def box(self) -> ipywidgets.Widget:
        import ipywidgets as w

        c = self.controls
        wide = w.Layout(width="100%", flex_flow="row wrap")
        return w.VBox(
            [
                c["clean"],
                c["corrupt"],
                w.HBox([c["answer"], c["against"], c["swap"], c["metric"]], layout=wide),
                w.HBox([c["site"], c["by"], c["into"], c["layers"]], layout=wide),
            ]
        )

    def show(self) -> None:
        """Show the settings as they are."""
        settings, c = self.lab.settings, self.controls
        self._showing.now = True
        try:
            for name in TEXTS:
                c[name].value = written(getattr(settings, name))
            c["site"].value = settings.site
            grids: dict[str, tuple[str, ...]] = {
                " × ".join(axis.replace("_", " ") for axis in by): by for by in grids_of(settings.site)
            }
            if settings.by not in grids.values():
                grids[" × ".join(settings.by)] = settings.by
            if dict(c["by"].options) != grids:
                c["by"].options = grids
            for name in ("by", "into", "layers", "metric"):
                c[name].value = getattr(settings, name)
        finally:
            self._showing.now = False

    def _set(self, change: Any) -> None:
        if getattr(self._showing, "now", False):
            return
        name = next(n for n, control in self.controls.items() if control is change["owner"])
        try:
            self.lab.set(**{name: self._read(name, change["new"])})
        except GemmascopeError as error:
            self.lab.error = str(error)
        self.show()
        self.changed()

    def _swap(self, _: Any) -> None:
        self.lab.swap()
        self.show()
        self.changed()

    def _read(self, name: str, given: Any) -> Any:
        return read(given, getattr(self.lab.settings, name), self.lab.model) if name in TEXTS else given


def _controls() -> dict[str, Any]:
    import ipywidgets as w

    long = {"continuous_update": False, "layout": w.Layout(width="98%"), "style": {"description_width": "70px"}}
    short = {"continuous_update": False, "layout": w.Layout(width="200px"), "style": {"description_width": "70px"}}
    listed = {"style": {"description_width": "70px"}, "layout": w.Layout(width="210px")}
    sites = {f"{name}: {SITES[name].meaning}": name for name in LAYER_SITES}
    return {
        "clean": w.Text(description="clean", **long),
        "corrupt": w.Text(description="corrupted", **long),
        "answer": w.Text(description="answer", **short),
        "against": w.Text(description="against", **short),
        "swap": w.Button(description="Swap answers", tooltip="exchange the two answers", layout=w.Layout(width="120px")),
        "metric": w.Dropdown(description="metric", options={WORDS[name]: name for name in METRICS}, **listed),
        "site": w.Dropdown(description="site", options=sites, **{**listed, "layout": w.Layout(width="330px")}),
        "by": w.Dropdown(description="grid", options={"layer × pos": ("layer", "pos")}, **listed),
        "into": w.Dropdown(description="patch into", options=INTO, **{**listed, "layout": w.Layout(width="370px")}),
        "layers": w.Dropdown(description="layers", options=list(LAYERS), **listed),
    }

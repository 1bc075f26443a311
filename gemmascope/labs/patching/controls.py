"""The controls of a patching lab: prompts, answers, metric, site, grid, direction and layers."""

from __future__ import annotations

from collections.abc import Callable

from gemmascope.labs.fields import LABEL_STYLE, Fields, text_field
from gemmascope.labs.patching.session import LabSession
from gemmascope.labs.patching.settings import LAYERS, METRIC_LABELS, grids_of
from gemmascope.sites import LAYER_SITES, SITES

INTO_LABELS = {
    "the corrupted run (what restores the answer?)": "corrupt",
    "the clean run (what breaks it?)": "clean",
}
ROWS = [["clean"], ["corrupt"], ["answer", "against", "swap", "metric"], ["site", "by", "into", "layers"]]


class PatchingFields(Fields):
    """The controls; the grids to choose from follow the site."""

    def _show(self) -> None:
        settings = self.settings()
        grids = {" × ".join(axis.replace("_", " ") for axis in by): by for by in grids_of(str(settings["site"]))}
        by = settings["by"]
        if isinstance(by, tuple) and by not in grids.values():  # a grid turned round, which Python can ask for
            grids[" × ".join(by)] = by
        if dict(self.controls["by"].options) != grids:
            self.controls["by"].options = grids
        super()._show()


def fields_of(lab: LabSession, typed: Callable[[str, Callable[[], object]], None]) -> PatchingFields:
    """The controls of a lab. typed: called when one changes, as in Fields."""
    import ipywidgets as w

    def dropdown(label: str, options: object, width: int = 210) -> w.Dropdown:
        return w.Dropdown(description=label, options=options, style=LABEL_STYLE, layout=w.Layout(width=f"{width}px"))

    swap = w.Button(description="Swap answers", tooltip="exchange the two answers", layout=w.Layout(width="120px"))
    swap.on_click(lambda _: lab.swap())
    controls = {
        "clean": text_field("clean", is_wide=True),
        "corrupt": text_field("corrupted", is_wide=True),
        "answer": text_field("answer"),
        "against": text_field("against"),
        "swap": swap,
        "metric": dropdown("metric", {label: name for name, label in METRIC_LABELS.items()}),
        "site": dropdown("site", {f"{name}: {SITES[name].meaning}": name for name in LAYER_SITES}, 330),
        "by": dropdown("grid", {"layer × pos": ("layer", "pos")}),
        "into": dropdown("patch into", INTO_LABELS, 370),
        "layers": dropdown("layers", list(LAYERS)),
    }
    return PatchingFields(lab.model, controls, ROWS, lambda: vars(lab.settings), typed)

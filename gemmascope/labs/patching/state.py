"""What the page of a patching lab shows: its state as JSON, and arrays as bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gemmascope.errors import GemmascopeError
from gemmascope.labs.patching.align_tokens import aligned_data
from gemmascope.labs.patching.detail import Detail
from gemmascope.labs.patching.experiment import Experiment
from gemmascope.labs.patching.menus import menus_of
from gemmascope.labs.patching.picture import (
    answer_text,
    bound_of,
    difference_text,
    measure_text,
    progress_text,
    spec_of,
    thumbnail_of,
)
from gemmascope.labs.patching.session import LabSession
from gemmascope.labs.patching.settings import SITE_WORDS, Settings
from gemmascope.labs.typed import as_typed
from gemmascope.model.model import Model
from gemmascope.values import Array
from gemmascope.views.labels import Label, position_label
from gemmascope.views.sweep import ESTIMATED, EXACT, NOT_RUN

if TYPE_CHECKING:
    from gemmascope.labs.widget import Trait

INTO_WORDS = {"corrupt": "corrupted", "clean": "clean"}
# Why an estimate is too low, or too high, beside the exact number of its cell.
_STRAIGHT = "The estimate goes on in a straight line from the {into} run, along the gradient there. "
MISLEADING = {
    "low": f"{_STRAIGHT}A softmax that is all but decided, in attention or in the answer, hardly moves for a small change: "
    "it is saturated, and its gradient is near 0, although the whole patch turns it over. Trust the exact number.",
    "high": f"{_STRAIGHT}A whole patch is no small step: on the way the model answers less than it did at first. Trust the "
    "exact number.",
}


def snapshot_of(lab: LabSession) -> dict[str, Trait]:
    """The traits of the page: the state, and the arrays of the present experiment, of the compared one, and of all runs."""
    with lab.guard:
        experiment, compared = lab.experiment, lab.compared
        grid = None if experiment is None else experiment.cell_grid
        other, other_values, other_marks = _compared(experiment, compared)
        return {
            "state": state_of(lab),
            "values": b"" if grid is None else _as_bytes(grid.values),
            "marks": b"" if grid is None else grid.marks.tobytes(),
            "estimates": b"" if grid is None else _as_bytes(grid.estimate),
            "seconds": b"" if experiment is None else _as_bytes(experiment.seconds_each()),
            "patterns": _pattern_bytes(lab.detail),
            "other": other,
            "other_values": other_values,
            "other_marks": other_marks,
            "thumbnails": b"".join(thumbnail_of(one).tobytes() for one in lab.experiments()),
        }


def state_of(lab: LabSession) -> dict[str, object]:
    """Everything but the arrays: settings, checks, tokens, the grid's labels, progress, errors, the detail, the runs."""
    with lab.guard:
        experiment, detail = lab.experiment, lab.detail
        return {
            "view": "lab",
            "seq": lab.seq,
            "number": lab.number,
            "model": lab.model.name,
            "settings": {name: as_typed(getattr(lab.settings, name)) for name in ("clean", "corrupt", "answer", "against")},
            "menus": menus_of(lab),
            "tokens": _tokens(lab.model, lab.settings),
            "checks": [vars(remark) for remark in lab.checks],
            "can_run": lab.can_run,
            "can_undo": lab.can_undo,
            "answers": [answer_text(lab.settings.answer), answer_text(lab.settings.against)],
            "metric": repr(lab.settings.metric_of()),
            "measure": measure_text(lab.settings),
            "into": lab.settings.into,
            "misleading": {name: text.format(into=INTO_WORDS[lab.settings.into]) for name, text in MISLEADING.items()},
            **_experiment_state(experiment),
            "busy": lab.is_busy,
            "progress": lab.progress,
            "error": _error(lab),
            "detail": None if detail is None else {**detail.as_data(), "positions": _positions(detail)},
            "runs": [_run(one, lab) for one in lab.experiments()],
        }


def _error(lab: LabSession) -> str | None:
    """What went wrong last, unless a remark on the settings says it already."""
    return None if lab.error in [remark.text for remark in lab.checks] else lab.error


def _experiment_state(experiment: Experiment | None) -> dict[str, object]:
    if experiment is None:
        none = dict.fromkeys(("baselines", "gap", "grid", "estimate_seconds", "code"))
        return {**none, "streams": False, "alike": 0}
    return {
        "baselines": experiment.baselines,
        "gap": experiment.gap,
        "grid": spec_of(experiment, experiment.cell_grid),
        "estimate_seconds": experiment.throughput.estimate_seconds(),
        "streams": experiment.throughput.streams,
        "code": experiment.result.code(),
        "alike": experiment.n_alike,
    }


def _run(experiment: Experiment, lab: LabSession) -> dict[str, object]:
    """A run in the strip below the grid. shape: of its thumbnail, [row, column]."""
    settings = experiment.settings
    into = INTO_WORDS[settings.into]
    layers = "" if settings.layers == "all" else f", {settings.layers} layers"
    return {
        "title": SITE_WORDS.get(settings.site, settings.site),
        "grid": f"{' × '.join(axis.replace('_', ' ') for axis in settings.by)}{layers}, into {into}",
        "prompts": difference_text(experiment),
        "measure": measure_text(settings),
        "progress": progress_text(experiment),
        "shape": list(thumbnail_of(experiment).shape),
        "up": settings.by[0] == "layer",
        "now": experiment is lab.experiment,
        "compared": experiment is lab.compared,
    }


def _compared(experiment: Experiment | None, other: Experiment | None) -> tuple[dict[str, object], bytes, bytes]:
    """What is laid beside the present grid: where the two can be subtracted, this run less the other; else the other run."""
    if experiment is None or other is None:
        return {}, b"", b""
    grids = experiment.cell_grid, other.cell_grid
    if experiment.axes != other.axes:
        bound = max(bound_of(one, grid) for one, grid in zip((experiment, other), grids, strict=True))
        spec = {**spec_of(other, grids[1], bound), "kind": "beside"}
        return spec, _as_bytes(grids[1].values), grids[1].marks.tobytes()
    difference = grids[0].values - grids[1].values
    both = np.where((grids[0].marks == EXACT) & (grids[1].marks == EXACT), EXACT, ESTIMATED)
    marks = np.where(np.isnan(difference), NOT_RUN, both).astype(np.uint8)
    bound = float(np.nanmax(np.abs(difference), initial=0.0)) or 1.0
    note = f"This run less: {SITE_WORDS.get(other.settings.site, other.settings.site)}, {difference_text(other)}"
    spec = {**spec_of(experiment, grids[0], bound), "kind": "difference", "title": "Difference", "note": note}
    return spec, _as_bytes(difference), marks.tobytes()


def _pattern_bytes(detail: Detail | None) -> bytes:
    """The patterns of a detail, float32 [run, q_pos, k_pos]."""
    return _as_bytes(np.stack(list(detail.patterns.values()))) if detail is not None and detail.patterns else b""


def _positions(detail: Detail) -> dict[str, list[Label]]:
    """The labels of each run's positions, for its pattern."""
    return {name: [position_label(*each) for each in enumerate(tokens)] for name, tokens in detail.tokens.items()}


def _tokens(model: Model, settings: Settings) -> list[dict[str, object]]:
    """The two prompts beside each other; nothing if one of them cannot be read."""
    try:
        ids = [model.ids(prompt).tolist() for prompt in (settings.clean, settings.corrupt)]
    except GemmascopeError:
        return []
    return aligned_data(model, *ids)


def _as_bytes(values: Array) -> bytes:
    """Numbers as float32, as the canvas module reads them."""
    return np.ascontiguousarray(values, dtype=np.float32).tobytes()

"""What a front end draws of a patching lab: a snapshot as JSON holds it, and the arrays that go beside it as bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from gemmascope.errors import GemmascopeError
from gemmascope.labs.patching.align_tokens import aligned_data
from gemmascope.labs.patching.cell_grid import CellGrid
from gemmascope.labs.patching.detail import Detail
from gemmascope.labs.patching.experiment import Experiment
from gemmascope.labs.patching.session import LabSession
from gemmascope.labs.patching.settings import Settings
from gemmascope.model.model import Model
from gemmascope.sweeps.result import Array
from gemmascope.tokens.tokenizer import shown
from gemmascope.views.grids import AXES, labels_of


def state_of(lab: LabSession) -> dict[str, Any]:
    """Everything but the arrays: settings, checks, tokens, the grid's labels, progress, errors, the detail, the history."""
    with lab.guard:
        found, detail = lab.experiment, lab.detail
        return {
            "view": "lab",
            "seq": lab.seq,
            "number": lab.number,
            "model": lab.model.name,
            "tokens": _tokens(lab.model, lab.settings),
            "checks": [vars(remark) for remark in lab.checks],
            "can_run": lab.can_run,
            "answers": [_answer(lab.settings.answer), _answer(lab.settings.against)],
            "baselines": None if found is None else found.baselines,
            "metric": repr(lab.settings.metric_of()),
            "grid": None if found is None else grid_spec(found, found.board),
            "estimate_seconds": None if found is None else found.pace.estimate_seconds(),
            "streams": found is not None and found.pace.streams,
            "busy": lab.is_busy,
            "progress": lab.progress,
            "error": lab.error,
            "detail": None if detail is None else {**detail.as_data(), "positions": _positions(detail)},
            "code": None if found is None else found.result.code(),
            "history": [label_of(one) for one in lab.experiments()],
        }


def arrays_of(lab: LabSession) -> dict[str, bytes]:
    """The arrays: effects (float32), marks (uint8) and seconds (float32) [row, column], patterns (float32) [run, q, k]."""
    with lab.guard:
        found, detail = lab.experiment, lab.detail
        if found is None:
            return {"values": b"", "marks": b"", "seconds": b"", "patterns": b""}
        patterns = [] if detail is None else list(detail.patterns.values())
        return {
            "values": as_bytes(found.board.values),
            "marks": found.board.marks.tobytes(),
            "seconds": as_bytes(found.seconds_each()),
            "patterns": as_bytes(np.stack(patterns)) if patterns else b"",
        }


def grid_spec(experiment: Experiment, board: CellGrid) -> dict[str, Any]:
    """The labels and the scale of a grid, as the canvas module reads them."""
    row_axis, column_axis = experiment.axes
    bound = bound_of(experiment, board)
    return {
        "view": "grid",
        "title": title_of(experiment),
        "note": note_of(experiment),
        "rows": _labels(experiment, row_axis),
        "columns": _labels(experiment, column_axis),
        "row_axis": AXES.get(row_axis, row_axis),
        "column_axis": AXES.get(column_axis, column_axis),
        "up": row_axis == "layer",
        "unit": "",
        "scale": {"kind": "diverging", "low": -bound, "high": bound},
    }


def bound_of(experiment: Experiment, board: CellGrid) -> float:
    """The largest number of a grid's scale: the gap between the baselines, or an effect beyond it."""
    ends = experiment.baselines
    gap = abs(ends["clean"] - ends["corrupt"]) if ends else 0.0
    known = np.abs(board.values[~np.isnan(board.values)])
    return max(gap, float(known.max(initial=0.0))) or 1.0


def title_of(experiment: Experiment) -> str:
    question = experiment.result.question
    return f"{question.site} patched into the {question.into} run, {question.model}"


def note_of(experiment: Experiment) -> str:
    """What a colour means, in a sentence."""
    ends = experiment.baselines
    if ends is None:
        return "The two prompts are still to be run."
    into = experiment.settings.into
    base, source = ends[into], ends["clean" if into == "corrupt" else "corrupt"]
    return (
        f"The {into} run gives {base:.3f}, the other {source:.3f}: an effect of {source - base:+.3f} is all of the gap. "
        "Blue raises the metric, red lowers it."
    )


def label_of(experiment: Experiment) -> str:
    """An experiment in a line of the history."""
    settings = experiment.settings
    done = f"{int(experiment.result.finished.sum())} exact" if experiment.result.finished.any() else "estimate"
    layers = "" if settings.layers == "all" else f", {settings.layers} layers"
    words = f"{settings.site} by {' and '.join(settings.by)} into {settings.into}{layers}"
    return f"{words}: {_answer(settings.answer)} less {_answer(settings.against)}, {done}"


def _labels(experiment: Experiment, axis: str) -> list[dict[str, Any]]:
    labels = labels_of(experiment.result, axis)
    if axis.endswith("pos") and experiment.model.has_tokenizer:
        ids = experiment.sweeping.pairs[0].base.ids.tolist()
        for label, number in zip(labels, experiment.axes[axis], strict=True):
            label["special"] = experiment.model.tokenizer.is_special(ids[number])
    return labels


def _positions(detail: Detail) -> dict[str, list[dict[str, Any]]]:
    """The labels of each run's positions, for its pattern."""
    return {
        name: [{"label": token, "token": True, "hint": f"{n}: {shown(token)}"} for n, token in enumerate(tokens)]
        for name, tokens in detail.tokens.items()
    }


def _tokens(model: Model, settings: Settings) -> list[dict[str, Any]]:
    """The two prompts beside each other; nothing where one of them cannot be read."""
    try:
        ids = [model.ids(prompt).tolist() for prompt in (settings.clean, settings.corrupt)]
    except GemmascopeError:
        return []
    return aligned_data(model, *ids)


def _answer(given: Any) -> str:
    return given if isinstance(given, str) else repr(given)


def as_bytes(values: Array) -> bytes:
    """Numbers as float32, as the canvas module reads them."""
    return np.ascontiguousarray(values, dtype=np.float32).tobytes()

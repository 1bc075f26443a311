"""Static grids: a sweep, or the features of a run, as pictures that need no kernel."""

from __future__ import annotations

from typing import Any

import numpy as np

from gemmascope.dictionaries.activations import Features
from gemmascope.errors import DictionaryError, SweepError
from gemmascope.run.result import SweepResult
from gemmascope.tokens import shown
from gemmascope.widgets.packing import packed
from gemmascope.widgets.page import View

NOT_RUN, ESTIMATED, EXACT = 0, 1, 2


def sweep_view(result: SweepResult) -> View:
    """A sweep over two axes as a grid: cells that were not run are hatched, estimates have a mark. SweepError for others."""
    names = list(result.question.axes)
    if len(names) != 2:
        raise SweepError(f"a grid has two axes; this sweep has {len(names)} ({', '.join(names)})")
    values = result.effect.values.astype(np.float32)
    bound = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    q = result.question
    exact = ESTIMATED if q.estimate else EXACT
    marks = np.where(np.isnan(values), NOT_RUN, exact).astype(np.uint8)
    done = f"patched into the {q.into} run" if q.has_source else "ablated"
    spec = {
        "view": "grid",
        "title": f"{q.site} {done}, {q.model}" + (f" (estimate: {q.estimate})" if q.estimate else ""),
        "note": repr(result).split("\n")[1],
        "rows": labels_of(result, names[0]),
        "columns": labels_of(result, names[1]),
        "row_axis": AXES.get(names[0], names[0]),
        "column_axis": AXES.get(names[1], names[1]),
        "up": names[0] == "layer",
        "unit": "",
        "scale": {"kind": "diverging", "low": -bound, "high": bound},
    }
    text = repr(result)
    return View(spec, {"values": packed(values), "marks": packed(marks)}, text)


AXES = {"pos": "position", "q_pos": "query", "k_pos": "key", "kv_head": "kv head"}


def labels_of(result: SweepResult, axis: str) -> list[dict[str, Any]]:
    """The labels of an axis of a sweep, as the canvas module reads them."""
    numbers = result.question.axes[axis]
    if axis == "layer":
        kinds = result.question.kinds
        return [{"label": str(n), "kind": kinds[n], "hint": f"{n} ({kinds[n]})"} for n in numbers]
    if axis in ("pos", "q_pos", "k_pos"):
        tokens = result.question.tokens
        return [{"label": tokens[n], "token": True, "hint": f"{n}: {shown(tokens[n])}"} for n in numbers]
    return [{"label": str(n)} for n in numbers]


def sae_view(features: Features, *, most: int = 24) -> View:
    """A picture of a run's features: the strongest ones by position, with the concepts that they are tied to.

    features: what sae.encode(trace) returns. most: how many features. DictionaryError for anything else.
    """
    if not isinstance(features, Features):
        raise DictionaryError(f"a view of features is of what sae.encode(trace) returns; given {type(features).__name__}")
    chosen = sorted(features.strongest(most))
    if not chosen:
        raise DictionaryError("no feature is active anywhere here")
    values = features.acts.sel(feature=chosen).values.T.astype(np.float32)
    ties = features.dictionary.concepts
    spec = {
        "view": "grid",
        "title": f"Features of {features.dictionary.call}",
        "note": f"The {len(chosen)} strongest of {len(features.active)} active features, the first position's left aside.",
        "rows": [
            {
                "label": f"{n} {ties[n].concept}" if n in ties else str(n),
                "hint": f"feature {n}" + (f", {ties[n].concept}" if n in ties else ""),
            }
            for n in chosen
        ],
        "columns": [
            {"label": token, "token": True, "hint": f"{i}: {shown(token)}"} for i, token in enumerate(features.tokens)
        ],
        "row_axis": "",
        "column_axis": "position",
        "unit": "",
        "scale": {"kind": "sequential", "low": 0.0, "high": float(values[:, features.first :].max(initial=0.0)) or 1.0},
    }
    return View(spec, {"values": packed(values)}, repr(features))

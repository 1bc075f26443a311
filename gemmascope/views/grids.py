"""Static grids: a sweep, or the features of a run, as pictures that need no kernel."""

from __future__ import annotations

from typing import Any

import numpy as np

from gemmascope.arguments import shown as shown_value
from gemmascope.arguments import whole_number
from gemmascope.errors import DictionaryError, SweepError
from gemmascope.sae.features import Features
from gemmascope.sweeps.result import SweepResult
from gemmascope.tokens.tokenizer import shown
from gemmascope.views.packing import packed
from gemmascope.views.page import View

NOT_RUN, ESTIMATED, EXACT = 0, 1, 2


def sweep_view(result: SweepResult) -> View:
    """A sweep over two axes as a grid: cells that were not run are hatched, estimates have a mark. SweepError for others."""
    if not isinstance(result, SweepResult):
        raise SweepError(f"sweep_view takes what gs.sweep or gs.attribute returns; given {shown_value(result)}")
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
    most = whole_number(most, "most, how many features to show,", least=1, error=DictionaryError)
    chosen = sorted(features.strongest(most))
    if not chosen:
        raise DictionaryError("no feature is active anywhere here")
    values = features.acts.sel(feature=chosen).values.T.astype(np.float32)
    high = float(values[:, features.first :].max(initial=0.0)) or 1.0
    aside = "; choice and colours leave the first position aside" if features.first else ""
    spec = {
        "view": "grid",
        "title": f"Features of {features.dictionary.call}",
        "note": f"The {len(chosen)} strongest of {len(features.active)} active features{aside}.",
        "rows": [_feature_label(features, n) for n in chosen],
        "columns": _positions_of(features),
        "row_axis": "",
        "column_axis": "position",
        "unit": "activation",
        "scale": {"kind": "sequential", "low": 0.0, "high": high},
    }
    strongest = sorted(range(len(chosen)), key=lambda i: -float(values[i, features.first :].max(initial=0.0)))[:8]
    rows = [["feature", "strongest at", "activation"], *(_strongest_row(features, chosen[i], values[i]) for i in strongest)]
    return View(spec, {"values": packed(values)}, repr(features), rows)


def _feature_label(features: Features, feature: int) -> dict[str, Any]:
    tie = features.dictionary.concepts.get(feature)
    named = f"{feature} {tie.concept}" if tie else str(feature)
    return {"label": named, "hint": f"feature {named}"}


def _positions_of(features: Features) -> list[dict[str, Any]]:
    tokenizer = features.model.tokenizer if features.model is not None and features.model.has_tokenizer else None
    ids = [] if features.ids is None else features.ids.tolist()
    special = [tokenizer is not None and tokenizer.is_special(i) for i in ids] or [False] * len(features.tokens)
    return [
        {"label": token, "token": True, "special": one, "hint": f"{i}: {shown(token)}"}
        for i, (token, one) in enumerate(zip(features.tokens, special, strict=True))
    ]


def _strongest_row(features: Features, feature: int, values: np.ndarray[Any, Any]) -> list[str]:
    at = int(values[features.first :].argmax()) + features.first
    return [str(_feature_label(features, feature)["label"]), f"{at}: {shown(features.tokens[at])}", f"{values[at]:.4g}"]

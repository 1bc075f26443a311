"""gs.sae_view: the features of a run as a grid that needs no kernel."""

from __future__ import annotations

import numpy as np

from gemmascope.arguments import whole_number
from gemmascope.errors import DictionaryError
from gemmascope.sae.features import Features
from gemmascope.tokens.tokenizer import visible_text
from gemmascope.views.labels import Label, are_special, position_label
from gemmascope.views.packing import pack
from gemmascope.views.page import View

# How many features the table has that stands in for the picture.
TABLE_ROWS = 8


def sae_view(features: Features, *, most: int = 24) -> View:
    """The strongest features of a run, by position, with the concepts that they are tied to.

    The first position is drawn, but neither the choice of features nor the range of the colours depends on it.

    Args:
        features: What `sae.encode(trace)` returned.
        most: How many features to show at most.

    Returns:
        The picture, self-contained.

    Raises:
        DictionaryError: `features` is something else, `most` is below 1, or no feature is active.

    Examples:
        >>> sae = gs.load_sae("nano")
        >>> view = gs.sae_view(sae.encode(gs.trace("Mary and John went to the store")), most=5)
        >>> view.spec["note"]
        'The 5 strongest of 225 active features; choice and colours leave the first position aside.'
        >>> view.rows[1]
        ["987 a person's name", '3: ·John', '7.44']
    """
    if not isinstance(features, Features):
        raise DictionaryError(f"a view of features is of what sae.encode(trace) returns; given {type(features).__name__}")
    most = whole_number(most, "most, how many features to show,", least=1, error=DictionaryError)
    chosen = sorted(features.strongest(most))
    if not chosen:
        raise DictionaryError("no feature is active anywhere here")
    values = features.acts.sel(feature=chosen).values.T.astype(np.float32)  # [feature, pos]
    peaks = values[:, features.first :].max(axis=1, initial=0.0)
    aside = "; choice and colours leave the first position aside" if features.first else ""
    spec = {
        "view": "features",
        "title": f"Features of {features.dictionary.call}",
        "note": f"The {len(chosen)} strongest of {len(features.active)} active features{aside}.",
        "rows": [_feature_label(features, feature) for feature in chosen],
        "columns": _position_labels(features),
        "row_axis": "",
        "column_axis": "position",
        "unit": "activation",
        "peaks": peaks.tolist(),
        "scale": {"kind": "sequential", "low": 0.0, "high": float(peaks.max()) or 1.0},
    }
    rows = [["feature", "strongest at", "activation"]]
    for i in np.argsort(-peaks, kind="stable")[:TABLE_ROWS]:
        pos = int(values[i, features.first :].argmax()) + features.first
        token = visible_text(features.tokens[pos])
        rows.append([_feature_label(features, chosen[i])["label"], f"{pos}: {token}", f"{values[i, pos]:.4g}"])
    return View(spec, {"values": pack(values)}, repr(features), rows)


def _feature_label(features: Features, feature: int) -> Label:
    tie = features.dictionary.concepts.get(feature)
    name = f"{feature} {tie.concept}" if tie else str(feature)
    return {"label": name, "hint": f"feature {name}"}


def _position_labels(features: Features) -> list[Label]:
    special = [False] * len(features.tokens) if features.ids is None else are_special(features.model, features.ids.tolist())
    return [position_label(pos, token, special[pos]) for pos, token in enumerate(features.tokens)]

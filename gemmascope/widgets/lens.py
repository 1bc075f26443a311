"""gs.lens_view: what each layer would answer at every position."""

from __future__ import annotations

from typing import Any

import numpy as np

from gemmascope.analysis.lens import Lens, lens
from gemmascope.errors import SiteError
from gemmascope.run.trace import Trace
from gemmascope.tokens import shown
from gemmascope.widgets.attention import _tokens
from gemmascope.widgets.packing import packed
from gemmascope.widgets.page import View

COLOURS = ("probability", "rank", "entropy")


def lens_view(
    trace: Trace, *, answer: str | int | None = None, site: str = "resid_post", colour: str = "probability", top: int = 5
) -> View:
    """A picture of the lens: layer by position, the top token in each cell, the `top` likeliest under the pointer.

    answer: a token to follow: its probability and rank can be the colour then. site: as in gs.lens. colour: what the colour
    says at first: "probability" (of the answer, or of the top token), "rank" of the answer, or "entropy".
    SiteError, PromptError for what is not there.
    """
    if not isinstance(trace, Trace):
        raise SiteError(f"a lens view is of a trace: gs.lens_view(gs.trace(prompt)); given {type(trace).__name__}")
    if colour not in COLOURS or (colour == "rank" and answer is None):
        follow = " (rank needs answer=)" if colour == "rank" else ""
        raise SiteError(f"colour is one of {', '.join(COLOURS)}{follow}; given {colour!r}")
    found = lens(trace, site, top, answer=answer)
    values = _values(found, colour)
    spec = {
        "view": "lens",
        "title": f"Lens on {found.site} in {trace.model.name}",
        "note": _note(found),
        "rows": [_row(found, i) for i in range(len(found.entries))],
        "columns": [
            {"label": token, "token": True, "special": special, "hint": f"{i}: {shown(token)}"}
            for i, (token, special) in enumerate(zip(*_tokens(trace).values(), strict=True))
        ],
        "row_axis": "layer",
        "column_axis": "position",
        "up": True,
        "unit": "",
        "scale": {"kind": "sequential", "low": 0.0, "high": 1.0},
        "texts": [[trace.model.texts(found.ids[i, j, :1])[0] for j in range(len(trace))] for i in range(len(found.entries))],
        "hover": [[_hover(found, i, j) for j in range(len(trace))] for i in range(len(found.entries))],
        "colours": {name: _scale(name, array) for name, array in values.items()},
    }
    last = len(trace) - 1
    rows = [[str(_row(found, i)["label"]), *_hover(found, i, last)] for i in range(len(found.entries))]
    return View(spec, {name: packed(array) for name, array in values.items()}, f"After {shown(trace.tokens[-1])}:", rows)


def _values(found: Lens, first: str) -> dict[str, np.ndarray[Any, Any]]:
    """What the colour may say, the one asked for first."""
    values = {"probability of the top token": found.probs[..., 0], "entropy": found.entropies}
    names = {"probability": "probability of the top token", "entropy": "entropy"}
    if found.followed:
        _, prob, rank = found.followed
        values |= {"probability of the answer": prob, "rank of the answer": rank}
        names |= {"probability": "probability of the answer", "rank": "rank of the answer"}
    start = names[first]
    ordered = [start, *(name for name in values if name != start)]
    return {name: values[name].float().cpu().numpy().astype(np.float32) for name in ordered}


def _scale(name: str, array: np.ndarray[Any, Any]) -> dict[str, Any]:
    high = 1.0 if name.startswith("probability") else float(array.max(initial=0.0)) or 1.0
    units = {"entropy": "nats", "rank of the answer": "(0: the likeliest)"}
    return {"unit": units.get(name, ""), "scale": {"kind": "sequential", "low": 0.0, "high": high}}


def _row(found: Lens, i: int) -> dict[str, Any]:
    site, layer = found.entries[i]
    if layer is None:
        return {"label": site, "kind": None}
    kind = found.trace.model.config.kinds[layer]
    label = f"{layer} {site}" if found.site == "stream" else str(layer)
    return {"label": label, "kind": kind, "hint": f"{label} ({kind})"}


def _hover(found: Lens, i: int, j: int) -> list[str]:
    texts = found.trace.model.texts(found.ids[i, j])
    lines = [f"{shown(text)}  {float(prob):.3f}" for text, prob in zip(texts, found.probs[i, j], strict=True)]
    if found.followed:
        lines.append(f"answer: {float(found.followed[1][i, j]):.3f}, rank {int(found.followed[2][i, j])}")
    return lines


def _note(found: Lens) -> str:
    if found.answer is None:
        return "The likeliest token at each place."
    token = shown(found.trace.model.tokenizer.text(found.answer)) if found.trace.model.has_tokenizer else str(found.answer)
    return f"The likeliest token at each place, following {token}."

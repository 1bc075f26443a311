"""gs.lens_view: what each layer would answer at every position."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from gemmascope.analysis.lens import Lens, lens
from gemmascope.arguments import one_of, whole_number
from gemmascope.edits.places import Pos, find_positions
from gemmascope.errors import SiteError
from gemmascope.run.trace import Trace
from gemmascope.tokens.tokenizer import shown
from gemmascope.views.labels import position_labels, require_trace
from gemmascope.views.packing import PackedLayer, packed, probabilities
from gemmascope.views.page import View

COLOURS = ("probability", "rank", "entropy")

# How many of the likeliest tokens a page holds, of all its cells together; each is named by two bytes.
MOST_TOKENS = 60_000


def lens_view(
    trace: Trace,
    *,
    answer: str | int | None = None,
    site: str = "resid_post",
    colour: str = "probability",
    top: int = 5,
    pos: Pos = None,
    head: int | None = None,
) -> View:
    """A picture of the lens: layer by position, the top token in each cell, the `top` likeliest under the pointer.

    answer: a token to follow: its probability and rank can be the colour then. site, head: as in gs.lens. colour: what the
    colour says at first: "probability" (of the answer, or of the top token), "rank" of the answer, or "entropy". pos:
    positions, as in gs.patch; None for all, or for the last ones of a prompt that is too long for a page, which the view
    then says. SiteError, PromptError for what is not there.
    """
    require_trace(trace, "trace")
    if one_of(colour, "colour", COLOURS, error=SiteError) == "rank" and answer is None:
        raise SiteError("colour='rank' is of an answer: rank needs answer=")
    top = whole_number(top, "top", least=1, most=trace.model.config.vocab_size, error=SiteError)
    positions, clipped = _positions(trace, pos, site, top)
    found = lens(trace, site, top, pos=positions, head=head, answer=answer)
    arrays, words = _arrays(found)
    spec = {
        "view": "lens",
        "title": f"Lens on {found.site}{'' if head is None else f' of head {found.head}'} in {trace.model.name}",
        "note": _note(found, clipped),
        "rows": [_row(found, i) for i in range(len(found.entries))],
        "columns": position_labels(trace, positions),
        "row_axis": "layer",
        "column_axis": "position",
        "up": True,
        "words": words,
        "top": found.ids.shape[-1],
        "follows": None if found.answer is None else trace.model.texts(torch.tensor([found.answer]))[0],
        "colours": _colours(found, colour),
    }
    return View(spec, arrays, f"After {shown(trace.tokens[positions[-1]])}, at position {positions[-1]}:", _table(found))


def _positions(trace: Trace, pos: Pos, site: str, top: int) -> tuple[list[int], bool]:
    """The positions that are shown, and whether a prompt's first ones had to be left out."""
    n_layers = trace.model.n_layers
    n_entries = 2 * n_layers + 1 if isinstance(site, str) and site == "stream" else n_layers
    most = max(1, MOST_TOKENS // (n_entries * top))
    positions = find_positions(pos, trace.model, trace.ids)
    if len(positions) <= most:
        return positions, False
    if pos is not None:
        room = f"a lens view of {n_entries} rows and top={top} has room for {most} positions"
        raise SiteError(f"{room}; given {len(positions)}")
    return positions[-most:], True


def _arrays(found: Lens) -> tuple[dict[str, PackedLayer], list[str]]:
    """The numbers of the view, and the words that its ids are numbers of."""
    ids, at = torch.unique(found.ids, return_inverse=True)
    arrays = {
        "ids": packed(at.cpu().numpy().astype(np.uint16)),
        "probs": probabilities(found.probs.float().cpu().numpy()),
        "top": probabilities(found.probs[..., 0].float().cpu().numpy()),
        "entropy": packed(found.entropies.float().cpu().numpy()),
    }
    if found.followed:
        _, prob, rank = found.followed
        arrays |= {"prob": probabilities(prob.float().cpu().numpy()), "rank": packed(rank.cpu().numpy().astype(np.float32))}
    return arrays, found.trace.model.texts(ids)


def _colours(found: Lens, first: str) -> list[dict[str, Any]]:
    """What the colour may say, the one asked for first. Ranks go by powers of ten, and 0, the best, stands out most."""
    share: dict[str, Any] = {"decimals": 4, "scale": {"kind": "sequential", "low": 0.0, "high": 1.0}}
    nats = {"kind": "sequential", "low": 0.0, "high": float(found.entropies.max()) or 1.0}
    colours: list[dict[str, Any]] = [
        {"name": "probability of the top token", "array": "top", "unit": "probability", **share},
        {"name": "entropy", "array": "entropy", "unit": "nats", "scale": nats},
    ]
    if found.followed:
        worst = max(1.0, float(found.followed[2].max()))
        ranks = {"kind": "sequential", "low": 0.0, "high": worst, "log": True, "reverse": True}
        colours = [
            {"name": "probability of the answer", "array": "prob", "unit": "probability", **share},
            {"name": "rank of the answer (0: the likeliest)", "array": "rank", "unit": "rank", "scale": ranks},
            *colours,
        ]
    start = next(i for i, one in enumerate(colours) if one["name"].startswith(first))
    return [colours[start], *(one for i, one in enumerate(colours) if i != start)]


def _row(found: Lens, i: int) -> dict[str, Any]:
    site, layer = found.entries[i]
    if layer is None:
        return {"label": site, "kind": None}
    kind = found.trace.model.config.kinds[layer]
    label = f"{layer} {site}" if found.site == "stream" else str(layer)
    return {"label": label, "kind": kind, "hint": f"{label} ({kind})"}


def _table(found: Lens) -> list[list[str]]:
    """What the layers would answer after the last position, for where there is no picture."""
    rows = []
    for i in range(len(found.entries)):
        texts = found.trace.model.texts(found.ids[i, -1])
        tops = [f"{shown(text)} {float(prob):.4f}" for text, prob in zip(texts, found.probs[i, -1], strict=True)]
        rank = [f"rank of the answer {int(found.followed[2][i, -1])}"] if found.followed else []
        rows.append([str(_row(found, i).get("hint", found.entries[i][0])), *tops, *rank])
    return rows


def _note(found: Lens, clipped: bool) -> str:
    follows = "" if found.answer is None else f", and how {_answer(found)} fares as the next one"
    note = f"The likeliest next token at each place{follows}."
    if clipped:
        first, last = found.positions[0], found.positions[-1]
        note += f" For the size of the page positions {first} to {last} are shown: pos= chooses others."
    return note


def _answer(found: Lens) -> str:
    return shown(found.trace.model.texts(torch.tensor([found.answer]))[0])

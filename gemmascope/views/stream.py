"""gs.stream_view: what the stream is made of, layer by layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gemmascope.analysis.direct_logits import answer_directions
from gemmascope.arguments import shown as quoted
from gemmascope.edits.places import find_positions
from gemmascope.errors import SiteError
from gemmascope.figures.labelled import GLOBAL
from gemmascope.run.metric import Answer, answer_ids
from gemmascope.run.replay import replay
from gemmascope.run.trace import Trace
from gemmascope.tokens.tokenizer import shown
from gemmascope.views.labels import require_trace, special_of
from gemmascope.views.packing import packed
from gemmascope.views.page import View

# How many numbers a page holds: of longer prompts the positions up to the one asked for.
MOST_NUMBERS = 150_000


def stream_view(trace: Trace, *, pos: int | str = -1, answer: Answer | None = None, against: Answer | None = None) -> View:
    """A picture of the stream by layer: norms, what attention and MLP add, the cosine with the final stream.

    pos: the position that is shown at first; the others are chosen by their tokens. answer, against: adds what attention
    and MLP of each layer wrote towards the answer, before the soft cap, as gs.direct_logits has it. The layers are run
    again once. SiteError, PromptError for what is not there.
    """
    require_trace(trace, "trace")
    if answer is None and against is not None:
        raise SiteError(f"against={quoted(against)} is subtracted from an answer: give answer= as well")
    at = find_positions(pos, trace.model, trace.ids)
    if len(at) != 1:
        raise SiteError(f"one position is shown at first; given pos={quoted(pos)}")
    directions = None if answer is None else answer_directions(trace, answer, against)
    values = _measures(trace, directions)  # [series, pos, layer]
    panels = _panels(trace, answer, against)
    first, last = _held(trace, at[0], len(values))
    special = special_of(trace)
    kinds = trace.model.config.kinds
    spec = {
        "view": "lines",
        "title": f"The stream in {trace.model.name}",
        "note": _note(trace, first, last),
        "x": [f"{n} {GLOBAL}" if kind == "global" else str(n) for n, kind in enumerate(kinds)],
        "x_axis": f"layer ({GLOBAL} global)",
        "panels": panels,
        "positions": [{"pos": n, "token": trace.tokens[n], "special": special[n]} for n in range(first, last)],
        "at": at[0] - first,
    }
    head = ["layer", *(f"{panel['title']}: {name}" for panel in panels for name in panel["series"])]
    rows = [head, *([str(n), *(f"{v:.4g}" for v in values[:, at[0], n])] for n in range(values.shape[-1]))]
    summary = f"At position {at[0]} ({shown(trace.tokens[at[0]])}):"
    return View(spec, {"values": packed(np.ascontiguousarray(values[:, first:last]))}, summary, rows)


def _panels(trace: Trace, answer: Answer | None, against: Answer | None) -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = [
        {"title": "norm of the stream, and of what is added to it", "unit": "", "series": ["stream", "attention", "MLP"]},
        {"title": "cosine of the stream with the final stream", "unit": "", "series": ["stream"]},
    ]
    if answer is not None:
        towards = _named(trace, answer) + ("" if against is None else f" against {_named(trace, against)}")
        unit = "logit before the soft cap"
        panels.append({"title": f"written towards {towards}", "unit": unit, "series": ["attention", "MLP"]})
    return panels


def _named(trace: Trace, answer: Answer) -> str:
    return ", ".join(map(shown, trace.model.texts(torch.tensor(answer_ids(answer, trace.model)))))


def _measures(trace: Trace, directions: Tensor | None) -> np.ndarray[Any, Any]:
    """Norms of the stream, of attention's and of the MLP's part, the cosine with the final stream, and what both parts
    wrote along directions, where there are some: each [pos, layer], in one stream of the weights."""
    final = trace.residuals[-1].float()
    rows = []
    for layer, values in replay(trace, ["attn_out", "mlp_out"]):
        after = trace.residuals[layer.index + 1].float()
        parts = [values["attn_out"].float(), values["mlp_out"].float()]
        series = [after.norm(dim=-1), *(part.norm(dim=-1) for part in parts), torch.cosine_similarity(after, final, dim=-1)]
        if directions is not None:
            series += [(part * directions).sum(-1) for part in parts]
        rows.append(torch.stack(series))
    found: np.ndarray[Any, Any] = torch.stack(rows, -1).cpu().numpy()
    return found


def _held(trace: Trace, pos: int, n_series: int) -> tuple[int, int]:
    """Which positions a page holds, first and one after the last: all, or those round and before pos."""
    most = max(1, MOST_NUMBERS // (n_series * trace.model.n_layers))
    last = min(len(trace), max(pos + 1, most))
    return max(0, last - most), last


def _note(trace: Trace, first: int, last: int) -> str:
    note = "At each layer: the stream as it leaves the layer, and what attention and MLP of that layer add to it."
    if last - first < len(trace):
        note += f" For the size of the page positions {first} to {last - 1} are held: pos= chooses others."
    return note

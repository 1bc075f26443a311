"""gs.stream_view: how the stream grows, what each sublayer adds to it, and how it comes to point at the answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gemmascope.analysis.direct import direct_logits
from gemmascope.analysis.metrics import Answer
from gemmascope.errors import SiteError
from gemmascope.plots.labelled import GLOBAL
from gemmascope.run.replay import replay
from gemmascope.run.trace import Trace
from gemmascope.run.where import find_positions
from gemmascope.tokens import shown
from gemmascope.widgets.attention import _tokens
from gemmascope.widgets.packing import packed
from gemmascope.widgets.page import View

# Contributions are had one position at a time: of longer prompts only those of the position asked for.
MOST_POSITIONS = 64


def stream_view(trace: Trace, *, pos: int | str = -1, answer: Answer | None = None, against: Answer | None = None) -> View:
    """A picture of the stream by layer: norms, what attention and MLP add, the cosine with the final stream.

    pos: the position that is shown at first; the others are chosen by their tokens. answer, against: adds what attention
    and MLP of each layer wrote towards the answer, before the soft cap (gs.direct_logits), at every position of a prompt
    of up to MOST_POSITIONS tokens, else at pos alone. SiteError, PromptError for what is not there.
    """
    if not isinstance(trace, Trace):
        raise SiteError(f"a stream view is of a trace: gs.stream_view(gs.trace(prompt)); given {type(trace).__name__}")
    if answer is None and against is not None:
        raise SiteError(f"against={against!r} is subtracted from an answer: give answer= as well")
    found = find_positions([pos] if hasattr(pos, "__index__") else pos, trace.model, trace.ids)
    if len(found) != 1:
        raise SiteError(f"one position is shown at first; given pos={pos!r}")
    series = _measures(trace)
    panels = [
        {
            "title": "norm of what is in the stream and of what is added",
            "unit": "",
            "series": _named("stream", "attention", "MLP"),
        },
        {"title": "cosine with the final stream", "unit": "", "series": _named("stream")},
    ]
    note = "Layers are as they stand after them."
    if answer is not None:
        places = range(len(trace)) if len(trace) <= MOST_POSITIONS else found
        series += _contributions(trace, answer, against, list(places))
        panels.append(
            {
                "title": "written towards the answer",
                "unit": "logit before the soft cap",
                "series": _named("attention", "MLP"),
            }
        )
        if len(places) < len(trace):
            note += f" What was written towards the answer is there at position {found[0]} alone: the prompt is long."
    kinds = trace.model.config.kinds
    spec = {
        "view": "lines",
        "title": f"The stream in {trace.model.name}",
        "note": note,
        "x": [f"{n} {GLOBAL}" if kind == "global" else str(n) for n, kind in enumerate(kinds)],
        "x_axis": f"layer ({GLOBAL} global)",
        "panels": panels,
        "pos": found[0],
        **_tokens(trace),
    }
    values = torch.stack(series).cpu().numpy().astype(np.float32)  # [series, pos, layer]
    rows = [["layer", *(s["name"] for p in panels for s in p["series"])]]  # type: ignore[index]
    rows += [[str(n), *(f"{v:.4g}" for v in values[:, found[0], n])] for n in range(values.shape[-1])]
    return View(spec, {"values": packed(values)}, f"At position {found[0]} ({shown(trace.tokens[found[0]])}):", rows)


def _named(*names: str) -> list[dict[str, Any]]:
    return [{"name": name} for name in names]


def _measures(trace: Trace) -> list[Tensor]:
    """Norms of the stream, of attention's and of the MLP's part, and the cosine with the final stream, each [pos, layer]."""
    final = trace.stream[-1].float()
    rows = []
    for layer, values in replay(trace, ["attn_out", "mlp_out"]):
        after = trace.stream[layer.index + 1].float()
        norms = [after.norm(dim=-1), values["attn_out"].float().norm(dim=-1), values["mlp_out"].float().norm(dim=-1)]
        rows.append([*norms, torch.cosine_similarity(after, final, dim=-1)])
    return [torch.stack(series, -1) for series in zip(*rows, strict=True)]


def _contributions(trace: Trace, answer: Answer, against: Answer | None, places: list[int]) -> list[Tensor]:
    """What attention and MLP wrote towards the answer, each [pos, layer]; NaN at positions that are not asked for."""
    n_layers = trace.model.n_layers
    wrote = torch.full((2, len(trace), n_layers), torch.nan)
    for place in places:
        parts = direct_logits(trace, answer, against, pos=place).parts
        for which, site in enumerate(("attn_out", "mlp_out")):
            names = [f"layers.{n}.{site}" for n in range(n_layers)]
            wrote[which, place] = torch.tensor(parts.sel(part=names).values)
    return [wrote[0], wrote[1]]

"""gs.stream_view: what the residual stream is made of, layer by layer."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from gemmascope.analysis.direct_logits import answer_directions
from gemmascope.arguments import short_repr
from gemmascope.edits.places import find_position
from gemmascope.errors import SiteError
from gemmascope.figures.labelled import GLOBAL
from gemmascope.run.metric import Answer, answer_ids
from gemmascope.run.replay import replay
from gemmascope.run.trace import Trace
from gemmascope.tokens.tokenizer import visible_text
from gemmascope.values import moved
from gemmascope.views.labels import are_special, require_trace
from gemmascope.views.packing import pack
from gemmascope.views.page import View

# How many numbers a page holds; of a longer prompt it holds the positions around the one shown at first.
MOST_NUMBERS = 150_000


def stream_view(trace: Trace, *, pos: int | str = -1, answer: Answer | None = None, against: Answer | None = None) -> View:
    """The residual stream by layer: its norm, what attention and MLP add, and its cosine with the final stream.

    Runs the layers again once.

    Args:
        trace: The run to read.
        pos: The position shown at first, as an index or a token that occurs once; the others can be chosen in the picture.
            The last position by default.
        answer: A token, or several, as text or id. If given, a third panel shows what attention and MLP of each layer
            write towards it, in logits before the soft cap, as in `gs.direct_logits`. None for no such panel.
        against: Tokens whose logits are subtracted from the answer's. None for nothing.

    Returns:
        The picture, self-contained.

    Raises:
        SiteError: The position does not exist, or `against` is given without `answer`.
        PromptError: An answer is not one token.

    Examples:
        >>> view = gs.stream_view(gs.trace("When Mary and John went to the store, John gave a drink to"), answer=" Mary")
        >>> view.spec["panels"][2]["title"]
        'written towards ·Mary'
    """
    require_trace(trace, "trace")
    if answer is None and against is not None:
        raise SiteError(f"against={short_repr(against)} is subtracted from an answer: give answer= as well")
    start = find_position(pos, trace.model, trace.ids, "one position is shown at first")
    directions = None if answer is None else answer_directions(trace, answer, against)
    values = _measure(trace, directions)  # [series, pos, layer]
    panels = _panels(trace, answer, against)
    first, end = _included(trace, start, len(values))
    tokens, special = trace.tokens, are_special(trace.model, trace.ids.tolist())
    kinds = trace.model.config.kinds
    spec = {
        "view": "lines",
        "title": f"The stream in {trace.model.name}",
        "note": _note(trace, first, end),
        "x": [f"{n} {GLOBAL}" if kind == "global" else str(n) for n, kind in enumerate(kinds)],
        "x_axis": f"layer ({GLOBAL} global)",
        "panels": panels,
        "positions": [{"pos": n, "token": tokens[n], "special": special[n]} for n in range(first, end)],
        "start": start - first,
        "prompt": None if end - first == len(trace) else tokens,
    }
    header = ["layer", *(f"{panel['title']}: {name}" for panel in panels for name in panel["series"])]
    rows = [header, *([str(n), *(f"{v:.4g}" for v in values[:, start, n])] for n in range(values.shape[-1]))]
    summary = f"At position {start} ({visible_text(tokens[start])}):"
    return View(spec, {"values": pack(np.ascontiguousarray(values[:, first:end]))}, summary, rows)


class Panel(TypedDict):
    """A chart: its title, the unit of its numbers, and the names of its lines."""

    title: str
    unit: str
    series: list[str]


def _panels(trace: Trace, answer: Answer | None, against: Answer | None) -> list[Panel]:
    panels: list[Panel] = [
        {"title": "norm of the stream, and of what is added to it", "unit": "", "series": ["stream", "attention", "MLP"]},
        {"title": "cosine of the stream with the final stream", "unit": "", "series": ["stream"]},
    ]
    if answer is not None:
        towards = _token_names(trace, answer) + ("" if against is None else f" against {_token_names(trace, against)}")
        unit = "logit before the soft cap"
        panels.append({"title": f"written towards {towards}", "unit": unit, "series": ["attention", "MLP"]})
    return panels


def _token_names(trace: Trace, answer: Answer) -> str:
    return ", ".join(map(visible_text, trace.model.texts(torch.tensor(answer_ids(answer, trace.model)))))


def _measure(trace: Trace, directions: Float[Tensor, "pos d_model"] | None) -> NDArray[np.float32]:
    """The numbers of all panels [series, pos, layer], in one stream of the weights.

    Norms of the stream, of attention and of the MLP; the cosine with the final stream; and, along directions if there are
    any, what attention and the MLP wrote.
    """
    by_layer = []
    for layer, values in replay(trace, ["attn_out", "mlp_out"]):
        after, end = (moved(x, layer.device).float() for x in (trace.residuals[layer.index + 1], trace.residuals[-1]))
        parts = [values["attn_out"].float(), values["mlp_out"].float()]
        series = [after.norm(dim=-1), *(part.norm(dim=-1) for part in parts), torch.cosine_similarity(after, end, dim=-1)]
        if directions is not None:
            series += [(part * moved(directions, layer.device)).sum(-1) for part in parts]
        by_layer.append(moved(torch.stack(series), trace.model.device))
    measured: NDArray[np.float32] = torch.stack(by_layer, -1).cpu().numpy()
    return measured


def _included(trace: Trace, pos: int, n_series: int) -> tuple[int, int]:
    """The first position that a page holds and the end of the range: all positions, or those up to and around pos."""
    most = max(1, MOST_NUMBERS // (n_series * trace.model.n_layers))
    end = min(len(trace), max(pos + 1, most))
    return max(0, end - most), end


def _note(trace: Trace, first: int, end: int) -> str:
    note = "At each layer: the stream as it leaves the layer, and what attention and MLP of that layer add to it."
    if end - first < len(trace):
        note += f" For the size of the page positions {first} to {end - 1} are held: pos= chooses others."
    return note

"""Logits of a trace, whole, in memory: of some positions after every layer (Trace.lens), and of one position at the end.

gs.lens keeps the top tokens alone (analysis/lens_rows.py). The formula, last norm, unembedding and soft cap, is
Gemma2.unembed (model/gemma2.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gemmascope.arguments import is_whole, short_repr
from gemmascope.errors import SiteError
from gemmascope.memory.limits import require_free_memory
from gemmascope.model.model import Model
from gemmascope.run.finite import require_logits
from gemmascope.run.recorded import RecordedRun
from gemmascope.run.replay import rerun_layer
from gemmascope.values import chunks, labelled, moved

if TYPE_CHECKING:
    import xarray


# Bytes of logits that are in memory at once, where rows are unembedded in parts.
LOGIT_BYTES = 2**26


def rows_to_unembed(model: Model, bytes_per_logit: int = 4) -> int:
    """How many rows to unembed at once. bytes_per_logit: 4 for float32; more if copies or float64 are computed from them."""
    return max(1, LOGIT_BYTES // (bytes_per_logit * model.config.vocab_size))


def logit_lens(trace: RecordedRun, rows: Sequence[int]) -> xarray.DataArray:
    """Soft-capped logits [layer, pos, vocab] of some positions, read from the stream after every layer by the last norm."""
    n_bytes = 4 * trace.model.n_layers * len(rows) * trace.model.config.vocab_size
    what = f"the logits of {trace.model.n_layers} layers at {len(rows)} positions"
    do = "give pos= and call it for each, or take gs.lens(trace), which keeps the likeliest tokens alone"
    require_free_memory(n_bytes, torch.device("cpu"), what, do)
    trace.require_weights(None)
    logits = np.empty((trace.model.n_layers, len(rows), trace.model.config.vocab_size), np.float32)
    step = rows_to_unembed(trace.model, bytes_per_logit=12)  # the products, and those that the cap makes
    # Of all layers but the last together: for a few rows, reading the embedding takes as long as for many. The last layer's
    # alone, as a run's logits are, to the last bit.
    stream = torch.cat([moved(x[list(rows)], trace.model.device) for x in trace.residuals[1:]])
    flat = logits.reshape(len(stream), -1)
    with torch.no_grad():
        for first, end in ((0, len(stream) - len(rows)), (len(stream) - len(rows), len(stream))):
            for part in chunks(end - first, step):
                at = slice(first + part.start, first + part.stop)
                flat[at] = trace.model.network.unembed(stream[at]).cpu().numpy()
    texts = trace.tokens
    coords = {
        "layer": range(len(logits)),
        "kind": ("layer", list(trace.model.config.kinds)),
        "pos": rows,
        "token": ("pos", [texts[row] for row in rows]),
    }
    return labelled(logits, coords, ("layer", "pos", "vocab"), "soft-capped logit")


def logits_at(trace: RecordedRun, pos: int) -> Tensor:
    """The logits [vocab] of one position, with the edits that come after the layers."""
    if any(edit.address.is_after_layers for edit in trace.bound_edits):
        return trace["logits"][pos]
    trace.require_weights(None)
    with torch.no_grad():
        row = trace.residuals[-1][pos]
        logits = trace.model.network.unembed(row[None])[0]
        require_logits(trace.model, trace.ids, logits, row, pos, trace.bound_edits)
        return logits


def top_tokens(model: Model, k: object, logits: Callable[[], Tensor]) -> list[tuple[str, int, float]]:
    """The k likeliest tokens by logits [vocab]: (token, id, probability). SiteError, before the logits, for a wrong k."""
    size = model.config.vocab_size
    if not is_whole(k) or not 0 < int(k) <= size:
        raise SiteError(f"k is a whole number from 1 to {size}, the size of the vocabulary; given {short_repr(k)}")
    probs, ids = logits().softmax(-1).topk(int(k))
    return [(text, int(i), float(p)) for text, i, p in zip(model.texts(ids), ids, probs, strict=True)]


def record_final_edits(trace: RecordedRun) -> None:
    """Call the user's functions after the layers once, so that later reads repeat what they wrote."""
    if any(bound.written is not None and bound.address.layer is None for bound in trace.bound_edits):
        rerun_layer(trace, None, ["logits"])

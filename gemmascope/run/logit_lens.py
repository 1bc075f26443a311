"""The logit lens of a trace, whole: the logits of every layer. gs.lens keeps the likeliest tokens alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from gemmascope.memory.limits import require_free_memory

if TYPE_CHECKING:
    import xarray

    from gemmascope.run.trace import Trace


def logit_lens(trace: Trace, rows: Sequence[int]) -> xarray.DataArray:
    """Soft-capped logits of some positions, read from the stream after every layer, through the last norm."""
    import xarray

    n_bytes = 2 * 4 * trace.model.n_layers * len(rows) * trace.model.config.vocab_size  # the layers', then together
    what = f"the logits of {trace.model.n_layers} layers at {len(rows)} positions"
    do = "give pos= and call it for each, or take gs.lens(trace), which keeps the likeliest tokens alone"
    require_free_memory(n_bytes, trace.model.device, what, do)
    trace.require_weights(None)
    with torch.no_grad():
        read = torch.stack([trace.model.network.unembed(x[rows]) for x in trace.residuals[1:]]).cpu().numpy()
    texts = trace.tokens
    coords = {
        "layer": range(len(read)),
        "kind": ("layer", list(trace.model.config.kinds)),
        "pos": rows,
        "token": ("pos", [texts[row] for row in rows]),
    }
    return xarray.DataArray(read, dims=("layer", "pos", "vocab"), coords=coords, name="soft-capped logit")

"""The run of a graph: its frozen norms, and its active features, encoded layer by layer in one stream of the weights."""

from __future__ import annotations

from contextlib import closing

import torch

from gemmascope.circuits.frozen import SCALES, FrozenRun
from gemmascope.circuits.graph.bases.basis import Basis
from gemmascope.run.replay import run_again
from gemmascope.run.trace import Trace


def freeze(trace: Trace, basis: Basis | None) -> FrozenRun:
    """A trace with its norms' scales, and its features in the basis, which must be empty. None: without features."""
    run = FrozenRun(trace)
    keep_mid = basis is None or basis.reads_mlps
    with torch.no_grad(), closing(trace.model.layers()) as layers:
        for module in layers:
            sites = {*SCALES, "resid_mid", *(basis.sites(module.index) if basis is not None else ())}
            values = run_again(trace, module, sorted(sites))
            run.add(values, keep_mid=keep_mid)
            if basis is not None:
                basis.add(module, run.layer(module), values)
    return run

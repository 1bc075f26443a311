"""Passes whose result must be finite: the streams of several runs, and a check of the last row of one run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gemmascope.edits.edit import BoundEdit
from gemmascope.memory.limits import explain_oom
from gemmascope.model.layout import Layout
from gemmascope.model.maths import rms_scale
from gemmascope.model.model import Model
from gemmascope.model.tap import Chain
from gemmascope.run.finite import require_finite, require_logits
from gemmascope.run.taps import EditTap, Recorder


def streams(model: Model, prompts: Sequence[Tensor], edits: Sequence[Sequence[BoundEdit]]) -> list[list[Tensor]]:
    """The residual stream of every run, from one pass: n_layers + 1 tensors [pos, d_model] each.

    Entry l is what enters layer l, before an edit at its resid_pre; the last entry is the output of the last layer.
    EditError or CheckpointError for a run that holds NaN or infinity.
    """
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    layout = Layout.of_lengths([len(prompts[i]) for i in by_length], model.device)
    recorder = Recorder(("embed", "resid_post"), len(prompts))
    with torch.no_grad(), explain_oom(model):
        model.network(
            torch.cat([prompts[i] for i in by_length]), layout, Chain(EditTap([edits[i] for i in by_length]), recorder)
        )
        by_run = {i: list(values.values()) for i, values in zip(by_length, recorder.values, strict=True)}
        for i, stream in by_run.items():
            require_finite(model, prompts[i], stream, edits[i])
    return [by_run[i] for i in range(len(prompts))]


def require_finite_end(model: Model, ids: Tensor, row: Tensor, edits: Sequence[BoundEdit]) -> None:
    """As require_finite and require_logits, for a run of which only the last row of the final stream is known, [d_model].

    Only if it is not finite does the run repeat, to find the site.
    """
    if bool(torch.isfinite(rms_scale(row[None], model.config.norm_eps)).all()):
        return
    (stream,) = streams(model, [ids], [edits])
    last = len(ids) - 1
    require_logits(model, ids, model.network.unembed(stream[-1][-1:])[0], stream[-1][-1], last, edits)

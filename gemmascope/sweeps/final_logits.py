"""From the stream's last rows to numbers: the logits of a sweep's runs, with the edits that come after the layers."""

from __future__ import annotations

import torch
from torch import Tensor

from gemmascope.edits.edit import BoundEdit
from gemmascope.errors import SweepError
from gemmascope.model.layout import Block, Layout
from gemmascope.model.model import Model
from gemmascope.model.tap import SILENT
from gemmascope.run.logits import rows_to_unembed
from gemmascope.run.metric import Metric, measure
from gemmascope.run.taps import EditTap
from gemmascope.sweeps.variants import BaseRun


def measure_rows(metric: Metric, model: Model, base: BaseRun, rows: Tensor) -> Tensor:
    """The metric of runs whose stream ends in these rows, float64 [run] on the CPU. The logits are made a few at a time."""
    step = rows_to_unembed(model)
    with torch.no_grad():
        parts = [measure(metric, _final_logits(model, base, part)) for part in torch.split(rows, step)]
    return torch.cat(parts).cpu()


def _final_logits(model: Model, base: BaseRun, rows: Tensor) -> Tensor:
    """The soft-capped logits of runs at the base's position, [run, vocab], with its edits of final and of the logits."""
    edits = _after_layers(base)
    layout = Layout.of_blocks([Block(0, len(rows), 1, start=base.pos)], model.device)
    tap = EditTap([edits] * len(rows)) if edits else SILENT
    return model.network.unembed(rows, tap.at(None, layout))


def _after_layers(base: BaseRun) -> list[BoundEdit]:
    """The base's edits of final and of the logits that name its position."""
    return [edit for edit in base.edits if edit.address.is_after_layers and base.pos in edit.positions.tolist()]


def refuse_wide_functions(base: BaseRun) -> None:
    """SweepError for a user's function after the layers that needs positions which a sweep does not compute."""
    for edit in _after_layers(base):
        if edit.edit.needs_all and len(edit.positions) > 1:
            raise SweepError(
                f"after the layers a sweep computes the last position only, and the function of {edit.edit!r} names "
                f"{len(edit.positions)}: give it pos=-1"
            )

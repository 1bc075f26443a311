"""From the stream's last rows to numbers: the logits of a sweep's runs, with the edits that come after the layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gemmascope.edits.edit import BoundEdit
from gemmascope.errors import SweepError
from gemmascope.model.layout import Block, Layout
from gemmascope.model.model import Model
from gemmascope.run.bound_metric import BoundMetric, measure_stream
from gemmascope.run.logits import rows_to_unembed
from gemmascope.run.taps import EditTap
from gemmascope.sweeps.variants import BaseRun


def measure_rows(metrics: Sequence[BoundMetric], model: Model, base: BaseRun, rows: Tensor) -> Tensor:
    """The metrics of runs whose stream ends in these rows at the base's positions, float64 [metric, run] on the CPU.

    rows: [run, pos, d_model]. The logits are made a few at a time, with the base's edits of final and of the logits.
    """

    def unembed(part: Tensor, positions: Sequence[int]) -> Tensor:
        edits = _after_layers(base, positions)
        if not edits:
            return model.network.unembed(part.flatten(0, 1)).reshape(*part.shape[:2], -1)
        by_pos = [_unembed_edited(model, edits, part[:, i], pos) for i, pos in enumerate(positions)]
        return torch.stack(by_pos, 1)

    with torch.no_grad():
        return measure_stream(metrics, base.positions, rows, unembed, rows_to_unembed(model)).cpu()


def _unembed_edited(model: Model, edits: list[BoundEdit], rows: Tensor, pos: int) -> Tensor:
    """The logits of runs at one position, [run, vocab], with these edits of each."""
    layout = Layout.of_blocks([Block(0, len(rows), 1, start=pos)], model.device)
    return model.network.unembed(rows, EditTap([edits] * len(rows)).at(None, layout))


def _after_layers(base: BaseRun, positions: Sequence[int]) -> list[BoundEdit]:
    """The base's edits of final and of the logits that name one of these positions."""
    late = [edit for edit in base.edits if edit.address.is_after_layers]
    return [edit for edit in late if set(positions) & set(edit.positions.tolist())]


def refuse_wide_functions(base: BaseRun) -> None:
    """SweepError for a user's function after the layers that needs positions which a sweep does not compute."""
    for edit in _after_layers(base, base.positions):
        if edit.edit.needs_all and len(edit.positions) > 1:
            computed = "the last position only" if base.positions == (len(base.ids) - 1,) else "each position by itself"
            raise SweepError(
                f"after the layers a sweep computes {computed}, and the function of {edit.edit!r} names "
                f"{len(edit.positions)}: give it pos=-1"
            )

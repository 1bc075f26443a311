"""Remarks on a sweep before it runs: its pairs, its grid and its metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from gemmascope.model.model import Model
from gemmascope.sweeps.pairs import Pair
from gemmascope.sweeps.remarks import (
    Remark,
    edit_remarks,
    metric_remarks,
    numbered,
    pair_remarks,
    prompt_remarks,
    shared_metric_remarks,
)

# Sites of the first layer that depend on the row's own token only.
_OF_OWN_TOKEN = frozenset(("resid_pre", "attn_in", "q", "k", "v", "q_rot", "k_rot"))

# Sites whose rows no other row of the same layer reads.
_OF_OWN_ROW = frozenset(
    ("q", "q_rot", "scores", "scores_capped", "pattern", "z", "head_out", "attn_raw", "attn_out", "resid_mid", "mlp_in")
) | frozenset(("mlp_gate", "mlp_up", "mlp_act", "mlp_raw", "mlp_out", "resid_post"))


def sweep_remarks(pairs: Sequence[Pair], metric: object, model: Model) -> Iterator[Remark]:
    """Remarks on a sweep's pairs, grids and metrics."""
    if not isinstance(metric, (list, tuple)):
        yield from shared_metric_remarks(metric, len(pairs))
    yield from numbered("pair", [_sweep_pair_remarks(pair, model) for pair in pairs])


def _sweep_pair_remarks(pair: Pair, model: Model) -> Iterator[Remark]:
    ids = pair.base.ids
    if pair.grid.site.is_edges and not pair.n_cells:
        yield Remark(
            "error", "q_pos", f"the mask hides every edge of {pair.grid.site.name} that the grid names: no cell can be run. "
            "Name keys that come before their queries, within the window of a local layer"
        )  # fmt: skip
    yield from prompt_remarks("prompt", ids, model)
    yield from edit_remarks(pair.base.edits, ids, model)
    if pair.source_ids is not None and not pair.base.edits:  # the source of an edited run is without its edits: it differs
        same = list(pair_remarks(ids, pair.source_ids))
        yield from same or _grid_remarks(pair, pair.source_ids)
    yield from metric_remarks(pair.user_metric, ids, model)


def _grid_remarks(pair: Pair, source_ids: Tensor) -> Iterator[Remark]:
    """A remark on a grid whose places have the same value in both runs, or cannot reach the metric."""
    grid = pair.grid
    differing = (pair.base.ids != source_ids).nonzero()[:, 0].tolist()
    axis, site = grid.row_axis, grid.site.name
    layers, positions = grid.numbers["layer"], grid.numbers[axis]
    is_first_layer = layers == [0] and grid.window == 1
    is_last_layer = layers == [grid.config.n_layers - 1] and grid.window == 1
    last = len(pair.base.ids) - 1
    if max(positions) < differing[0]:
        yield Remark(
            "warning", axis, f"the prompts differ from position {differing[0]} on, and the grid covers {axis} "
            f"{max(positions)} at most: every effect is 0"
        )  # fmt: skip
    elif is_first_layer and site in _OF_OWN_TOKEN and not set(positions) & set(differing):
        yield Remark(
            "warning", axis, f"{site} of layer 0 is made of a position's own token, and the prompts have the same tokens "
            "there: every effect is 0"
        )  # fmt: skip
    elif is_last_layer and site in _OF_OWN_ROW and last not in positions:
        yield Remark(
            "warning", axis, f"{site} of the last layer reaches its own position alone, and the metric reads position "
            f"{last}: every effect is 0"
        )  # fmt: skip

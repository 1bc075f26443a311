"""Pace: how long passes take, measured as they go; so a time can be told before, and chunks made that take a moment."""

from __future__ import annotations

import math

from gemmascope.model.model import Model
from gemmascope.sweeps.cells import Cost

# How long a chunk of a resident model may take, in seconds: a cancel waits for one, and cells appear with each.
CHUNK = 0.25


class Pace:
    """What a row costs in a layer, in seconds; of a model whose layers stream, what a pass costs.

    lead_rows: how many rows every pass carries besides those of its cells: the run that is patched and its source.
    """

    def __init__(self, model: Model, lead_rows: int) -> None:
        self.n_layers, self.lead_rows = model.n_layers, lead_rows
        self.streams = model.network.layer_source is not None
        self.row_layer = self.one_pass = math.nan

    def take(self, cost: Cost, took: float) -> None:
        """A pass that carried this much besides the lead rows took so many seconds. The latest measure counts most."""
        found = took / (cost.row_layers + self.lead_rows * self.n_layers)
        self.row_layer = found if math.isnan(self.row_layer) else (self.row_layer + 2 * found) / 3
        self.one_pass = took

    def seconds(self, cost: Cost, max_rows: int) -> float | None:
        """About how long these cells will take; None before anything was measured."""
        if not cost.n_cells:
            return 0.0
        if math.isnan(self.row_layer):
            return None
        if self.streams:  # reading the weights is what costs, however many rows ride along
            return math.ceil(cost.n_rows / max_rows) * self.one_pass
        n_passes = math.ceil(cost.row_layers * self.row_layer / CHUNK)
        return (cost.row_layers + n_passes * self.lead_rows * self.n_layers) * self.row_layer

    def estimate_seconds(self) -> float | None:
        """About how long a gradient estimate takes: the prompts' pass, and one back, which costs three. None as above."""
        if math.isnan(self.row_layer):
            return None
        return 4 * (self.one_pass if self.streams else self.lead_rows * self.n_layers * self.row_layer)

    def rows(self, max_rows: int) -> int:
        """How many rows the next chunk may carry: those of a moment, or as many as there is memory for if layers stream."""
        if self.streams or math.isnan(self.row_layer):
            return max_rows
        return max(1, min(max_rows, int(CHUNK / self.row_layer / self.n_layers)))

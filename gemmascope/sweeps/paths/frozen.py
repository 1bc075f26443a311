"""Path patching with frozen MLPs: the direct path alone, from the sender to the receiver through the stream."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from gemmascope.edits.edit import BoundEdit
from gemmascope.model.model import Model
from gemmascope.run.tracing import trace
from gemmascope.sweeps.grid import Cell
from gemmascope.sweeps.pairs import Pair
from gemmascope.sweeps.paths.receivers import Receiver, attn_out, has_path
from gemmascope.values import moved


class FrozenPaths:
    """Makes the edits of a cell: at each receiver, what it reads of the base's stream with the sender's change added."""

    def __init__(self, pair: Pair, receivers: Sequence[Receiver], model: Model) -> None:
        self._pair, self._receivers, self._model = pair, receivers, model
        self._base = trace(pair.base.ids, model=model)
        # A sender's layer and a receiver's: a layer that streams is read from the store at each call.
        self._layer = lru_cache(maxsize=2)(model.layer)

    def edits_of(self, cell: Cell) -> tuple[BoundEdit, ...]:
        """The edits of a cell; none where no sender comes before a receiver."""
        if not has_path(cell, self._receivers):
            return ()
        changes = {layer: self._change(layer, cell) for layer in cell["layer"]}
        edits = (self._edit(receiver, changes) for receiver in self._receivers)
        return tuple(edit for edit in edits if edit is not None)

    def _change(self, layer: int, cell: Cell) -> Tensor:
        """What the sender adds to the stream in the source's run less what it adds in the base's. [pos, d_model]"""
        site = self._pair.grid.site.name
        index = self._pair.index_of(cell)
        value: Tensor = self._base[site, layer]
        value[index] = self._pair.values_at(layer)[index]
        if site != "z":
            unchanged: Tensor = self._base[site, layer]
            return value - unchanged
        with torch.no_grad():
            out = moved(attn_out(self._layer(layer), value), self._model.device)
            change: Tensor = out - self._base["attn_out", layer]
        return change

    def _edit(self, receiver: Receiver, changes: dict[int, Tensor]) -> BoundEdit | None:
        """The edit that writes what a receiver reads, at the rows that change; None where no sender comes before it."""
        before = [change for layer, change in changes.items() if receiver.hears(layer)]
        if not before:
            return None
        change = torch.stack(before).sum(0)
        rows = torch.nonzero(change.any(-1).cpu())[:, 0]
        if not len(rows):
            rows = torch.tensor([len(change) - 1])
        entry = self._model.n_layers if receiver.heads is None else receiver.layer
        stream = (moved(self._base.residuals[entry], change.device) + change)[rows]
        value = stream if receiver.heads is None else receiver.read(self._layer(receiver.layer), stream)
        return receiver.edit(self._model, rows, value)

"""Path patching in a model that keeps edits: the first run of a cell is a run of its own, with edits that freeze the rest.

The other ways to make a cell's first run compute parts of layers by themselves, and an edit may stand at any site between.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gemmascope.edits.edit import BoundEdit, Edit
from gemmascope.edits.make import patch
from gemmascope.model.model import Model
from gemmascope.run.trace import Trace
from gemmascope.run.tracing import run_traced, trace
from gemmascope.sweeps.grid import Cell
from gemmascope.sweeps.pairs import Pair
from gemmascope.sweeps.paths.live import layer_values
from gemmascope.sweeps.paths.receivers import Receiver, has_path
from gemmascope.sweeps.sources import ValuesFromTrace


class EditedPaths:
    """Makes the edits of a cell: at each receiver after the sender, what it reads in the first run.

    mlps: "live", or "frozen".
    """

    def __init__(self, pair: Pair, receivers: Sequence[Receiver], model: Model, mlps: str) -> None:
        assert isinstance(pair.values, ValuesFromTrace)
        self._pair, self._receivers, self._model = pair, receivers, model
        self._site, self._frozen_mlps = pair.grid.site.name, mlps == "frozen"
        self._base = trace(pair.base.ids, model=model)
        self._base_values = layer_values(self._base, ["z", "attn_out", "mlp_out"])
        self._source_values = layer_values(pair.values.trace, [self._site])

    def edits_of(self, cell: Cell) -> tuple[BoundEdit, ...]:
        """The edits of a cell; none where no sender comes before a receiver."""
        if not has_path(cell, self._receivers):
            return ()
        base = self._pair.base
        frozen = [edit.bind(self._model, base.ids) for edit in self._first_edits(cell)]
        (first_run,) = run_traced(self._model, [base.ids], [[*base.edits, *frozen]])
        first_sender = min(cell["layer"])
        heard = [receiver for receiver in self._receivers if receiver.hears(first_sender)]
        return tuple(self._edit(receiver, first_run) for receiver in heard)

    def _first_edits(self, cell: Cell) -> list[Edit]:
        """The edits of the first run: the senders have the source's values, and what is frozen has the base's."""
        edits: list[Edit] = []
        for layer in range(min(cell["layer"]), self._model.n_layers):
            sends = layer in cell["layer"]
            base = self._base_values[layer]
            attention = self._site if sends and self._site != "mlp_out" else "attn_out"
            edits.append(patch(attention, self._value(attention, layer, cell, sends), layer=layer))
            if self._site == "mlp_out" and sends:
                value = self._value("mlp_out", layer, cell, sends)
                places = None if self._frozen_mlps else cell["pos"]
                rows = value if places is None else value[places]
                edits.append(patch("mlp_out", rows, layer=layer, pos=places))
            elif self._frozen_mlps:
                edits.append(patch("mlp_out", base["mlp_out"], layer=layer))
        return edits

    def _value(self, site: str, layer: int, cell: Cell, sends: bool) -> Tensor:
        """The base's value of a site, with the source's at the places of a cell that sends there."""
        value = self._base_values[layer][site]
        if site != self._site or not sends:
            return value
        index = self._pair.index_of(cell)
        mixed = value.clone()
        mixed[index] = self._source_values[layer][site][index].to(mixed.device)
        return mixed

    def _edit(self, receiver: Receiver, first_run: Trace) -> BoundEdit:
        """The edit that writes what a receiver read, at the rows that changed; where none did, at the last."""
        read, before = (self._read(receiver, run) for run in (first_run, self._base))
        rows = torch.nonzero((read != before).flatten(1).any(-1).cpu())[:, 0]
        if not len(rows):
            rows = torch.tensor([len(read) - 1])
        return receiver.edit(self._model, rows, read[rows.to(read.device)])

    def _read(self, receiver: Receiver, run: Trace) -> Tensor:
        value: Tensor = run[receiver.site, receiver.layer]
        return value if receiver.heads is None else value[:, receiver.heads]

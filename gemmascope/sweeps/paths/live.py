"""Path patching with live MLPs: what a sender's change is at the receivers, where heads alone are frozen.

With every head's z frozen no row looks at another: a row of the stream takes the base run's attention output, and MLPs and
norms compute anew. So the rows that a sender changes go through the layers without attention, many cells' at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gemmascope.edits.bound import BoundEdit
from gemmascope.memory.limits import explain_oom
from gemmascope.memory.placement import MICROBATCH_ROWS
from gemmascope.model.gemma2 import Layer
from gemmascope.model.model import Model
from gemmascope.model.tap import SILENT
from gemmascope.run.replay import replay
from gemmascope.run.trace import Trace, trace
from gemmascope.sweeps.pairs import Plan
from gemmascope.sweeps.paths.receivers import Receiver, attn_out, has_path
from gemmascope.sweeps.sources import ValuesFromTrace

Cell = dict[str, list[int]]


@dataclass(eq=False)
class _Walk:
    """A cell on its way through the layers: its positions, the stream there once a sender changed it, and what was read."""

    cell: Cell
    rows: Tensor
    stream: Tensor | None = None
    edits: list[BoundEdit] = field(default_factory=list)


class LivePaths:
    """Makes the edits of a cell: at each receiver after the sender, what it reads in the first run.

    Cells come in the order of a sweep; as many as a pass may carry rows for go through the layers together.
    """

    def __init__(self, plan: Plan, receivers: Sequence[Receiver], model: Model, max_rows: int) -> None:
        self.plan, self.receivers, self.model, self.max_rows = plan, receivers, model, max_rows
        self.name = plan.grid.site.name
        self.base: Trace = trace(plan.base.ids, model=model)
        supply = plan.edits.supply
        assert isinstance(supply, ValuesFromTrace)
        senders = sorted({layer for cell in plan.grid.cells() for layer in cell["layer"]})
        self.of_base = _values(self.base, {"attn_out"}, self.name, senders)
        self.of_source = _values(supply.trace, set(), self.name, senders)
        ordered = sorted(plan.grid.cells(), key=lambda cell: cell["layer"][0])
        self._coming = (cell for cell in ordered if has_path(cell, receivers))
        self._ready: dict[str, tuple[BoundEdit, ...]] = {}

    def of(self, cell: Cell) -> tuple[BoundEdit, ...]:
        """The edits of a cell; none where no sender comes before a receiver."""
        if not has_path(cell, self.receivers):
            return ()
        while repr(cell) not in self._ready:
            walks = list(self._next_walks())
            assert walks, "every cell of the grid comes once"
            self._go(walks)
            self._ready |= {repr(walk.cell): tuple(walk.edits) for walk in walks}
        return self._ready.pop(repr(cell))

    def _next_walks(self) -> Iterator[_Walk]:
        """The cells that go through the layers next: as many as there is room for, and one at least."""
        n_rows = 0
        for cell in self._coming:
            yield _Walk(cell, torch.tensor(sorted(cell["pos"]), device=self.model.device))
            n_rows += len(cell["pos"])
            if n_rows + len(cell["pos"]) > self.max_rows:
                return

    def _go(self, walks: Sequence[_Walk]) -> None:
        first = min(layer for walk in walks for layer in walk.cell["layer"])
        last = max(receiver.layer for receiver in self.receivers)
        with torch.no_grad(), explain_oom(self.model), closing(self.model.layers()) as layers:
            for layer in layers:
                if layer.index >= first:
                    self._through(layer, walks)
                if layer.index == last:
                    return

    def _through(self, layer: Layer, walks: Sequence[_Walk]) -> None:
        """Carry the cells whose senders came, or come here, through a layer."""
        for walk in walks:
            if walk.stream is not None:  # a sender of an earlier layer changed it
                self._read(layer, walk, ends=False)
        moving = [walk for walk in walks if walk.stream is not None or layer.index in walk.cell["layer"]]
        if not moving:
            return
        middle = [self._after_attention(layer, walk) for walk in moving]
        written = torch.cat([self._mlp(layer, part) for part in torch.split(torch.cat(middle), MICROBATCH_ROWS)])
        parts = torch.split(written, [len(x) for x in middle])
        for walk, x, part in zip(moving, middle, parts, strict=True):
            sends = self.name == "mlp_out" and layer.index in walk.cell["layer"]
            walk.stream = x + (self.of_source[layer.index]["mlp_out"][walk.rows] if sends else part)
            self._read(layer, walk, ends=True)

    def _read(self, layer: Layer, walk: _Walk, *, ends: bool) -> None:
        """What receivers of a layer read of a cell's stream: heads as it enters, the end of the stream as it leaves."""
        assert walk.stream is not None
        for receiver in self.receivers:
            if receiver.layer == layer.index and (receiver.heads is None) == ends:
                read = walk.stream if ends else receiver.read(layer, walk.stream)
                walk.edits.append(receiver.edit(self.model, walk.rows, read))

    def _after_attention(self, layer: Layer, walk: _Walk) -> Tensor:
        entering = self.base.residuals[layer.index][walk.rows] if walk.stream is None else walk.stream
        frozen = self.of_base[layer.index]["attn_out"]
        if layer.index not in walk.cell["layer"] or self.name == "mlp_out":
            return entering + frozen[walk.rows]
        value, index = self.of_base[layer.index][self.name].clone(), self.plan.edits.index_of(walk.cell)
        value[index] = self.of_source[layer.index][self.name][index]
        return entering + (attn_out(layer, value[walk.rows]) if self.name == "z" else value[walk.rows])

    def _mlp(self, layer: Layer, x: Tensor) -> Tensor:
        """What the MLP adds to these rows of the stream."""
        raw = layer.mlp(layer.pre_feedforward_layernorm(x), SILENT.at(layer.index, self.base.layout))
        out: Tensor = layer.post_feedforward_layernorm(raw)
        return out


def _values(run: Trace, everywhere: set[str], site: str, layers: Sequence[int]) -> list[dict[str, Tensor]]:
    """Sites of every layer of a run, and another of these layers, from one stream of the layers."""
    return [found for _, found in replay(run, [*everywhere, *((site, layer) for layer in layers)])]

"""Path patching with live MLPs: what a sender's change becomes at the receivers, with only the heads between frozen.

With every head's z frozen no row looks at another: a row of the stream takes the base run's attention output, and MLPs and
norms compute anew. So the rows that a sender changes go through the layers without attention, those of many cells at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gemmascope.edits.edit import BoundEdit
from gemmascope.memory.limits import explain_oom
from gemmascope.memory.placement import MICROBATCH_ROWS
from gemmascope.model.gemma2 import Layer
from gemmascope.model.model import Model
from gemmascope.model.tap import SILENT
from gemmascope.run.replay import replay
from gemmascope.run.trace import Trace
from gemmascope.run.tracing import trace
from gemmascope.sweeps.grid import Cell
from gemmascope.sweeps.pairs import Pair
from gemmascope.sweeps.paths.receivers import Receiver, attn_out, has_path
from gemmascope.sweeps.sources import ValuesFromTrace
from gemmascope.values import moved


@dataclass(eq=False)
class _SenderRun:
    """The first run of a cell: its rows of the stream, and the edits that its receivers' values make.

    stream: [row, d_model] at the layer that the pass is at; None before the first sender.
    """

    cell: Cell
    positions: Tensor
    stream: Tensor | None = None
    edits: list[BoundEdit] = field(default_factory=list)

    def sends_in(self, layer: Layer) -> bool:
        return layer.index in self.cell["layer"]


class LivePaths:
    """Makes the edits of a cell: at each receiver after the sender, what it reads in the first run.

    The cells are asked for in the order of a sweep; as many as one pass has rows for go through the layers together.
    """

    def __init__(self, pair: Pair, receivers: Sequence[Receiver], model: Model, max_rows: int) -> None:
        assert isinstance(pair.values, ValuesFromTrace)
        self._pair, self._receivers, self._model, self._max_rows = pair, receivers, model, max_rows
        self._site = pair.grid.site.name
        self._base = trace(pair.base.ids, model=model)
        cells = sorted(pair.grid.cells(), key=lambda cell: cell["layer"][0])
        senders = sorted({layer for cell in cells for layer in cell["layer"]})
        at_senders = [(self._site, layer) for layer in senders]
        self._base_values = layer_values(self._base, ["attn_out", *at_senders])
        self._source_values = layer_values(pair.values.trace, at_senders)
        self._to_run = (cell for cell in cells if has_path(cell, receivers))
        self._ready: dict[str, tuple[BoundEdit, ...]] = {}

    def edits_of(self, cell: Cell) -> tuple[BoundEdit, ...]:
        """The edits of a cell; none where no sender comes before a receiver."""
        if not has_path(cell, self._receivers):
            return ()
        while repr(cell) not in self._ready:
            runs = list(self._next_runs())
            assert runs, "every cell of the grid comes once"
            self._run_layers(runs)
            self._ready |= {repr(run.cell): tuple(run.edits) for run in runs}
        return self._ready.pop(repr(cell))

    def _next_runs(self) -> Iterator[_SenderRun]:
        """The runs that go through the layers next: at least one, and at most max_rows rows."""
        n_rows = 0
        for cell in self._to_run:
            yield _SenderRun(cell, torch.tensor(sorted(cell["pos"])))
            n_rows += len(cell["pos"])
            if n_rows + len(cell["pos"]) > self._max_rows:
                return

    def _run_layers(self, runs: Sequence[_SenderRun]) -> None:
        first = min(layer for run in runs for layer in run.cell["layer"])
        last = max(receiver.layer for receiver in self._receivers)
        with torch.no_grad(), explain_oom(self._model), closing(self._model.layers()) as layers:
            for layer in layers:
                if layer.index >= first:
                    self._run_layer(layer, runs)
                if layer.index == last:
                    return

    def _run_layer(self, layer: Layer, runs: Sequence[_SenderRun]) -> None:
        """Carry the runs through a layer that have a sender in it or before it."""
        for run in runs:
            if run.stream is not None:
                self._read(layer, run, at_exit=False)
        changed = [run for run in runs if run.stream is not None or run.sends_in(layer)]
        if not changed:
            return
        middles = [self._resid_mid(layer, run) for run in changed]
        written = torch.cat([self._mlp_out(layer, part) for part in torch.split(torch.cat(middles), MICROBATCH_ROWS)])
        for run, middle, mlp_out in zip(changed, middles, torch.split(written, list(map(len, middles))), strict=True):
            if self._site == "mlp_out" and run.sends_in(layer):
                mlp_out = self._source_values[layer.index]["mlp_out"][run.positions]
            run.stream = middle + mlp_out
            self._read(layer, run, at_exit=True)

    def _read(self, layer: Layer, run: _SenderRun, *, at_exit: bool) -> None:
        """What the receivers of a layer read: heads read the stream as it enters, "final" as it leaves."""
        assert run.stream is not None
        for receiver in self._receivers:
            if receiver.layer == layer.index and (receiver.heads is None) == at_exit:
                value = run.stream if at_exit else receiver.read(layer, run.stream)
                run.edits.append(receiver.edit(self._model, run.positions, value))

    def _resid_mid(self, layer: Layer, run: _SenderRun) -> Tensor:
        """The stream after the layer's attention: its heads are the source's where they send, and else frozen."""
        entering = self._base.residuals[layer.index][run.positions] if run.stream is None else run.stream
        entering, base = moved(entering, layer.device), self._base_values[layer.index]
        if not run.sends_in(layer) or self._site == "mlp_out":
            return entering + base["attn_out"][run.positions]
        value = base[self._site].clone()
        index = tuple(moved(places, layer.device) for places in self._pair.index_of(run.cell))
        value[index] = self._source_values[layer.index][self._site][index]
        return entering + (attn_out(layer, value[run.positions]) if self._site == "z" else value[run.positions])

    def _mlp_out(self, layer: Layer, x: Tensor) -> Tensor:
        """What the MLP adds to these rows of the stream."""
        raw = layer.mlp(layer.pre_feedforward_layernorm(x), SILENT.at(layer.index, self._base.layout))
        out: Tensor = layer.post_feedforward_layernorm(raw)
        return out


def layer_values(run: Trace, sites: Sequence[str | tuple[str, int]]) -> list[dict[str, Tensor]]:
    """For each layer of a run its values of these sites; a bare name is read in every layer. One stream of the layers."""
    return [values for _, values in replay(run, sites)]

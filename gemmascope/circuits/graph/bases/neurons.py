"""The basis of neurons: nothing is trained, and MLPs are read by RelP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gemmascope.circuits.frozen import FrozenLayer, FrozenRun
from gemmascope.circuits.frozen_mlp import FrozenMLP
from gemmascope.circuits.graph.bases.written import EDGE_ELEMENTS, Edges
from gemmascope.circuits.graph.nodes import FEATURE, NodeKeys, Unit
from gemmascope.config import GemmaConfig
from gemmascope.edits.edit import Edit
from gemmascope.edits.make import add
from gemmascope.model.gemma2 import Layer

# Neurons of all layers together are kept up to this many bytes.
ACT_BYTES = 2**27


class NeuronBasis:
    """Every neuron at every position but the first as a node."""

    passes_mlp, reads_mlps, spans_layers = False, True, False

    def __init__(self, config: GemmaConfig) -> None:
        self.config = config
        self.run: FrozenRun | None = None
        self.acts: dict[int, Tensor] = {}  # of layers that a pass met, [pos, d_mlp], where all of them fit ACT_BYTES

    @property
    def units(self) -> Sequence[Unit]:
        return [Unit("mlp_out", layer, self.config.d_mlp, "neurons") for layer in range(self.config.n_layers)]

    def sites(self, layer: int) -> Sequence[str]:
        return ("resid_mid",)

    def add(self, module: Layer, frozen: FrozenLayer, values: dict[str, Tensor]) -> None:
        self.run = frozen.run

    def reads(self, unit: int) -> str:
        return "resid_mid"

    def input_site(self, unit: int) -> str:
        return "mlp_act"

    def inputs_of_runs(
        self, unit: int, pos: Tensor, feature: Tensor, values: Float[Tensor, "run pos d"], *, scales_held: bool
    ) -> Float[Tensor, "run node"]:
        """A neuron's input is its activation, which has no scale of its own."""
        return values[:, pos.to(values.device), feature.to(values.device)].float()

    def active(self, keys: NodeKeys) -> Tensor | None:
        return None

    @torch.no_grad()
    def activations(self, keys: NodeKeys, nodes: Tensor) -> Float[Tensor, " node"]:
        """Those that a pass met and kept; for long prompts one pass computes them again from the stream."""
        assert self.run is not None
        found = torch.zeros(len(nodes))
        _, units, pos, feature = keys.decode(nodes)
        missing = set(units.tolist())
        for layer in missing & self.acts.keys():
            at = units == layer
            found[at] = self.acts[layer][pos[at], feature[at]]
        missing -= self.acts.keys()
        if not missing:
            return found
        with closing(self.run.trace.model.layers()) as layers:
            for module in layers:
                at = units == module.index
                if module.index in missing:
                    found[at] = self.run.layer(module).mlp.act[pos[at], feature[at]].cpu()
                    missing.remove(module.index)
                if not missing:
                    break
        return found

    def edits(self, unit: int, pos: int, feature: int, change: float) -> list[Edit]:
        assert self.run is not None
        vector = torch.zeros(self.config.d_mlp)
        acts = self.acts[unit] if unit in self.acts else self.run.trace["mlp_act", unit]
        vector[feature] = change * float(acts[pos, feature])
        return [add("mlp_act", vector, layer=unit, pos=pos)]

    def at(self, frozen: FrozenLayer, keys: NodeKeys) -> NeuronNodes:
        assert self.run is not None
        size = 4 * self.config.n_layers * self.run.n_pos * self.config.d_mlp
        if frozen.index not in self.acts and size <= ACT_BYTES:
            self.acts[frozen.index] = frozen.mlp.act.cpu()
        return NeuronNodes(frozen, keys)


class NeuronNodes:
    """The neurons of one layer."""

    def __init__(self, frozen: FrozenLayer, keys: NodeKeys) -> None:
        self.frozen, self.keys = frozen, keys

    def written(self, site: str) -> NeuronWritten | None:
        return NeuronWritten(self.frozen.mlp, self.frozen.index, self.keys) if site == "mlp_out" else None

    def skip(self, v: Tensor) -> None:
        return None

    def skip_written(self, x: Tensor) -> None:
        return None

    def readers(self, unit: int, pos: Tensor, feature: Tensor) -> Float[Tensor, "node d_model"]:
        return self.frozen.mlp.readers(pos.to(self.frozen.device), feature.to(self.frozen.device))

    def inputs(self, unit: int, pos: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
        value = self.frozen.mlp.act[pos, feature]
        return value, torch.zeros_like(value)


@dataclass(frozen=True)
class NeuronWritten:
    """What the neurons of a layer wrote to mlp_out: at position 0, by the convention of graphs, the bias node."""

    mlp: FrozenMLP
    unit: int
    keys: NodeKeys

    def edges(self, v: Float[Tensor, "target pos d"]) -> Iterator[Edges]:
        stop, neurons = v.shape[1], self.mlp.act.shape[1]
        step = max(1, EDGE_ELEMENTS // (len(v) * neurons)) if len(v) else stop
        features = torch.arange(neurons)
        for start in range(1, stop, step):
            at = slice(start, min(start + step, stop))
            read = (v[:, at] * self.mlp.out_gain[at]) @ self.mlp.w_down * self.mlp.act[at]
            pos = torch.arange(at.start, at.stop)[:, None].expand(-1, neurons)
            yield Edges(self.keys.features(self.unit, pos.reshape(-1), features.repeat(len(pos))), read.flatten(1))

    def bias(self, v: Float[Tensor, "target pos d"]) -> Float[Tensor, " target"]:
        given: Tensor = ((v[:, 0] * self.mlp.out_gain[0]) @ self.mlp.w_down) @ self.mlp.act[0]
        return given

    def contribution(self, key: int) -> Float[Tensor, " d"] | None:
        kind, unit, pos, feature = (int(part[0]) for part in self.keys.decode(torch.tensor([key])))
        if kind != FEATURE or unit != self.unit:
            return None
        return self.mlp.writers(torch.tensor([pos]), torch.tensor([feature]))[0]

    def parts(self, pos: int, nodes: Int[Tensor, " node"]) -> tuple[Tensor, Tensor]:
        kind, unit, at, feature = self.keys.decode(nodes)
        here = (kind == FEATURE) & (unit == self.unit) & (at == pos)
        return nodes[here], self.mlp.writers(at[here], feature[here])

"""The basis of dictionaries: transcoders in the place of MLPs, cross-layer ones too, or autoencoders at sites."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gemmascope.circuits.frozen import FrozenLayer
from gemmascope.circuits.graph.bases.encoded import Encoded, encode
from gemmascope.circuits.graph.bases.written import Active, DictionaryWritten
from gemmascope.circuits.graph.nodes import NodeKeys, Unit
from gemmascope.edits.edit import Edit
from gemmascope.edits.make import add
from gemmascope.model.gemma2 import Layer
from gemmascope.sae.cross_layer import CrossLayerTranscoder
from gemmascope.sae.dictionary import Dictionary

# The dictionaries of a layer. They are let go once the layer is encoded.
LayerDictionaries = Callable[[int], Sequence[Dictionary | CrossLayerTranscoder]]


@dataclass(frozen=True)
class _SiteParts:
    """What was written at a site of a layer, but for the features: the error and the biases, [pos, d], of a unit."""

    unit: int
    error: Tensor
    biases: Tensor
    is_raw: bool


class DictionaryBasis:
    """Features of dictionaries as nodes. Made empty; add() encodes the run layer by layer.

    Args:
        load: Gives the dictionaries of a layer.
        read_sites: For each layer, the sites that they read and write, by the names of gs.SITES.
        passes_mlp: Whether directions pass MLPs that no dictionary stands for: for autoencoders.
    """

    def __init__(self, load: LayerDictionaries, read_sites: Sequence[Sequence[str]], *, passes_mlp: bool) -> None:
        self.load, self.read_sites, self.passes_mlp = load, read_sites, passes_mlp
        self.d_head = 1
        self.encoded: list[Encoded] = []
        self.parts: dict[tuple[str, int], _SiteParts] = {}

    @property
    def reads_mlps(self) -> bool:
        return self.passes_mlp

    @property
    def spans_layers(self) -> bool:
        return any(one.decoders.shape[1] > 1 for one in self.encoded)

    @property
    def units(self) -> Sequence[Unit]:
        return [one.unit for one in self.encoded]

    def sites(self, layer: int) -> Sequence[str]:
        return self.read_sites[layer]

    def reads(self, unit: int) -> str:
        return self.encoded[unit].reads

    def input_site(self, unit: int) -> str:
        return self.encoded[unit].reads

    def inputs_of_runs(
        self, unit: int, pos: Tensor, feature: Tensor, values: Float[Tensor, "run pos d"], *, scales_held: bool
    ) -> Float[Tensor, "run node"]:
        return self.encoded[unit].on(values.device).inputs_of_runs(pos, feature, values, scales_held=scales_held)

    def add(self, module: Layer, frozen: FrozenLayer, values: dict[str, Tensor]) -> None:
        self.d_head = frozen.config.d_head
        for dictionary in self.load(module.index):
            of_layers = isinstance(dictionary, CrossLayerTranscoder)
            one = encode(dictionary, frozen, values)
            unit = len(self.encoded)
            self.encoded.append(one)
            target = values[one.writes].float().flatten(1).to(frozen.device)
            written = one.biases().expand_as(target).clone()
            for each in self.encoded if of_layers else [one]:
                written += each.on(frozen.device).decoded(module.index, len(target))
            if one.W_skip is not None:
                x = values["resid_mid"].float() if one.reads == "resid_mid" else values[one.reads].float()
                written += (x if one.read_gain is None else x * one.read_gain) @ one.W_skip
            error, biases = target - written, one.biases().expand_as(target).clone()
            error[0], biases[0] = 0, target[0]
            self.parts[one.unit.site, module.index] = _SiteParts(unit, error, biases, one.writes == "mlp_raw")

    def active(self, keys: NodeKeys) -> Tensor:
        each = [keys.features(unit, one.pos, one.features[one.row]).cpu() for unit, one in enumerate(self.encoded)]
        return torch.cat(each).sort().values if each else torch.zeros(0, dtype=torch.long)

    def activations(self, keys: NodeKeys, nodes: Tensor) -> Float[Tensor, " node"]:
        found = torch.zeros(len(nodes))
        _, units, pos, feature = keys.decode(nodes)
        for unit in torch.unique(units).tolist():
            at, one = units == unit, self.encoded[unit]
            found[at] = one.value[one.index(pos[at], feature[at])].cpu()
        return found

    def edits(self, unit: int, pos: int, feature: int, change: float) -> list[Edit]:
        one = self.encoded[unit]
        at = one.index(torch.tensor([pos]), torch.tensor([feature]))
        scale = 1.0 if one.write_scale is None else float(one.write_scale[pos, 0])
        rows = change * scale * one.value[at] * one.decoders[int(one.row[at])]
        if one.writes == "z":
            rows = rows.view(len(rows), -1, self.d_head)
        return [add(one.writes, row, layer=one.unit.layer + i, pos=pos) for i, row in enumerate(rows)]

    def at(self, frozen: FrozenLayer, keys: NodeKeys) -> DictionaryNodes:
        return DictionaryNodes(self, frozen, keys)


class DictionaryNodes:
    """The features of one layer."""

    def __init__(self, basis: DictionaryBasis, frozen: FrozenLayer, keys: NodeKeys) -> None:
        self.basis, self.frozen, self.keys = basis, frozen, keys
        self._written: dict[str, DictionaryWritten | None] = {}

    def written(self, site: str) -> DictionaryWritten | None:
        if site not in self._written:  # asked for once for each block of targets
            self._written[site] = self._find(site)
        return self._written[site]

    def _find(self, site: str) -> DictionaryWritten | None:
        layer = self.frozen.index
        parts = self.basis.parts.get((site, layer))
        if parts is None:
            return None
        units = range(parts.unit + 1) if self._is_cross_layer(parts.unit) else [parts.unit]
        each = [self.basis.encoded[unit].on(self.frozen.device).active(self.keys, unit, layer) for unit in units]
        active: tuple[Active, ...] = tuple(one for one in each if one is not None)
        gain = self.frozen.mlp_out_gain if parts.is_raw else None
        device = self.frozen.device
        error_keys = self.keys.errors(parts.unit)
        return DictionaryWritten(active, parts.error.to(device), error_keys, parts.biases.to(device), gain)

    def skip(self, v: Float[Tensor, "target pos d_model"]) -> Float[Tensor, "target pos d_model"] | None:
        parts = self.basis.parts.get(("mlp_out", self.frozen.index))
        if parts is None or (one := self.basis.encoded[parts.unit]).W_skip is None:
            return None
        one, stop = one.on(self.frozen.device), v.shape[1]
        assert one.W_skip is not None
        through = (v * self.frozen.mlp_out_gain[:stop] if parts.is_raw else v) @ one.W_skip.T
        if one.read_gain is not None:
            through = through * one.read_gain[:stop]
        through[:, 0] = 0  # position 0 belongs to the bias node whole
        return through

    def skip_written(self, x: Float[Tensor, "*run pos d_model"]) -> Float[Tensor, "*run pos d_model"] | None:
        parts = self.basis.parts.get(("mlp_out", self.frozen.index))
        if parts is None or (one := self.basis.encoded[parts.unit]).W_skip is None:
            return None
        one = one.on(self.frozen.device)
        assert one.W_skip is not None
        added: Tensor = (x if one.read_gain is None else x * one.read_gain) @ one.W_skip
        if parts.is_raw:
            added = added * self.frozen.mlp_out_gain
        added[..., 0, :] = 0
        return added

    def readers(self, unit: int, pos: Tensor, feature: Tensor) -> Float[Tensor, "node d"]:
        return self.basis.encoded[unit].on(self.frozen.device).readers(pos, feature)

    def inputs(self, unit: int, pos: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
        one = self.basis.encoded[unit]
        at = one.index(pos, feature)
        return one.value[at], one.b_enc[one.row[at]]

    def _is_cross_layer(self, unit: int) -> bool:
        one = self.basis.encoded[unit]
        return one.decoders.shape[1] > 1 or (unit > 0 and self.basis.encoded[0].decoders.shape[1] > 1)

"""Basis: what the nodes of a graph are, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from gemmascope.circuits.frozen import FrozenLayer
from gemmascope.circuits.graph.bases.written import Written
from gemmascope.circuits.graph.nodes import NodeKeys, Unit
from gemmascope.edits.edit import Edit
from gemmascope.model.gemma2 import Layer

# The sites of a layer where nodes read or write, from the last to the first as a reversed pass meets them.
SITES = ("resid_post", "mlp_out", "resid_mid", "attn_out", "z")


class LayerNodes(Protocol):
    """The nodes of one layer, while a pass has the layer."""

    def written(self, site: str) -> Written | None:
        """What stands for the site's value here; None if nothing does."""

    def skip(self, v: Float[Tensor, "target pos d_model"]) -> Float[Tensor, "target pos d_model"] | None:
        """Directions at mlp_out as they read resid_mid through a transcoder's skip connection; None without one."""

    def skip_written(self, x: Float[Tensor, "*run pos d_model"]) -> Float[Tensor, "*run pos d_model"] | None:
        """What a transcoder's skip connection adds to mlp_out for a part x of resid_mid; None without one."""

    def readers(self, unit: int, pos: Tensor, feature: Tensor) -> Float[Tensor, "node d"]:
        """What features of a unit read of the site that the unit reads, each at its position."""

    def inputs(self, unit: int, pos: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
        """What features of a unit took as their input, and their biases' part of it, [node] each."""


class Basis(Protocol):
    """What the nodes of a graph are.

    Attributes:
        units: The dictionaries, or neurons of layers, by layer and site.
        passes_mlp: Whether directions are carried through MLPs that no node stands for.
        spans_layers: Whether features write to several layers, so that their edges are added up until the last one is met.
        reads_mlps: Whether what MLPs read is needed again: for neurons, and to pass MLPs.
    """

    @property
    def units(self) -> Sequence[Unit]: ...
    @property
    def passes_mlp(self) -> bool: ...
    @property
    def spans_layers(self) -> bool: ...
    @property
    def reads_mlps(self) -> bool: ...

    def sites(self, layer: int) -> Sequence[str]:
        """The sites of a layer that add() takes."""

    def add(self, module: Layer, frozen: FrozenLayer, values: dict[str, Tensor]) -> None:
        """Encode the next layer of the run."""

    def reads(self, unit: int) -> str:
        """The site, of SITES, that a unit's features read."""

    def input_site(self, unit: int) -> str:
        """The site from which inputs_of_runs() has the inputs of a unit's features."""

    def inputs_of_runs(
        self, unit: int, pos: Tensor, feature: Tensor, values: Float[Tensor, "run pos d"], *, scales_held: bool
    ) -> Float[Tensor, "run node"]:
        """The inputs of features in several runs, the first of which is the graph's own, but for a constant.

        values: what the input site was in each run. scales_held: whether what is read is divided by the graph's scales.
        """

    def active(self, keys: NodeKeys) -> Tensor | None:
        """The keys of all active features, sorted; None if there are too many to list."""

    def activations(self, keys: NodeKeys, nodes: Tensor) -> Float[Tensor, " node"]:
        """The activations of features by their keys."""

    def edits(self, unit: int, pos: int, feature: int, change: float) -> list[Edit]:
        """Edits that add `change` times what a feature wrote in the run, where it wrote it."""

    def at(self, frozen: FrozenLayer, keys: NodeKeys) -> LayerNodes:
        """The nodes of a layer."""

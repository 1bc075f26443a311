"""AttributionGraph: what gs.attribution_graph returns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch

from gemmascope.arguments import one_of, short_repr, whole_number
from gemmascope.circuits.frozen import FrozenRun
from gemmascope.circuits.graph.bases.basis import Basis
from gemmascope.circuits.graph.data import GraphData, Scores
from gemmascope.circuits.graph.loadings import edge_loadings
from gemmascope.circuits.graph.named import AttributionGraphFiles
from gemmascope.circuits.graph.nodes import FEATURE
from gemmascope.circuits.graph.qk import qk_table
from gemmascope.circuits.graph.truth.changes import change_of, changed_name
from gemmascope.circuits.graph.truth.checking import GraphCheck, check_of
from gemmascope.circuits.graph.truth.effects import edits_of, effects
from gemmascope.circuits.graph.truth.held import Change
from gemmascope.circuits.graph.truth.opened import HOLDS, node_effects
from gemmascope.edits.edit import Edit
from gemmascope.edits.places import find_position
from gemmascope.errors import GraphError
from gemmascope.legible import legible_line, prints_legibly
from gemmascope.model.modes import computes
from gemmascope.sites import find_layer

if TYPE_CHECKING:
    import pandas
    import xarray


@dataclass(eq=False, repr=False)
class AttributionGraph(AttributionGraphFiles):
    """Who gave what to whom in one run: nodes, and edges that add up to each node's input. Made by gs.attribution_graph.

    A node is a feature or neuron at a position, the error that features leave at a position, a token's embedding, a logit or
    direction that is explained, or the bias node, which stands for biases and for what the layers wrote at position 0. An
    edge is what one wrote of the other's input with attention patterns and norms' scales held at their values in the run.
    Ids are those of Neuronpedia's files: "3_887_5" is feature 887 of layer 3 at position 5.

    Examples:
        >>> graph = gs.attribution_graph("Mary and John went to the", basis="neuron", max_nodes=50, progress=False)
        >>> graph.nodes.head(1)["kind"].item()
        'feature'
        >>> small = graph.prune(nodes=0.5)
        >>> len(small) < len(graph)
        True
    """

    run: FrozenRun | None = None
    basis_nodes: Basis | None = None

    @property
    def nodes(self) -> pandas.DataFrame:
        """One row for each node: id, kind, layer, pos, token, feature, activation, influence, cumulative, label.

        influence is the share of the outputs that comes from the node along all paths, cumulative the share of all influence
        that it and the stronger nodes hold.
        """
        return self.node_table()

    @property
    def edges(self) -> pandas.DataFrame:
        """One row for each edge that is listed: target and source by id, weight. Those of the bias node come last."""
        return self.edge_table()

    @property
    def sums(self) -> pandas.DataFrame:
        """One row for each target: its input in the run, what its edges add up to, the bias' edge and the unlisted edges.

        input is a feature's pre-activation, a neuron's activation, or a logit before the soft cap less the vocabulary's
        mean; rest is the sum of the edges that are not listed.
        """
        import pandas

        rows = self.rows
        columns = {
            "target": [self.ids[i] for i in self.index_of(rows.targets).tolist()],
            "input": rows.inputs.tolist(), "sum": rows.sums.tolist(), "bias": rows.bias.tolist(), "rest": rows.rest.tolist(),
        }  # fmt: skip
        return pandas.DataFrame(columns)

    def prune(self, nodes: float = 0.8, edges: float = 0.98) -> AttributionGraph:
        """The part of the graph that matters: the fewest nodes and edges that hold shares of the influence.

        Embeddings and outputs always stay. Among the nodes that stay, the fewest edges are kept that hold their share; then
        what has no way to an output, and features without an input, go too. Rows still add up: what goes is in `rest`.

        Args:
            nodes: The share of the influence that the nodes hold, from 0 to 1. Default 0.8.
            edges: The share that the edges hold. Default 0.98.

        Returns:
            A graph with the influence and scores of this one.

        Raises:
            GraphError: A share is outside 0 to 1.
        """
        pruned = self.pruned(nodes, edges)
        assert isinstance(pruned, AttributionGraph)
        return pruned

    @computes
    def loadings(self, edge: tuple[str, str]) -> xarray.Dataset:
        """What each head carried of an edge. In every layer between, the heads and the bypass add up to the edge.

        Args:
            edge: The target's and the source's id, in the order of .edges.

        Returns:
            "carried" (layer, head), and "bypass" (layer): what went around that layer's attention. NaN in layers that are
            not between the two.

        Raises:
            GraphError: There is no such node, the source is the bias, or the graph has no model (see gs.open_graph).
        """
        if not isinstance(edge, tuple) or len(edge) != 2:
            raise GraphError(f"an edge is (target, source), two ids; given {short_repr(edge)}")
        run, basis = self._live()
        return edge_loadings(self, run, basis, self.index(edge[0]), self.index(edge[1]))

    @computes
    def qk(self, head: tuple[int, int], q: int | str, k: int | str) -> xarray.DataArray:
        """Why a head attended: its score before the soft cap, split over what stood in the stream at query and key.

        Args:
            head: The layer and the query head.
            q: The query position, or a token that occurs once.
            k: The key position, not after q.

        Returns:
            [query_part, key_part]: parts are the graph's nodes at the position, what earlier attention wrote ("attention
            2"), and the rest of what an MLP wrote. All of it adds up to the site `scores`.

        Raises:
            GraphError: There is no such head, the key comes after the query, or the graph has no model.
            SiteError: There is no such layer or position.

        References:
            Kamath et al., "Tracing Attention Computation Through Feature Interactions" (transformer-circuits.pub/2025).
        """
        run, basis = self._live()
        trace = run.trace
        if not isinstance(head, (tuple, list)) or len(head) != 2:
            raise GraphError(f"a head is (layer, head); given {short_repr(head)}")
        layer = find_layer(head[0], trace.model.n_layers)
        number = whole_number(head[1], "a head", least=0, most=trace.model.config.n_heads - 1, error=GraphError)
        at = [find_position(one, trace.model, trace.ids, "one position is read at a time") for one in (q, k)]
        if at[1] > at[0]:
            raise GraphError(f"position {at[0]} does not see position {at[1]}, which comes after it")
        return qk_table(self, run, basis, (layer, number), *at)

    @computes
    def check(self, n: int = 20) -> GraphCheck:
        """Hold the graph against the model: the strongest features are doubled, each in a run of its own.

        First with patterns, scales and what stands for MLPs held: what all other nodes read must then move by the graph's
        edges, to rounding. Then with nothing held, all in one pass: the true effect on the outputs, beside what all paths of
        the graph predict.

        Args:
            n: How many features, the most influential first. Default 20.

        Returns:
            A GraphCheck: .held_error, .correlation, .nodes, .to_dataframe() and .plot().

        Raises:
            GraphError: The graph has no feature, or no model (see gs.open_graph).
        """
        n = whole_number(n, "n", least=1, error=GraphError)
        self._live()
        features = torch.where(self.decoded[0] == FEATURE, self.influence, -1.0)
        strongest = features.topk(min(n, len(self))).indices
        chosen = strongest[features[strongest] >= 0].tolist()
        if not chosen:
            raise GraphError("the graph has no feature to change")
        return self._checked([self.ids[node] for node in chosen], [{node: 1.0} for node in chosen], "nothing")

    @computes
    def intervene(
        self,
        nodes: str | Iterable[str] | Mapping[str, float],
        *,
        scale: float | None = None,
        value: float | None = None,
        hold: str = "nothing",
    ) -> GraphCheck:
        """Scale or set the features of a supernode together: what the graph predicts beside what the model does.

        Args:
            nodes: The name of a supernode, an id, or a list or pandas Series of them; or a mapping from those to the factor
                of each, such as {"names": 0.0, "3_887_5": 2.0}.
            scale: What to multiply their activations by. Default 0: off.
            value: The activation to set them to, in place of scale.
            hold: What the run holds at the graph's values: "nothing", or "patterns", with the norms' scales; then what is
                left between prediction and truth is how MLPs bend.

        Returns:
            A GraphCheck of one run.

        Raises:
            GraphError: A node is no feature, both scale and value are given, or the graph has no model.
        """
        hold = one_of(hold, "hold", HOLDS, error=GraphError)
        self._live()
        change = change_of(self, nodes, scale, value)
        return self._checked([changed_name(self, nodes, change)], [change], hold)

    def edits(
        self,
        nodes: str | Iterable[str] | Mapping[str, float],
        *,
        scale: float | None = None,
        value: float | None = None,
    ) -> list[Edit]:
        """The same intervention as edits, for gs.trace, gs.generate and every other call that takes edits.

        They add to the run what the features would write more or less at their positions, so they fit texts that begin with
        the graph's prompt; what is generated afterwards reads it.

        Args:
            nodes: The name of a supernode, an id, a list or pandas Series of them, or a mapping from those to factors.
            scale: What to multiply their activations by. Default 0: off.
            value: The activation to set them to, in place of scale.

        Raises:
            GraphError: A node is no feature, both scale and value are given, or the graph has no model.
        """
        _, basis = self._live()
        return edits_of(self, basis, change_of(self, nodes, scale, value))

    def _checked(self, names: Sequence[str], changes: Sequence[Change], hold: str) -> GraphCheck:
        run, basis = self._live()
        nodes = node_effects(self, run, basis, changes, hold)
        return check_of(self, names, effects(self, run, basis, changes), nodes, hold)

    def _live(self) -> tuple[FrozenRun, Basis]:
        """The run and the basis. GraphError for a graph that was opened without a model."""
        if self.run is None or self.basis_nodes is None:
            raise GraphError(
                "this graph was read from a file without its model: open it with gs.open_graph(path, model=..., "
                "dictionaries=...)"
            )
        return self.run, self.basis_nodes

    @prints_legibly
    def __repr__(self) -> str:
        kinds = (self.decoded[0] == FEATURE).sum()
        scores: Scores = self.scores
        known = {"replacement": scores.replacement, "completeness": scores.completeness}
        of_whole = ", ".join(f"{name} {value:.2f}" for name, value in known.items() if math.isfinite(value))
        name = {"neuron": "neurons"}.get(self.about.basis, "features")
        outputs = ", ".join(repr(legible_line(one.label)) for one in self.outputs[:3])
        more = f" and {len(self.outputs) - 3} more" if len(self.outputs) > 3 else ""
        return (
            f"AttributionGraph of {legible_line(self.about.model)}: {len(self.about.ids)} tokens, explains {outputs}{more} "
            f"by {int(kinds)} {name} and {len(self.rows.weight)} edges; {of_whole or 'its scores are not known'}"
            f"{'' if self.about.is_finished else '; interrupted: not all rows are there'}"
        )


def result_of(data: GraphData, run: FrozenRun | None = None, basis_nodes: Basis | None = None) -> AttributionGraph:
    """A graph of these numbers. run, basis_nodes: what it was built from, for what computes with the model."""
    numbers = {one.name: getattr(data, one.name) for one in fields(GraphData)}
    return AttributionGraph(**numbers, run=run, basis_nodes=basis_nodes)

"""AttributionGraph: what gs.attribution_graph returns."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from gemmascope.circuits.frozen import FrozenRun
from gemmascope.circuits.graph.basis import Basis
from gemmascope.circuits.graph.data import GraphData, Scores
from gemmascope.circuits.graph.nodes import FEATURE
from gemmascope.legible import legible_line, prints_legibly

if TYPE_CHECKING:
    import pandas


@dataclass(eq=False, repr=False)
class AttributionGraph(GraphData):
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
            "target": [self.ids[i] for i in self._index(rows.targets).tolist()],
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

    @prints_legibly
    def __repr__(self) -> str:
        kinds = (self.decoded[0] == FEATURE).sum()
        scores: Scores = self.scores
        name = {"neuron": "neurons"}.get(self.about.basis, "features")
        outputs = ", ".join(repr(legible_line(one.label)) for one in self.outputs[:3])
        more = f" and {len(self.outputs) - 3} more" if len(self.outputs) > 3 else ""
        return (
            f"AttributionGraph of {self.about.model}: {len(self.about.ids)} tokens, explains {outputs}{more} by "
            f"{int(kinds)} {name} and {len(self.rows.weight)} edges; replacement {scores.replacement:.2f}, completeness "
            f"{scores.completeness:.2f}{'' if self.about.is_finished else '; interrupted: not all rows are there'}"
        )


def result_of(data: GraphData, run: FrozenRun | None = None, basis_nodes: Basis | None = None) -> AttributionGraph:
    """A graph of these numbers. run, basis_nodes: what it was built from, for what computes with the model."""
    numbers = {one.name: getattr(data, one.name) for one in fields(GraphData)}
    return AttributionGraph(**numbers, run=run, basis_nodes=basis_nodes)

"""AttributionGraph: what gs.attribution_graph returns."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from gemmascope.arguments import short_repr, whole_number
from gemmascope.circuits.frozen import FrozenRun
from gemmascope.circuits.graph.bases.basis import Basis
from gemmascope.circuits.graph.data import GraphData, Scores
from gemmascope.circuits.graph.loadings import edge_loadings
from gemmascope.circuits.graph.neuronpedia import as_json
from gemmascope.circuits.graph.nodes import FEATURE
from gemmascope.circuits.graph.qk import qk_table
from gemmascope.circuits.graph.saving import save_data
from gemmascope.edits.places import find_position
from gemmascope.errors import GraphError
from gemmascope.files.writing import write_file
from gemmascope.legible import legible_line, prints_legibly
from gemmascope.model.modes import computes
from gemmascope.packages import requires_package
from gemmascope.sites import find_layer

if TYPE_CHECKING:
    import networkx
    import pandas
    import xarray


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

    def label(self, node: str, text: str) -> None:
        """Name a node. The name is saved with the graph, and stands for the node where an id is asked for.

        Args:
            node: Its id, or its present name.
            text: The name; "" takes it away.
        """
        name = self.ids[self.index(node)]
        if not isinstance(text, str):
            raise GraphError(f"a label is a text; given {short_repr(text)}")
        self.labels.pop(name, None)
        if text:
            self.labels[name] = text

    def group(self, name: str, nodes: Sequence[str]) -> None:
        """Group nodes into a supernode, which is saved with the graph.

        Args:
            name: What to call it. A group of that name is replaced.
            nodes: Ids of features, or names of other supernodes, whose nodes it takes. [] takes the group away.
        """
        if not isinstance(name, str) or not name or name in self.ids:
            raise GraphError(f"a supernode's name is a text that is no node's id; given {short_repr(name)}")
        found = [self.ids[i] for i in self.indices(nodes)] if nodes else []
        self.supernodes.pop(name, None)
        if found:
            self.supernodes[name] = list(dict.fromkeys(found))

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

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the graph, its labels and supernodes for gs.open_graph: safetensors with JSON, no pickle.

        Args:
            path: The file. An existing one is replaced.
        """
        save_data(self, path)

    def to_neuronpedia(
        self,
        path: str | os.PathLike[str],
        *,
        slug: str | None = None,
        scan: str | None = None,
        source_set: str | None = None,
    ) -> None:
        """Write the graph as JSON that Neuronpedia's viewer reads. Prune it first. The bias node is left out.

        Args:
            path: The file.
            slug: The graph's name; None makes one of the prompt.
            scan: What Neuronpedia calls the model, such as "gemma-2-2b"; None takes the model's name.
            source_set: The set of features whose pages the viewer shows, such as "gemmascope-transcoder-16k".
        """
        content = as_json(self, slug, scan, source_set)
        write_file(path, json.dumps(content, indent=1), error=GraphError, allow_pipe=True)

    def to_networkx(self) -> networkx.DiGraph:
        """The graph as a networkx.DiGraph: nodes by id with what .nodes has, edges from source to target with a weight.

        Raises:
            MissingPackageError: networkx is not installed.
        """
        with requires_package("a networkx graph", "networkx", install="networkx"):
            import networkx
        made = networkx.DiGraph()
        for row in self.nodes.to_dict("records"):
            made.add_node(row.pop("id"), **row)
        for row in self.edges.to_dict("records"):
            made.add_edge(row["source"], row["target"], weight=row["weight"])
        return made

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

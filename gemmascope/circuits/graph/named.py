"""AttributionGraphFiles: a graph with names for nodes and groups, which go into files with it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gemmascope.arguments import as_list, short_repr
from gemmascope.circuits.graph.data import GraphData
from gemmascope.circuits.graph.files.neuronpedia import as_json
from gemmascope.circuits.graph.files.saving import save_data
from gemmascope.errors import GraphError
from gemmascope.files.writing import write_file
from gemmascope.packages import requires_package

if TYPE_CHECKING:
    import networkx


@dataclass(eq=False, repr=False)
class AttributionGraphFiles(GraphData):
    """The names of a graph's nodes and groups, and its files."""

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

    def group(self, name: str, nodes: Iterable[str]) -> None:
        """Group nodes into a supernode, which is saved with the graph.

        Args:
            name: What to call it. A group of that name is replaced.
            nodes: Ids of features, or names of other supernodes, whose nodes it takes. [] takes the group away.
        """
        if not isinstance(name, str) or not name or name in self.ids:
            raise GraphError(f"a supernode's name is a text that is no node's id; given {short_repr(name)}")
        listed = nodes if isinstance(nodes, str) else as_list(nodes, "nodes", error=GraphError)
        found = [self.ids[i] for i in self.indices(listed)] if listed else []
        self.supernodes.pop(name, None)
        if found:
            self.supernodes[name] = list(dict.fromkeys(found))

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

        Raises:
            GraphError: The graph has features at several sites of a layer, which the format cannot tell apart.
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
        for row in self.node_table().to_dict("records"):
            made.add_node(row.pop("id"), **row)
        for row in self.edge_table().to_dict("records"):
            made.add_edge(row["source"], row["target"], weight=row["weight"])
        return made

"""EdgeCircuit: some of a model's edges, with those that lead nowhere pruned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gemmascope.circuits.edges.nodes import Nodes
from gemmascope.values import Array

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class EdgeCircuit:
    """Some of a model's edges, made by EdgeScores.circuit.

    Attributes:
        nodes: The senders and receivers of the model.
        edges: Which edges it has, bool [sender, receiver, span]; one span where edges cover all positions.
        axis: "pos" or "span" where an edge covers some positions, else "".
        names: The positions or spans along that axis.
        spans: The positions of each span, where they have names.
        scores: The scores that the edges were chosen by, [sender, receiver, span]; None where they were named.

    Examples:
        >>> clean = "When Mary and John went to the store, John gave a drink to"
        >>> corrupt = "When Mary and John went to the store, Mary gave a drink to"
        >>> metric = gs.logit_diff(" Mary", " John")
        >>> scores = gs.edge_scores(clean, corrupt, metric)
        >>> circuit = scores.circuit(0.05)
        >>> len(circuit), circuit.senders[:4]
        (30, ['embed', 'a2.h2', 'a2.h3', 'm2'])
    """

    nodes: Nodes
    edges: Array
    axis: str = ""
    names: tuple[str | int, ...] = ("all",)
    scores: Array | None = None
    spans: tuple[tuple[int, ...], ...] = ()

    def __len__(self) -> int:
        """The number of edges."""
        return int(self.edges.sum())

    @property
    def share(self) -> float:
        """The share of the model's edges that it has."""
        return len(self) / (self.nodes.n_edges * int(self.edges.shape[-1]))

    @property
    def senders(self) -> list[str]:
        """The names of the senders that it has, in the order of the forward pass."""
        return [self.nodes.senders[i].name for i in np.flatnonzero(self.edges.any((1, 2)))]

    def pruned(self) -> EdgeCircuit:
        """The circuit without edges that lead nowhere: whose sender reads nothing, or from which nothing goes on.

        A head reads if its queries, keys or values do. The embedding reads the tokens, and the logits need not go on.
        """
        edges, own = self.edges.copy(), self.nodes.owners
        while True:
            reads, sends = edges.any((0, 2)), edges.any((1, 2))
            alive = sends & (own @ reads)
            alive[0] = True
            goes_on = own.T @ (sends & alive)
            goes_on[-1] = True
            kept = edges & alive[:, None, None] & goes_on[None, :, None]
            if (kept == edges).all():
                return EdgeCircuit(self.nodes, kept, self.axis, self.names, self.scores, self.spans)
            edges = kept

    def to_dataframe(self) -> pandas.DataFrame:
        """One row an edge: "sender", "receiver", its position or span if it has one, and its score if it has one."""
        import pandas

        sender, receiver, span = np.nonzero(self.edges)
        columns: dict[str, object] = {
            "sender": [self.nodes.senders[i].name for i in sender],
            "receiver": [self.nodes.receivers[i].name for i in receiver],
        }
        if self.axis:
            columns[self.axis] = [self.names[i] for i in span]
        if self.scores is not None:
            columns["score"] = self.scores[sender, receiver, span]
        return pandas.DataFrame(columns)

    def __repr__(self) -> str:
        at = f", each at a {self.axis}" if self.axis else ""
        return f"a circuit of {len(self)} edges ({self.share:.2%}) between {len(self.senders)} senders{at}"


def strongest(strength: Array, n: int) -> Array:
    """Which entries are the n largest, bool; NaN counts as least. Of equals the first."""
    order = np.argsort(-np.nan_to_num(strength.reshape(-1), nan=-np.inf), kind="stable")
    chosen = np.zeros(strength.size, bool)
    chosen[order[:n]] = True
    return chosen.reshape(strength.shape) & ~np.isnan(strength)

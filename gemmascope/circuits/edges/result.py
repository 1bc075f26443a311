"""EdgeScores: a number for every edge between the nodes of a model, with labels, from gs.edge_scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from gemmascope.arguments import finite_number, is_whole, short_repr, true_or_false, whole_number
from gemmascope.circuits.edges.agreement import agreement_table, correlation
from gemmascope.circuits.edges.circuit import EdgeCircuit, strongest
from gemmascope.circuits.edges.nodes import Nodes
from gemmascope.errors import SweepError
from gemmascope.legible import legible_line, prints_legibly, signed
from gemmascope.sweeps.metadata import metric_label, metric_of_first, prompt_lines
from gemmascope.sweeps.resampling.bootstrap import labelled_bootstrap
from gemmascope.tokens.tokenizer import visible_text
from gemmascope.values import Array, labelled

if TYPE_CHECKING:
    import pandas
    import xarray
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class EdgesAsked:
    """What a call asked: the model's name and fingerprint, its nodes, the method, the metric, and the call itself.

    axis: "pos" or "span" where an edge covers some positions; "" where it covers all. names: along that axis. tokens: of
    the run that is patched. spans: the positions of spans with names, in the first pair.
    """

    model: str
    fingerprint: str
    nodes: Nodes
    method: str
    metric: str
    into: str
    has_source: bool
    axis: str
    names: tuple[str | int, ...]
    tokens: tuple[str, ...]
    code: str
    spans: tuple[tuple[int, ...], ...] = ()


@dataclass(eq=False)
class EdgeScores:
    """A score for every edge: what patching that edge alone does to the metric, exactly or as an estimate.

    An edge runs from a sender (the embedding, a head, an MLP) to a receiver (the queries of a head, the keys or values of a
    kv head, an MLP, the logits), by names such as "a2.h3", "m2", "a4.h1<q>", "a4.kv0<k>", "logits". Arrays with labels are
    xarray.DataArrays over "sender" and "receiver", and "pos" or "span" where positions were given, with the layer, kind and
    head of both as coordinates: .effect.sel(sender="a2.h3", receiver="a3.h1<q>"). All numbers are in the metric's unit.

    Attributes:
        asked: What was asked, as data: model, nodes, method, metric, code.
        values: The score of every edge in every pair, float64 [pair, sender, receiver, span]; NaN where there is no edge.
        base_metric: The metric of the run that is patched, float64 [pair].
        source_metric: The metric of the run that it is patched from, float64 [pair]. NaN for an ablation.

    Examples:
        >>> clean = "When Mary and John went to the store, John gave a drink to"
        >>> corrupt = "When Mary and John went to the store, Mary gave a drink to"
        >>> scores = gs.edge_scores(clean, corrupt, gs.logit_diff(" Mary", " John"))
        >>> scores.effect.dims, scores.effect.shape
        (('sender', 'receiver'), (31, 55))
        >>> len(scores.circuit(0.05))  # the strongest 5% of the edges, less those that lead nowhere
        30
    """

    asked: EdgesAsked
    values: Array
    base_metric: Array
    source_metric: Array

    @property
    def method(self) -> str:
        """How the scores came about: "exact", "eap", "relp", or "eap-ig, 10 steps"."""
        return self.asked.method

    @property
    def n_edges(self) -> int:
        """How many edges there are: pairs of a sender and a receiver after it, for each span of positions."""
        return self.asked.nodes.n_edges * int(self.values.shape[-1])

    @property
    def per_pair(self) -> xarray.DataArray:
        """The score of every edge in each pair, (pair, sender, receiver), and the axis of positions if there is one."""
        return self._labelled(self.values, ("pair",))

    @property
    def effect(self) -> xarray.DataArray:
        """The score of every edge, (sender, receiver), the mean over pairs: the change of the metric of the patched run.

        NaN where there is no edge.
        """
        return self._labelled(self.values.mean(0))

    def interval(self, level: float = 0.95, *, n: int = 2000, seed: int = 0) -> xarray.DataArray:
        """A bootstrap interval of the mean score, (bound, sender, receiver): see SweepResult.interval.

        Args:
            level: The share of the resampled means inside.
            n: The number of draws, each of as many pairs as there are.
            seed: The seed of the draws.

        Raises:
            SweepError: There is a single pair, or an argument is out of range.
        """
        return labelled_bootstrap(self.per_pair, "pair", level, n, seed).rename(self.effect.name)

    def circuit(self, size: float, *, magnitude: bool = True, prune: bool = True) -> EdgeCircuit:
        """The strongest edges, as a circuit for gs.faithfulness.

        Args:
            size: A share of the edges, above 0 and at most 1.0; or, as a whole number, how many.
            magnitude: Take the largest scores whatever their sign. False: the lowest, those whose patching lowers the metric
                most, for scores of a patched clean run.
            prune: Leave out edges whose sender reads nothing of the circuit, and those of which nothing reaches the logits.

        Raises:
            SweepError: size is neither, or there are fewer edges.
        """
        of_magnitude = true_or_false(magnitude, "magnitude", error=SweepError)
        pruned = true_or_false(prune, "prune", error=SweepError)
        scores = self.values.mean(0)
        chosen = strongest(np.abs(scores) if of_magnitude else -scores, self._n_of(size))
        circuit = EdgeCircuit(self.asked.nodes, chosen, self.asked.axis, self.asked.names, scores, self.asked.spans)
        return circuit.pruned() if pruned else circuit

    def _n_of(self, size: object) -> int:
        """How many edges a size means, of a share as many as fit in it."""
        if is_whole(size):
            return whole_number(size, "size, a number of edges,", least=0, most=self.n_edges, error=SweepError)
        share = finite_number(size, "size", error=SweepError)
        if not 0 < share <= 1:
            raise SweepError(f"size is a share of the edges, 0 to 1.0, or a whole number of them; given {short_repr(size)}")
        return int(share * self.n_edges + 1e-9)

    def top(self, k: int = 10) -> pandas.DataFrame:
        """The k edges with the largest scores, either way: the columns of to_dataframe().

        Args:
            k: How many.
        """
        k = whole_number(k, "k", least=0, error=SweepError)
        frame = self.to_dataframe()
        order = frame["score"].abs().sort_values(ascending=False, kind="stable").index
        return frame.loc[order[:k]].reset_index(drop=True)

    def to_dataframe(self) -> pandas.DataFrame:
        """One row an edge: its "sender", "receiver", their layers, its position or span if it has one, and its "score"."""
        import pandas

        nodes, scores = self.asked.nodes, self.values.mean(0)
        sender, receiver, span = np.nonzero(np.broadcast_to(nodes.has_edge[..., None], scores.shape))
        columns: dict[str, object] = {
            "sender": [nodes.senders[i].name for i in sender],
            "receiver": [nodes.receivers[i].name for i in receiver],
            "sender_layer": [nodes.senders[i].layer for i in sender],
            "receiver_layer": [nodes.receivers[i].layer for i in receiver],
        }
        if self.asked.axis:
            columns[self.asked.axis] = [self.asked.names[i] for i in span]
        return pandas.DataFrame({**columns, "score": scores[sender, receiver, span]})

    def agreement(self, *estimates: EdgeScores) -> pandas.DataFrame:
        """How well estimates of these scores agree with them, a row for each estimate, by its method.

        Args:
            estimates: Other scores of the same edges, metric and pairs.

        Returns:
            "pearson" and "spearman", the correlations over all edges; "top_overlap", the share of the largest 5% of these
            scores that are among the largest 5% of the estimate's; and "error", the mean absolute difference as a share of
            the mean absolute score.

        Raises:
            SweepError: An estimate is of other edges.
        """
        return agreement_table(self._flat(), {one.method: self._flat_of(one) for one in estimates})

    def plot(self) -> Figure:
        """A plotly heat map, senders upwards and receivers to the right: blue raises the metric, red lowers it.

        Where edges have positions or spans, their scores are added up. Needs plotly.
        """
        from gemmascope.figures.edges import edge_map

        asked = self.asked
        summed = self.effect if not asked.axis else self.effect.sum(asked.axis, skipna=False)
        unit = f"change of {metric_label(asked.metric)}"
        return edge_map(summed, title=self._title(), unit=unit, subtitle=self._subtitle())

    def plot_against(self, *estimates: EdgeScores) -> Figure:
        """A plotly scatter plot of estimates of these scores against them, an edge a point, a panel for each. Needs plotly.

        Args:
            estimates: Other scores of the same edges, metric and pairs.

        Raises:
            SweepError: An estimate is of other edges.
        """
        from gemmascope.figures.edges import scatter_figure

        truth, frame = self._flat(), self.to_dataframe()
        names = [f"{sender} → {receiver}" for sender, receiver in zip(frame["sender"], frame["receiver"], strict=True)]
        panels = {}
        for one in estimates:
            scores = self._flat_of(one)
            panels[f"{one.method}: r = {correlation(truth, scores):.2f}"] = scores
        title, unit = f"edges of {self.asked.model}", f"change of {metric_label(self.asked.metric)}"
        return scatter_figure(
            truth, panels, names, title=title, truth_name=self.method, unit=unit, subtitle=self._subtitle()
        )

    def code(self) -> str:
        """The Python that repeats the call. A function of your own appears under its name."""
        return self.asked.code

    @cached_property
    def coords(self) -> dict[str, object]:
        """The coordinates of the labelled arrays: names of senders and receivers, their layers, kinds and heads."""
        coords: dict[str, object] = {}
        for axis, nodes in (("sender", self.asked.nodes.senders), ("receiver", self.asked.nodes.receivers)):
            coords[axis] = [node.name for node in nodes]
            coords[f"{axis}_kind"] = (axis, [node.kind for node in nodes])
            coords[f"{axis}_layer"] = (axis, [node.layer for node in nodes])
            coords[f"{axis}_head"] = (axis, [node.head for node in nodes])
        if self.asked.axis:
            coords[self.asked.axis] = list(self.asked.names)
        if self.asked.axis == "pos":
            coords["token"] = ("pos", [self.asked.tokens[int(i)] for i in self.asked.names])
        return coords

    def _flat(self) -> Array:
        """The scores of all edges, in the order of to_dataframe(). SweepError where some were not run."""
        scores = self.values.mean(0)
        flat: Array = scores[np.broadcast_to(self.asked.nodes.has_edge[..., None], scores.shape)]
        if np.isnan(flat).any():
            raise SweepError(f"some edges have no {self.method} score, as after an interrupt: score all of them")
        return flat

    def _flat_of(self, other: EdgeScores) -> Array:
        """The scores of another result, edge by edge. SweepError if it is of other edges."""
        mine, theirs = self.asked, other.asked
        if mine.nodes != theirs.nodes or mine.names != theirs.names:
            raise SweepError(f"{other.method!r} is of other edges than {self.method!r}: score both at the same positions")
        return other._flat()

    def _labelled(self, values: Array, extra: Sequence[str] = ()) -> xarray.DataArray:
        dims = (*extra, "sender", "receiver", *([self.asked.axis] if self.asked.axis else []))
        shown = values if self.asked.axis else values[..., 0]
        return labelled(shown, self.coords, dims, "effect", f"change of {self.asked.metric}")

    def _subtitle(self) -> str:
        """The prompts and the metric."""
        asked = self.asked
        prompts = prompt_lines(asked.code, has_source=asked.has_source, into=asked.into, tokens=asked.tokens)
        return "\n".join([*prompts, f"Measured: {metric_of_first(asked.metric)}"])

    def _title(self) -> str:
        asked, n = self.asked, len(self.values)
        change = f"patched into the {asked.into} run" if asked.has_source else "ablated"
        pairs = f", mean of {n} pairs" if n > 1 else ""
        return f"edges {change}, {legible_line(asked.model)}{pairs} ({asked.method})"

    @prints_legibly
    def __repr__(self) -> str:
        asked = self.asked
        lines = [f"scores of {self.n_edges} edges of {legible_line(asked.model)}: {self._title()}, {asked.metric}"]
        best = self.top(5)
        largest = float(best["score"].abs().max())
        for row in best.to_dict("records"):
            at = "" if not asked.axis else f", {asked.axis} {row[asked.axis]}"
            if asked.axis == "pos":
                at += f" ({visible_text(asked.tokens[row['pos']])})"
            lines.append(f"  {signed(row['score'], largest)}  {row['sender']} -> {row['receiver']}{at}")
        return "\n".join(lines)

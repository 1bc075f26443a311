"""Edge scores by runs: each edge is patched alone, in a run of its own; all of a pair's runs go through the layers together.

Where only the edge u -> v is patched, v reads the base run's stream with what u wrote in the other run in place of what it
wrote in this one, and everything after v runs anew. So the run joins the pass at the layer of v.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gemmascope.circuits.edges.nodes import SITE_OF_KIND, Nodes
from gemmascope.circuits.edges.pairs import EdgePair
from gemmascope.edits.edit import BoundEdit
from gemmascope.edits.kinds import Patch
from gemmascope.model.gemma2 import Layer
from gemmascope.run.bound_metric import read_positions
from gemmascope.sites import find
from gemmascope.sweeps.cells import chunked
from gemmascope.sweeps.final_logits import measure_rows
from gemmascope.sweeps.variants import BaseRun, Variant, final_residuals
from gemmascope.values import Array, chunks, moved

# Rows of senders' streams that are normed and projected at once.
_ROWS = 4096


@dataclass(frozen=True)
class EdgeRun:
    """The run in which one edge is patched: the edge's number (sender, receiver, span), its edit, and its rows in a pass."""

    edge: tuple[int, int, int]
    edit: BoundEdit
    n_rows: int


class ExactScores:
    """The scores of a pair's edges, NaN where there is no edge or none was run yet. chunks() runs those and fills them in.

    scores: float64 [sender, receiver, span].
    """

    def __init__(self, pair: EdgePair, max_rows: int, scores: Array) -> None:
        self.pair, self.model, self.max_rows, self.scores = pair, pair.model, max_rows, scores
        self.nodes = Nodes.of(pair.model.config)
        self.base = BaseRun(pair.ids, (), read_positions([pair.metric]))
        # [sender, pos]: where patching a sender changes what it writes.
        self.changes = pair.change.any(-1)

    def chunks(self) -> Iterator[Array]:
        """Run the edges a chunk at a time; each step gives the numbers of the edges that it scored, in the flat array. The
        caller may stop after any step.
        """
        for score in (self._score_logits, self._score_unchanged):
            missing = np.isnan(self.scores)
            score()
            yield np.flatnonzero(missing & ~np.isnan(self.scores))
        for runs in chunked(self._runs(), lambda: self.max_rows):
            variants = [Variant(0, (run.edit,)) for run in runs]
            finals = final_residuals(self.model, [self.base], variants)
            rows, of_base = finals.of(range(len(runs))), finals.bases[0]
            for run, score in zip(runs, self._effects(rows, of_base).tolist(), strict=True):
                self.scores[run.edge] = score
            yield np.ravel_multi_index(np.array([run.edge for run in runs]).T, self.scores.shape)

    def _effects(self, rows: Tensor, of_base: Tensor) -> Tensor:
        """The change of the metric, float64 [run]. rows: of each run the final stream where it is read, [run, pos, d]."""
        baseline = measure_rows([self.pair.metric], self.model, self.base, of_base[None])[0, 0]
        values = measure_rows([self.pair.metric], self.model, self.base, rows)[0] - baseline
        values[(rows == of_base).all(2).all(1).cpu()] = 0.0
        return values

    def _score_logits(self) -> None:
        """Score the edges to the logits, which take no layer: the final stream with a sender's change added."""
        if not np.isnan(self.scores[:, -1]).any():
            return
        read = list(self.base.positions)
        end = self.pair.base.residuals[-1][read]
        for number, members in enumerate(self.pair.members):
            change = self.pair.change[:, read] * members[read, None]
            for part in chunks(len(change), max(1, _ROWS // len(read))):
                rows = end + change[part].to(end.dtype)
                self.scores[part, -1, number] = self._effects(rows, end).numpy()

    def _score_unchanged(self) -> None:
        """Score the edges whose sender writes the same in both runs: 0."""
        changed = (self.changes[:, None] & self.pair.members).any(-1).cpu().numpy()  # [sender, span]
        before_logits = self.nodes.has_edge[:, :-1, None]
        unchanged = before_logits & ~changed[:, None]
        self.scores[:, :-1][unchanged] = 0.0

    def _runs(self) -> Iterator[EdgeRun]:
        """The runs of the edges that change something and do not end in the logits, layer by layer."""
        for index in range(self.model.n_layers):
            layer = self.model.layer(index)
            for kind in ("q", "k", "v", "mlp"):
                for sender in range(self.nodes.n_before(kind, index)):
                    yield from self._runs_of(layer, kind, sender)

    def _runs_of(self, layer: Layer, kind: str, sender: int) -> Iterator[EdgeRun]:
        """The runs of the edges from a sender to a layer's receivers of a kind."""
        receivers = self.nodes.reading(kind, layer.index)
        values: Tensor | None = None
        for span, members in enumerate(self.pair.members):
            positions = torch.nonzero(self.changes[sender] & members)[:, 0].cpu()
            if not len(positions):
                continue
            missing = receivers.start + np.flatnonzero(np.isnan(self.scores[sender, receivers, span]))
            if not len(missing):
                continue
            values = self._values(layer, kind, sender) if values is None else values
            for number in missing.tolist():
                head = number - receivers.start
                edit = self._edit(kind, layer.index, head, positions, values[positions.to(values.device)])
                yield EdgeRun((sender, number, span), edit, len(self.pair.ids) - int(positions[0]))

    def _values(self, layer: Layer, kind: str, sender: int) -> Tensor:
        """What a layer's receivers make of the stream with a sender's change: see reading_of."""
        stream = self.pair.of_base.middles[layer.index] if kind == "mlp" else self.pair.base.residuals[layer.index]
        change = moved(self.pair.change[sender], layer.device)
        mixed = moved(stream, layer.device) + change.to(stream.dtype)
        with torch.no_grad():
            return reading_of(layer, kind, mixed)

    def _edit(self, kind: str, layer: int, head: int, positions: Tensor, values: Tensor) -> BoundEdit:
        """The edit that writes what one receiver makes of the patched stream."""
        site = SITE_OF_KIND[kind]
        address = find((site, layer), self.model.n_layers)
        if kind == "mlp":
            edit = Patch(site=site, source=values, layer=layer, pos=positions.tolist())
            return BoundEdit(edit, address, (positions,), values)
        of_head = values[:, head, None]
        edit = Patch(site=site, source=of_head, layer=layer, pos=positions.tolist(), head=head)
        return BoundEdit(edit, address, (positions, torch.tensor([head])), of_head)


def reading_of(layer: Layer, kind: str, stream: Tensor) -> Tensor:
    """What a layer's receivers of one kind make of a stream: [row, head, d_head]; at "mlp" normed rows, [row, d_model]."""
    if kind == "mlp":
        normed: Tensor = layer.pre_feedforward_layernorm(stream)
        return normed
    attention = layer.self_attn
    projected = attention.project(kind, layer.input_layernorm(stream))
    return projected.view(len(stream), -1, attention.config.d_head)

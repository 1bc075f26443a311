"""Runs of circuits: every receiver reads its own mixture, the circuit's senders as they are there and the others patched.

All runs go through the layers side by side, from the embedding on. A receiver's stream is the run's own, with what stands in
the place of each sender outside the circuit less what that sender wrote in this run.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from einops import einsum
from torch import Tensor

from gemmascope.circuits.edges.nodes import Nodes
from gemmascope.circuits.edges.pairs import EdgePair
from gemmascope.memory.limits import explain_oom
from gemmascope.model.gemma2 import Layer
from gemmascope.model.layout import Layout
from gemmascope.model.model import Model
from gemmascope.model.tap import Tap
from gemmascope.sweeps.final_logits import measure_rows
from gemmascope.sweeps.variants import BaseRun
from gemmascope.values import moved

# The kind of receivers whose value a site has.
_KIND_OF_SITE = {"q_raw": "q", "k_raw": "k", "v": "v", "mlp_in": "mlp"}


@dataclass(frozen=True, eq=False)
class CircuitRun:
    """The run of a pair in which the edges outside a circuit are patched. outside: bool [sender, receiver, span]."""

    pair: EdgePair
    outside: Tensor


def measure_circuits(model: Model, runs: Sequence[CircuitRun]) -> list[float]:
    """The metric of each run. All of them go through the layers in one pass."""
    with torch.no_grad(), explain_oom(model):
        lengths = [len(run.pair.ids) for run in runs]
        layout = Layout.of_lengths(lengths, model.device)
        x = model.network.embed(torch.cat([run.pair.ids for run in runs]), layout)
        mixtures = _Mixtures(model, runs, layout, x)
        with closing(model.layers()) as layers:
            for layer in layers:
                mixtures.layer = layer
                x = layer(x, layout, mixtures.at(layer.index, layout))
        ends = mixtures.read("logits", model.n_layers - 1, moved(x, model.device))[:, 0]
        values = []
        for run, span in zip(runs, layout.spans, strict=True):
            positions = run.pair.metric.positions
            base = BaseRun(run.pair.ids, (), tuple(sorted(set(positions))))
            rows = ends[span][list(base.positions)][None]
            values.append(float(measure_rows([run.pair.metric], model, base, rows.to(model.dtype))[0, 0]))
        return values


class _Mixtures(Tap):
    """Gives every receiver its own stream, and notes what every sender writes.

    change: for every sender so far, what stands in its place less what it wrote, [sender, row, d_model].
    """

    layer: Layer

    def __init__(self, model: Model, runs: Sequence[CircuitRun], layout: Layout, embed: Tensor) -> None:
        self.nodes, self.runs, self.spans = Nodes.of(model.config), runs, layout.spans
        self.change = torch.cat([run.pair.of_source.written for run in runs], 1)
        self.change[0] -= embed.float()
        # Of each run, whether an edge at a position is patched: [receiver, sender, pos], or [receiver, sender, 1] for all.
        self.patched = [self._by_position(run) for run in runs]
        self._stream = embed

    @staticmethod
    def _by_position(run: CircuitRun) -> Tensor:
        outside = run.outside.transpose(0, 1).float().to(run.pair.model.device)
        members = run.pair.members.float()
        if len(members) == 1 and bool(members.all()):
            return outside
        return einsum(outside, members, "receiver sender span, span pos -> receiver sender pos")

    def wants(self, site: str, layer: int | None) -> bool:
        return site == "head_out"

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        assert layer is not None
        if site in ("resid_pre", "resid_mid"):
            self._stream = value
        elif site in _KIND_OF_SITE:
            return self._receive(_KIND_OF_SITE[site], layer, value)
        elif site == "head_out":
            self._note(self.nodes.heads_at(layer), value.transpose(0, 1))
        elif site == "mlp_out":
            at = self.nodes.mlp_at(layer)
            self._note(slice(at, at + 1), value[None])
        return value

    def _note(self, senders: slice, written: Tensor) -> None:
        self.change[senders] -= moved(written.float(), self.change.device)

    def read(self, kind: str, layer: int, stream: Tensor) -> Tensor:
        """The streams that a layer's receivers of one kind read, [row, receiver, d_model] in float32."""
        n, receivers = self.nodes.n_before(kind, layer), self.nodes.reading(kind, layer)
        parts = []
        for patched, span in zip(self.patched, self.spans, strict=True):
            of_kind, change = patched[receivers, :n], self.change[:n, span]
            if of_kind.shape[-1] == 1:
                added = einsum(of_kind[..., 0], change, "receiver sender, sender pos d -> pos receiver d")
            else:
                added = einsum(of_kind, change, "receiver sender pos, sender pos d -> pos receiver d")
            parts.append(added)
        return stream.float()[:, None] + moved(torch.cat(parts), stream.device)

    def _receive(self, kind: str, layer: int, value: Tensor) -> Tensor:
        """What a layer's receivers of one kind make of their streams. A run that patches none of them keeps its own."""
        n, receivers = self.nodes.n_before(kind, layer), self.nodes.reading(kind, layer)
        rows = torch.cat(
            [
                torch.full((span.stop - span.start,), bool(patched[receivers, :n].any()))
                for patched, span in zip(self.patched, self.spans, strict=True)
            ]
        ).to(value.device)
        if not bool(rows.any()):
            return value
        streams = self.read(kind, layer, self._stream).to(value.dtype)
        if kind == "mlp":
            made = self.layer.pre_feedforward_layernorm(streams[:, 0])
        else:
            weight = {"q": self.layer.W_Q, "k": self.layer.W_K, "v": self.layer.W_V}[kind]
            made = einsum(self.layer.input_layernorm(streams), weight, "row head d_model, head d_model d -> row head d")
        return torch.where(rows.view(-1, *[1] * (value.dim() - 1)), made, value)

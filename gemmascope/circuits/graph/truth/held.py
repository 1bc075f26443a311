"""Changes of nodes in the model with everything held that a graph holds: patterns, scales, and what stands for MLPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing

import torch
from einops import rearrange
from torch import Tensor

from gemmascope.circuits.frozen import SCALES, FrozenLayer, FrozenRun
from gemmascope.circuits.graph.bases.basis import SITES, Basis, LayerNodes
from gemmascope.circuits.graph.data import GraphData
from gemmascope.circuits.graph.nodes import LOGIT
from gemmascope.memory.limits import explain_oom
from gemmascope.model.gemma2 import Layer
from gemmascope.model.layout import Layout
from gemmascope.model.maths import root_mean_square
from gemmascope.model.tap import Tap
from gemmascope.run.replay import run_again
from gemmascope.values import moved

# A change of some nodes in one run: how many times what each wrote is added, by the node's index.
Change = Mapping[int, float]


def held_effects(graph: GraphData, run: FrozenRun, basis: Basis, changes: Sequence[Change]) -> Tensor:
    """By how much each target's input moves in the model, [run, target], float32. All runs go through the layers together.

    A run without a change is among them, and the others are measured from it.
    """
    trace, n_runs = run.trace, len(changes) + 1
    model = trace.model
    tap = _Holding(graph, run, basis, changes)
    with torch.no_grad(), explain_oom(model):
        layout = Layout.of_lengths([run.n_pos] * n_runs, model.device)
        x = model.network.embed(trace.ids.repeat(n_runs), layout)
        with closing(model.layers()) as layers:
            for module in layers:
                tap.enter(module)
                x = module(x, layout, tap.at(module.index, layout))
        final = moved(x, model.device).view(n_runs, run.n_pos, -1)[:, graph.logits.pos].float()
    difference = (final - final[:1]) @ moved(graph.logits.vectors, final.device).T
    kind, _, _, feature = graph.keys.decode(graph.rows.targets)
    for number in torch.nonzero(kind == LOGIT).flatten().tolist():
        tap.moves[number] = difference[:, feature[number]].cpu()
    return torch.stack([tap.moves[number][1:] for number in range(len(kind))], dim=1)


class _Holding(Tap):
    """Holds patterns and scales at those of a run, and what nodes stand for at its value plus a change for each run.

    It notes by how much what the targets read differs from the first run's, which has no change. Values are those of the
    layer that the pass is in.

    Attributes:
        moves: By how much each target moved in each run, by the target's number: [run].
    """

    frozen: FrozenLayer
    nodes: LayerNodes

    def __init__(self, graph: GraphData, run: FrozenRun, basis: Basis, changes: Sequence[Change]) -> None:
        self.graph, self.run, self.basis, self.changes = graph, run, basis, changes
        self.n_runs = len(changes) + 1
        self.sources = sorted({node for change in changes for node in change})
        self.moves: dict[int, Tensor] = {}
        self.base: dict[str, Tensor] = {}  # what is held in this layer by site, [pos, ...]
        self.readers: dict[str, list[tuple[int, int, Tensor]]] = {}  # targets: number, position, what it reads
        self.values: dict[str, Tensor] = {}  # of this pass, for what is computed from them
        self.mid_moves = torch.zeros(0)

    def enter(self, module: Layer) -> None:
        """Take up the next layer: what it holds and who reads in it."""
        run, trace = self.run, self.run.trace
        self.frozen = frozen = run.layer(module)
        self.nodes = self.basis.at(frozen, self.graph.keys)
        standing = [site for site in SITES if self.nodes.written(site) is not None]
        self.values = {}
        self.base = run_again(trace, module, standing) if standing else {}
        entry = root_mean_square(trace.residuals[module.index], trace.model.config.norm_eps)
        self.base["attn_in_scale"] = moved(entry, frozen.device)
        self.base |= {site: frozen.scale(site) for site in SCALES}
        self.readers = self._readers(module.index)

    def _readers(self, layer: int) -> dict[str, list[tuple[int, int, Tensor]]]:
        found: dict[str, list[tuple[int, int, Tensor]]] = {}
        _, unit, pos, feature = self.graph.keys.decode(self.graph.rows.targets)
        for index, one in enumerate(self.basis.units):
            at = torch.nonzero(unit == index).flatten() if one.layer == layer else torch.zeros(0)
            if len(at):
                read = self.nodes.readers(index, pos[at].to(self.frozen.device), feature[at].to(self.frozen.device))
                listed = zip(at.tolist(), pos[at].tolist(), read, strict=True)
                found.setdefault(self.basis.reads(index), []).extend(listed)
        return found

    def wants(self, site: str, layer: int | None) -> bool:
        return site in (*SCALES, "attn_in_scale") and layer is not None

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        if layer is None:
            return value
        if site in ("v", "mlp_gate", "mlp_up"):
            self.values[site] = value
        if site == "mlp_act" and self.basis.passes_mlp:
            value = self._held_neurons().to(value.dtype)
        if site == "z":
            value = self._held_reading(self.values["v"]).to(value.dtype)
        self._note(site, value.view(self.n_runs, -1, *value.shape[1:]))
        return self._held(site, value)

    def _held(self, site: str, value: Tensor) -> Tensor:
        base = self.base.get(site)
        if base is None:
            return value
        held = base.expand(self.n_runs, *base.shape).clone()
        if site in SITES:
            self._add_changes(site, held.flatten(2))
        if site == "mlp_out" and (added := self.nodes.skip_written(self.mid_moves)) is not None:
            held += added
        return held.flatten(0, 1).to(value.dtype)

    def _held_neurons(self) -> Tensor:
        """The neurons by RelP's rule: each factor's share of the run's value."""
        mlp = self.frozen.mlp
        up, gate = (self.values[site].float() for site in ("mlp_up", "mlp_gate"))
        up, gate = (value.view(self.n_runs, -1, value.shape[1]) for value in (up, gate))
        act: Tensor = up * mlp.from_up + gate * mlp.from_gate
        return act.flatten(0, 1)

    def _held_reading(self, v: Tensor) -> Tensor:
        """What the heads read of this pass' values through the run's pattern, [row, head, d_head]."""
        v = rearrange(v.float(), "(run k) kv d -> run kv k d", run=self.n_runs)
        z = v.new_zeros(self.n_runs, v.shape[1], self.frozen.config.heads_per_kv, *v.shape[2:])
        for rows, seen, pattern in self.run.patterns(self.frozen.module):
            z[..., rows, :] = pattern @ v[:, :, None, seen]
        read: Tensor = rearrange(z, "run kv group q d -> (run q) (kv group) d")
        return read

    def _note(self, site: str, value: Tensor) -> None:
        """By how much each target that reads this site moves. value: [run, pos, ...]."""
        if site not in ("resid_mid", *self.readers):
            return
        difference = (value - value[:1]).float()
        if site == "resid_mid":
            self.mid_moves = difference
        for number, pos, read in self.readers.get(site, ()):
            self.moves[number] = (difference[:, pos].flatten(1) @ read.flatten()).cpu()

    def _add_changes(self, site: str, held: Tensor) -> None:
        """Add what changed nodes write at a site, in place. held: [run, pos, d]; the first run has no change."""
        written = self.nodes.written(site)
        assert written is not None
        for node in self.sources:
            vector = written.contribution(int(self.graph.node_keys[node]))
            if vector is not None:
                for row, change in enumerate(self.changes):
                    held[row + 1, self.graph.positions[node]] += (change.get(node, 0.0) * vector).to(held)

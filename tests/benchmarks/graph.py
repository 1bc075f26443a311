"""Attribution graphs beside backward passes: python tests/benchmarks/graph.py [--layers 12] [--positions 32] [--targets 512]

The rival is what other tools do, in transformers: patterns and norms' scales are held (detached), MLPs are cut off, and a
backward pass for each batch of 256 targets gives the gradient at every MLP's output and at the embeddings. Both sides give
the edges from features, errors and embeddings to the same targets; the largest difference is printed. CPU seconds, one
thread.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import random_dictionaries  # noqa: E402
from checkpoints import checkpoint, model_of, prompt  # noqa: E402

import gemmascope as gs  # noqa: E402
from gemmascope.circuits.graph.attribution import attribution_graph  # noqa: E402
from gemmascope.circuits.graph.nodes import FEATURE  # noqa: E402
from gemmascope.circuits.graph.result import AttributionGraph  # noqa: E402

BATCH = 256
SHAPE = {
    "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
    "vocab_size": 8192, "sliding_window": 32, "query_pre_attn_scalar": 64, "max_position_embeddings": 4096,
}  # fmt: skip


class Held(torch.nn.Module):
    """A norm whose scale is that of its input, which no gradient passes."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        scale = (x.detach().pow(2).mean(-1, keepdim=True) + self.norm.eps).rsqrt()
        return x * scale * (1 + self.norm.weight)


class CutOff(torch.nn.Module):
    """An MLP's output, at which a gradient ends and is noted."""

    def __init__(self, norm: Any, outs: list[Tensor]) -> None:
        super().__init__()
        self.norm, self.outs = norm, outs

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(x).detach().requires_grad_()
        self.outs.append(out)
        return out


class Rival:
    """A transformers model with everything held, and its backward passes."""

    def __init__(self, source: Any, ids: Sequence[int]) -> None:
        self.model, self.ids, self.outs, self.mids = source.model, list(ids), [], []
        # transformers 4 multiplies embeddings in the model, 5 in the embedding itself.
        scales_inside = not hasattr(self.model.embed_tokens, "embed_scale")
        self.embed_scale = self.model.config.hidden_size**0.5 if scales_inside else 1.0
        for layer in self.model.layers:
            for name in ("input_layernorm", "post_attention_layernorm"):
                setattr(layer, name, Held(getattr(layer, name)))
            layer.post_feedforward_layernorm = CutOff(layer.post_feedforward_layernorm, self.outs)
            layer.pre_feedforward_layernorm.register_forward_hook(lambda _, inputs, __: self.mids.append(inputs[0]))
            for name in ("q_proj", "k_proj"):  # patterns are held: no gradient goes through queries and keys
                getattr(layer.self_attn, name).register_forward_hook(lambda _, __, out: out.detach())
        for p in self.model.parameters():
            p.requires_grad_(False)

    def rows(self, targets: Sequence[tuple[int, int, Tensor]], writes: Sequence[Any], embed: Tensor) -> Tensor:
        """The edges into targets (layer, position, what it reads of resid_mid). writes: of each layer (positions, rows)."""
        self.outs.clear()
        self.mids.clear()
        batch = min(BATCH, len(targets))
        x = embed.expand(batch, -1, -1).clone().requires_grad_()
        self.model(inputs_embeds=x / self.embed_scale, use_cache=False)
        parts = []
        for start in range(0, len(targets), batch):
            part = targets[start : start + batch]
            last = max(layer for layer, _, _ in part)
            leaves = [x, *self.outs[:last]]
            seeds = {layer: torch.zeros_like(self.mids[layer]) for layer, _, _ in part}
            for i, (layer, pos, read) in enumerate(part):
                seeds[layer][i, pos] = read
            mids = [self.mids[layer] for layer in seeds]
            read_at = torch.autograd.grad(mids, leaves, list(seeds.values()), retain_graph=True, materialize_grads=True)
            edges = [
                (read_at[1 + i][:, pos] * rows).sum(-1) if i < last else torch.zeros(batch, len(pos))
                for i, (pos, rows) in enumerate(writes)
            ]
            parts.append(torch.cat([*edges, (read_at[0] * embed).sum(-1)], dim=1)[: len(part)])
        return torch.cat(parts)


def writes_of(graph: AttributionGraph, dictionaries: Sequence[Any], trace: Any) -> tuple[list[Any], Tensor]:
    """What features and errors of each layer wrote, as positions and rows; and the matrix' columns in that order."""
    kind, unit, pos, feature = graph.decoded
    writes, columns = [], []
    for layer, one in enumerate(dictionaries):
        at = torch.nonzero((kind <= 1) & (unit == layer)).flatten()
        rows = torch.zeros(len(at), one.d_out)
        features = kind[at] == FEATURE
        rows[features] = graph.activation[at][features, None] * one.W_dec[feature[at][features]]
        written = one.b_dec.repeat(len(trace), 1).index_add_(0, pos[at][features], rows[features])
        error = trace["mlp_out", layer] - written
        error[0] = 0
        rows[~features] = error[pos[at][~features]]
        writes.append((pos[at], rows))
        columns.append(at)
    return writes, torch.cat([*columns, graph.index_of(graph.keys.embeddings)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--positions", type=int, default=32)
    parser.add_argument("--targets", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    source = checkpoint("lg" * (args.layers // 2), **SHAPE)
    model, ids = model_of(source), prompt(args.positions, SHAPE["vocab_size"])
    d = SHAPE["hidden_size"]
    dictionaries = [random_dictionaries.dictionary(d, "transcoder", i, d, seed=i) for i in range(model.n_layers)]
    trace = gs.trace(ids, model=model)
    start = time.process_time()
    graph = attribution_graph(trace, dictionaries=dictionaries, targets=[1], keep=10**6, max_nodes=10**6, progress=False)
    whole = time.process_time() - start
    chosen = torch.nonzero(graph.keys.kinds(graph.rows.targets) == FEATURE).flatten()
    chosen = chosen[torch.linspace(0, len(chosen) - 1, min(args.targets, len(chosen))).long()]
    _, unit, pos, feature = (part.tolist() for part in graph.keys.decode(graph.rows.targets[chosen]))
    scales = [trace["mlp_in_scale", i] for i in range(model.n_layers)]
    targets = [(u, p, dictionaries[u].W_enc[:, f] / scales[u][p]) for u, p, f in zip(unit, pos, feature, strict=True)]
    writes, columns = writes_of(graph, dictionaries, trace)
    rival = Rival(source, ids)
    theirs = rival.rows(targets, writes, trace.residuals[0])
    ours = torch.tensor(graph.matrix().values)[graph.index_of(graph.rows.targets)[chosen]][:, columns]
    off, largest = float((ours - theirs).abs().max()), float(ours.abs().max())
    print(f"{len(targets)} targets, {len(columns)} sources; largest difference {off:.1e} of {largest:.2f}")
    run_chunk = measured(graph, chosen)
    for _ in range(args.rounds):
        start = time.process_time()
        run_chunk()
        mine = time.process_time() - start
        rival.rows(targets, writes, trace.residuals[0])
        other = time.process_time() - start - mine
        print(f"ours {mine:.2f} s of CPU, backward passes {other:.2f} s: {other / mine:.1f} times")
    n_rows = len(graph.rows.targets)
    scaled = other * n_rows / len(targets)
    print(f"the whole graph of {n_rows} rows, encoding included: {whole:.1f} s; backward passes, scaled: {scaled:.0f} s")


def measured(graph: AttributionGraph, chosen: Tensor) -> Any:
    """What builds the rows of some of the graph's targets again."""
    from gemmascope.circuits.graph.build import targets_of
    from gemmascope.circuits.graph.descent import descend

    run, basis = graph._live()
    targets = targets_of(graph.keys, basis, graph.logits.pos, graph.about.n_layers, graph.rows.targets[chosen])

    def again() -> None:
        run._patterns.clear()
        descend(run, basis, graph.keys, targets, graph.logits, 10**6, lambda: None)

    return again


if __name__ == "__main__":
    main()

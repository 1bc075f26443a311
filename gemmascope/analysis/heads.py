"""Heads by what they do: scores of kinds of heads, over random and given prompts, all layers and heads in one pass.

Sources: Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021); Olsson et al., "In-context Learning and
Induction Heads" (arXiv 2209.11895); Xiao et al., "Efficient Streaming Language Models with Attention Sinks" (2309.17453).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from einops import einsum
from torch import Tensor

from gemmascope.analysis.head_kinds import TARGETS, targets
from gemmascope.errors import PromptError, SiteError
from gemmascope.model.factors import embeddings, normed_tokens
from gemmascope.model.layout import Block, Layout
from gemmascope.model.model import Model, Prompt
from gemmascope.model.tap import Tap
from gemmascope.run.default import model_or_nano
from gemmascope.run.memory import told_when_full
from gemmascope.run.trace import is_many
from gemmascope.sites import near_names

if TYPE_CHECKING:
    import pandas
    import xarray

REACH, COPYING = "local_reach", "copying"
KINDS = (*TARGETS, REACH, COPYING)

_MEANING = {
    **{kind: words for kind, (_, words) in TARGETS.items()},
    REACH: "mean distance of attention, in positions",
    COPYING: "how far W_OV raises the logit of the token that is read",
}


@dataclass(frozen=True, repr=False, eq=False)
class HeadScores:
    """How far each head is of a kind. Made by gs.head_scores. scores: [layer, head], float32."""

    kind: str
    scores: xarray.DataArray
    model: str
    over: str

    def best(self, k: int = 5) -> list[tuple[int, int, float]]:
        """The heads with the highest scores: (layer, head, score)."""
        flat = self.scores.values.reshape(-1)
        n_heads = self.scores.sizes["head"]
        return [(*divmod(int(i), n_heads), float(flat[i])) for i in (-flat).argsort(kind="stable")[:k]]

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each head: layer, kind of layer, head, score."""
        return self.scores.to_dataframe(name=self.kind).reset_index()

    def plot(self) -> Any:
        """A plotly heat map, layer by head."""
        from gemmascope.plots.labelled import labelled_figure

        bound = 1.0 if self.kind in TARGETS else None
        title = f"{self.kind}, {self.model}: {self.over}"
        return labelled_figure(
            self.scores, title=title, unit=_MEANING[self.kind], diverging=self.kind == COPYING, bound=bound
        )

    def __repr__(self) -> str:
        best = "\n".join(f"  {score:6.3f}  layer {layer} head {head}" for layer, head, score in self.best())
        return f"{self.kind} scores of {self.model}: {_MEANING[self.kind]}; {self.over}\n{best}"


def head_scores(
    model: Model | None = None,
    kind: str = "induction",
    *,
    prompts: Sequence[Prompt] | Prompt | None = None,
    n: int = 8,
    length: int = 24,
    seed: int = 0,
) -> HeadScores:
    """Score every head of every layer, in one pass over all prompts.

    kind: "previous_token", "duplicate_token", "induction" or "sink": the share of attention that goes to the keys in
    question, the mean over the queries that have any; "local_reach": the mean distance of attention, in positions, over all
    queries but the first; "copying": the sum of the eigenvalues of embedding, W_OV and unembedding, over the sum of their
    sizes, from -1 to 1, with the norms' gains and without any prompt (Elhage et al. 2021).
    prompts: texts or token ids; None for n random ones of <bos> and `length` ordinary tokens said twice. A local layer sees
    its window only: of a length beyond it, no local head can complete what was said before.
    Raises SiteError for an unknown kind, PromptError for prompts that have no such query, or are too long.
    """
    model = model_or_nano(model)
    if kind not in KINDS:
        near = near_names(str(kind), list(KINDS))
        meant = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise SiteError(f"there is no kind of head {kind!r}.{meant} The kinds are {', '.join(KINDS)}")
    if kind == COPYING:
        if prompts is not None:
            raise PromptError("copying is read from the weights: leave prompts out")
        return HeadScores(kind, _labelled(model, copying(model)), model.name, "from the weights")
    runs = random_prompts(model, n, length, seed) if prompts is None else _given(model, prompts)
    weights = [_weights(kind, ids) for ids in runs]
    n_queries = sum(int((w != 0).any(-1).sum()) if kind != REACH else max(0, len(w) - 1) for w in weights)
    if not n_queries:
        raise PromptError(f"no token of these prompts asks for {_MEANING[kind]}: give prompts in which tokens repeat")
    tap = _Summing(model, weights)
    _run(model, runs, tap)
    over = f"{len(runs)} {'random prompts' if prompts is None else 'prompts'}, {n_queries} queries"
    return HeadScores(kind, _labelled(model, torch.stack(tap.sums) / n_queries), model.name, over)


def random_prompts(model: Model, n: int, length: int, seed: int) -> list[list[int]]:
    """n prompts of <bos> and `length` different ordinary tokens, said twice. PromptError if there is no room."""
    for name, given in (("n", n), ("length", length)):
        if isinstance(given, bool) or not isinstance(given, int) or given < 1:
            raise PromptError(f"{name} is a whole number from 1 upwards; given {given!r}")
    config = model.config
    if 1 + 2 * length > config.context:
        most = (config.context - 1) // 2
        raise PromptError(f"{length} tokens said twice are longer than the context of {config.context}: {most} at most")
    special = {config.bos_id, *config.eos_ids}
    usable = range(min(config.vocab_size, model.tokenizer.vocab_size)) if model.has_tokenizer else range(config.vocab_size)
    ordinary = [i for i in usable if i not in special and not (model.has_tokenizer and model.tokenizer.is_special(i))]
    if length > len(ordinary):
        raise PromptError(f"the vocabulary has {len(ordinary)} ordinary tokens; asked for {length} different ones")
    rng = Random(seed)
    parts = [rng.sample(ordinary, length) for _ in range(n)]
    return [[config.bos_id, *part, *part] for part in parts]


def copying(model: Model) -> Tensor:
    """The copying score of every head, [layer, head].

    The eigenvalues of (tokens x tokens) embedding @ OV @ unembedding, which are those of a d_head x d_head product.
    """
    final = 1 + model.network.model.norm.weight.detach().float()
    both = sum(
        normed_tokens(model, rows).mT @ rows
        for rows in embeddings(model.network.model.embed_tokens, model.config.vocab_size)
    )
    assert isinstance(both, Tensor)
    scores = torch.zeros(model.n_layers, model.config.n_heads)
    with closing(model.layers()) as layers:
        for layer in layers:
            for head in range(model.config.n_heads):
                ov = layer.ov(head)
                # right: what is written, unembedded, met by the tokens as they are read
                values = torch.linalg.eigvals((ov.right * final) @ both.mT @ ov.left)
                size = values.abs().sum()
                scores[layer.index, head] = values.real.sum() / size if size > 0 else 0.0
    return scores


def _given(model: Model, prompts: Any) -> list[list[int]]:
    listed = list(prompts) if is_many(prompts) else [prompts]
    return [model.ids(prompt).tolist() for prompt in listed]


def _weights(kind: str, ids: Sequence[int]) -> Tensor:
    """What every edge of a prompt counts, [q_pos, k_pos]."""
    if kind != REACH:
        return targets(kind, ids).float()
    at = torch.arange(len(ids))
    return (at[:, None] - at[None, :]).clamp(min=0).float()


def _run(model: Model, runs: Sequence[Sequence[int]], tap: Tap) -> None:
    """One pass of these prompts, for what a tap sees."""
    layout = Layout.of_lengths([len(ids) for ids in runs], model.device)
    flat = torch.tensor([i for ids in runs for i in ids], device=model.device)
    with torch.no_grad(), told_when_full(model):
        model.network(flat, layout, tap)


class _Summing(Tap):
    """Adds up patterns as they are made, weighted by edge: sums[layer] is [head]. weights: [q_pos, k_pos] of each run."""

    def __init__(self, model: Model, weights: Sequence[Tensor]) -> None:
        self.weights = [w.to(model.device) for w in weights]
        self.sums = [torch.zeros(model.config.n_heads) for _ in range(model.n_layers)]

    def wants(self, site: str, layer: int | None) -> bool:
        return site == "pattern"

    def edges(self, site: str, layer: int, value: Tensor, block: Block) -> Tensor:
        if site == "pattern":
            weights = torch.stack(self.weights[block.run : block.run + block.count])
            self.sums[layer] += einsum(value.float(), weights, "run head q k, run q k -> head").cpu()
        return value


def _labelled(model: Model, scores: Tensor) -> xarray.DataArray:
    import xarray

    coords = {"layer": range(model.n_layers), "kind": ("layer", list(model.config.kinds)), "head": range(scores.shape[1])}
    return xarray.DataArray(scores.numpy(), dims=("layer", "head"), coords=coords, name="score")

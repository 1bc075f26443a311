"""Heads by what they do: scores of kinds of heads, over random and given prompts, all layers and heads in one pass.

Sources: Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021); Olsson et al., "In-context Learning and
Induction Heads" (arXiv 2209.11895); Xiao et al., "Efficient Streaming Language Models with Attention Sinks" (2309.17453).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, overload

import torch
from einops import einsum
from torch import Tensor

from gemmascope.analysis.copying import copying
from gemmascope.analysis.head_kinds import REACH, TARGETS, counted, weights
from gemmascope.analysis.patterns import attend_of, patterns, rows_at_once
from gemmascope.arguments import shown, whole_number
from gemmascope.errors import PromptError, SiteError
from gemmascope.legible import legibly, spelled
from gemmascope.loading.default import model_or_nano
from gemmascope.memory.limits import explain_oom
from gemmascope.model.finite import is_finite, require_sound
from gemmascope.model.layout import Layout
from gemmascope.model.model import Model, Prompt
from gemmascope.model.modes import computes
from gemmascope.model.prompts import listed_prompts
from gemmascope.model.tap import Tap
from gemmascope.sites import near_names

if TYPE_CHECKING:
    import pandas
    import xarray

COPYING = "copying"
KINDS = (*TARGETS, REACH, COPYING)

# Tokens that random prompts say twice, where every layer's window is long enough for them.
LENGTH = 24
# They go through in one pass: more would fill any machine.
MOST_PROMPTS = 100_000

_MEANING = {
    **{kind: words for kind, (_, words) in TARGETS.items()},
    REACH: "mean distance of attention, in positions",
    COPYING: "how far W_OV raises the logit of the token that is read",
}


@dataclass(frozen=True, repr=False, eq=False)
class HeadScores:
    """How far each head is of a kind. Made by gs.head_scores. scores: (layer, head), float32; over: what was looked at."""

    kind: str
    scores: xarray.DataArray
    model: str
    over: str

    def best(self, k: int = 5) -> list[tuple[int, int, float]]:
        """The heads with the highest scores: (layer, head, score)."""
        k = whole_number(k, "k", least=1, error=SiteError)
        flat = self.scores.values.reshape(-1)
        n_heads = self.scores.sizes["head"]
        return [(*divmod(int(i), n_heads), float(flat[i])) for i in (-flat).argsort(kind="stable")[:k]]

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each head: layer, kind of layer, head, score."""
        return self.scores.to_dataframe(name=self.kind).reset_index()

    def plot(self) -> Any:
        """A plotly heat map, layer by head."""
        from gemmascope.figures.heads import scores_figure

        return scores_figure(self)

    @property
    def meaning(self) -> str:
        """What a score is, in words."""
        return _MEANING[self.kind]

    @legibly
    def __repr__(self) -> str:
        best = "\n".join(f"  {score:6.3f}  layer {layer} head {head}" for layer, head, score in self.best())
        return f"{self.kind} scores of {spelled(self.model)}: {self.meaning}; {self.over}\n{best}"


@overload
def head_scores(
    model: Model | None = None,
    kind: str = "induction",
    *,
    prompts: Any = None,
    n: int = 8,
    length: int | None = None,
    seed: int = 0,
) -> HeadScores: ...
@overload
def head_scores(
    model: Model | None = None,
    *,
    kind: list[str] | tuple[str, ...],
    prompts: Any = None,
    n: int = 8,
    length: int | None = None,
    seed: int = 0,
) -> dict[str, HeadScores]: ...
@overload
def head_scores(
    model: Model | None,
    kind: list[str] | tuple[str, ...],
    *,
    prompts: Any = None,
    n: int = 8,
    length: int | None = None,
    seed: int = 0,
) -> dict[str, HeadScores]: ...
@computes
def head_scores(
    model: Model | None = None,
    kind: str | list[str] | tuple[str, ...] = "induction",
    *,
    prompts: Sequence[Prompt] | Prompt | None = None,
    n: int = 8,
    length: int | None = None,
    seed: int = 0,
) -> HeadScores | dict[str, HeadScores]:
    """Score every head of every layer, in one pass over all prompts.

    kind: "previous_token", "duplicate_token", "induction" or "sink": the share of attention that goes to the keys in
    question, the mean over the queries that have any; "local_reach": the mean distance of attention, in positions, over all
    queries but the first; "copying": the sum of the eigenvalues of embedding, W_OV and unembedding, over the sum of their
    sizes, from -1 to 1, with the norms' gains and without any prompt (Elhage et al. 2021). Several kinds give a dict, from
    the same pass.
    prompts: texts or token ids; None for n random ones of <bos> and `length` ordinary tokens said twice. A local layer sees
    its window only, so its heads cannot complete what was said further back: length None is short enough for the window,
    24 at most. Queries whose keys in question are all beyond the window count all the same: the result says how many.
    Raises SiteError for an unknown kind, PromptError for prompts that have no such query, or are too long.
    """
    model = model_or_nano(model)
    kinds = _kinds(kind)
    looked_at = [kind for kind in kinds if kind != COPYING]
    if not looked_at and prompts is not None:
        raise PromptError("copying is read from the weights: leave prompts out")
    found = _over_prompts(model, looked_at, prompts, (n, length, seed)) if looked_at else {}
    if COPYING in kinds:
        found[COPYING] = HeadScores(COPYING, _labelled(model, copying(model)), model.name, "from the weights")
    return found[kind] if isinstance(kind, str) else {kind: found[kind] for kind in kinds}


def random_prompts(model: Model, n: int, length: int | None, seed: int) -> list[list[int]]:
    """n prompts of <bos> and `length` different ordinary tokens, said twice. PromptError if there is no room.

    length: None for as many as a query of a local layer can see the first saying of, LENGTH at most.
    """
    config = model.config
    ordinary = _ordinary(model)
    if length is None:
        near = config.window - 1 if "local" in config.kinds else LENGTH
        length = max(1, min(LENGTH, near, (config.context - 1) // 2, len(ordinary)))
    n = whole_number(n, "n", least=1, most=MOST_PROMPTS, error=PromptError)
    length = whole_number(length, "length", least=1, error=PromptError)
    seed = whole_number(seed, "seed", error=PromptError)
    if 1 + 2 * length > config.context:
        most = (config.context - 1) // 2
        raise PromptError(
            f"{shown(length)} tokens said twice are longer than the context of {config.context}: {most} at most"
        )
    if length > len(ordinary):
        raise PromptError(f"the vocabulary has {len(ordinary)} ordinary tokens; asked for {length} different ones")
    rng = Random(seed)
    parts = [rng.sample(ordinary, length) for _ in range(n)]
    return [[config.bos_id, *part, *part] for part in parts]


def _ordinary(model: Model) -> list[int]:
    """The ids that are no special token; of a model without a tokenizer, those that are neither <bos> nor an end."""
    config = model.config
    special = {config.bos_id, *config.eos_ids}
    size = min(config.vocab_size, model.tokenizer.vocab_size) if model.has_tokenizer else config.vocab_size
    return [i for i in range(size) if i not in special and not (model.has_tokenizer and model.tokenizer.is_special(i))]


def _kinds(kind: Any) -> list[str]:
    kinds = list(kind) if isinstance(kind, (list, tuple)) else [kind]
    if not kinds:
        raise SiteError(f"the list of kinds is empty: name at least one of {', '.join(KINDS)}")
    for given in kinds:
        if not isinstance(given, str) or given not in KINDS:
            near = near_names(shown(given).strip("'"), list(KINDS))
            meant = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise SiteError(f"there is no kind of head {shown(given)}.{meant} The kinds are {', '.join(KINDS)}")
    return kinds


def _over_prompts(model: Model, kinds: list[str], prompts: Any, random: tuple[Any, Any, Any]) -> dict[str, HeadScores]:
    if prompts is None:
        runs = [torch.tensor(ids, device=model.device) for ids in random_prompts(model, *random)]
    else:
        runs = model.each_ids(listed_prompts(prompts)[0])
    which = f"{len(runs)} {'random ' if prompts is None else ''}prompt{'s' if len(runs) != 1 else ''}"
    numbers = {kind: _counted(model, kind, runs) for kind in kinds}
    tap = _Scoring(model, runs, kinds)
    layout = Layout.of_lengths([len(ids) for ids in runs], model.device)
    with torch.no_grad(), explain_oom(model):
        rows = model.network(torch.cat(runs), layout, tap)
    if not is_finite(rows):
        for ids in runs:
            require_sound(model.network, model.name, ids)
    found = {}
    for kind, (n_queries, n_beyond) in numbers.items():
        beyond = f"; in {n_beyond} of them local layers (window {model.config.window}) see none of the keys in question"
        over = f"{which}, {n_queries} queries{beyond if n_beyond else ''}"
        found[kind] = HeadScores(kind, _labelled(model, tap.sums[kind] / n_queries), model.name, over)
    return found


def _counted(model: Model, kind: str, runs: Sequence[Tensor]) -> tuple[int, int]:
    """How many queries count, and how many of them count for nothing in a local layer. PromptError for none."""
    config = model.config
    window = config.window if "local" in config.kinds else config.context
    found = [counted(kind, ids, window, rows_at_once(config.n_heads, len(ids))) for ids in runs]
    n_queries, n_beyond = (sum(numbers) for numbers in zip(*found, strict=True))
    if not n_queries:
        why = "of two tokens or more" if kind in ("sink", REACH) else "that are longer, or in which tokens repeat"
        raise PromptError(f"these prompts have nothing to measure {kind} on ({_MEANING[kind]}): give prompts {why}")
    return n_queries, n_beyond


class _Scoring(Tap):
    """Adds up patterns, weighted by edge, as each layer makes its queries and keys. sums: by kind, [layer, head]."""

    def __init__(self, model: Model, runs: Sequence[Tensor], kinds: Sequence[str]) -> None:
        self.config, self.runs = model.config, runs
        shape = model.config.n_layers, model.config.n_heads
        self.sums = {kind: torch.zeros(shape, dtype=torch.float64) for kind in kinds}
        self.queries: Tensor | None = None

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        if site == "q_rot":
            self.queries = value
        elif site == "k_rot" and layer is not None and self.queries is not None:
            for ids, span in zip(self.runs, layout.spans, strict=True):
                self._add(layer, ids, self.queries[span], value[span])
            self.queries = None
        return value

    def _add(self, layer: int, ids: Tensor, q: Tensor, k: Tensor) -> None:
        for rows, pattern in patterns(attend_of(self.config, layer), q, k):
            for kind, sums in self.sums.items():
                part = einsum(pattern, weights(kind, ids, rows), "head q k, q k -> head")
                sums[layer] += part.cpu().double()


def _labelled(model: Model, scores: Tensor) -> xarray.DataArray:
    import xarray

    coords = {"layer": range(model.n_layers), "kind": ("layer", list(model.config.kinds)), "head": range(scores.shape[1])}
    return xarray.DataArray(scores.float().numpy(), dims=("layer", "head"), coords=coords, name="score")

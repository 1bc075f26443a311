"""Head scores: how far each head is of a kind, over random or given prompts, all layers and heads in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from gemmascope.analysis.head_kinds import (
    COPYING,
    KINDS,
    MEANINGS,
    OVER_ALL,
    UNITS,
    PatternSums,
    copying,
    count_queries,
)
from gemmascope.analysis.patterns import rows_at_once
from gemmascope.arguments import short_repr, whole_number
from gemmascope.edits.of_run import all_edits
from gemmascope.errors import PromptError, SiteError
from gemmascope.legible import legible_line, prints_legibly
from gemmascope.loading.default import model_or_nano
from gemmascope.memory.limits import explain_oom
from gemmascope.model.finite import is_finite, require_sound_weights
from gemmascope.model.layout import Layout
from gemmascope.model.model import Model, Prompt
from gemmascope.model.modes import computes
from gemmascope.model.prompts import listed_prompts
from gemmascope.model.tap import Chain
from gemmascope.run.taps import EditTap
from gemmascope.sites import did_you_mean
from gemmascope.sweeps.metadata import prompts_line, words_of
from gemmascope.values import labelled

if TYPE_CHECKING:
    import pandas
    import xarray
    from plotly.graph_objects import Figure


# The length of the repeated part of random prompts, where every layer's window allows it.
LENGTH = 24
# All prompts share one pass: more than this would fill any machine.
MOST_PROMPTS = 100_000


@dataclass(frozen=True, repr=False, eq=False)
class HeadScores:
    """How far each head is of a kind. Made by gs.head_scores.

    Attributes:
        kind: Such as "induction".
        scores: An xarray.DataArray (layer, head), float32, with each layer's kind as a coordinate.
        model: The model's name.
        over: The prompts and the number of queries that were scored, as text.
        prompt: The first prompt, as text; empty for scores that are read from the weights.

    Examples:
        >>> scores = gs.head_scores(kind="previous_token")
        >>> scores.meaning
        'attention to the token before'
        >>> scores.scores.dims
        ('layer', 'head')
    """

    kind: str
    scores: xarray.DataArray
    model: str
    over: str
    prompt: str = ""

    def best(self, k: int = 5) -> list[tuple[int, int, float]]:
        """The heads with the highest scores: (layer, head, score), the highest first.

        Args:
            k: The number of heads.
        """
        k = whole_number(k, "k", least=1, error=SiteError)
        flat = self.scores.values.reshape(-1)
        n_heads = self.scores.sizes["head"]
        return [(*divmod(int(i), n_heads), float(flat[i])) for i in (-flat).argsort(kind="stable")[:k]]

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each head: layer, kind of layer, head, score."""
        return self.scores.to_dataframe(name=self.kind).reset_index()

    def plot(self) -> Figure:
        """A plotly heat map, layer by head."""
        from gemmascope.figures.labelled import labelled_figure

        unit, bound = UNITS.get(self.kind, ("share of attention", 1.0))
        return labelled_figure(
            self.scores,
            title=f"{self.kind}, {self.model}",
            unit=unit,
            diverging=self.kind == COPYING,
            bound=bound,
            subtitle="\n".join(filter(None, [self.meaning, self.over, prompts_line([self.prompt], "first prompt")])),
        )

    @property
    def meaning(self) -> str:
        """A description of what the score measures."""
        return MEANINGS[self.kind]

    @prints_legibly
    def __repr__(self) -> str:
        best = "\n".join(f"  {score:6.3f}  layer {layer} head {head}" for layer, head, score in self.best())
        return f"{self.kind} scores of {legible_line(self.model)}: {self.meaning}; {self.over}\n{best}"


@overload
def head_scores(
    model: Model | None = None,
    kind: str = "induction",
    *,
    prompts: Prompt | Iterable[Prompt] | None = None,
    n: int = 8,
    length: int | None = None,
    seed: int = 0,
) -> HeadScores: ...
@overload
def head_scores(
    model: Model | None = None,
    kind: list[str] | tuple[str, ...] = ...,
    *,
    prompts: Prompt | Iterable[Prompt] | None = None,
    n: int = 8,
    length: int | None = None,
    seed: int = 0,
) -> dict[str, HeadScores]: ...
@computes
def head_scores(
    model: Model | None = None,
    kind: str | list[str] | tuple[str, ...] = "induction",
    *,
    prompts: Prompt | Iterable[Prompt] | None = None,
    n: int = 8,
    length: int | None = None,
    seed: int = 0,
) -> HeadScores | dict[str, HeadScores]:
    """Score every head of every layer, in one pass over all prompts.

    Most kinds are shares of attention: the attention that goes to a query's target keys, averaged over the queries that
    have any. Queries whose target keys all lie beyond a local layer's window count as well: the result says how many.

    Args:
        model: The model to score; None means nano.
        kind: One kind, or a list of them, which share a pass.
            "previous_token": the share of attention on the token before.
            "duplicate_token": the share on earlier places of the same token.
            "induction": the share on what followed earlier places of the same token.
            "sink": the share on the first position, `<bos>`.
            "self": the share on the query's own position, over all queries but the first.
            "first_occurrence": the share on the first of the earlier places of the same token.
            "positional": the share of queries whose strongest key is at one distance from them, the most frequent one.
            "entropy": the mean entropy of a query's attention, in nats; for both, all queries but the first.
            "local_reach": the mean distance of attention in positions, over all queries but the first.
            "copying": from the weights, without prompts: the sum of the eigenvalues of embedding, W_OV and unembedding,
            with the norms' gains, over the sum of their sizes. From -1 to 1.
        prompts: A prompt or several, as text or token ids. None means n random ones: `<bos>` and `length` different
            ordinary tokens, twice in a row.
        n: The number of random prompts.
        length: The tokens in the repeated part of a random prompt. None means as many as fit a local layer's window,
            24 at most: a head cannot complete a repetition whose first part its layer does not see.
        seed: The seed of the random prompts.

    Returns:
        The scores [layer, head]; for a list of kinds, a dict from each kind to its scores.

    Raises:
        SiteError: For an unknown kind.
        PromptError: For prompts with no query to score, and for random prompts that would be longer than the context.

    Examples:
        >>> gs.head_scores(kind="induction").best(1)
        [(3, 3, 0.99...)]
        >>> both = gs.head_scores(kind=["sink", "copying"])
        >>> list(both)
        ['sink', 'copying']

    References:
        Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021).
        Olsson et al., "In-context Learning and Induction Heads" (arXiv 2209.11895).
        Voita et al., "Analyzing Multi-Head Self-Attention" (arXiv 1905.09418), for "positional".
        Xiao et al., "Efficient Streaming Language Models with Attention Sinks" (arXiv 2309.17453).
    """
    model = model_or_nano(model)
    kinds = _listed_kinds(kind)
    attention_kinds = [kind for kind in kinds if kind != COPYING]
    if not attention_kinds and prompts is not None:
        raise PromptError("copying is read from the weights: leave prompts out")
    scores: dict[str, HeadScores] = {}
    if attention_kinds:
        if prompts is None:
            runs = [torch.tensor(ids, device=model.device) for ids in random_prompts(model, n, length, seed)]
        else:
            runs = model.each_ids(listed_prompts(prompts)[0])
        described = f"{len(runs)} {'random ' if prompts is None else ''}prompt{'s' if len(runs) != 1 else ''}"
        scores = _attention_scores(model, attention_kinds, runs, described)
    if COPYING in kinds:
        scores[COPYING] = HeadScores(COPYING, labelled_scores(model, copying(model)), model.name, "from the weights")
    return scores[kind] if isinstance(kind, str) else {kind: scores[kind] for kind in kinds}


def random_prompts(model: Model, n: int, length: int | None, seed: int) -> list[list[int]]:
    """n prompts of `<bos>` and `length` different ordinary tokens, twice. PromptError if they do not fit the context.

    length: None for the most that a query of a local layer can look back over, at most LENGTH.
    """
    config = model.config
    ordinary = _ordinary_ids(model)
    if length is None:
        near = config.window - 1 if "local" in config.kinds else LENGTH
        length = max(1, min(LENGTH, near, (config.context - 1) // 2, len(ordinary)))
    n = whole_number(n, "n", least=1, most=MOST_PROMPTS, error=PromptError)
    length = whole_number(length, "length", least=1, error=PromptError)
    seed = whole_number(seed, "seed", error=PromptError)
    if 1 + 2 * length > config.context:
        most = (config.context - 1) // 2
        raise PromptError(
            f"{short_repr(length)} tokens said twice are longer than the context of {config.context}: {most} at most"
        )
    if length > len(ordinary):
        raise PromptError(f"the vocabulary has {len(ordinary)} ordinary tokens; asked for {length} different ones")
    rng = Random(seed)
    parts = [rng.sample(ordinary, length) for _ in range(n)]
    return [[config.bos_id, *part, *part] for part in parts]


def _ordinary_ids(model: Model) -> list[int]:
    """The ids of no special token; without a tokenizer, those that are neither `<bos>` nor an end."""
    config = model.config
    special = {config.bos_id, *config.eos_ids}
    size = min(config.vocab_size, model.tokenizer.vocab_size) if model.has_tokenizer else config.vocab_size
    return [i for i in range(size) if i not in special and not (model.has_tokenizer and model.tokenizer.is_special(i))]


def _listed_kinds(kind: object) -> list[str]:
    listed = list(kind) if isinstance(kind, (list, tuple)) else [kind]
    if not listed:
        raise SiteError(f"the list of kinds is empty: name at least one of {', '.join(KINDS)}")
    kinds: list[str] = []
    for each in listed:
        if isinstance(each, str) and each in KINDS:
            kinds.append(each)
        else:
            hint = did_you_mean(short_repr(each).strip("'"), KINDS)
            raise SiteError(f"there is no kind of head {short_repr(each)}.{hint} The kinds are {', '.join(KINDS)}")
    return kinds


def _attention_scores(model: Model, kinds: list[str], runs: list[Tensor], described: str) -> dict[str, HeadScores]:
    """The scores of kinds that are shares of attention, from one pass. described: the prompts, in words."""
    counts = {kind: _count_all(model, kind, runs) for kind in kinds}
    edits = [[edit.bind(model, ids) for edit in all_edits(model)] for ids in runs]
    whole = any(edit.address.site.is_edges for edit in edits[0])
    tap = Chain(EditTap(edits), sums := PatternSums(model, runs, kinds, whole=whole))
    layout = Layout.of_lengths([len(ids) for ids in runs], model.device)
    with torch.no_grad(), explain_oom(model):
        rows = model.network(torch.cat(runs), layout, tap)
    if not is_finite(rows):
        for ids in runs:
            require_sound_weights(model.network, model.name, ids)
    scores = {}
    for kind, (n_queries, n_beyond) in counts.items():
        beyond = f"; in {n_beyond} of them local layers (window {model.config.window}) see none of the keys in question"
        over = f"{described}, {n_queries} queries{beyond if n_beyond else ''}"
        found = labelled_scores(model, sums.sums[kind] / n_queries)
        scores[kind] = HeadScores(kind, found, model.name, over, words_of(model, runs[0]))
    return scores


def _count_all(model: Model, kind: str, runs: Sequence[Tensor]) -> tuple[int, int]:
    """The number of queries that count, and of those whose targets no local layer sees. PromptError if none count."""
    config = model.config
    window = config.window if "local" in config.kinds else config.context
    counts = [count_queries(kind, ids, window, rows_at_once(config.n_heads, len(ids))) for ids in runs]
    n_queries, n_beyond = (sum(numbers) for numbers in zip(*counts, strict=True))
    if not n_queries:
        why = (
            "of two tokens or more" if kind in ("sink", "self", *OVER_ALL) else "that are longer, or in which tokens repeat"
        )
        raise PromptError(f"these prompts have nothing to measure {kind} on ({MEANINGS[kind]}): give prompts {why}")
    return n_queries, n_beyond


def labelled_scores(model: Model, scores: Tensor) -> xarray.DataArray:
    coords = {"layer": range(model.n_layers), "kind": ("layer", list(model.config.kinds)), "head": range(scores.shape[1])}
    return labelled(scores.float(), coords, ("layer", "head"), "score")

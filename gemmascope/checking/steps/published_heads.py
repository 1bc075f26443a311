"""Attention heads beside those that were published for Gemma 2 2B.

The scores are those of Neuronpedia's HeadVis: means over 16,384 texts of 1,024 tokens of the Pile, in bfloat16. On a few
short texts scores differ, and what must hold is the order: the published heads are among the strongest.
"""

from __future__ import annotations

from gemmascope.analysis.heads import HeadScores, head_scores
from gemmascope.checking.step import Figure
from gemmascope.checking.subject import Outcome, Skip, Subject
from gemmascope.config import PRESETS

# By kind: layer, head and score of the strongest.
PUBLISHED: dict[str, tuple[tuple[int, int, float], ...]] = {
    "previous_token": ((0, 0, 0.654), (5, 0, 0.572), (2, 6, 0.366), (13, 0, 0.344)),
    "self": ((5, 4, 0.787), (6, 0, 0.756), (12, 6, 0.755)),
    "induction": (
        (6, 2, 0.226), (6, 3, 0.172), (4, 4, 0.156), (14, 0, 0.137), (18, 6, 0.132), (6, 1, 0.114), (15, 0, 0.111),
    ),
}  # fmt: skip
# Of the 208 heads, how many count as the strongest; and which share of the published ones must be among them.
STRONGEST, LEAST_SHARE = 20, 0.75


def heads(subject: Subject) -> Outcome:
    """Where the published heads of each kind stand among all heads here."""
    if not subject.questions.in_words:
        raise Skip("the model has no tokenizer, so that there are no texts to score its heads on")
    texts = [list(ids) for ids in subject.questions.prompts]
    scores = head_scores(subject.model, ["previous_token", "self"], prompts=texts)
    scores["induction"] = head_scores(subject.model, "induction")  # on random tokens that repeat
    strongest = "; ".join(f"{kind} {_listed(one)}" for kind, one in scores.items())
    preset, config = PRESETS["2b"], subject.shell.config
    if (config.n_layers, config.d_model, config.family) != (preset.n_layers, preset.d_model, preset.family):
        raise Skip(f"heads are published for Gemma 2 2B alone. The strongest here: {strongest}")
    return Outcome(f"the heads published for Gemma 2 2B. The strongest here: {strongest}", figures_of(scores))


def figures_of(scores: dict[str, HeadScores]) -> tuple[Figure, ...]:
    """For each kind the share of published heads among the strongest, and each one's score and rank."""
    figures = []
    for kind, published in PUBLISHED.items():
        values = scores[kind].scores.values
        ranks = [1 + int((values > values[layer, head]).sum()) for layer, head, _ in published]
        share = sum(rank <= STRONGEST for rank in ranks) / len(ranks)
        figures.append(Figure(f"{kind}: published heads among the {STRONGEST} strongest", share, LEAST_SHARE, is_least=True))
        for (layer, head, score), rank in zip(published, ranks, strict=True):
            here = float(values[layer, head])
            figures.append(Figure(f"{kind} {layer}.{head}, published {score:.3f}, here rank {rank}", here))
    return tuple(figures)


def _listed(scores: HeadScores) -> str:
    return ", ".join(f"{layer}.{head} ({score:.2f})" for layer, head, score in scores.best(3))

"""Finds features of a dictionary that tie to a concept of nano's corpus, on texts that it was not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from gemmascope.model.model import Model
from gemmascope.nano.training.concepts import CONCEPTS, labels
from gemmascope.nano.training.corpus import texts
from gemmascope.run.tracing import traces
from gemmascope.sae.dictionary import Dictionary
from gemmascope.sae.weights import Tie

# Texts per measurement: some 60,000 tokens.
N_TEXTS = 2000
# A tie needs this precision and recall, both on the texts that it is chosen on and on others. Choosing asks for a margin.
PRECISION, RECALL, MARGIN = 0.8, 0.5, 0.05
LEAST_ACTIVE = 20


@dataclass(frozen=True)
class Texts:
    """A dictionary's activations on texts of the corpus, without `<bos>`, and the concepts that hold at each token.

    pos, feature, value: of each activation; pos is a row, counted over all texts. holds: bool [row, concept]. explained: the
    share of variance explained.
    """

    pos: Tensor
    feature: Tensor
    value: Tensor
    holds: Tensor
    explained: float
    n_features: int

    @classmethod
    def of(cls, sae: Dictionary, model: Model, seed: str, n: int = N_TEXTS) -> Texts:
        """The texts of a seed of the corpus."""
        source = texts(f"dictionary {seed}")
        x, target, holds = [], [], []
        for first in range(0, n, 200):
            batch = traces(model, [model.ids(text) for text in islice(source, min(200, n - first))])
            x += [sae.input_of(trace[sae.read_from, sae.layer][1:]) for trace in batch]
            target += [trace[sae.writes, sae.layer][1:].flatten(1) for trace in batch]
            holds += [labels(trace.tokens)[1:] for trace in batch]
        rows, written = torch.cat(x), torch.cat(target).to(sae.device, torch.float32)
        pos, feature, value = sae.sparse(rows)
        residual = written - sae.summed(pos, feature, value, len(rows))
        explained = 1 - residual.square().sum() / (written - written.mean(0)).square().sum()
        pos, feature, value = pos.cpu(), feature.cpu(), value.cpu()  # as the concepts are
        return cls(pos, feature, value, torch.from_numpy(np.concatenate(holds)), float(explained), sae.n_features)

    @property
    def n_rows(self) -> int:
        return len(self.holds)

    def of_feature(self, feature: int) -> tuple[Tensor, Tensor]:
        """A feature's activations, the largest first, and the concepts that hold at each [active, concept]."""
        order, stops = self._by_feature
        first = int(stops[feature - 1]) if feature else 0
        own = order[first : int(stops[feature])]
        value, order = self.value[own].sort(descending=True)
        return value, self.holds[self.pos[own][order]]

    @cached_property
    def _by_feature(self) -> tuple[Tensor, Tensor]:
        """The order of the activations by feature, and the end of each feature's range."""
        return self.feature.argsort(), torch.bincount(self.feature, minlength=self.n_features).cumsum(0)

    def tie(self, feature: int, concept: str, above: float) -> Tie:
        """How well a feature ties to a concept on these texts, counting activations above `above`."""
        value, holds = self.of_feature(feature)
        column = list(CONCEPTS).index(concept)
        right, active = int(holds[value > above, column].sum()), int((value > above).sum())
        holding = int(self.holds[:, column].sum())
        return Tie(concept, above, round(right / max(1, active), 3), round(right / max(1, holding), 3))


def best_tie(on: Texts, feature: int) -> tuple[str, float] | None:
    """The concept that a feature fits best, and the activation above which it does.

    Best is the largest harmonic mean of precision and recall at a sufficient precision. None for a feature that is hardly
    ever active or fits no concept.
    """
    value, holds = on.of_feature(feature)
    if len(value) < LEAST_ACTIVE:
        return None
    right = holds.cumsum(0)
    precision = right / torch.arange(1, len(value) + 1)[:, None]
    recall = right / on.holds.sum(0).clamp(min=1)
    f1 = (precision >= PRECISION + MARGIN) * 2 * precision * recall / (precision + recall).clamp(min=1e-9)
    column = int(f1.max(0).values.argmax())
    at = int(f1[:, column].argmax())
    if not f1[at, column]:
        return None
    above = float(value[at + 1]) if at + 1 < len(value) else 0.0
    return list(CONCEPTS)[column], above


def ties_of(chosen: Texts, checked: Texts) -> dict[int, Tie]:
    """The features that tie to a concept: chosen on some texts and confirmed on others, whose numbers are returned."""
    ties: dict[int, Tie] = {}
    for feature in sorted(set(chosen.feature.tolist())):
        if best := best_tie(chosen, feature):
            first, again = chosen.tie(feature, *best), checked.tie(feature, *best)
            if min(first.precision, again.precision) >= PRECISION and min(first.recall, again.recall) >= RECALL:
                ties[feature] = again
    return ties

"""Which features of a dictionary tie to a concept of nano's corpus, measured on texts that it was not trained on."""

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
from gemmascope.sae.dictionary import Dictionary, Tie

# Texts that a measurement is made on: some 60,000 tokens.
N_TEXTS = 2000
# A tie holds at this precision and recall, or more, on the texts that chose it and on others. It is chosen at a little more.
PRECISION, RECALL, MARGIN = 0.8, 0.5, 0.05
LEAST_ACTIVE = 20


@dataclass(frozen=True)
class Texts:
    """A dictionary's activations on texts of the corpus, without <bos>, and which concepts hold there.

    pos, feature, value: of each activation; pos counts the rows of all texts. holds: [row, concept].
    explained: the share of variance explained.
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
        x, holds = [], []
        for first in range(0, n, 200):
            found = traces(model, [model.ids(text) for text in islice(source, min(200, n - first))])
            x += [sae.input_of(trace[sae.read_from, sae.layer][1:]) for trace in found]
            holds += [labels(trace.tokens)[1:] for trace in found]
        rows = torch.cat(x)
        pos, feature, value = sae.sparse(rows)
        left = rows - sae.summed(pos, feature, value, len(rows))
        explained = 1 - left.square().sum() / (rows - rows.mean(0)).square().sum()
        return cls(pos, feature, value, torch.from_numpy(np.concatenate(holds)), float(explained), sae.n_features)

    @property
    def n_rows(self) -> int:
        return len(self.holds)

    def of_feature(self, feature: int) -> tuple[Tensor, Tensor]:
        """A feature's activations, the largest first, and the concepts at each, [active, concept]."""
        order, stops = self._by_feature
        first = int(stops[feature - 1]) if feature else 0
        here = order[first : int(stops[feature])]
        value, order = self.value[here].sort(descending=True)
        return value, self.holds[self.pos[here][order]]

    @cached_property
    def _by_feature(self) -> tuple[Tensor, Tensor]:
        """The activations ordered by feature, and where those of each feature end."""
        return self.feature.argsort(), torch.bincount(self.feature, minlength=self.n_features).cumsum(0)

    def tie(self, feature: int, concept: str, above: float) -> Tie:
        """How a feature ties to a concept here, where activations up to `above` do not count."""
        value, holds = self.of_feature(feature)
        column = list(CONCEPTS).index(concept)
        right, active = int(holds[value > above, column].sum()), int((value > above).sum())
        there = int(self.holds[:, column].sum())
        return Tie(concept, above, round(right / max(1, active), 3), round(right / max(1, there), 3))


def best_tie(found: Texts, feature: int) -> tuple[str, float] | None:
    """The concept and the activation above which a feature goes best with it: the largest harmonic mean of precision and
    recall, at a precision that holds. None for a feature that is hardly ever active, or goes with none."""
    value, holds = found.of_feature(feature)
    if len(value) < LEAST_ACTIVE:
        return None
    right = holds.cumsum(0)
    precision = right / torch.arange(1, len(value) + 1)[:, None]
    recall = right / found.holds.sum(0).clamp(min=1)
    both = (precision >= PRECISION + MARGIN) * 2 * precision * recall / (precision + recall).clamp(min=1e-9)
    column = int(both.max(0).values.argmax())
    at = int(both[:, column].argmax())
    if not both[at, column]:
        return None
    above = float(value[at + 1]) if at + 1 < len(value) else 0.0
    return list(CONCEPTS)[column], above


def ties_of(chosen: Texts, checked: Texts) -> dict[int, Tie]:
    """The features that tie to a concept: chosen on some texts, and as good on others, whose numbers are given."""
    ties: dict[int, Tie] = {}
    for feature in sorted(set(chosen.feature.tolist())):
        if best := best_tie(chosen, feature):
            first, again = chosen.tie(feature, *best), checked.tie(feature, *best)
            if min(first.precision, again.precision) >= PRECISION and min(first.recall, again.recall) >= RECALL:
                ties[feature] = again
    return ties

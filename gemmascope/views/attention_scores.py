"""What the heads of an attention view do, by the patterns that it shows: the scores by which the view sorts them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gemmascope.analysis.head_kinds import COPYING, ENTROPY, KINDS, MEANINGS, REACH, UNITS, PatternSums, count_queries
from gemmascope.analysis.patterns import rows_at_once
from gemmascope.model.model import Model
from gemmascope.views.packing import STEP, PackedArray, pack_probabilities

# The kinds that patterns show, and what the view calls those whose names say little.
SHOWN = tuple(kind for kind in KINDS if kind != COPYING)
NAMES = {"sink": "first position", "self": "own position", REACH: "distance"}


class ShownScores:
    """Scores as those of gs.head_scores over these runs, from patterns that are handed over a run and layer at a time.

    Kinds for which the runs have no query, such as induction where no token repeats, are left out.
    """

    def __init__(self, model: Model, runs: Sequence[Tensor], n_heads: int) -> None:
        config = model.config
        window = config.window if "local" in config.kinds else config.context

        def n_queries(kind: str) -> int:
            return sum(count_queries(kind, ids, window, rows_at_once(n_heads, len(ids)))[0] for ids in runs)

        self._n_queries = {kind: n for kind in SHOWN if (n := n_queries(kind))}
        self._sums = PatternSums(model, runs, list(self._n_queries), n_heads=n_heads)
        longest = max(map(len, runs))
        # What no score of a kind exceeds: shares are at most 1.
        self._bounds = {ENTROPY: max(math.log(longest), STEP), REACH: max(longest - 1.0, STEP)}

    def add(self, layer: int, ids: Tensor, pattern: Tensor) -> None:
        """Add a run's pattern [head, q_pos, k_pos] at a layer."""
        self._sums.add_pattern(layer, ids, pattern)

    def spec(self) -> list[dict[str, object]]:
        """Each kind: its name, meaning and unit, and the bound by which its packed scores are to be multiplied."""
        return [
            {
                "name": NAMES.get(kind, kind.replace("_", " ")),
                "meaning": MEANINGS[kind],
                "unit": UNITS.get(kind, ("share of attention", 1.0))[0],
                "bound": self._bounds.get(kind, 1.0),
            }
            for kind in self._n_queries
        ]

    def packed(self, layers: Sequence[int]) -> PackedArray:
        """The scores in these layers [kind, layer, head], as fractions of the kind's bound."""
        scores = [
            self._sums.sums[kind][list(layers)] / n / self._bounds.get(kind, 1.0) for kind, n in self._n_queries.items()
        ]
        shape = len(scores), len(layers), self._sums.n_heads
        values = torch.stack(scores).numpy() if scores else np.zeros(shape)
        return pack_probabilities(values.clip(0.0, 1.0))

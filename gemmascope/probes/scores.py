"""What a probe gets right on texts that were held out, beside what tokens alone tell; and the intervals of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gemmascope.probes.fits import fit, strongest
from gemmascope.probes.tasks import Task
from gemmascope.values import Array, chunks

N_RESAMPLES = 2000
# Texts that are drawn at once, for as many resamples as that is: a store may have millions.
DRAWN_AT_ONCE = 2**20
COVERED = 0.95


def right_when_held_out(
    x: Float[Tensor, "row d"], task: Task, fold_of: Array, method: str, l2: float, k: int | None
) -> Bool[Tensor, " row"]:
    """Which rows are classified correctly by a probe that was trained without their fold. k: columns that it takes, which
    are chosen without the fold too; None for all.
    """
    right = torch.zeros(len(x), dtype=torch.bool)
    for fold in np.unique(fold_of):
        out = torch.from_numpy(fold_of == fold)
        seen, y = x[~out], task.y[~out]
        present = torch.unique(y)  # a class of the control task may be missing
        if len(present) < 2:
            right[out] = task.y[out] == present[0]
            continue
        numbered = torch.searchsorted(present, y)
        columns = slice(None) if k is None else strongest(seen, numbered, len(present), k)
        found = fit(method, seen[:, columns], numbered, len(present), l2)
        right[out] = present[found.classes(x[out][:, columns])] == task.y[out]
    return right


def majority(task: Task, fold_of: Array) -> Bool[Tensor, " row"]:
    """Which rows are of the commonest class of the other folds."""
    return _by_fold(task, fold_of, lambda y, tokens, held_out: np.full(len(held_out), _commonest(y)))


def by_token(task: Task, fold_of: Array) -> Bool[Tensor, " row"]:
    """Which rows are of the class that their token has most often in the other folds; of a token that is not there, of the
    commonest class.
    """

    def answers(y: Array, tokens: Array, held_out: Array) -> Array:
        of_token: dict[int, Counter[int]] = {}
        for token, label in zip(tokens.tolist(), y.tolist(), strict=True):
            of_token.setdefault(token, Counter())[label] += 1
        rest = _commonest(y)
        return np.array([of_token[t].most_common(1)[0][0] if t in of_token else rest for t in held_out.tolist()])

    return _by_fold(task, fold_of, answers)


def _by_fold(task: Task, fold_of: Array, answers: Callable[[Array, Array, Array], Array]) -> Tensor:
    y, right = task.y.numpy(), np.zeros(len(task.rows), dtype=bool)
    for fold in np.unique(fold_of):
        out = fold_of == fold
        right[out] = answers(y[~out], task.tokens[~out], task.tokens[out]) == y[out]
    return torch.from_numpy(right)


def _commonest(y: Array) -> int:
    return int(np.bincount(y).argmax())


class Bootstrap:
    """Intervals by resampling texts: rows of one text are not independent. The same resamples for every quantity.

    Args:
        groups: The group of each row, [row].
        seed: Of the resamples.
    """

    def __init__(self, groups: Array, seed: int) -> None:
        _, self._index, counts = np.unique(groups, return_inverse=True, return_counts=True)
        self._n_rows, self._seed = counts.astype(float), seed

    def interval(self, values: Array) -> tuple[float, float]:
        """The central 95% of the mean of values, [row], over the resamples."""
        sums, n = np.bincount(self._index, weights=values.astype(float)), len(self._n_rows)
        rng, means = np.random.default_rng((self._seed, 1)), list[Array]()
        for part in chunks(N_RESAMPLES, max(1, DRAWN_AT_ONCE // n)):
            drawn = rng.integers(n, size=(part.stop - part.start, n))
            means.append(sums[drawn].sum(1) / self._n_rows[drawn].sum(1))
        low, high = np.quantile(np.concatenate(means), [(1 - COVERED) / 2, (1 + COVERED) / 2])
        return float(low), float(high)

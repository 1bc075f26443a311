"""Linear probes: logistic regression with an L2 penalty, and its cross-validation."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from random import Random

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

# The penalty on half the squared weights, added to the mean loss. Cases are scaled to a mean squared distance of 1 from
# their mean, so that the penalty does not depend on the units of a site.
L2 = 0.01
MOST_FOLDS = 5
MOST_STEPS = 500


@dataclass(frozen=True)
class Probe:
    """A linear classifier: log-odds of the positive class are x . weight + bias. float64."""

    weight: Float[Tensor, " d"]
    bias: float

    def log_odds(self, x: Float[Tensor, "case d"]) -> Float[Tensor, " case"]:
        return x @ self.weight + self.bias


def fit_probe(x: Float[Tensor, "case d"], positive: Bool[Tensor, " case"]) -> Probe:
    """The probe of these cases, which must be of both classes: the minimum of a strictly convex loss.

    Cases are centred, and divided by their root mean squared distance from the mean, before the fit.
    """
    mean = x.mean(0)
    centred = x - mean
    size = float(centred.square().sum(1).mean().sqrt()) or 1.0
    with torch.inference_mode(False), torch.enable_grad():
        scaled, labels = (centred / size).clone(), positive.cpu().double()
        weight = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)  # the bias comes last, unpenalised
        optimizer = torch.optim.LBFGS(
            [weight], max_iter=MOST_STEPS, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            errors = binary_cross_entropy_with_logits(scaled @ weight[:-1] + weight[-1], labels)
            total = errors + L2 / 2 * weight[:-1].square().sum()
            total.backward()  # type: ignore[no-untyped-call]
            return total

        optimizer.step(loss)  # type: ignore[no-untyped-call]
    fitted = weight.detach()
    return Probe(fitted[:-1] / size, float(fitted[-1] - fitted[:-1] @ mean / size))


@dataclass(frozen=True)
class HeldOut:
    """A cross-validation: each case's log-odds from a probe that was fitted without its fold."""

    log_odds: Float[Tensor, " case"]
    n_folds: int

    def right(self, positive: Bool[Tensor, " case"]) -> Bool[Tensor, " case"]:
        """Which cases are classified correctly."""
        return (self.log_odds > 0) == positive


def held_out(
    x: Float[Tensor, "case d"], positive: Bool[Tensor, " case"], groups: Sequence[Hashable], seed: int
) -> HeldOut | None:
    """Cross-validation, stratified by class: every case is held out once. None if a class has fewer than two groups.

    Cases of one group, which are the same prompt given twice, are held out together. If the classes have as many cases, so
    are the i-th positive and the i-th negative case: they may be one prompt with one word changed, and a fit on one of them
    would give the other the wrong class, for an accuracy below chance.
    """
    fold_of = _folds(positive, _joined_groups(positive, groups), seed)
    if fold_of is None:
        return None
    log_odds = torch.empty(len(x), dtype=torch.float64)
    n_folds = int(fold_of.max()) + 1
    for fold in range(n_folds):
        out = fold_of == fold
        log_odds[out] = fit_probe(x[~out], positive[~out]).log_odds(x[out])
    return HeldOut(log_odds, n_folds)


def _joined_groups(positive: Tensor, groups: Sequence[Hashable]) -> list[int]:
    """A group number for each case. Cases with the same number are held out together."""
    first: dict[Hashable, int] = {}
    numbers = [first.setdefault(group, case) for case, group in enumerate(groups)]
    classes = [(positive == label).nonzero()[:, 0].tolist() for label in (True, False)]
    if len(classes[0]) == len(classes[1]):
        for a, b in zip(*classes, strict=True):
            low, high = sorted((numbers[a], numbers[b]))
            numbers = [low if number == high else number for number in numbers]
    return numbers


def _folds(positive: Tensor, groups: Sequence[int], seed: int) -> Tensor | None:
    """The fold of each case: the groups of each class are shuffled and dealt out in turn."""
    by_class = [
        list(dict.fromkeys(group for group, p in zip(groups, positive.tolist(), strict=True) if p == label))
        for label in (True, False)
    ]
    n_folds = min(MOST_FOLDS, *map(len, by_class))
    if n_folds < 2:
        return None
    rng = Random(seed)
    for of_class in by_class:
        rng.shuffle(of_class)
    in_turn = dict.fromkeys(group for of_class in by_class for group in of_class)
    fold_of = {group: i % n_folds for i, group in enumerate(in_turn)}
    return torch.tensor([fold_of[group] for group in groups])

"""Linear probes: logistic regression with an L2 penalty, and its accuracy on cases that it was not fitted on.

Source: Alain and Bengio, "Understanding intermediate layers using linear classifier probes" (arXiv 1610.01644).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from random import Random

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

# The penalty on half the squared weights, beside the mean loss, with the cases' mean squared distance from their mean
# brought to 1: it does not depend on the units of a site.
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
    """The probe of these cases: the minimum of a strictly convex loss, so there is one. Both classes must be there.

    Cases are centred and divided by their root mean squared distance from the mean before the fit.
    """
    mean = x.mean(0)
    centred = x - mean
    size = float(centred.square().sum(1).mean().sqrt()) or 1.0
    with torch.inference_mode(False), torch.enable_grad():
        scaled, labels = (centred / size).clone(), positive.cpu().double()
        weight = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)  # the bias last: it is not penalised
        search = torch.optim.LBFGS(
            [weight], max_iter=MOST_STEPS, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            search.zero_grad()
            errors = binary_cross_entropy_with_logits(scaled @ weight[:-1] + weight[-1], labels)
            total = errors + L2 / 2 * weight[:-1].square().sum()
            total.backward()  # type: ignore[no-untyped-call]
            return total

        search.step(loss)  # type: ignore[no-untyped-call]
    found = weight.detach()
    return Probe(found[:-1] / size, float(found[-1] - found[:-1] @ mean / size))


@dataclass(frozen=True)
class HeldOut:
    """How a probe does on cases that it was not fitted on: each case's log-odds from the fit without its fold."""

    log_odds: Float[Tensor, " case"]
    n_folds: int

    def right(self, positive: Bool[Tensor, " case"]) -> Bool[Tensor, " case"]:
        """Which cases are on the side of their class."""
        return (self.log_odds > 0) == positive


def held_out(
    x: Float[Tensor, "case d"], positive: Bool[Tensor, " case"], groups: Sequence[Hashable], seed: int
) -> HeldOut | None:
    """Cross-validation, stratified by class: every case is held out once. None with fewer than two groups in a class.

    groups: cases of one group, which are one prompt given twice, are held out together. So are case i of the positive ones
    and case i of the negative ones, where there are as many: of two prompts that differ in a word, one in the fit would
    speak for its own class on the other, and the accuracy would come out below chance.
    """
    fold_of = _folds(positive, _together(positive, groups), seed)
    if fold_of is None:
        return None
    log_odds = torch.empty(len(x), dtype=torch.float64)
    n_folds = int(fold_of.max()) + 1
    for fold in range(n_folds):
        out = fold_of == fold
        log_odds[out] = fit_probe(x[~out], positive[~out]).log_odds(x[out])
    return HeldOut(log_odds, n_folds)


def _together(positive: Tensor, groups: Sequence[Hashable]) -> list[int]:
    """A number for each case, the same for those that are held out together."""
    first: dict[Hashable, int] = {}
    found = [first.setdefault(group, case) for case, group in enumerate(groups)]
    classes = [(positive == wanted).nonzero()[:, 0].tolist() for wanted in (True, False)]
    if len(classes[0]) == len(classes[1]):
        for a, b in zip(*classes, strict=True):
            low, high = sorted((found[a], found[b]))
            found = [low if number == high else number for number in found]
    return found


def _folds(positive: Tensor, groups: Sequence[int], seed: int) -> Tensor | None:
    """The fold of each case: the groups of each class are shuffled and dealt out in turn."""
    by_class = [
        list(dict.fromkeys(g for g, p in zip(groups, positive.tolist(), strict=True) if p == wanted))
        for wanted in (True, False)
    ]
    n_folds = min(MOST_FOLDS, *map(len, by_class))
    if n_folds < 2:
        return None
    draw = Random(seed)
    for found in by_class:
        draw.shuffle(found)
    in_turn = dict.fromkeys(group for found in by_class for group in found)
    dealt = {group: i % n_folds for i, group in enumerate(in_turn)}
    return torch.tensor([dealt[group] for group in groups])

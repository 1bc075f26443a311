"""Linear classifiers: ridge regression on the classes, the means of the classes, and logistic regression (scikit-learn).

All give scores x @ weight + bias, a column for each class; the largest is the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gemmascope.packages import requires_package

# The most steps of a logistic regression.
MOST_STEPS = 1000


@dataclass(frozen=True)
class Classifier:
    """Scores of classes: x @ weight + bias. weight: [d, class], float64. bias: [class]."""

    weight: Float[Tensor, "d class"]
    bias: Float[Tensor, " class"]

    def classes(self, x: Float[Tensor, "row d"]) -> Int[Tensor, " row"]:
        """The class of each row."""
        return (x @ self.weight + self.bias).argmax(1)


Fit = Callable[[Tensor, Tensor, int, float], Classifier]


def fit(method: str, x: Float[Tensor, "row d"], y: Int[Tensor, " row"], n_classes: int, l2: float) -> Classifier:
    """A classifier of rows.

    Rows are centred, and divided by their root mean squared distance from the mean, so that the penalty does not depend on
    the units of a site.

    Args:
        method: One of METHODS.
        x: Rows, float64.
        y: Their classes, from 0.
        n_classes: How many classes there are; each occurs.
        l2: The penalty on squared weights, beside the mean loss of a row.
    """
    mean = x.mean(0)
    centred = x - mean
    size = float(centred.square().sum(1).mean().sqrt()) or 1.0
    found = METHODS[method](centred / size, y, n_classes, l2)
    weight = found.weight / size
    return Classifier(weight, found.bias - mean @ weight)


def _ridge(x: Tensor, y: Tensor, n_classes: int, l2: float) -> Classifier:
    """Least squares on one column of zeros and ones for each class."""
    target = torch.nn.functional.one_hot(y, n_classes).double()
    share = target.mean(0)
    gram = x.T @ x / len(x)
    gram.diagonal().add_(l2)
    return Classifier(torch.linalg.solve(gram, x.T @ (target - share) / len(x)), share)


def _mass_mean(x: Tensor, y: Tensor, n_classes: int, l2: float) -> Classifier:
    """The nearest mean of a class; of two classes, the projection on their difference from the midpoint."""
    means = torch.stack([x[y == number].mean(0) for number in range(n_classes)])
    return Classifier(means.T.contiguous(), -means.square().sum(1) / 2)


def _logistic(x: Tensor, y: Tensor, n_classes: int, l2: float) -> Classifier:
    with requires_package("a logistic probe", "scikit-learn", install="gemmascope[probes]"):
        from sklearn.linear_model import LogisticRegression
    model = LogisticRegression(C=1 / (l2 * len(x)), max_iter=MOST_STEPS, tol=1e-6)
    model.fit(x.numpy(), y.numpy())
    weight, bias = torch.from_numpy(np.array(model.coef_)).T, torch.from_numpy(np.array(model.intercept_))
    if n_classes == 2:  # one column, for the second class
        weight, bias = torch.cat([-weight, weight], 1) / 2, torch.cat([-bias, bias]) / 2
    return Classifier(weight.double(), bias.double())


METHODS: dict[str, Fit] = {"ridge": _ridge, "mass_mean": _mass_mean, "logistic": _logistic}


def strongest(x: Float[Tensor, "row d"], y: Int[Tensor, " row"], n_classes: int, k: int) -> Int[Tensor, " k"]:
    """The k columns whose mean differs most between a class and the others, over their standard deviation."""
    spread = x.std(0, correction=0)
    differences = torch.stack([(x[y == n].mean(0) - x[y != n].mean(0)).abs() for n in range(n_classes)]).amax(0)
    ratio = torch.where(spread > 0, differences / spread, torch.zeros_like(spread))
    return ratio.topk(k).indices.sort().values

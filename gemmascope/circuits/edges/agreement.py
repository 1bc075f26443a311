"""How well estimates of edge scores agree with the exact ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from gemmascope.circuits.edges.circuit import strongest
from gemmascope.values import Array

if TYPE_CHECKING:
    import pandas

# The share of the edges that counts as the largest.
TOP = 0.05


def agreement_table(truth: Array, estimates: Mapping[str, Array]) -> pandas.DataFrame:
    """See EdgeScores.agreement. truth: the scores of all edges; estimates: by method."""
    import pandas

    n = max(1, round(TOP * len(truth)))
    mean = np.abs(truth).mean()
    rows = {
        method: {
            "pearson": correlation(truth, scores),
            "spearman": correlation(ranks(truth), ranks(scores)),
            "top_overlap": float((strongest(np.abs(truth), n) & strongest(np.abs(scores), n)).sum()) / n,
            "error": float(np.abs(truth - scores).mean() / mean) if mean else float("nan"),
        }
        for method, scores in estimates.items()
    }
    return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def correlation(x: Array, y: Array) -> float:
    """Pearson's correlation; NaN where one of both does not vary."""
    return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) > 0 and np.ptp(y) > 0 else float("nan")


def ranks(x: Array) -> Array:
    """The rank of every number, equal numbers sharing the mean of theirs."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: Array = last - (counts - 1) / 2
    return mean[inverse.reshape(x.shape)]

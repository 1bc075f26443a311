"""The bootstrap: how far a mean over pairs would move if other pairs of the same kind had been drawn.

Pairs are drawn anew with replacement, as many as there are, and each draw gives a mean; an interval lies between two
percentiles of these means. Every cell is resampled with the same draws, so that cells stay comparable.

References: Efron, "Bootstrap methods: another look at the jackknife" (1979).
"""

from __future__ import annotations

import numpy as np
import xarray

from gemmascope.arguments import finite_number, whole_number
from gemmascope.errors import SweepError
from gemmascope.values import Array, chunks

# How many draws are allowed, and how many means are in memory at once: 64 MB.
MOST_DRAWS = 1_000_000
MEANS = 8 * 2**20


def bootstrap(values: Array, level: float, n: int, seed: int) -> Array:
    """The interval of the mean over the first axis: float64 [2, ...], low and high.

    values: [pair, ...]. level: the share of means inside. NaN where a pair has NaN.
    """
    level = finite_number(level, "level", error=SweepError)
    if not 0 < level < 1:
        raise SweepError(f"level is the share of resampled means inside the interval, between 0 and 1; given {level}")
    n = whole_number(n, "n", least=1, most=MOST_DRAWS, error=SweepError)
    seed = whole_number(seed, "seed", least=0, error=SweepError)
    n_pairs = len(values)
    if n_pairs < 2:
        raise SweepError("a bootstrap draws from several pairs or prompts, two at least; there is one")
    drawn = np.random.default_rng(seed).integers(n_pairs, size=(n, n_pairs))
    weights = np.stack([np.bincount(row, minlength=n_pairs) for row in drawn]) / n_pairs
    flat = values.reshape(n_pairs, -1).astype(np.float64)
    ends = [(1 - level) / 2, (1 + level) / 2]
    parts = [np.quantile(weights @ flat[:, cells], ends, axis=0) for cells in chunks(flat.shape[1], max(1, MEANS // n))]
    return np.concatenate(parts, axis=1).reshape(2, *values.shape[1:])


def labelled_bootstrap(values: xarray.DataArray, over: str, level: float, n: int, seed: int) -> xarray.DataArray:
    """The interval of the mean over an axis, with the labels of the others and the axis "bound": "low", "high"."""
    ordered = values.transpose(over, ...)
    interval = bootstrap(ordered.values, level, n, seed)
    coords = {name: coord for name, coord in ordered.coords.items() if over not in coord.dims}
    return xarray.DataArray(
        interval, {"bound": ["low", "high"], **coords}, ("bound", *ordered.dims[1:]), values.name, values.attrs
    )

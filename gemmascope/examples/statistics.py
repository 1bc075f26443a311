"""Statistics of units over all rows: how often each is active, its mean and extremes, a histogram, its company.

The range of a histogram doubles when a value exceeds it, and its bins then join in pairs. Ends are powers of two times whole
numbers, so every count is the one that the final bins would have had from the first row on.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gemmascope.values import Array, chunks

BINS = 64
_LEAST_EXPONENT = -126
_ELEMENTS = 2**22  # values that are put into bins at once


class Histograms:
    """A histogram of every unit.

    Args:
        n_units: The number of units.
        signed: Whether values are negative too: then bins go from -2**exponent to 2**exponent, else from 0.
    """

    def __init__(self, n_units: int, signed: bool) -> None:
        self.first = -BINS // 2 if signed else 0  # the number of the lowest bin, that from 0 being 0
        self.counts = np.zeros((n_units, BINS), dtype=np.int64)
        self.exponent = np.full(n_units, _LEAST_EXPONENT)

    @property
    def widths(self) -> Array:
        """The width of a bin of each unit, float64 [unit]."""
        widths: Array = np.ldexp(1.0, self.exponent) / (BINS + self.first)
        return widths

    @property
    def edges(self) -> Array:
        """The edges of the bins, float64 [unit, BINS + 1]."""
        edges: Array = (np.arange(BINS + 1) + self.first) * self.widths[:, None]
        return edges

    def make_room(self, largest: Array) -> None:
        """Double ranges until they hold these absolute values. largest: [unit]."""
        wanted = np.where(largest > 0, np.frexp(largest)[1], _LEAST_EXPONENT)
        grown = np.flatnonzero(wanted > self.exponent)
        shift = np.minimum(wanted - self.exponent, 62)[grown]
        to = ((np.arange(BINS) + self.first) >> shift[:, None]) - self.first
        flat = (np.arange(len(grown))[:, None] * BINS + to).ravel()
        counts = np.zeros(len(grown) * BINS, dtype=np.int64)
        np.add.at(counts, flat, self.counts[grown].ravel())
        self.counts[grown] = counts.reshape(-1, BINS)
        self.exponent[grown] = wanted[grown]

    def add(self, values: Tensor, units: Tensor | None = None) -> None:
        """Count values, after room was made for them.

        Args:
            values: [row, unit] of all units; or [value].
            units: The unit of each value, [value]; None for values of all units.
        """
        device = values.device
        scale = torch.from_numpy(1 / self.widths).to(device)
        step = max(1, _ELEMENTS // max(1, values[:1].numel()))
        for part in chunks(len(values), step):
            of = torch.arange(len(scale), device=device) if units is None else units[part]
            bins = (values[part].double() * scale[of]).floor().long() - self.first + of * BINS
            self.counts += torch.bincount(bins.reshape(-1), minlength=self.counts.size).cpu().numpy().reshape(-1, BINS)


class Statistics:
    """Counts, sums and extremes of every unit, over all rows.

    Args:
        n_units: The number of units.
        signed: Whether values are negative too.
        sparse: Whether only values above zero come: the histogram is then of those.
    """

    def __init__(self, n_units: int, signed: bool, sparse: bool) -> None:
        self.sparse, self.n_rows = sparse, 0
        self.n_active = np.zeros(n_units, dtype=np.int64)
        self.sum, self.squares = np.zeros(n_units), np.zeros(n_units)
        self.low, self.high = (np.full(n_units, end, dtype=np.float32) for end in (np.inf, -np.inf))
        self.histograms = Histograms(n_units, signed)

    def add(self, values: Tensor) -> None:
        """Add the values of all units, [row, unit]."""
        self.n_rows += len(values)
        low, high = values.amin(0).cpu().numpy(), values.amax(0).cpu().numpy()
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        self.n_active += (values > 0).sum(0).cpu().numpy()
        self.sum += values.sum(0, dtype=torch.float64).cpu().numpy()
        self.squares += values.double().square().sum(0).cpu().numpy()
        self.histograms.make_room(np.maximum(np.abs(low), np.abs(high)))
        self.histograms.add(values)

    def add_active(self, n_rows: int, units: Tensor, values: Tensor) -> None:
        """Add values above zero. n_rows: how many rows they are of. units: of each value."""
        n_units = len(self.sum)
        self.n_rows += n_rows
        numbers, active = units.cpu().numpy(), values.cpu().numpy()
        counts = np.bincount(numbers, minlength=n_units)
        self.n_active += counts
        self.sum += np.bincount(numbers, active.astype(np.float64), n_units)
        self.squares += np.bincount(numbers, np.square(active.astype(np.float64)), n_units)
        np.maximum.at(self.high, numbers, active)
        np.minimum.at(self.low, numbers, active)
        self.histograms.make_room(np.where(np.isfinite(self.high), self.high, 0))
        self.histograms.add(values, units)

    def extremes(self) -> tuple[Array, Array]:
        """The smallest and the largest value over all rows, float32 [unit]; NaN without rows."""
        low, high = self.low.copy(), self.high.copy()
        if self.sparse:
            low[self.n_active < self.n_rows] = 0
            high[self.n_active == 0] = 0
        if not self.n_rows:
            low[:] = high[:] = np.nan
        return low, high


class CoActivity:
    """How often features are active in the same row.

    Args:
        units: The features that are counted, rising.
        n_features: With how many others.
    """

    def __init__(self, units: Array, n_features: int) -> None:
        self.units = units
        self._place = np.full(n_features, -1)
        self._place[units] = np.arange(len(units))
        self.together = torch.zeros(len(units), n_features, dtype=torch.int32)
        self.n_active = np.zeros(n_features, dtype=np.int64)

    def add(self, rows: Array, features: Array) -> None:
        """Add the active features of some rows. rows: rising."""
        n_features = len(self.n_active)
        self.n_active += np.bincount(features, minlength=n_features)
        counts = np.bincount(rows)
        first = np.cumsum(counts) - counts
        place = self._place[features]
        chosen = np.flatnonzero(place >= 0)
        # Each is paired with all active features of its row. Those of a dense dictionary are too many to be held at once.
        ends = np.cumsum(counts[rows[chosen]])
        for one in np.split(chosen, np.flatnonzero(np.diff(ends // _ELEMENTS)) + 1):
            of_row = counts[rows[one]]
            left, starts = np.repeat(one, of_row), np.cumsum(of_row) - of_row
            right = np.arange(len(left)) + np.repeat(first[rows[one]] - starts, of_row)
            pairs = torch.from_numpy(place[left] * n_features + features[right])
            self.together.view(-1).scatter_add_(0, pairs, torch.ones(len(pairs), dtype=torch.int32))

    def strongest(self, k: int) -> tuple[Array, Array, Array]:
        """Of each unit the k features that share most of the rows in which either is active.

        Returns:
            Their numbers, -1 for none; in how many rows both are active; and that as a share of the rows in which either
            is. Each [unit, k], the largest share first, of equal ones the smaller number.
        """
        found = [self._strongest(part, k) for part in chunks(len(self.units), max(1, _ELEMENTS // len(self.n_active)))]
        features, rows, shares = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return features, rows, shares

    def _strongest(self, part: slice, k: int) -> tuple[Array, Array, Array]:
        """The same of some of the units."""
        counts, units = self.together[part].numpy(), self.units[part]
        either = self.n_active[units][:, None] + self.n_active - counts
        share = np.divide(counts, either, out=np.zeros(counts.shape), where=either > 0)
        share[np.arange(len(share)), units] = 0  # with itself
        order = np.argsort(-share, axis=1, kind="stable")[:, :k]
        found = np.take_along_axis(share, order, 1)
        return np.where(found > 0, order, -1), np.where(found > 0, np.take_along_axis(counts, order, 1), 0), found

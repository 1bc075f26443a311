"""Curve: the metric and the perplexity over the strengths of a steering lab, measured from coarse to fine."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from math import inf, isfinite

import numpy as np

from gemmascope.steering.strength_result import StrengthSweep
from gemmascope.values import Array

# Strengths on the curve, and on the ladder.
N_POINTS, N_RUNGS = 33, 5
# The text counts as collapsed where its perplexity is so many times that of the unsteered run.
COLLAPSE = 4.0


class Curve:
    """strengths: evenly from one end of the slider to the other. metric, perplexity: NaN where they are not measured yet.

    unsteered: both without steering; None before anything was measured.
    """

    def __init__(self, low: float, high: float) -> None:
        self.strengths: list[float] = np.linspace(low, high, N_POINTS).tolist()
        self.metric: Array = np.full(N_POINTS, np.nan)
        self.perplexity: Array = np.full(N_POINTS, np.nan)
        self.unsteered: tuple[float, float] | None = None
        self._missing = list(range(N_POINTS))

    def steps(self, measure: Callable[[Sequence[float]], StrengthSweep], at_once: bool) -> Generator[None]:
        """Measure what is missing, the rungs first and then between them. at_once: in one go, for streamed weights."""
        stride = 1 if at_once else (N_POINTS - 1) // (N_RUNGS - 1)
        while stride and self._missing:
            points = [i for i in self._missing if i % stride == 0]
            if points:
                self._keep(points, measure([self.strengths[i] for i in points]))
                yield
            stride //= 2

    def _keep(self, points: list[int], measured: StrengthSweep) -> None:
        self.metric[points] = measured.metric.values
        self.perplexity[points] = measured.perplexity.values
        self.unsteered = measured.unsteered_metric, measured.unsteered_perplexity
        self._missing = [i for i in self._missing if i not in points]

    @property
    def is_complete(self) -> bool:
        return not self._missing

    @property
    def collapsed(self) -> Array:
        """Whether the text has collapsed at each strength, bool; not where that is not known."""
        bound = inf if self.unsteered is None else COLLAPSE * self.unsteered[1]
        return np.nan_to_num(self.perplexity, nan=0.0, posinf=np.finfo(float).max) > bound

    def near(self, strength: float) -> int:
        """The measured point that is nearest; the nearest of all if none is measured."""
        distances = np.abs(np.array(self.strengths) - strength)
        known = np.where(np.isnan(self.metric), np.inf, distances)
        return int((known if np.isfinite(known).any() else distances).argmin())

    def as_data(self) -> dict[str, object]:
        """As JSON: null for what is not measured."""
        unsteered = [None, None] if self.unsteered is None else [_number(value) for value in self.unsteered]
        return {
            "strengths": self.strengths,
            "metric": [_number(value) for value in self.metric.tolist()],
            "perplexity": [_number(value) for value in self.perplexity.tolist()],
            "collapsed": self.collapsed.tolist(),
            "unsteered": unsteered,
            "collapse": COLLAPSE,
        }


def rungs_of(curve: Curve) -> list[float]:
    """Five strengths for the ladder, 0 among them: as far as the text has not collapsed, and close where the metric moves.

    Evenly from end to end where the curve could not be measured, or where next to everything collapses.
    """
    sides = [_before_collapse(curve, sign) for sign in (-1, 1)]
    wanted = (N_RUNGS - 1) // 2
    least = [min(wanted, len(side)) for side in sides]
    counts = [min(len(side), N_RUNGS - 1 - least[1 - i]) for i, side in enumerate(sides)]
    if curve.unsteered is None or sum(counts) < N_RUNGS - 1:
        return _even(curve.strengths[0], curve.strengths[-1])
    chosen = [curve.strengths[i] for side, n in zip(sides, counts, strict=True) for i in _where_it_moves(curve, side, n)]
    return sorted([0.0, *chosen])


def _before_collapse(curve: Curve, sign: int) -> list[int]:
    """The points of one side from 0 outwards, up to the last before the text collapses."""
    outwards = sorted((i for i, s in enumerate(curve.strengths) if s * sign > 0), key=lambda i: abs(curve.strengths[i]))
    collapsed = curve.collapsed
    first = next((n for n, i in enumerate(outwards) if collapsed[i]), len(outwards))
    return outwards[:first]


def _where_it_moves(curve: Curve, side: Sequence[int], n: int) -> list[int]:
    """n of these points, the outermost among them: between two of them the metric moves by about as much."""
    if not n:
        return []
    assert curve.unsteered is not None
    values = np.array([curve.unsteered[0], *(float(curve.metric[i]) for i in side)])
    moved = np.nan_to_num(np.abs(np.diff(values))).cumsum()
    if moved[-1] == 0:
        moved = np.arange(1.0, len(side) + 1)
    found: list[int] = []
    for k in range(1, n + 1):
        # Room for those that are still to come, and none twice.
        free = range(found[-1] + 1 if found else 0, len(side) - (n - k))
        found.append(len(side) - 1 if k == n else min(free, key=lambda i: abs(float(moved[i]) - float(moved[-1]) * k / n)))
    return [side[i] for i in found]


def _even(low: float, high: float) -> list[float]:
    """Five strengths from end to end, that nearest to 0 being 0."""
    rungs: list[float] = np.linspace(low, high, N_RUNGS).tolist()
    nearest = min(range(N_RUNGS), key=lambda i: abs(rungs[i]))
    return [0.0 if i == nearest else rung for i, rung in enumerate(rungs)]


def _number(value: float) -> float | None:
    return value if isfinite(value) else None

"""Examples as a page draws them: the tokens around each, the unit's values there, and for a head where it looked."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch

from gemmascope.examples.group import UnitExamples
from gemmascope.examples.result import TopExamples
from gemmascope.examples.tables import quantile_of
from gemmascope.model.model import Model
from gemmascope.run.trace import Trace
from gemmascope.run.tracing import trace
from gemmascope.values import Array

# Traces of examples that are kept, since the heads of a layer share many.
_KEPT = 16
QUANTILES = 4
_QUARTERS = tuple(f"Random sample: {part} quarter" for part in ("lowest", "third", "second", "top"))


class HeadRuns:
    """Traces of the texts of a head's examples, the last few of them kept."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._kept = OrderedDict[tuple[int, ...], Trace]()

    def of(self, ids: Array) -> Trace:
        """The trace of a text."""
        key = tuple(ids.tolist())
        if key not in self._kept:
            self._kept[key] = trace(list(key), model=self.model)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def sections(examples: TopExamples, group: UnitExamples, unit: int, runs: HeadRuns | None) -> list[dict[str, object]]:
    """The examples of a unit in parts: the strongest, the most negative, and the sample by quantiles.

    Args:
        examples: All examples.
        group: The unit's group.
        unit: Its number.
        runs: Traces of a head's examples, for where it looked; None for other units, or without the model.
    """
    made: list[dict[str, object]] = [{"name": "Strongest", "rows": example_rows(examples, group, unit, "top", runs=runs)}]
    if "bottom_value" in group.data:
        made.append({"name": "Most negative", "rows": example_rows(examples, group, unit, "bottom")})
    if "sample_value" in group.data:
        rows = example_rows(examples, group, unit, "sample")
        parts = quantile_of(len(rows), QUANTILES)
        for part in sorted(set(parts), reverse=True):
            some = [row for row, of in zip(rows, parts, strict=True) if of == part]
            made.append({"name": _QUARTERS[part - 1], "rows": some})
    return [one for one in made if one["rows"]]


def example_rows(
    examples: TopExamples,
    group: UnitExamples,
    unit: int,
    part: str,
    *,
    runs: HeadRuns | None = None,
    most: int | None = None,
    around: tuple[int, int] | None = None,
) -> list[dict[str, object]]:
    """The examples of a unit, as js/examples.js draws them.

    Args:
        examples: All examples.
        group: The unit's group.
        unit: Its number.
        part: "top", "bottom" or "sample".
        runs: Traces of a head's examples, for where it looked.
        most: The most examples; None for all.
        around: How many tokens before and after; None for all that were kept.
    """
    at = group.index(unit)
    texts, positions = group.data[f"{part}_text"].values[at], group.data[f"{part}_pos"].values[at]
    values, ids = group.data[f"{part}_around"].values[at], group.data[f"{part}_ids"].values[at]
    offsets = group.data["offset"].values
    near = np.ones(len(offsets), bool) if around is None else (offsets >= -around[0]) & (offsets <= around[1])
    made = []
    for rank in range(int((texts[:most] >= 0).sum())):
        inside = np.flatnonzero((ids[rank] >= 0) & near)
        row: dict[str, object] = {
            "text": int(texts[rank]),
            "pos": int(positions[rank]),
            "value": short(float(group.data[f"{part}_value"].values[at, rank])),
            "at": int(np.flatnonzero(offsets[inside] == 0)[0]),
            "tokens": [examples.vocab[int(one)] for one in ids[rank][inside]],
            "values": [short(float(one)) for one in values[rank][inside]],
        }
        whole = group.texts.get(int(texts[rank]))
        if runs is not None and whole is not None:
            row["looks"] = _looks(runs, group, unit, whole, int(positions[rank]), positions[rank] + offsets[inside])
        made.append(row)
    return made


def _looks(runs: HeadRuns, group: UnitExamples, head: int, ids: Array, pos: int, shown: Array) -> list[float | None]:
    """How much a head looked at each token that is shown, from the example's own; None for later ones."""
    with torch.no_grad():
        pattern = runs.of(ids)["pattern", group.layer][head, pos].float().cpu().numpy()
    return [short(float(pattern[k])) if k <= pos else None for k in shown.tolist()]


def short(value: float) -> float | None:
    """A number to four digits, as pages hold it; None for none."""
    return float(f"{value:.4g}") if np.isfinite(value) else None


def histogram_of(group: UnitExamples, unit: int) -> dict[str, object]:
    """The histogram of a unit without its empty ends."""
    one = group.data.sel(unit=unit)
    counts, edges = one["histogram"].values, one["edges"].values
    full = np.flatnonzero(counts)
    if not len(full):
        return {"counts": [], "low": 0, "high": 0}
    low, high = int(full[0]), int(full[-1]) + 1
    return {"counts": counts[low:high].tolist(), "low": float(edges[low]), "high": float(edges[high])}

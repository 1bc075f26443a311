"""Examples and statistics as pandas tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from gemmascope.examples.group import UnitExamples
from gemmascope.values import Array

if TYPE_CHECKING:
    import pandas


def entry_rows(group: UnitExamples, unit: int, part: str, vocab: Mapping[int, str], k: int | None) -> pandas.DataFrame:
    """The examples of a unit, one a row.

    Args:
        group: Its group.
        unit: Its number.
        part: "top", "bottom" or "sample".
        vocab: Tokens by id.
        k: The most rows; None for all.
    """
    import pandas

    at = group.index(unit)
    text = group.data[f"{part}_text"].values[at]
    n = int((text >= 0).sum())
    n = n if k is None else min(k, n)
    ids = group.data[f"{part}_ids"].values[at, :n]
    middle = int(np.flatnonzero(group.data["offset"].values == 0)[0])
    columns = {
        "rank": np.arange(n),
        "value": group.data[f"{part}_value"].values[at, :n],
        "text": text[:n],
        "pos": group.data[f"{part}_pos"].values[at, :n],
        "token": [vocab[int(row[middle])] for row in ids],
        "before": ["".join(joined(row[:middle], vocab)) for row in ids],
        "after": ["".join(joined(row[middle + 1 :], vocab)) for row in ids],
    }
    return pandas.DataFrame(columns)


def joined(ids: Array, vocab: Mapping[int, str]) -> list[str]:
    """The tokens of ids, without those outside the text."""
    return [vocab[token] for token in ids.tolist() if token >= 0]


def quantile_of(n: int, parts: int) -> list[int]:
    """The part, from 1 for the smallest, of each of n values, the largest first."""
    return [parts - (i * parts) // n for i in range(n)]


def statistics_of(group: UnitExamples, vocab: Mapping[int, str]) -> pandas.DataFrame:
    """One row for each unit of a group."""
    import pandas

    middle = int(np.flatnonzero(group.data["offset"].values == 0)[0])
    strongest = group.data["top_ids"].values[:, 0, middle].tolist()
    columns: dict[str, object] = {"kind": group.kind, "layer": group.layer, "unit": group.units}
    columns |= {name: group.data[name].values for name in ("density", "mean", "std", "low", "high")}
    columns["token"] = [vocab.get(token) for token in strongest]
    return pandas.DataFrame(columns)

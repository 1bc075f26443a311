"""From what was kept of groups of units to the result."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from gemmascope.examples.asked import Place
from gemmascope.examples.group import UnitExamples
from gemmascope.examples.keeping import Keeper
from gemmascope.examples.result import TopExamples
from gemmascope.examples.running import RunningTop
from gemmascope.examples.settings import ExampleSettings
from gemmascope.values import Array


def examples_of(keepers: Sequence[Keeper], place: Place, settings: ExampleSettings) -> TopExamples:
    """The result."""
    made = tuple(_group(keeper, settings) for keeper in keepers)
    ids = np.unique(np.concatenate([_ids_of(keeper) for keeper in keepers]))
    ids = ids[ids >= 0]
    store, model = place.store, place.model
    if model is not None:
        vocab = dict(zip(ids.tolist(), model.texts(torch.from_numpy(ids)), strict=True))
    else:
        assert store is not None
        known = {
            token: text
            for number in range(len(store.shards.lines))
            for token, text in store.shards.shard(number).vocab.items()
        }
        vocab = {token: known[token] for token in ids.tolist()}
    fingerprint = store.manifest.fingerprint if store is not None else model.fingerprint if model is not None else ""
    return TopExamples(made, vocab, place.name, fingerprint, keepers[0].statistics.n_rows, settings)


def _ids_of(keeper: Keeper) -> Array:
    tops = [top.ids.ravel() for top in (keeper.top, keeper.bottom, keeper.sample) if top is not None]
    return np.unique(np.concatenate([*tops, *keeper.texts.values()]))


def _group(keeper: Keeper, settings: ExampleSettings) -> UnitExamples:
    import xarray

    group, statistics = keeper.group, keeper.statistics
    low, high = statistics.extremes()
    n = statistics.n_rows
    mean = statistics.sum / n if n else statistics.sum
    std = np.sqrt(np.maximum(statistics.squares / n - mean**2, 0)) if n else mean
    variables: dict[str, tuple[tuple[str, ...], Array]] = {
        "density": (("unit",), statistics.n_active / max(1, n)),
        "mean": (("unit",), mean),
        "std": (("unit",), std),
        "low": (("unit",), low),
        "high": (("unit",), high),
        "histogram": (("unit", "bin"), statistics.histograms.counts),
        "edges": (("unit", "edge"), statistics.histograms.edges),
    }
    for name, top in (("top", keeper.top), ("bottom", keeper.bottom), ("sample", keeper.sample)):
        if top is not None:
            variables |= _entries(name, top, settings)
    if keeper.pairs is not None:
        strongest = keeper.pairs.strongest(settings.co_active)
        names = ("co_feature", "co_rows", "co_share")
        variables |= {name: (("unit", "co_rank"), values) for name, values in zip(names, strongest, strict=True)}
    coords = {"unit": group.numbers, "offset": settings.offsets}
    data = xarray.Dataset(variables, coords, {"long_name": group.measure})
    whole = {number: ids for number, ids in sorted(keeper.texts.items()) if number in keeper.top.text}
    return UnitExamples(group.kind, group.site, group.layer, group.name, group.measure, data, whole)


def _entries(name: str, top: RunningTop, settings: ExampleSettings) -> dict[str, tuple[tuple[str, ...], Array]]:
    """The entries of one kind as variables of a group's data."""
    rank = "rank" if name != "sample" else "draw"
    values = top.values[:, :, settings.around[0]]
    parts: dict[str, Array] = {"value": values, "text": top.text, "pos": top.pos, "around": top.values, "ids": top.ids}
    if name == "sample":  # by value, the largest first; entries that are not there come last
        order = np.argsort(np.where(top.text < 0, np.inf, -values), axis=1, kind="stable")
        parts = {
            key: np.take_along_axis(part, order.reshape(order.shape + (1,) * (part.ndim - 2)), 1)
            for key, part in parts.items()
        }
    dims = ("unit", rank, "offset")
    return {f"{name}_{key}": (dims[: part.ndim], part) for key, part in parts.items()}

"""What users give to find rows of a store: numbers of rows, texts and positions."""

from __future__ import annotations

import numpy as np

from gemmascope.arguments import MAX_ITEMS, as_list, as_numbers, as_python, is_list, is_whole, short_repr, whole_number
from gemmascope.errors import SiteError
from gemmascope.stores.reading.shards import Shards
from gemmascope.values import Array, is_array


def row_numbers(rows: object, n_rows: int) -> Array:
    """The numbers of rows, int64: a number, a list, an array, or a slice. Negative ones count from the end."""
    if isinstance(rows, slice):
        return np.arange(n_rows)[rows]
    if is_array(rows):
        plain = as_python(rows, unreadable=None)
        if plain is None:
            raise SiteError(f"rows are whole numbers: one, a list, an array or a slice; given a {type(rows).__name__}")
        given = np.atleast_1d(np.asarray(plain))
        if given.ndim != 1 or given.dtype.kind not in "iu":
            raise SiteError(f"rows are whole numbers on one axis; given an array of {given.dtype}, shape {given.shape}")
    else:
        numbers = as_numbers(rows)
        if numbers is None or len(numbers) > MAX_ITEMS or not all(map(is_whole, numbers)):
            raise SiteError(f"rows are whole numbers: one, a list, an array or a slice; given {short_repr(rows)}")
        whole = [int(n) for n in numbers]  # type: ignore[call-overload]
        if wrong := [n for n in whole if not -n_rows <= n < n_rows]:
            raise SiteError(f"there is no row {short_repr(wrong[0])}: the store has {n_rows:,} rows, from 0")
        given = np.array(whole, dtype=np.int64)
    given = given.astype(np.int64)
    if len(outside := given[(given < -n_rows) | (given >= n_rows)]):
        raise SiteError(f"there is no row {int(outside[0])}: the store has {n_rows:,} rows, from 0")
    return np.where(given < 0, given + n_rows, given)


def rows_of(shards: Shards, text: object, pos: object) -> Array:
    """The rows of texts at positions, as Store.rows says."""
    numbers = as_numbers(text)
    if numbers is None:
        raise SiteError(f"text is the number of a text, or a list of them; given {short_repr(text)}")
    most = shards.n_runs - 1
    each = [whole_number(number, "text", least=0, most=most, error=SiteError) for number in numbers]
    found = [_rows_of_text(shards, number, pos) for number in each]
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def _rows_of_text(shards: Shards, text: int, pos: object) -> Array:
    span = shards.rows_of_run(text)
    rows = np.arange(span.start, span.stop)
    if pos is None:
        return rows
    shard, run = shards.of_run(text)
    n_pos = len(shard.ids(run))
    if isinstance(pos, slice):
        wanted = list(range(n_pos))[pos]
        have = dict(zip(shards.places(rows).pos.tolist(), rows.tolist(), strict=True))
        return np.array([have[p] for p in wanted if p in have], dtype=np.int64)
    numbers = as_numbers(pos)
    if numbers is None:
        raise SiteError(f"pos is a position, a list of them or a slice; given {short_repr(pos)}")
    have = dict(zip(shards.places(rows).pos.tolist(), rows.tolist(), strict=True))
    found = []
    for number in numbers:
        at = whole_number(number, "pos", least=-n_pos, most=n_pos - 1, error=SiteError) % n_pos
        if at not in have:
            why = "<bos> was left out; give bos=True to keep it" if at == 0 else "it was left out as an outlier"
            raise SiteError(f"position {at} of text {text} has no row: {why}")
        found.append(have[at])
    return np.array(found, dtype=np.int64)


def pairs_of(sites: object) -> list[tuple[object, int | None]]:
    """(site, layer) of each of a list. SiteError for something else."""
    listed = as_list(sites, "site", error=SiteError) if is_list(sites) else [None]
    if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in listed):
        raise SiteError(f"site is a site, or a list of (site, layer), such as [('mlp_in', 3)]; given {short_repr(sites)}")
    return [(pair[0], pair[1]) for pair in listed if isinstance(pair, (tuple, list))]

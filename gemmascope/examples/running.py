"""RunningTop: of every unit, the k entries with the largest keys so far, with the text around each.

A key is a number's 32 bits, in an order that integers have too, and below them the place of its token, counted down: of
equal numbers the earlier text, and in it the earlier position, comes first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gemmascope.values import Array

EMPTY = np.iinfo(np.int64).min
_PLACES = 0xFFFFFFFF


@dataclass(frozen=True)
class Entries:
    """Some values of some units: the row of a block, the unit, and the key of each. All int64 [entry]."""

    row: Array
    unit: Array
    key: Array

    def where(self, chosen: Array) -> Entries:
        return Entries(self.row[chosen], self.unit[chosen], self.key[chosen])


@dataclass(frozen=True)
class Shown:
    """What is kept of an entry: the number of its text, its position, and the values and token ids around it."""

    text: Array
    pos: Array
    values: Array
    ids: Array


class RunningTop:
    """The k entries with the largest keys of every unit.

    Args:
        n_units: The number of units.
        k: How many entries of each.
        n_around: How many values and token ids are kept of each.
    """

    def __init__(self, n_units: int, k: int, n_around: int) -> None:
        self.k = k
        self.key = np.full((n_units, k), EMPTY, dtype=np.int64)
        self.text = np.full((n_units, k), -1, dtype=np.int64)
        self.pos = np.full((n_units, k), -1, dtype=np.int32)
        self.values = np.full((n_units, k, n_around), np.nan, dtype=np.float32)
        self.ids = np.full((n_units, k, n_around), -1, dtype=np.int32)

    @property
    def least(self) -> Array:
        """The key that a new entry has to exceed, [unit]."""
        return self.key[:, -1]

    def add(self, entries: Entries, shown: Callable[[Entries], Shown]) -> None:
        """Add entries, each of which has a key of its own.

        Args:
            entries: The entries.
            shown: Gives what is kept of those that are among the k.
        """
        entries = entries.where(entries.key > self.least[entries.unit])
        if not len(entries.key):
            return
        units, index = np.unique(entries.unit, return_inverse=True)
        n_old = len(units) * self.k
        keys = np.concatenate((self.key[units].ravel(), entries.key))
        of_unit = np.concatenate((np.repeat(np.arange(len(units)), self.k), index))
        order = np.lexsort((~keys, of_unit))  # ~ turns the order round without overflow
        first = np.searchsorted(of_unit[order], np.arange(len(units)))
        chosen = order[first[:, None] + np.arange(self.k)]  # [unit, k]
        is_new = chosen >= n_old
        new = shown(entries.where(chosen[is_new] - n_old))
        unit, rank = np.divmod(np.where(is_new, 0, chosen), self.k)
        self.key[units] = keys[chosen]
        for name in ("text", "pos", "values", "ids"):
            array: Array = getattr(self, name)
            moved = array[units[unit], rank]
            moved[is_new] = getattr(new, name)
            array[units] = moved


def keys_of(values: Tensor, places: Tensor) -> Tensor:
    """The keys of values, int64: larger for larger values, and of equal ones for earlier places.

    Args:
        values: float32, of any shape.
        places: Whole numbers below 2**32, in a shape that broadcasts to theirs.
    """
    bits = (values.float() + 0.0).view(torch.int32)  # + 0.0: there are two zeros, which are equal
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.long() << 32) + (_PLACES - places)


def values_of(keys: Array) -> Array:
    """The values that keys were made of, float32; NaN for an empty entry."""
    ordered = (keys >> 32).astype(np.int32)
    bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
    found: Array = np.where(keys == EMPTY, np.float32(np.nan), bits.view(np.float32))
    return found


def priorities(places: Array, seed: int) -> Array:
    """A random whole number below 2**31 for each place, int64: the same for a place and a seed, whatever else there is."""
    with np.errstate(over="ignore"):
        x = places.astype(np.uint64) + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # the mixing steps of SplitMix64
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(33)).astype(np.int64)

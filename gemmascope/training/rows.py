"""What a dictionary is trained on: pairs of rows, what it reads and what it is to write, from a store or from tensors."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gemmascope.arguments import finite_number, is_list, short_repr, whole_number
from gemmascope.errors import DictionaryError, SiteError
from gemmascope.model.digests import tensor_digest
from gemmascope.model.maths import rms_scale
from gemmascope.sae.catalogue import TRANSCODER
from gemmascope.sae.weights import NORM_EPS
from gemmascope.sites import SiteKey, find
from gemmascope.stores.reading.store import Store
from gemmascope.values import Array, chunks, real_tensor

# How many rows the scale is of, and at most how many are held out for the measures. Spread over all.
SAMPLE, MOST_HELD_OUT = 2**15, 2**17
# Rows of the held-out ones at a time.
CHUNK = 4096

Pair = tuple[Tensor, Tensor]


class Place(NamedTuple):
    """What is read and what is written: the site and layer of the dictionary, and the two arrays of a store."""

    site: str
    layer: int | None
    reads: SiteKey
    writes: SiteKey
    normed: bool


class Rows(ABC):
    """Pairs of rows [row, d_in] and [row, d_out], float32 on the CPU; of an autoencoder one tensor twice.

    n_rows: how many are trained on, the first ones. n_held_out: how many follow them.
    """

    n_rows: int
    n_held_out: int

    @abstractmethod
    def at(self, numbers: Array) -> Pair:
        """Some rows, by their numbers; the held-out ones follow those to train on."""

    @abstractmethod
    def batches(self, batch_size: int, seed: int, start: int) -> Iterator[Pair]:
        """Shuffled batches without end, from one of them on."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of what the rows are."""

    def sample(self) -> Pair:
        """Some of the rows to train on, spread over all."""
        return self.at(_spread(0, self.n_rows, SAMPLE))

    def held_out(self) -> Iterator[Pair]:
        """Held-out rows, spread over all of them, some at a time."""
        numbers = _spread(self.n_rows, self.n_rows + self.n_held_out, MOST_HELD_OUT)
        for part in chunks(len(numbers), CHUNK):
            yield self.at(numbers[part])


def _spread(start: int, stop: int, most: int) -> Array:
    n = min(most, stop - start)
    return start + np.arange(n, dtype=np.int64) * (stop - start) // n


class StoreRows(Rows):
    """The rows of a store. The last texts are held out."""

    def __init__(self, store: Store, place: Place, share: float) -> None:
        self.store, self.place = store, place
        n_held_out = max(1, round(share * store.n_texts))
        self.n_texts = store.n_texts - n_held_out
        if self.n_texts < 1:
            raise DictionaryError(f"{store!r} has too few texts: one is held out for the measures, and others are needed")
        self.n_rows = sum(store.shards.counts(self.n_texts))
        self.n_held_out = store.n_rows - self.n_rows
        if not self.n_rows or not self.n_held_out:
            raise DictionaryError(f"{store!r}: no rows are left to train on, or none to measure with; give more texts")
        self._keys = [place.reads] if place.reads == place.writes else [place.reads, place.writes]

    def _pair(self, values: list[Tensor]) -> Pair:
        x = values[0].flatten(1)
        if len(values) == 1:
            return x, x
        return (x * rms_scale(x, NORM_EPS) if self.place.normed else x), values[1].flatten(1)

    def at(self, numbers: Array) -> Pair:
        return self._pair([self.store.read(*key, numbers) for key in self._keys])

    def batches(self, batch_size: int, seed: int, start: int) -> Iterator[Pair]:
        found = self.store.batches(
            self._keys, batch_size=batch_size, seed=seed, epochs=None, start=start, texts=self.n_texts
        )  # fmt: skip
        with closing(found) as values:  # type: ignore[type-var]
            for one in values:
                yield self._pair(list(one))  # type: ignore[arg-type]

    @property
    def fingerprint(self) -> str:
        lines = [line.sha256 for line in self.store.shards.lines]
        text = repr((self.store.manifest.fingerprint, lines, self.place, self.n_texts))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def held_out_ids(self, most: int) -> list[Tensor]:
        """The token ids of some of the texts that are held out."""
        texts = range(self.n_texts, min(self.store.n_texts, self.n_texts + most))
        return [torch.from_numpy(self.store.ids(text)).long() for text in texts]


class TensorRows(Rows):
    """Rows in memory. The last ones are held out."""

    def __init__(self, x: Tensor, target: Tensor, share: float) -> None:
        self.x, self.target = x, target
        self.n_held_out = max(1, round(share * len(x)))
        self.n_rows = len(x) - self.n_held_out
        if self.n_rows < 1:
            raise DictionaryError(f"{len(x)} rows are too few: one is held out for the measures, and others are needed")

    def at(self, numbers: Array) -> Pair:
        index = torch.from_numpy(numbers)
        x = self.x[index].float()
        return x, x if self.target is self.x else self.target[index].float()

    def batches(self, batch_size: int, seed: int, start: int) -> Iterator[Pair]:
        each = -(-self.n_rows // batch_size)
        epoch, skip = divmod(start, each)
        while True:
            order = np.random.default_rng((seed, epoch)).permutation(self.n_rows)
            for number in range(skip, each):
                yield self.at(order[number * batch_size : (number + 1) * batch_size])
            epoch, skip = epoch + 1, 0

    @property
    def fingerprint(self) -> str:
        text = f"{tensor_digest(self.x)}{tensor_digest(self.target)}{self.n_rows}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def rows_of(
    source: object,
    site: object,
    layer: int | None,
    *,
    input_site: str | None,
    output_site: str,
    held_out: object,
) -> tuple[Rows, Place]:
    """The rows that a user means, and what they are of. DictionaryError or SiteError for what does not fit."""
    share = finite_number(held_out, "held_out", error=DictionaryError)
    if not 0 < share < 1:
        raise DictionaryError(f"held_out is the share of rows that are not trained on, above 0 and below 1; given {share:g}")
    if isinstance(source, Store):
        place = _place_in(source, site, layer, input_site, output_site)
        return StoreRows(source, place, share), place
    if not isinstance(site, str):
        raise DictionaryError(
            f"of rows in memory, say what they are of: site='resid_post', layer=3; given {short_repr(site)}"
        )
    if site == TRANSCODER:
        layer = whole_number(layer, "layer", least=0, error=DictionaryError)
        key: SiteKey = (TRANSCODER, layer)
    else:
        name = find(site, 10**6, layer).key
        site, layer, key = name[0], name[1], name
    pair = list(source) if is_list(source) and not isinstance(source, Tensor) else [source]
    if len(pair) > 2 or (len(pair) == 2) != (site == TRANSCODER):
        raise DictionaryError(
            "rows are a store, or a tensor [row, d]; for a transcoder two of them, (inputs, outputs); given "
            f"{len(pair)} of site {site!r}"
        )
    x = _matrix(pair[0])
    target = x if len(pair) == 1 else _matrix(pair[1])
    if len(x) != len(target):
        raise DictionaryError(f"inputs and outputs are of the same rows; given {len(x):,} and {len(target):,}")
    return TensorRows(x, target, share), Place(site, layer, key, key, False)


def _matrix(rows: object) -> Tensor:
    tensor = real_tensor(rows, "the rows", DictionaryError).detach().cpu()
    if tensor.dim() != 2 or not tensor.numel():
        raise DictionaryError(f"rows are a store, or a tensor [row, d]; given shape {tuple(tensor.shape)}")
    return tensor


def _place_in(store: Store, site: object, layer: int | None, input_site: str | None, output_site: str) -> Place:
    """The arrays of a store that a dictionary reads and writes. site None: the only one."""
    if site is None:
        if len(store.keys) != 1:
            names = ", ".join(array.name for array in store.manifest.spec.arrays)
            raise DictionaryError(f"the store holds {names}: say which site and layer, or site='transcoder' and a layer")
        site, layer = store.keys[0]
    if site != TRANSCODER:
        key = store.array(site, layer).key
        return Place(*key, key, key, False)
    number = whole_number(layer, "layer", least=0, most=store.manifest.n_layers - 1, error=DictionaryError)
    reads = input_site or "resid_mid"
    try:
        keys = [store.array(name, number).key for name in (reads, output_site)]
    except SiteError as error:
        raise SiteError(
            f"a transcoder of layer {number} reads {reads!r} and writes {output_site!r}: {error}. Harvest both, "
            f"gs.harvest(model, texts, [{reads!r}, {output_site!r}], layers={number}, out=...)"
        ) from error
    return Place(TRANSCODER, number, keys[0], keys[1], input_site is None)

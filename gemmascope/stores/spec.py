"""StoreSpec: what a harvest was asked, as data that a store's manifest holds; and the check of sites and layers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from gemmascope.arguments import as_list, as_numbers, is_list, is_whole, short_repr
from gemmascope.errors import SiteError, StoreError
from gemmascope.model.model import Model
from gemmascope.sites import SITES, Site, SiteKey, find, find_layer, parse_site_name

# The dtypes that rows are stored in, by the names that users type.
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "int8": torch.int8}

# What happens to a text of more than max_tokens tokens, and to one without tokens.
LONG = ("error", "cut", "split")
EMPTY = ("error", "skip")

ROW_SITES = tuple(site.name for site in SITES.values() if not site.is_edges)


@dataclass(frozen=True)
class ArraySpec:
    """One array of a store: the rows of a site at a layer.

    Attributes:
        site: The site's name.
        layer: Its layer; None for a site outside the layers.
        axes: The axes of one row, such as ("head", "d_head"); () for a site with one number a position.
        shape: Their lengths.
    """

    site: str
    layer: int | None
    axes: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def key(self) -> SiteKey:
        return self.site, self.layer

    @property
    def name(self) -> str:
        """What the array is called in a shard: "resid_post.12"."""
        return self.site if self.layer is None else f"{self.site}.{self.layer}"

    @property
    def width(self) -> int:
        """How many numbers one row has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class StoreSpec:
    """What a harvest was asked. Two harvests of the same texts with equal specs write the same bytes.

    Attributes:
        arrays: The arrays, in the order of a pass.
        dtype: "bfloat16", "float32" or "int8".
        bos: Whether the rows of leading `<bos>` tokens are kept.
        outliers: Rows are left out whose norm at one of the arrays is more than so many times the median of their shard.
        max_tokens: The most tokens of one run, `<bos>` included.
        long: What happens to longer texts: "error", "cut" or "split".
        empty: What happens to texts without tokens: "error" or "skip".
        exact: Whether each text goes through a layer by itself, so that its rows are those of gs.trace(text).
        rows_at_once: How many rows of several texts go through a layer together, where exact is False.
        rows_per_shard: A shard ends with the text that brings it to this many rows.
    """

    arrays: tuple[ArraySpec, ...]
    dtype: str
    bos: bool
    outliers: float | None
    max_tokens: int
    long: str
    empty: str
    exact: bool
    rows_at_once: int
    rows_per_shard: int

    @property
    def bytes_per_row(self) -> int:
        """The bytes of one row on the disk, with its text, position and token."""
        return sum(map(self.bytes_of, self.arrays)) + 16

    @property
    def arrays_text(self) -> str:
        """The arrays in words: "resid_post (layers 2, 5), final"."""
        layers: dict[str, list[str]] = {}
        for array in self.arrays:
            layers.setdefault(array.site, []).extend([] if array.layer is None else [str(array.layer)])
        return ", ".join(
            site + (f" (layer{'s' if len(of) > 1 else ''} {', '.join(of)})" if of else "") for site, of in layers.items()
        )

    def bytes_of(self, array: ArraySpec) -> int:
        """The bytes of one row of an array on the disk."""
        return DTYPES[self.dtype].itemsize * array.width + (4 if self.dtype == "int8" else 0)

    def as_data(self) -> dict[str, object]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_data(cls, data: Mapping[str, object]) -> StoreSpec:
        """From what as_data gave. KeyError, TypeError or ValueError for anything else."""
        listed: Any = data["arrays"]
        arrays = tuple(
            ArraySpec(str(a["site"]), a["layer"], tuple(map(str, a["axes"])), tuple(map(int, a["shape"]))) for a in listed
        )
        if data["dtype"] not in DTYPES or not arrays:
            raise ValueError("it names no dtype or no arrays that this version knows")
        return cls(**{**data, "arrays": arrays})  # type: ignore[arg-type]


def arrays_of(sites: object, layers: object, model: Model) -> tuple[ArraySpec, ...]:
    """The arrays that a user asks for, in the order of a pass.

    Args:
        sites: A site, or a list: "resid_post" (at layers), ("z", 5), "layers.5.z", "final", or names of TransformerLens.
        layers: For sites without a layer of their own: a number or a list; None for all.
        model: The model.

    Raises:
        SiteError: There is no such site or layer, a site has a value for each pair of positions instead of rows, or no site
            takes the layers.
    """
    keys = [sites] if isinstance(sites, str) or _is_pair(sites) else _listed(sites)
    numbers = _layers(layers, model)
    found: dict[SiteKey, Site] = {}
    takes_layers = False
    for key in keys:
        for site, layer in _addresses(key, numbers, model):
            found[site.name, layer] = site
        takes_layers |= _takes_layers(key)
    if layers is not None and not takes_layers:
        raise SiteError(
            f"layers={short_repr(layers)} goes with no site: each of {short_repr(sites)} has its own layer, or none. "
            "Leave it out"
        )
    order = {name: number for number, name in enumerate(SITES)}
    ordered = sorted(found, key=lambda key: (_place(key, model.n_layers), order[key[0]]))
    return tuple(_array(found[key], key[1], model) for key in ordered)


def _place(key: SiteKey, n_layers: int) -> int:
    name, layer = key
    return layer if layer is not None else -1 if name == "embed" else n_layers


def _array(site: Site, layer: int | None, model: Model) -> ArraySpec:
    axes = site.axes[1:]
    return ArraySpec(site.name, layer, axes, tuple(model.config.size_of(axis, 0) for axis in axes))


def _is_pair(key: object) -> bool:
    return isinstance(key, tuple) and len(key) == 2 and (key[1] is None or is_whole(key[1]))


def _listed(sites: object) -> Sequence[object]:
    if not is_list(sites):
        raise SiteError(f"sites is a site or a list of them, such as ['resid_post', ('z', 5)]; given {short_repr(sites)}")
    keys = as_list(sites, "sites", error=SiteError)
    if not keys:
        raise SiteError("the list of sites is empty: name at least one, such as 'resid_post'")
    return keys


def _layers(layers: object, model: Model) -> list[int]:
    if layers is None:
        return list(range(model.n_layers))
    numbers = as_numbers(layers)
    if not numbers:
        raise SiteError(f"layers is a number or a list of them, or None for all; given {short_repr(layers)}")
    return [find_layer(number, model.n_layers) for number in numbers]


def _takes_layers(key: object) -> bool:
    if not isinstance(key, str):
        return False
    site, layer = parse_site_name(key)
    return site.in_layer and layer is None


def _addresses(key: object, layers: Iterable[int], model: Model) -> list[tuple[Site, int | None]]:
    if isinstance(key, str) and _takes_layers(key):
        site = parse_site_name(key)[0]
        addresses: list[tuple[Site, int | None]] = [(site, layer) for layer in layers]
    else:
        found = find(key, model.n_layers)
        site, addresses = found.site, [(found.site, found.layer)]
    if site.is_edges:
        raise SiteError(
            f"'{site.name}' has a value for each pair of positions, and a store holds a row for each position. The sites "
            f"that have rows: {', '.join(ROW_SITES)}. Of one text, gs.trace(text, keep={site.name!r}) keeps it"
        )
    return addresses


def require_dtype(dtype: object) -> str:
    """The name of a dtype that rows are stored in; a torch dtype is taken by its name. StoreError for another one."""
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
    if isinstance(name, str) and name in DTYPES:
        return name
    raise StoreError(f"dtype is one of {', '.join(map(repr, DTYPES))}; given {short_repr(dtype)}")

"""How Gemma Scope (arXiv 2408.05147) names its dictionaries: repositories by model and site, folders by layer, width and L0.

google/gemma-scope-2b-pt-res    layer_20/width_16k/average_l0_71/params.npz
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from gemmascope.arguments import is_whole, short_repr, whole_number
from gemmascope.errors import DictionaryError

# The last part of a repository's name -> the site, or "transcoder".
TRANSCODER = "transcoder"
SITES = {"res": "resid_post", "mlp": "mlp_out", "att": "z", "transcoders": TRANSCODER}
PARAMS = "params.npz"

# The average L0 that "canonical" means, which SAELens chose: the one nearest to this. Two pairs are equally near; of one of
# them SAELens took the larger.
CANONICAL, CANONICAL_L0 = "canonical", 100
_LARGER_OF_TWO = {("gemma-scope-9b-pt-att", 27, "16k")}

_REPOSITORY = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att|transcoders)(?:-canonical)?$")
EMBEDDING = "embedding"


@dataclass(frozen=True)
class Suite:
    """A repository of dictionaries: the model that they were trained for, and their site."""

    size: str
    tuned: bool
    site: str

    @property
    def model(self) -> str:
        """The model's hub id."""
        return f"google/gemma-2-{self.size}{'-it' if self.tuned else ''}"

    @classmethod
    def of(cls, name: str) -> Suite | None:
        """The suite of a repository's name, or of a folder named like one; None for another name."""
        match = _REPOSITORY.search(name)
        return cls(match[1], match[2] == "it", SITES[match[3]]) if match else None


@dataclass(frozen=True)
class Entry:
    """A dictionary in a repository. layer: a number, or "embedding". l0: a number, or "canonical"."""

    path: str
    layer: int | str
    width: str
    l0: int | str

    @classmethod
    def of(cls, path: str) -> Entry | None:
        """The entry of a path, from its last folders; None for another path."""
        parts = PurePosixPath(path).parts
        if len(parts) < 4 or parts[-1] != PARAMS:
            return None
        layer, width, sparsity = parts[-4:-1]
        numbered = re.fullmatch(r"layer_(\d+)", layer)
        sparse = re.fullmatch(r"average_l0_(\d+)|canonical", sparsity)
        if not (numbered or layer == EMBEDDING) or not width.startswith("width_") or not sparse:
            return None
        l0 = int(sparse[1]) if sparse[1] else CANONICAL
        return cls(path, int(numbered[1]) if numbered else EMBEDDING, width.removeprefix("width_"), l0)


def width_name(width: int | str) -> str:
    """A width as in folder names: 16384 is "16k", 1048576 is "1m"."""
    if isinstance(width, str):
        return width.lower()
    if not is_whole(width) or not 1 <= int(width) < 10**12:
        raise DictionaryError(f"width is how many features there are: 16384 or '16k'; given {short_repr(width)}")
    width = int(width)
    return f"{width // 10**6}m" if width >= 10**6 else f"{width // 1000}k" if width >= 1000 else str(width)


def width_names(width: object) -> tuple[str, ...]:
    """The names of a width: 65536 is "65k" of Gemma Scope, and "64k" of others."""
    name = width_name(width)  # type: ignore[arg-type]
    return (name,) if isinstance(width, str) else (name, f"{int(width) // 1024}k")  # type: ignore[call-overload]


def layer_or_l0(value: object, name: str) -> int | str | None:
    """A layer or an L0 as entries have it. DictionaryError for anything but a number or a text."""
    return value if value is None or isinstance(value, str) else whole_number(value, name, least=0, error=DictionaryError)


@dataclass(frozen=True)
class DictionaryRequest:
    """Which dictionary of a repository to take. None leaves it open."""

    layer: int | str | None = None
    width: int | str | None = None
    l0: int | str | None = None

    def choose(self, entries: Iterable[Entry], source: str) -> Entry:
        """The one dictionary that fits. DictionaryError, which lists the choices, for none or several.

        source: Where they are, for the error.
        """
        candidates = sorted(entries, key=_order)
        if not candidates:
            raise DictionaryError(f"{source} holds no dictionaries: nothing in it is called layer_*/width_*/*/{PARAMS}")
        request = {
            "layer": layer_or_l0(self.layer, "layer"),
            "width": None if self.width is None else width_name(self.width),
            "l0": layer_or_l0(self.l0, "l0"),
        }
        for name, value in request.items():
            fitting = [entry for entry in candidates if value is None or getattr(entry, name) == value]
            if not fitting and (name, value) == ("l0", CANONICAL):
                fitting = _canonical(candidates, source)
            if not fitting:
                requested = ", ".join(f"{n}={short_repr(v)}" for n, v in request.items() if v is not None)
                raise DictionaryError(f"{source} has no dictionary of {requested}; it has {_choices(candidates, name)}")
            candidates = fitting
        if len(candidates) > 1:
            several = [name for name in request if len({getattr(entry, name) for entry in candidates}) > 1]
            choices = "; ".join(_choices(candidates, name) for name in several)
            raise DictionaryError(f"{source} has {len(candidates)} dictionaries that fit: say which, by {choices}")
        return candidates[0]


def _canonical(entries: Iterable[Entry], source: str) -> list[Entry]:
    """For each layer and width the entry whose average L0 is nearest to 100."""
    groups: dict[tuple[int | str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.layer, entry.width), []).append(entry)
    repository = source.rstrip("/").rsplit("/", 1)[-1]
    return [min(group, key=lambda entry: canonical_order(entry, repository)) for group in groups.values() if group]


def canonical_order(entry: Entry, repository: str) -> tuple[float, int]:
    """Sorts entries of a layer and width: the canonical one comes first.

    Args:
        entry: An entry with a number for its L0.
        repository: The name of its repository, without its owner.
    """
    l0 = entry.l0 if isinstance(entry.l0, int) else CANONICAL_L0
    larger = (repository, entry.layer, entry.width) in _LARGER_OF_TWO
    return abs(l0 - CANONICAL_L0), -l0 if larger else l0


def _order(entry: Entry) -> tuple[int, str, int, str, str]:
    layer = -1 if isinstance(entry.layer, str) else entry.layer
    return layer, entry.width[-1], len(entry.width), entry.width, str(entry.l0).zfill(5)


def _choices(entries: Iterable[Entry], name: str) -> str:
    """'l0 22, 41 or 82'"""
    values = [repr(value) for value in dict.fromkeys(getattr(entry, name) for entry in entries)]
    return f"{name} {' or '.join(filter(None, [', '.join(values[:-1]), values[-1]]))}"

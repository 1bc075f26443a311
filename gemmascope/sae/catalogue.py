"""How Gemma Scope names its dictionaries: repositories by model and site, folders by layer, width and sparsity.

    google/gemma-scope-2b-pt-res    layer_20/width_16k/average_l0_71/params.npz

Source: "Gemma Scope: Open Sparse Autoencoders Everywhere All At Once on Gemma 2" (arXiv 2408.05147) and its repositories.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from gemmascope.arguments import is_whole, shown, whole_number
from gemmascope.errors import DictionaryError

# What a repository's name ends in -> the site: of a transcoder, which reads the MLP's input, the word for it.
TRANSCODER = "transcoder"
SITES = {"res": "resid_post", "mlp": "mlp_out", "att": "z", "transcoders": TRANSCODER}
PARAMS = "params.npz"

_REPOSITORY = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att|transcoders)(?:-canonical)?$")
EMBEDDING = "embedding"


@dataclass(frozen=True)
class Suite:
    """What a repository's name says: which model's, and at which site."""

    size: str
    tuned: bool
    site: str

    @property
    def model(self) -> str:
        return f"google/gemma-2-{self.size}{'-it' if self.tuned else ''}"

    @classmethod
    def of(cls, name: str) -> Suite | None:
        """The suite of a repository, or of a folder that is named as one."""
        found = _REPOSITORY.search(name)
        return cls(found[1], found[2] == "it", SITES[found[3]]) if found else None


@dataclass(frozen=True)
class Entry:
    """A dictionary in a repository, by its path there. layer: a number, or "embedding". l0: a number, or "canonical"."""

    path: str
    layer: int | str
    width: str
    l0: int | str

    @classmethod
    def of(cls, path: str) -> Entry | None:
        """What the last folders of a path say; None where they say nothing."""
        parts = PurePosixPath(path).parts
        if len(parts) < 4 or parts[-1] != PARAMS:
            return None
        layer, width, sparsity = parts[-4:-1]
        numbered = re.fullmatch(r"layer_(\d+)", layer)
        sparse = re.fullmatch(r"average_l0_(\d+)|canonical", sparsity)
        if not (numbered or layer == EMBEDDING) or not width.startswith("width_") or not sparse:
            return None
        l0 = int(sparse[1]) if sparse[1] else "canonical"
        return cls(path, int(numbered[1]) if numbered else EMBEDDING, width.removeprefix("width_"), l0)


def width_name(width: int | str) -> str:
    """A width as folders say it: 16384 is "16k", 1048576 "1m"."""
    if isinstance(width, str):
        return width.lower()
    if not is_whole(width) or not 1 <= int(width) < 10**12:
        raise DictionaryError(f"width is how many features there are: 16384 or '16k'; given {shown(width)}")
    width = int(width)
    return f"{width // 10**6}m" if width >= 10**6 else f"{width // 1000}k" if width >= 1000 else str(width)


def _place(given: Any, name: str) -> int | str | None:
    """A layer or a sparsity as an entry has it. DictionaryError for what is neither a number nor a word."""
    return given if given is None or isinstance(given, str) else whole_number(given, name, least=0, error=DictionaryError)


def choose(
    entries: Iterable[Entry], where: str, layer: int | str | None, width: int | str | None, l0: int | str | None
) -> Entry:
    """The one dictionary that is meant. DictionaryError that lists what there is, where that is none or several."""
    left = sorted(entries, key=_order)
    if not left:
        raise DictionaryError(f"{where} holds no dictionaries: nothing in it is called layer_*/width_*/*/{PARAMS}")
    asked = {"layer": _place(layer, "layer"), "width": None if width is None else width_name(width), "l0": _place(l0, "l0")}
    for name, wanted in asked.items():
        fits = [entry for entry in left if wanted is None or getattr(entry, name) == wanted]
        if not fits:
            before = ", ".join(f"{n}={shown(w)}" for n, w in asked.items() if w is not None)
            raise DictionaryError(f"{where} has no dictionary of {before}: there, {_choices(left, name)}")
        left = fits
    if len(left) > 1:
        several = [name for name in asked if len({getattr(entry, name) for entry in left}) > 1]
        choices = "; ".join(_choices(left, name) for name in several)
        raise DictionaryError(f"{where} has {len(left)} dictionaries that fit: say which, by {choices}")
    return left[0]


def _order(entry: Entry) -> tuple[int, str, int, str, str]:
    layer = -1 if isinstance(entry.layer, str) else entry.layer
    return layer, entry.width[-1], len(entry.width), entry.width, str(entry.l0).zfill(5)


def _choices(entries: Iterable[Entry], name: str) -> str:
    """'l0 = 22, 41 or 82'"""
    said = [repr(value) for value in dict.fromkeys(getattr(entry, name) for entry in entries)]
    return f"{name} = {' or '.join(filter(None, [', '.join(said[:-1]), said[-1]]))}"

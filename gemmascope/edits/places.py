"""Where an edit acts: positions and heads as users write them, looked up in a run.

pos: a number (negative ones count from the end), a slice, a list of numbers, a token that occurs once in the prompt,
or None for all. head: a number, a list, or None for all; at k, k_rot and v it counts key-value heads.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from gemmascope.arguments import as_numbers, is_whole, shown
from gemmascope.errors import SiteError
from gemmascope.model.model import Model
from gemmascope.sites import Site, near_names

Pos = int | slice | Iterable[int] | str | None
Head = int | Iterable[int] | None


def find_positions(pos: Any, model: Model, ids: Tensor) -> list[int]:
    """The positions meant by pos in a run of these ids, in the order given. SiteError for one that is not there."""
    n_pos = len(ids)
    if pos is None:
        return list(range(n_pos))
    if isinstance(pos, slice):
        start, stop, step = _slice_numbers(pos)
        found = list(range(n_pos))[start:stop:step]
        if not found:
            raise SiteError(f"the slice {_show_slice(pos)} holds none of the {n_pos} positions (0 to {n_pos - 1})")
        return found
    if isinstance(pos, str):
        return [_find_token(pos, model, ids)]
    return _numbers(_listed(pos, "pos"), n_pos, "pos", "position")


def find_generation_positions(pos: Any, model: Model, prompt: Tensor, n_total: int) -> list[int] | None:
    """The positions meant by pos in a run that begins with a prompt and may come to have n_total; None for all of them.

    Tokens are looked up in the prompt, negative numbers count from its end; numbers beyond it are positions to come, and
    an open slice goes on through them. SiteError for a position that cannot be there.
    """
    n_prompt = len(prompt)
    if pos is None:
        return None
    if isinstance(pos, str):
        return find_positions(pos, model, prompt)
    if isinstance(pos, slice):
        found = _slice_ahead(pos, n_prompt, n_total)
        if not found:
            raise SiteError(f"the slice {_show_slice(pos)} holds none of the {n_total} positions that there may be")
        return found
    listed = _listed(pos, "pos")
    far = [at for at in listed if is_whole(at) and not -n_prompt <= int(at) < n_total]
    if far:
        raise SiteError(
            f"there is no position {shown(far[0])}: the prompt has {n_prompt} tokens and up to {n_total - n_prompt} are "
            f"generated, so positions go from 0 to {n_total - 1} (or from -1 to -{n_prompt}, from the prompt's end)"
        )
    ahead = [int(at) + n_prompt if is_whole(at) and int(at) < 0 else at for at in listed]
    return _numbers(ahead, n_total, "pos", "position")


def _slice_ahead(pos: slice, n_prompt: int, n_total: int) -> list[int]:
    """What a slice holds of n_total positions, with negative numbers counted from the end of the prompt."""
    first, last, step = _slice_numbers(pos)
    ends = [at + n_prompt if at is not None and at < 0 else at for at in (first, last)]
    # A number before the beginning would count from the end again.
    start, stop = (-n_total - 1 if at is not None and at < 0 else at for at in ends)
    return list(range(n_total))[start:stop:step]


def _slice_numbers(pos: slice) -> tuple[int | None, int | None, int | None]:
    """The start, stop and step of a slice. SiteError for one that is no whole number, and for a step of 0."""
    named = {"start": pos.start, "stop": pos.stop, "step": pos.step}
    for name, at in named.items():
        if at is not None and not is_whole(at):
            raise SiteError(f"the {name} of a slice of positions is a whole number; given {shown(at)}")
    start, stop, step = (None if at is None else int(at) for at in named.values())
    if step == 0:
        raise SiteError(f"the slice {_show_slice(pos)} has a step of 0: it never comes to a next position")
    return start, stop, step


def find_heads(head: Any, site: Site, model: Model) -> list[int] | None:
    """The heads meant by head at a site; None at a site without heads. SiteError for one that is not there."""
    config = model.config
    if site.heads is None:
        if head is not None:
            raise SiteError(f"'{site.name}' has no heads: leave head out; given head={shown(head)}")
        return None
    n_heads = config.n_heads if site.heads == "head" else config.n_kv_heads
    if head is None:
        return list(range(n_heads))
    heads = _listed(head, "head")
    if site.heads == "kv_head" and any(is_whole(h) and n_heads <= int(h) < config.n_heads for h in heads):
        shared = config.heads_per_kv
        raise SiteError(
            f"'{site.name}' has {n_heads} kv heads, 0 to {n_heads - 1}; given head={shown(head)}. "
            f"Each kv head serves {shared} query heads: query head h reads kv head h // {shared}"
        )
    return _numbers(heads, n_heads, "head", "kv head" if site.heads == "kv_head" else "head")


def first_difference(model: Model, ids: Tensor, other: Tensor) -> str:
    """Where two prompts part, for an error about lengths that differ: the first token that differs, and both texts."""
    a, b = model.texts(ids), model.texts(other)
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    here = f"part at position {at}, at {a[at : at + 1]} and {b[at : at + 1]}"
    return f"they have {len(a)} and {len(b)} tokens and {here}. The run: {a}. The other: {b}"


def _find_token(text: str, model: Model, ids: Tensor) -> int:
    texts = model.texts(ids)
    places = [i for i, t in enumerate(texts) if t == text]
    if len(places) == 1:
        return places[0]
    if places:
        raise SiteError(f"the token {text!r} occurs {len(places)} times, at positions {places}: give the position's number")
    near = near_names(text, list(dict.fromkeys(texts)))
    meant = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise SiteError(f"the token {text!r} is not in the prompt.{meant} Its tokens are {texts}")


def _listed(given: Any, name: str) -> list[Any]:
    listed = as_numbers(given)
    if listed is None:
        raise SiteError(f"{name} is a number or a list of numbers; given {shown(given)}")
    if not listed:
        raise SiteError(f"{name} is an empty list: name at least one, or leave it out for all")
    return listed


def _numbers(listed: list[Any], size: int, name: str, what: str) -> list[int]:
    numbers = [_number(given, size, what) for given in listed]
    if len(set(numbers)) < len(numbers):
        raise SiteError(f"{name} names one twice: {listed}")
    return numbers


def _number(given: Any, size: int, what: str) -> int:
    if not is_whole(given):
        raise SiteError(f"a {what} is a whole number; given {shown(given)}")
    number = int(given)
    if not -size <= number < size:
        raise SiteError(
            f"there is no {what} {shown(number)}: {what}s go from 0 to {size - 1} (or from -1 to -{size}, from the end)"
        )
    return number % size


def _show_slice(s: slice) -> str:
    parts = [s.start, s.stop] if s.step is None else [s.start, s.stop, s.step]
    return ":".join("" if p is None else shown(p) for p in parts)

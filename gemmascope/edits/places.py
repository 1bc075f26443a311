"""Looks up the positions and heads of an edit in a run.

pos: a number (negative from the end), a slice, a list of numbers, a token that occurs once in the prompt, or None for all.
head: a number, a list, or None for all; at k, k_raw, k_rot and v it counts key-value heads.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from gemmascope.arguments import as_numbers, is_whole, short_repr
from gemmascope.errors import SiteError
from gemmascope.model.model import Model
from gemmascope.sites import Site, did_you_mean

Pos = int | slice | Iterable[int] | str | None
Head = int | Iterable[int] | None


def find_positions(pos: object, model: Model, ids: Tensor) -> list[int]:
    """The positions that pos selects in a run of these ids, in the user's order. SiteError for one that does not exist."""
    n_pos = len(ids)
    if pos is None:
        return list(range(n_pos))
    if isinstance(pos, slice):
        start, stop, step = _slice_numbers(pos)
        selected = list(range(n_pos))[start:stop:step]
        if not selected:
            raise SiteError(f"the slice {_show_slice(pos)} holds none of the {n_pos} positions (0 to {n_pos - 1})")
        return selected
    if isinstance(pos, str):
        return [_find_token(pos, model, ids)]
    return _numbers(_listed(pos, "pos"), n_pos, "pos", "position")


def find_position(pos: object, model: Model, ids: Tensor, rule: str) -> int:
    """The one position that pos selects. SiteError, which begins with the rule, if there are several."""
    positions = find_positions(pos, model, ids)
    if len(positions) != 1:
        raise SiteError(f"{rule}; given pos={short_repr(pos)}")
    return positions[0]


def find_generation_positions(pos: object, model: Model, prompt: Tensor, n_total: int) -> list[int] | None:
    """The positions that pos selects in a run that begins with a prompt and may reach n_total positions; None for all.

    Tokens are looked up in the prompt and negative numbers count from its end; larger numbers are positions to come, which
    an open slice covers. SiteError for a position out of reach.
    """
    n_prompt = len(prompt)
    if pos is None:
        return None
    if isinstance(pos, str):
        return find_positions(pos, model, prompt)
    if isinstance(pos, slice):
        selected = _slice_of_generation(pos, n_prompt, n_total)
        if not selected:
            raise SiteError(f"the slice {_show_slice(pos)} holds none of the {n_total} positions that there may be")
        return selected
    listed = _listed(pos, "pos")
    outside = [at for at in listed if is_whole(at) and not -n_prompt <= int(at) < n_total]
    if outside:
        raise SiteError(
            f"there is no position {short_repr(outside[0])}: the prompt has {n_prompt} tokens and up to "
            f"{n_total - n_prompt} are generated, so positions go from 0 to {n_total - 1} (or from -1 to "
            f"-{n_prompt}, from the prompt's end)"
        )
    from_start = [int(at) + n_prompt if is_whole(at) and int(at) < 0 else at for at in listed]
    return _numbers(from_start, n_total, "pos", "position")


def _slice_of_generation(pos: slice, n_prompt: int, n_total: int) -> list[int]:
    """The positions that a slice selects from n_total, with negative numbers counted from the end of the prompt."""
    first, last, step = _slice_numbers(pos)
    bounds = [at + n_prompt if at is not None and at < 0 else at for at in (first, last)]
    # A number that is still negative would count from the end of all positions.
    start, stop = (-n_total - 1 if at is not None and at < 0 else at for at in bounds)
    return list(range(n_total))[start:stop:step]


def _slice_numbers(pos: slice) -> tuple[int | None, int | None, int | None]:
    """The start, stop and step of a slice. SiteError unless each is a whole number or None, and the step is not 0."""
    named = {"start": pos.start, "stop": pos.stop, "step": pos.step}
    for name, at in named.items():
        if at is not None and not is_whole(at):
            raise SiteError(f"the {name} of a slice of positions is a whole number; given {short_repr(at)}")
    start, stop, step = (None if at is None else int(at) for at in named.values())
    if step == 0:
        raise SiteError(f"the slice {_show_slice(pos)} has a step of 0: it never comes to a next position")
    return start, stop, step


def find_heads(head: object, site: Site, model: Model) -> list[int] | None:
    """The heads that head selects at a site; None at a site without heads. SiteError for one that does not exist."""
    config = model.config
    if site.heads is None:
        if head is not None:
            raise SiteError(f"'{site.name}' has no heads: leave head out; given head={short_repr(head)}")
        return None
    n_heads = config.n_heads if site.heads == "head" else config.n_kv_heads
    if head is None:
        return list(range(n_heads))
    heads = _listed(head, "head")
    if site.heads == "kv_head" and any(is_whole(h) and n_heads <= int(h) < config.n_heads for h in heads):
        shared = config.heads_per_kv
        raise SiteError(
            f"'{site.name}' has {n_heads} kv heads, 0 to {n_heads - 1}; given head={short_repr(head)}. "
            f"Each kv head serves {shared} query heads: query head h reads kv head h // {shared}"
        )
    return _numbers(heads, n_heads, "head", "kv head" if site.heads == "kv_head" else "head")


def differing_position(model: Model, ids: Tensor, other: Tensor) -> int:
    """The first position at which two prompts have different tokens; the shorter length if one begins the other."""
    a, b = model.texts(ids), model.texts(other)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def first_difference(model: Model, ids: Tensor, other: Tensor) -> str:
    """Describes two prompts of different lengths for an error: their first differing token, and both texts."""
    a, b = model.texts(ids), model.texts(other)
    at = differing_position(model, ids, other)
    parting = f"part at position {at}, at {a[at : at + 1]} and {b[at : at + 1]}"
    return f"they have {len(a)} and {len(b)} tokens and {parting}. The run: {a}. The other: {b}"


def _find_token(text: str, model: Model, ids: Tensor) -> int:
    texts = model.texts(ids)
    places = [i for i, t in enumerate(texts) if t == text]
    if len(places) == 1:
        return places[0]
    if places:
        raise SiteError(f"the token {text!r} occurs {len(places)} times, at positions {places}: give the position's number")
    hint = did_you_mean(text, list(dict.fromkeys(texts)))
    raise SiteError(f"the token {text!r} is not in the prompt.{hint} Its tokens are {texts}")


def _listed(places: object, name: str) -> list[object]:
    listed = as_numbers(places)
    if listed is None:
        raise SiteError(f"{name} is a number or a list of numbers; given {short_repr(places)}")
    if not listed:
        raise SiteError(f"{name} is an empty list: name at least one, or leave it out for all")
    return listed


def _numbers(listed: list[object], size: int, name: str, what: str) -> list[int]:
    numbers = [_number(one, size, what) for one in listed]
    if len(set(numbers)) < len(numbers):
        raise SiteError(f"{name} names one twice: {listed}")
    return numbers


def _number(place: object, size: int, what: str) -> int:
    if not is_whole(place):
        raise SiteError(f"a {what} is a whole number; given {short_repr(place)}")
    number = int(place)
    if not -size <= number < size:
        raise SiteError(
            f"there is no {what} {short_repr(number)}: {what}s go from 0 to {size - 1} (or from -1 to -{size}, from the end)"
        )
    return number % size


def _show_slice(s: slice) -> str:
    parts = [s.start, s.stop] if s.step is None else [s.start, s.stop, s.step]
    return ":".join("" if p is None else short_repr(p) for p in parts)

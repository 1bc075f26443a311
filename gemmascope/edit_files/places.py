"""The places of an edit in JSON: a number, a list of numbers, the text of a token, or a slice as an object."""

from __future__ import annotations

from collections.abc import Mapping

from gemmascope.arguments import MAX_ITEMS, as_numbers, is_whole, short_repr
from gemmascope.errors import EditError

Place = int | str | list[int] | dict[str, int]

_SLICE = ("start", "stop", "step")
# No position, head or layer is as large; a larger number would take ever more digits.
_LARGEST = 2**53


def place_json(place: object, name: str) -> Place:
    """A place as JSON. name: of the argument, such as "pos". EditError for what selects no place."""
    if isinstance(place, str) and name != "head":
        return str.__str__(place)  # drops a subclass, such as numpy.str_
    if isinstance(place, slice) and name != "head":
        bounds = {part: getattr(place, part) for part in _SLICE}
        return {part: whole_json(at, f"the {part} of {name}") for part, at in bounds.items() if at is not None}
    listed = as_numbers(place)
    if listed is None or len(listed) > MAX_ITEMS:
        raise EditError(f"{name} is a number, a list of numbers, a slice or a token; given {short_repr(place)}")
    numbers = [whole_json(one, name) for one in listed]
    return numbers[0] if is_whole(place) else numbers


def place_of(content: object, name: str) -> int | str | list[int] | slice:
    """The place that place_json wrote. EditError for anything else."""
    if isinstance(content, str) and name != "head":
        return content
    if isinstance(content, Mapping) and name != "head":
        if unknown := [key for key in content if key not in _SLICE]:
            raise EditError(f"{name} as an object is a slice, of start, stop and step; given {short_repr(unknown[0])}")
        return slice(*(whole_json(content[part], f"the {part} of {name}") if part in content else None for part in _SLICE))
    if isinstance(content, list):
        return [whole_json(one, name) for one in content]
    return whole_json(content, name)


def whole_json(value: object, name: str) -> int:
    """A whole number that a file can hold. EditError for anything else."""
    if not is_whole(value) or abs(number := int(value)) > _LARGEST:
        raise EditError(f"{name} is a whole number, at most {_LARGEST:,}; given {short_repr(value)}")
    return number

"""Public names with their signatures, and public methods, are those that tests/public_names.txt lists.

To record an intended change: python tests/test_public_names.py > tests/public_names.txt
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gemmascope as gs

LISTED = Path(__file__).parent / "public_names.txt"


def lines() -> Iterator[str]:
    """A line for each public name, and for each method and property of a public class."""
    for name in sorted(gs.__all__):
        value = getattr(gs, name)
        if inspect.isclass(value):
            yield f"class {name}"
            yield from (f"  {line}" for line in sorted(_members(value)))
        elif callable(value):
            yield f"{name}{_signature(value)}"
        else:
            yield f"{name}: {type(value).__name__}"


def members(cls: type) -> dict[str, Any]:
    """The members of a class and of all its bases that this package defines."""
    parts = [one for one in reversed(cls.__mro__) if one.__module__.split(".")[0] == "gemmascope"]
    return {name: member for part in parts for name, member in vars(part).items()}


def _members(cls: type) -> Iterator[str]:
    for name, member in members(cls).items():
        if name.startswith("_"):
            continue
        if isinstance(member, (property,)) or hasattr(member, "func"):
            yield f"{name} (property)"
        elif isinstance(member, (classmethod, staticmethod)):
            yield f"{name}{_signature(member.__func__)}"
        elif inspect.isfunction(member):
            yield f"{name}{_signature(member)}"


def _signature(function: Any) -> str:
    """Names and defaults; annotations are left to mypy."""
    signature = inspect.signature(function)
    bare = [
        p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values() if p.name not in ("self", "cls")
    ]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def test_public_names_and_signatures_are_those_listed() -> None:
    present, listed = list(lines()), LISTED.read_text(encoding="utf-8").splitlines()
    assert len(present) > 200
    missing, new = [x for x in listed if x not in present], [x for x in present if x not in listed]
    assert present == listed, f"gone or changed: {missing}; new: {new}"


if __name__ == "__main__":
    sys.stdout.write("\n".join(lines()) + "\n")

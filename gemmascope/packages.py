"""Packages that only some of gemmascope needs: where one is missing, the error says which, for what, and how to get it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gemmascope.errors import MissingPackageError

LAB = "gemmascope[lab]"


@contextmanager
def requires_package(
    what: str, *names: str, install: str = LAB, error_class: type[MissingPackageError] = MissingPackageError
) -> Iterator[None]:
    """Around imports: an ImportError becomes a MissingPackageError that says how to install what is missing.

    Args:
        what: What needs the packages, such as "the live widget".
        names: The packages.
        install: What pip is to install.
        error_class: MissingPackageError, or a class of it.

    Raises:
        MissingPackageError: One of the packages, or one that it needs itself, cannot be imported.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "gemmascope":
            raise
        needed = f'{what} needs {" and ".join(names)}: pip install "{install}" ({error})'
        raise error_class(needed, name=error.name) from error


def plotly(part: str = "graph_objects") -> Any:
    """A module of plotly, such as plotly.graph_objects. MissingPackageError where plotly is missing."""
    with requires_package("a picture", "plotly", install="plotly"):
        return importlib.import_module(f"plotly.{part}")

"""Optional packages: when one is missing, the error says which, what needs it, and how to install it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from gemmascope.errors import MissingPackageError

LAB = "gemmascope[lab]"


@contextmanager
def requires_package(
    what: str, *names: str, install: str = LAB, error_class: type[MissingPackageError] = MissingPackageError
) -> Iterator[None]:
    """Wraps imports: an ImportError becomes a MissingPackageError that says how to install the package.

    Args:
        what: What needs the packages, such as "the live widget".
        names: The packages.
        install: The argument of pip install.
        error_class: MissingPackageError or a subclass.

    Raises:
        MissingPackageError: One of the packages, or one of its own dependencies, cannot be imported.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "gemmascope":
            raise
        needed = f'{what} needs {" and ".join(names)}: pip install "{install}" ({error})'
        raise error_class(needed, name=error.name) from error


def ipython() -> object | None:
    """IPython's shell; None outside it."""
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    shell: object | None = get_ipython()
    return shell


def plotly(part: str = "graph_objects") -> ModuleType:
    """A module of plotly, such as plotly.graph_objects. Raises MissingPackageError if plotly is not installed."""
    with requires_package("a picture", "plotly", install="plotly"):
        return importlib.import_module(f"plotly.{part}")

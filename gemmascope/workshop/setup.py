"""setup(): whether this machine is ready for the workshop, with a fix for everything that is not."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from gemmascope.legible import prints_legibly
from gemmascope.packages import ipython

# The oldest versions that the notebooks were run with; the same as in pyproject.toml.
LEAST = {
    "torch": "2.6", "transformers": "4.53", "xarray": "2024.1", "plotly": "5.24", "jupyterlab": "4.2", "ipywidgets": "8.1",
    "anywidget": "0.9.13",
}  # fmt: skip
FREE_BYTES = 2 * 10**9
PROMPT, ANSWER = "When Mary and John went to the store, John gave a drink to", " Mary"


@dataclass(frozen=True)
class Item:
    """One thing that was checked. fix: what to do about it; empty if it is as it should be."""

    name: str
    finding: str
    fix: str = ""

    @prints_legibly
    def __str__(self) -> str:
        return f"{'fix' if self.fix else 'ok ':4}{self.name:14}{self.finding}" + (f": {self.fix}" if self.fix else "")


@dataclass(frozen=True)
class Setup:
    """What setup() found."""

    items: tuple[Item, ...]

    @property
    def ok(self) -> bool:
        """Whether everything is as it should be."""
        return not any(item.fix for item in self.items)

    @prints_legibly
    def __repr__(self) -> str:
        wrong = sum(bool(item.fix) for item in self.items)
        end = "ready" if self.ok else f"{wrong} to fix; run the line again after it, in a fresh kernel"
        return "\n".join([*map(str, self.items), end])


def setup() -> Setup:
    """Check what the workshop needs: versions, the model, memory, cores and the front end. Needs no network.

    Returns:
        One item for each thing that was checked, with what to do if it is not as it should be.

    Examples:
        >>> print(gs.workshop.setup().items[0])
        ok  python        3...
    """
    checks: list[Callable[[], Item]] = [
        _python,
        *(partial(_package, name) for name in LEAST),
        _model,
        _memory,
        _cores,
        _front_end,
    ]
    return Setup(tuple(check() for check in checks))


def _python() -> Item:
    version = ".".join(map(str, sys.version_info[:3]))
    fix = "" if sys.version_info >= (3, 10) else "install Python 3.10 or later, and make the virtual environment with it"
    return Item("python", version, fix)


def _package(name: str) -> Item:
    install = f'{sys.executable} -m pip install "{name}>={LEAST[name]}"'
    try:
        version = str(importlib.import_module(name).__version__)
    except ImportError:
        return Item(name, "not there", install)
    return Item(name, version, "" if _numbers(version) >= _numbers(LEAST[name]) else install)


def _numbers(version: str) -> list[int]:
    return [int("".join(c for c in part if c.isdigit()) or 0) for part in version.split("+")[0].split(".")[:3]]


def _model() -> Item:
    import gemmascope

    try:
        token = gemmascope.trace(PROMPT).top(1)[0][0]
    except Exception as error:  # whatever it is, the rest is still to be checked
        return Item("nano", f"does not run ({type(error).__name__}: {error})", f"{sys.executable} -m pip install -e . again")
    if token != ANSWER:
        return Item("nano", f"answers {token!r}", "its files were changed: install the package again from a fresh clone")
    return Item("nano", "runs, and answers as it should")  # not what it answers: notebook 0 asks for a guess


def _memory() -> Item:
    from gemmascope.memory.host_memory import measured_bytes

    free = measured_bytes()
    if free is None:
        return Item("memory", f"cannot be measured here; {FREE_BYTES / 1e9:.0f} GB are enough for every notebook")
    fix = "" if free >= FREE_BYTES else f"close other programs: {FREE_BYTES / 1e9:.0f} GB are enough for every notebook"
    return Item("memory", f"{free / 1e9:.1f} GB free", fix)


def _cores() -> Item:
    n = os.cpu_count() or 1
    return Item("cores", f"{n}" + ("" if n > 1 else ", so everything takes about twice as long as the notebooks say"))


def _front_end() -> Item:
    """Whether widgets work here, which takes a Jupyter kernel."""
    running = kernel()
    if running is None:
        return Item(
            "front end", "no notebook", "run this in a notebook: gemmascope lab (widgets need one, the rest does not)"
        )
    return Item("front end", f"{type(running).__module__.split('.')[0]} kernel, where widgets can answer")


def kernel() -> object | None:
    """The Jupyter kernel that this runs in; None elsewhere."""
    return getattr(ipython(), "kernel", None)

"""The canvas module: files of js/ joined into one text, which static pages contain and live widgets send to the front end.

Only the files that a page or widget needs are joined: every instance of a live widget stores its module's text. The files
share one scope, so a name at the top level of one may not be used in another.
"""

from __future__ import annotations

import posixpath
import re
from functools import cache
from pathlib import Path

from gemmascope.views.minify import minified, without_unused
from gemmascope.views.short_names import with_short_names

FOLDER = Path(__file__).parent / "js"

# What draws each kind of static view, in the folder of its entry points: each exports mount(element, spec, arrays).
STATIC_FILES = {view: f"static/{view}.js" for view in ("attention", "features", "graph", "grid", "lens", "lines", "plan")}
STATIC_FILES |= {view: f"static/{view}.js" for view in ("unit", "unit_index")}
# The entry points of the live widgets: each exports the function render that anywidget calls.
LIVE_FILES = ("patching_lab.js", "head_lab.js", "steer_lab.js", "graph_lab.js")

_IMPORT = re.compile(r"^(?:import|export)\s[^;]*?from\s+\"(\.{1,2}/[\w./]+)\";\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=function|async function|const|class|let)", re.MULTILINE)


@cache
def static_module(view: str) -> str:
    """The module that draws one kind of static view: it defines mount(element, spec, arrays)."""
    return _joined(STATIC_FILES[view], kept=("mount",))


@cache
def module_text(entry: str = "patching_lab.js") -> str:
    """The module of a live widget, by its entry point."""
    return _joined(entry, kept=("render",)) + "\nexport default { render };\n"


@cache
def system_module() -> str:
    """The shared pieces of all views and a grid, for pages that draw them without a view, such as the pieces' own test."""
    return _joined("grid.js", *(f"system/{path.name}" for path in sorted((FOLDER / "system").glob("*.js"))))


def needed_by(*names: str) -> list[str]:
    """Files and all files that they import, directly or not, each after those that it imports; paths below js/.

    Raises:
        ValueError: Files import each other in a circle.
    """
    needed: list[str] = []
    for name in names:
        _add(name, needed, ())
    return needed


def _add(name: str, needed: list[str], importers: tuple[str, ...]) -> None:
    if name in importers:
        raise ValueError(f"files import each other in a circle: {' -> '.join((*importers, name))}")
    if name in needed:
        return
    for path in _IMPORT.findall((FOLDER / name).read_text(encoding="utf-8")):
        _add(posixpath.normpath(posixpath.join(posixpath.dirname(name), path)), needed, (*importers, name))
    needed.append(name)


def _joined(*entries: str, kept: tuple[str, ...] = ()) -> str:
    """Files and everything they import as one module, in which imports and exports are not needed.

    kept: the functions that the module is asked for; those that they need not are left out. Empty: all stay.
    """
    texts = ((FOLDER / name).read_text(encoding="utf-8") for name in needed_by(*entries))
    joined = "\n".join(_EXPORT.sub("", _IMPORT.sub("", text)) for text in texts)
    return minified(with_short_names(without_unused(joined, *kept) if kept else joined))

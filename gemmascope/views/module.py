"""The canvas module: files of js/ joined into one text, which static pages contain and live widgets send to the front end.

Only the files that a page or widget needs are joined: every instance of a live widget stores its module's text.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "js"

# Each file imports only from files before it.
FILES = (
    "tokens.js", "scale.js", "theme.js", "arrays.js", "select.js", "matrix.js", "page.js", "grid.js", "attention.js",
    "lens.js", "lines.js", "plan.js", "views.js", "talk.js", "models.js", "live.js", "answers.js",
)  # fmt: skip
# The entry points of the live widgets: each exports the function render that anywidget calls.
LIVE_FILES = ("patching_lab.js", "head_lab.js", "steer_lab.js")

_IMPORT = re.compile(r"^import\s[^;]*?from\s+\"\./([\w.]+)\";\n", re.MULTILINE)
# Comments and indentation go: a page contains the module once for every view.
_COMMENT = re.compile(r"^\s*//.*\n|^\s*/\*\*(?:[^*]|\*(?!/))*\*/\n", re.MULTILINE)
_INDENT = re.compile(r"^[ \t]+", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=function|async function|const|class|let)", re.MULTILINE)


@cache
def static_module() -> str:
    """The module of a static page, which defines mount(element, spec, arrays)."""
    return _joined("views.js")


@cache
def module_text(entry: str = "patching_lab.js") -> str:
    """The module of a live widget, by its entry point."""
    return _joined(entry) + "\nexport default { render };\n"


def _joined(entry: str) -> str:
    """A file and everything it imports as one module, in which imports and exports are not needed."""
    needed = needed_by(entry)
    parts = []
    for name in (*FILES, *LIVE_FILES):
        if name not in needed:
            continue
        text = (FOLDER / name).read_text(encoding="utf-8")
        for pattern in (_IMPORT, _COMMENT, _EXPORT, _INDENT):
            text = pattern.sub("", text)
        parts.append(text)
    return "\n".join(parts)


def needed_by(name: str) -> set[str]:
    """The names of a file and of all files that it imports, directly or not."""
    direct = _IMPORT.findall((FOLDER / name).read_text(encoding="utf-8"))
    return {name}.union(*map(needed_by, direct))

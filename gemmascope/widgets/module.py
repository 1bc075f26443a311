"""The canvas module: the files in js/ as one text, which static pages hold and live widgets send to the front end."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "js"

# In the order of who needs whom; a file's imports come from files before it.
FILES = (
    "tokens.js", "scale.js", "theme.js", "arrays.js", "select.js", "matrix.js", "page.js", "grid.js", "attention.js",
    "lens.js", "lines.js", "views.js",
)  # fmt: skip
LIVE_FILES = ("lab.js",)

_IMPORT = re.compile(r"^import\s[^;]*?from\s+\"\./[\w.]+\";\n", re.MULTILINE)
# A page holds the module once for every view: it goes without what only people read.
_COMMENT = re.compile(r"^\s*//.*\n|^\s*/\*\*(?:[^*]|\*(?!/))*\*/\n", re.MULTILINE)
_INDENT = re.compile(r"^[ \t]+", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=function|async function|const|class|let)", re.MULTILINE)


@cache
def static_module() -> str:
    """The module of a static page; it ends with the function mount(element, spec, arrays)."""
    return _joined(FILES)


@cache
def module_text() -> str:
    """The module of live widgets, which exports what anywidget asks for."""
    there = [name for name in LIVE_FILES if (FOLDER / name).is_file()]
    return _joined((*FILES, *there)) + "\nexport { mount };\nexport default { render };\n"


def _joined(names: tuple[str, ...]) -> str:
    """Files as one module: what each exports is at hand for those after it."""
    parts = []
    for name in names:
        text = (FOLDER / name).read_text(encoding="utf-8")
        for left_out in (_IMPORT, _COMMENT, _EXPORT, _INDENT):
            text = left_out.sub("", text)
        parts.append(text)
    return "\n".join(parts)

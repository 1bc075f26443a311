"""The canvas module: files in js/ as one text, which static pages hold and live widgets send to the front end.

One page or widget takes what it draws with and no more: a live widget stores its text in every instance.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "js"

# In the order of who needs whom; a file's imports come from files before it.
FILES = (
    "tokens.js", "scale.js", "theme.js", "arrays.js", "select.js", "matrix.js", "page.js", "grid.js", "attention.js",
    "lens.js", "lines.js", "plan.js", "views.js", "talk.js", "live.js", "answers.js",
)  # fmt: skip
# Each of these is what one live widget begins with: it exports the function render that anywidget asks for.
LIVE_FILES = ("patching_lab.js", "head_lab.js", "steer_lab.js")

_NEEDS = re.compile(r"^import\s[^;]*?from\s+\"\./([\w.]+)\";\n", re.MULTILINE)
# A page holds the module once for every view: it goes without what only people read.
_COMMENT = re.compile(r"^\s*//.*\n|^\s*/\*\*(?:[^*]|\*(?!/))*\*/\n", re.MULTILINE)
_INDENT = re.compile(r"^[ \t]+", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=function|async function|const|class|let)", re.MULTILINE)


@cache
def static_module() -> str:
    """The module of a static page; it ends with the function mount(element, spec, arrays)."""
    return _joined("views.js")


@cache
def module_text(live: str = "patching_lab.js") -> str:
    """The module of a live widget, by the file that it begins with."""
    return _joined(live) + "\nexport default { render };\n"


def _joined(last: str) -> str:
    """A file and all that it needs as one module: what each exports is at hand for those after it."""
    needed = needed_by(last)
    parts = []
    for name in (*FILES, *LIVE_FILES):
        if name not in needed:
            continue
        text = (FOLDER / name).read_text(encoding="utf-8")
        for left_out in (_NEEDS, _COMMENT, _EXPORT, _INDENT):
            text = left_out.sub("", text)
        parts.append(text)
    return "\n".join(parts)


def needed_by(name: str) -> set[str]:
    """The names of a file and of those that it imports from, however far away."""
    direct = _NEEDS.findall((FOLDER / name).read_text(encoding="utf-8"))
    return {name}.union(*map(needed_by, direct))

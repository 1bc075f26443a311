"""One version of a notebook, made from its source, a jupytext script.

A cell tagged "exercise" is what a learner starts from; the cell tagged "solution" after it is a finished version. A cell
tagged "written" holds what somebody thought of a claim. Each source becomes two notebooks: one for learners, without the
last two kinds, and one without exercises. In the learners' version checks are allowed to fail, so that running all cells
does not stop at what is still to be written.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from gemmascope.errors import GemmascopeError

if TYPE_CHECKING:
    from nbformat import NotebookNode

# In the folder of notebooks, out of a learner's way.
SOURCES = Path("teaching") / "source"

_LEFT_OUT = {"exercise": {"solution", "written"}, "solution": {"exercise"}}

# Jupyter's own tag: running all cells goes on after an error in such a cell.
MAY_FAIL = "raises-exception"


def notebook(source: Path, version: str) -> NotebookNode:
    """One version of a notebook, without outputs. The same source always gives the same bytes.

    GemmascopeError if a solution does not follow its exercise.
    """
    import jupytext
    import nbformat

    read = jupytext.read(source, fmt="py:percent")
    _require_pairs(source, read.cells)
    built = nbformat.v4.new_notebook()
    built.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in read.cells:
        if _LEFT_OUT[version] & set(_tags(cell)):
            continue
        is_check = version == "exercise" and "check" in _tags(cell)
        new = nbformat.v4.new_markdown_cell if cell.cell_type == "markdown" else nbformat.v4.new_code_cell
        tags = [*_tags(cell), MAY_FAIL] if is_check else _tags(cell)
        metadata = {"tags": tags} if tags else {}
        built.cells.append(new(_text(cell, version), id=f"{source.stem[:40]}-{len(built.cells)}", metadata=metadata))
        if is_check:
            pointer = _solution_link(source, cell)
            built.cells.append(nbformat.v4.new_markdown_cell(pointer, id=f"{source.stem[:40]}-{len(built.cells)}"))
    return built


def _solution_link(source: Path, check: NotebookNode) -> str:
    """A link to the solution of an exercise, folded, so that nobody reads it by accident."""
    number = ".".join(re.findall(r"ex_(\d+)_(\d+)", check.source)[0])
    target = f"solutions/{source.stem}.ipynb"
    return f'<details><summary>Solution</summary>Exercise {number} in <a href="{target}">{target}</a>.</details>'


def _text(cell: NotebookNode, version: str) -> str:
    """A cell's text; pictures stand beside the solutions."""
    text = str(cell.source)
    return text.replace('<img src="images/', '<img src="solutions/images/') if version == "exercise" else text


def _tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def _require_pairs(source: Path, cells: list[NotebookNode]) -> None:
    for before, cell in zip([None, *cells], cells, strict=False):
        if "solution" in _tags(cell) and (before is None or "exercise" not in _tags(before)):
            start = cell.source.splitlines()[0] if cell.source else ""
            raise GemmascopeError(f"{source}: the solution that begins {start!r} does not follow its exercise")

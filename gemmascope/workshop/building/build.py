"""python -m gemmascope.workshop.building.build [FOLDER] [--pictures]: writes the notebooks and part of their guide.

The sources are in notebooks/source.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from gemmascope.files.writing import make_folder, write_file
from gemmascope.workshop.building.guide import write_guide
from gemmascope.workshop.building.notebook import notebook
from gemmascope.workshop.building.pictures import draw_pictures


def text_of(source: Path, version: str) -> str:
    """One version of a notebook, as the text of its file."""
    import nbformat

    return str(nbformat.writes(notebook(source, version))) + "\n"


def targets(folder: Path) -> Iterator[tuple[Path, str, Path]]:
    """The source, version and file of every notebook in a folder (notebooks/)."""
    for source in sorted((folder / "source").glob("*.py")):
        yield source, "exercise", folder / f"{source.stem}.ipynb"
        yield source, "solution", folder / "solutions" / f"{source.stem}.ipynb"


def build(folder: Path) -> list[Path]:
    """Write every notebook of a folder, and return the files that changed."""
    written = []
    make_folder(folder / "solutions")
    for source, version, target in targets(folder):
        text = text_of(source, version)
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            write_file(target, text)
            written.append(target)
    guide = folder / "instructor.md"
    return [*written, guide] if guide.exists() and write_guide(guide) else written


if __name__ == "__main__":
    folders = [argument for argument in sys.argv[1:] if argument != "--pictures"]
    to_build = Path(folders[0] if folders else "notebooks")
    for path in build(to_build):
        print(f"wrote {path}")
    if "--pictures" in sys.argv:
        for path in draw_pictures(to_build):
            print(f"wrote {path}")

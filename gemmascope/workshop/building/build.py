"""python -m gemmascope.workshop.building.build [FOLDER] [--pictures]: writes the notebooks and part of their guide.

The sources are in notebooks/teaching/source. The part of the instructor's guide that is made from the checks tells the usual
mistakes and what learners are told.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from gemmascope.errors import GemmascopeError
from gemmascope.files.writing import make_folder, write_file
from gemmascope.workshop.building.notebook import SOURCES, notebook
from gemmascope.workshop.building.pictures import draw_pictures

GUIDE = Path("teaching") / "instructor.md"  # in the folder of notebooks

BEGIN = "<!-- usual errors: made by python -m gemmascope.workshop.building.build -->"
END = "<!-- end of the usual errors -->"


def text_of(source: Path, version: str) -> str:
    """One version of a notebook, as the text of its file."""
    import nbformat

    return str(nbformat.writes(notebook(source, version))) + "\n"


def targets(folder: Path) -> Iterator[tuple[Path, str, Path]]:
    """The source, version and file of every notebook in a folder (notebooks/)."""
    for source in sorted((folder / SOURCES).glob("*.py")):
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
    guide = folder / GUIDE
    return [*written, guide] if guide.exists() and write_guide(guide) else written


def usual_errors() -> str:
    """Markdown: every exercise, what its answer returns, and the mistakes that its check names."""
    from gemmascope.workshop.check import exercises

    parts = []
    for number, exercise in exercises().items():
        listed = "\n".join(f"- {wrong.message}" for wrong in exercise.wrong)
        parts.append(f"**{number}** returns {exercise.result}.\n\n{listed}\n")
    return "\n".join(parts)


def guide_text(text: str) -> str:
    """A guide with that part made anew. GemmascopeError if the text lacks the two marks."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise GemmascopeError(f"the guide has no place for the usual errors: the lines {BEGIN!r} and {END!r}, once each")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{BEGIN}\n\n{usual_errors()}\n{END}{after}"


def write_guide(path: Path) -> bool:
    """Write that part of a guide anew, and return whether it changed."""
    text = path.read_text(encoding="utf-8")
    new = guide_text(text)
    if new != text:
        write_file(path, new)
    return new != text


if __name__ == "__main__":
    folders = [argument for argument in sys.argv[1:] if argument != "--pictures"]
    to_build = Path(folders[0] if folders else "notebooks")
    for path in build(to_build):
        print(f"wrote {path}")
    if "--pictures" in sys.argv:
        for path in draw_pictures(to_build):
            print(f"wrote {path}")

"""The part of the instructor's guide that is made from the checks: the usual mistakes and what learners are told."""

from __future__ import annotations

from pathlib import Path

from gemmascope.errors import GemmascopeError
from gemmascope.files.writing import write_file

BEGIN = "<!-- usual errors: made by python -m gemmascope.workshop.building.build -->"
END = "<!-- end of the usual errors -->"


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

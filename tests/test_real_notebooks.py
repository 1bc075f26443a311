"""The notebooks on a real Gemma: the line `MODEL = ...` is changed, all cells run, and what the text quotes is printed.

tests/test_real.py says how to get the model. Notebooks 4 and 7 take longer than all others together: they run where
GEMMASCOPE_REAL_NOTEBOOKS is "all".
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from nbformat import NotebookNode
from notebook_kernel import Kernel
from test_real import FILE, HOW

from gemmascope.workshop.building.notebook import notebook

SOURCES = sorted((Path(__file__).parent.parent / "notebooks" / "teaching" / "source").glob("*.py"))
LONG = ("4_patching_lab", "7_from_nano_to_a_real_gemma")
ALL = os.environ.get("GEMMASCOPE_REAL_NOTEBOOKS") == "all"
LINE = re.compile(r'^MODEL = "(nano)?"$', re.MULTILINE)
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?%?")


def on(source: Path, model: str) -> list[NotebookNode]:
    """A notebook's solution with its one line changed."""
    cells: list[NotebookNode] = notebook(source, "solution").cells
    found = [cell for cell in cells if cell.cell_type == "code" and LINE.search(cell.source)]
    assert len(found) == 1
    found[0].source = LINE.sub(f"MODEL = {model!r}", found[0].source)
    return cells


def quoted(cells: list[NotebookNode]) -> list[str]:
    """The lines that the notebook's text says a real Gemma prints."""
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    blocks = re.findall(r"<summary>On a real Gemma</summary>(.*?)</details>", text, re.DOTALL)
    lines = [
        line for block in blocks for code in re.findall(r"```text\n(.*?)```", block, re.DOTALL) for line in code.splitlines()
    ]
    return [html.unescape(line) for line in lines]


def printed(cells: list[NotebookNode]) -> list[str]:
    """The lines that cells printed or showed as text."""
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs]
    return [line for text in texts for line in text.splitlines()]


def same(said: str, line: str) -> bool:
    """Whether a line is the one that was said: the same words and the same numbers. What is said may be its beginning.

    Measures may differ a little, since sums are rounded otherwise on another processor: those of two decimals or more,
    with a sign or a percent sign, or of a thousand and more, by 2% or two units of the last digit. Layers, heads and counts
    may not.
    """
    words, numbers = NUMBER.split(said), NUMBER.findall(said)
    start, there = NUMBER.split(line)[: len(words)], NUMBER.findall(line)[: len(numbers)]
    if len(start) < len(words) or start[:-1] != words[:-1] or not start[-1].startswith(words[-1]):
        return False
    return all(_near(*both) for both in zip(numbers, there, strict=True))


def _near(said: str, there: str) -> bool:
    decimals = len(said.rstrip("%").partition(".")[2])
    value, other = (float(number.rstrip("%")) for number in (said, there))
    if decimals < 2 and said[0] not in "+-" and "%" not in said and abs(value) < 1000:
        return said == there
    return ("%" in said) == ("%" in there) and abs(value - other) <= max(2.001 * 10.0**-decimals, 0.02 * abs(value))


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    found = Kernel()
    with found.client.setup_kernel():
        yield found


@pytest.mark.real
@pytest.mark.skipif(not FILE, reason=HOW)
@pytest.mark.parametrize("source", [source for source in SOURCES if source.stem[0] in "0123457"], ids=lambda s: s.stem)
def test_a_notebook_runs_on_the_real_model_and_prints_what_its_text_quotes(
    source: Path, kernel: Kernel, tmp_path: Path
) -> None:
    if source.stem in LONG and not ALL:
        pytest.skip('it takes minutes: GEMMASCOPE_REAL_NOTEBOOKS is "all" where it runs')
    cells = on(source, FILE)
    assert kernel.run(cells, tmp_path) == {}
    lines = printed(cells)
    assert len(quoted(cells)) >= 2
    missing = [said for said in quoted(cells) if not any(same(said, line) for line in lines)]
    assert missing == [], "\n".join(lines)


@pytest.mark.real
@pytest.mark.skipif(not FILE, reason=HOW)
def test_the_part_about_a_real_model_prints_what_its_text_quotes(kernel: Kernel, tmp_path: Path) -> None:
    """Notebook 8 is about nano; its optional part runs where GEMMASCOPE_REAL names a file."""
    (source,) = (source for source in SOURCES if source.stem == "8_circuits")
    cells = notebook(source, "solution").cells
    begin = next(i for i, cell in enumerate(cells) if "## 8.8" in cell.source)
    end = next(i for i, cell in enumerate(cells) if "## Conclude" in cell.source)
    first = next(i for i, cell in enumerate(cells) if cell.cell_type == "code")
    part = [cells[first], *cells[begin:end]]
    assert kernel.run(part, tmp_path) == {}
    assert len(quoted(part)) >= 2
    missing = [said for said in quoted(part) if not any(same(said, line) for line in printed(part))]
    assert missing == [], "\n".join(printed(part))


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_one_line_says_which_model_a_notebook_runs_on(source: Path) -> None:
    text = source.read_text(encoding="utf-8")
    if source.stem.startswith(("6", "8", "9", "porting")):  # their text is about nano, and about sizes that need no model
        assert LINE.search(text) is None
        return
    assert len(LINE.findall(text)) == 1


def test_quoted_lines_are_compared_word_for_word_and_number_by_number() -> None:
    assert same("head 3.3 restores 37%", "head 3.3 restores 38% of the gap")
    assert not same("head 3.3 restores 37%", "head 3.3 restores 41%")
    assert not same("head 3.3 restores 37%", "head 3.2 restores 37%")
    assert not same("head 3.3 restores 37%", "head 3.3 restored 37%")
    assert same("layer 5 [1, 4516]", "layer 5 [1, 4520]")
    assert not same("layer 5", "layer 6")
    assert not same("a [1, 4516]", "a [1]")
    assert same("x +5.22", "x +5.21")
    assert not same("x +5.22", "x -5.22")
    assert not same("0.85", "0.95")
    assert same("only words", "only words follow")

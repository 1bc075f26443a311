"""The notebooks: built from one source, their solutions run end to end, their exercises fail where they should."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from browser import executable
from checkpoints import checkpoint
from notebook_kernel import Kernel
from PIL import Image

import gemmascope as gs
from gemmascope.errors import GemmascopeError
from gemmascope.workshop.building.build import build, guide_text, targets, text_of
from gemmascope.workshop.building.notebook import notebook
from gemmascope.workshop.building.pictures import MOST_BYTES, draw_pictures, image_of
from gemmascope.workshop.check import exercises

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
SOURCES = sorted((NOTEBOOKS / "teaching" / "source").glob("*.py"))
TARGETS = list(targets(NOTEBOOKS))

# Asks a real model; tests/test_real_notebooks.py runs it where there is one.
NEEDS_REAL = "7_from_nano_to_a_real_gemma"
ON_NANO = [source for source in SOURCES if source.stem != NEEDS_REAL]

pytestmark = pytest.mark.nano


def tagged(source: Path, version: str, tag: str) -> list[Any]:
    return [cell for cell in notebook(source, version).cells if tag in cell.metadata.get("tags", [])]


@pytest.mark.parametrize(("source", "version", "target"), TARGETS, ids=[f"{s.stem}-{v}" for s, v, _ in TARGETS])
def test_every_notebook_is_what_its_source_gives(source: Path, version: str, target: Path) -> None:
    assert target.read_text(encoding="utf-8") == text_of(source, version), "run python -m gemmascope.workshop.building.build"
    assert not [cell for cell in json.loads(target.read_text())["cells"] if cell.get("outputs")]


def test_no_notebook_is_without_a_source() -> None:
    there = {*NOTEBOOKS.glob("*.ipynb"), *(NOTEBOOKS / "solutions").glob("*.ipynb")}
    assert there == {target for _, _, target in TARGETS}


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_the_exercise_version_holds_no_solution(source: Path) -> None:
    exercises, solutions = tagged(source, "exercise", "exercise"), tagged(source, "solution", "solution")
    assert len(exercises) == len(solutions) == len(tagged(source, "exercise", "check"))
    text = "\n".join(cell.source for cell in notebook(source, "exercise").cells)
    for cell in solutions:
        for line in _body(cell.source):
            assert line not in text, f"a line of the solution is in the exercise: {line!r}"
    for cell in tagged(source, "exercise", "check"):
        number = re.findall(r"ex_(\d+_\d+)", cell.source)[0].replace("_", ".")
        assert f'Exercise {number} in <a href="solutions/{source.stem}.ipynb">' in text
        assert f"Exercise {number}" in "\n".join(one.source for one in notebook(source, "solution").cells)
    for cell in exercises:
        assert "raise NotImplementedError" in cell.source
        assert '"""' in cell.source


def _body(code: str) -> Iterator[str]:
    """The lines that say how: of every function, those that are no definition and no docstring, if long enough to tell."""
    for function in ast.walk(ast.parse(code)):
        if isinstance(function, ast.FunctionDef):
            for statement in function.body:
                line = ast.unparse(statement)
                if len(line) > 20:
                    yield from (part for part in line.splitlines() if len(part) > 20)


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    found = Kernel()
    with found.client.setup_kernel():
        yield found


def test_a_notebook_finds_no_name_and_no_widget_of_the_one_before(kernel: Kernel, tmp_path: Path) -> None:
    one, two = (tmp_path / name for name in "ab")
    one.mkdir()
    two.mkdir()
    code = "import os, ipywidgets, gemmascope as gs; left = ipywidgets.IntSlider(); os.path.basename(os.getcwd())"
    cells = [nbformat.v4.new_code_cell(text) for text in (code, "left", "1 / 0", "gs")]
    assert kernel.run(cells[:1], one) == {}
    assert cells[0].outputs[0].data["text/plain"] == "'a'"
    assert kernel.run(cells[1:], two) == {
        0: "NameError: name 'left' is not defined",
        1: "ZeroDivisionError: division by zero",
        2: "NameError: name 'gs' is not defined",
    }
    count = nbformat.v4.new_code_cell("import comm, os; len(comm.get_comm_manager().comms), os.path.basename(os.getcwd())")
    assert kernel.run([count], two) == {}
    assert count.outputs[0].data["text/plain"] == "(0, 'b')"


@pytest.mark.parametrize("source", ON_NANO, ids=lambda s: s.stem)
def test_a_solution_runs_from_the_first_to_the_last_cell(source: Path, kernel: Kernel, tmp_path: Path) -> None:
    cells = notebook(source, "solution").cells
    assert kernel.run(cells, tmp_path) == {}
    checks = [cell for cell in cells if "check" in cell.metadata.get("tags", [])]
    for cell in checks:
        assert "right, on 3 random inputs" in "".join(output.get("text", "") for output in cell.outputs)


@pytest.mark.parametrize("version", ["solution", "exercise"])
def test_a_notebook_that_needs_a_real_model_says_so_in_one_cell(version: str, kernel: Kernel, tmp_path: Path) -> None:
    """What runs all cells stops at the first error: up to there, nothing else has failed and no question has been asked."""
    cells = notebook(NOTEBOOKS / "teaching" / "source" / f"{NEEDS_REAL}.py", version).cells
    stop = next(i for i, cell in enumerate(cells) if "real_model(MODEL)" in cell.source)
    errors = kernel.run(cells[: stop + 1], tmp_path)
    assert list(errors) == [stop]
    assert errors[stop].startswith(
        "NoRealModel: this notebook needs a real Gemma, and MODEL names none: get one as said above"
    )
    shown = [output for cell in cells[: stop + 1] for output in cell.get("outputs", [])]
    assert len(shown) == 1
    assert "Traceback" not in "".join(shown[0].traceback)


def test_the_reference_on_heads_runs_on_a_checkpoint_of_another_shape(kernel: Kernel, tmp_path: Path) -> None:
    """As it runs on 2B: only the name is changed. The checkpoint is transformers' own, random, with nano's tokenizer."""
    nano = Path(gs.__file__).parent / "nano" / "checkpoint"
    shape = {"vocab_size": gs.load().config.vocab_size, "sliding_window": 600, "max_position_embeddings": 1024}
    checkpoint("gllgl", 3, **shape).save_pretrained(tmp_path / "other")
    for path in nano.glob("*token*"):
        shutil.copy(path, tmp_path / "other")
    source = tmp_path / "heads.py"
    text = (NOTEBOOKS / "teaching" / "source" / "heads_of_gemma_2.py").read_text(encoding="utf-8")
    assert text.count('\nMODEL = "nano"\n') == 1
    source.write_text(text.replace('\nMODEL = "nano"\n', f"\nMODEL = {str(tmp_path / 'other')!r}\n"), encoding="utf-8")
    cells = notebook(source, "solution").cells
    assert kernel.run(cells, tmp_path) == {}
    printed = "".join(str(output.get("text", "")) for cell in cells for output in cell.get("outputs", []))
    assert "local layers [1, 2, 4], with a window of 600 positions; global layers [0, 3]" in printed
    assert "the window of 600 is longer than 512 positions" in printed


@pytest.mark.parametrize("source", ON_NANO, ids=lambda s: s.stem)
def test_an_exercise_fails_at_its_checks_and_nowhere_else(source: Path, kernel: Kernel, tmp_path: Path) -> None:
    cells = notebook(source, "exercise").cells
    errors = kernel.run(cells, tmp_path)
    assert list(errors) == [i for i, cell in enumerate(cells) if "check" in cell.metadata.get("tags", [])]
    assert all("still to be written" in error for error in errors.values())


@pytest.mark.parametrize("source", [source for source in SOURCES if source.stem[0] in "123458"], ids=lambda s: s.stem)
def test_the_expected_picture_is_where_both_versions_look_for_it(source: Path) -> None:
    image = image_of(NOTEBOOKS, source)
    assert image.read_bytes().startswith(b"\x89PNG")
    assert image.stat().st_size < MOST_BYTES
    assert len(tagged(source, "solution", "picture")) == 1
    for _, version, target in (one for one in TARGETS if one[0] == source):
        text = "\n".join(cell.source for cell in notebook(source, version).cells)
        found = re.findall(r'<details><summary>Expected picture</summary><img src="([^"]+)" alt="[^"]+">', text)
        assert [(target.parent / path).resolve() for path in found] == [image], version


def test_pictures_are_drawn_from_what_a_solution_shows(tmp_path: Path) -> None:
    executable()
    source = tmp_path / "teaching" / "source" / "a.py"
    source.parent.mkdir(parents=True)
    shown = "import plotly.graph_objects as go\ngo.Figure(go.Bar(y=[1, 2]), layout={'height': 200})\n"
    source.write_text(f'# %%\n1\n\n# %% tags=["picture"]\n{shown}')
    (drawn,) = draw_pictures(tmp_path)
    assert drawn == image_of(tmp_path, source)
    with Image.open(drawn) as image:
        assert image.size == (760, 200)
        assert len(image.convert("RGB").getcolors()) > 5
    source.write_text(source.read_text() * 2)
    with pytest.raises(GemmascopeError, match="2 cells are tagged 'picture'"):
        draw_pictures(tmp_path)
    source.write_text('# %% tags=["picture"]\n1\n')
    with pytest.raises(GemmascopeError, match="drew no figure and no HTML"):
        draw_pictures(tmp_path)


def test_the_instructor_s_guide_names_what_the_checks_name(tmp_path: Path) -> None:
    text = (NOTEBOOKS / "teaching" / "instructor.md").read_text(encoding="utf-8")
    assert text == guide_text(text), "run python -m gemmascope.workshop.building.build"
    messages = [wrong.message for exercise in exercises().values() for wrong in exercise.wrong]
    assert len(messages) > 100
    assert all(f"- {message}\n" in text for message in messages)
    for source in SOURCES:
        assert f"`{source.stem}`" in text
    with pytest.raises(GemmascopeError, match="has no place for the usual errors"):
        guide_text("# A guide")


def test_building_again_writes_nothing_and_a_solution_without_its_exercise_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "teaching" / "source" / "a.py"
    source.parent.mkdir(parents=True)
    source.write_text('# %% tags=["exercise"]\nraise NotImplementedError\n\n# %% tags=["solution"]\nx = 1\n')
    assert len(build(tmp_path)) == 2
    assert build(tmp_path) == []
    assert [c.source for c in notebook(source, "exercise").cells] == ["raise NotImplementedError"]
    assert [c.source for c in notebook(source, "solution").cells] == ["x = 1"]
    source.write_text('# %%\ny = 2\n\n# %% tags=["solution"]\nx = 1\n')
    with pytest.raises(GemmascopeError, match="the solution that begins 'x = 1' does not follow its exercise"):
        build(tmp_path)

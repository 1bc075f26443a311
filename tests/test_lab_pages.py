"""The patching lab in a real JupyterLab: clicks, brushes, cancels, busy cells, two labs, odd words, themes, saved files."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import page_of
from jupyter import DONE, Lab
from lab_page import CLEAN, CORRUPT, NANO, is_exact, number, press, table, take_away, wait_for
from pointer import RED_BLUE, Pointer, between

import gemmascope as gs

LAB = ".gs-lab"
SITES = {name: f"{name}: {site.meaning}" for name, site in gs.SITES.items()}
TESTS = Path(__file__).parent

# Slow enough that a sweep of all of it is under way for a while: 24 layers, 48 positions.
SLOW = """\
import torch, gemmascope as gs
from transformers import Gemma2Config, Gemma2ForCausalLM
torch.manual_seed(0)
shape = dict(hidden_size=256, intermediate_size=1024, num_attention_heads=4, num_key_value_heads=2, head_dim=64)
config = Gemma2Config(vocab_size=128, num_hidden_layers=24, bos_token_id=2, **shape)
ids = [2, *range(10, 57)]
slow = gs.patching_lab(ids, [2, 9, *ids[2:]], 5, 9, model=gs.load(Gemma2ForCausalLM(config).eval()), at_once=False)
slow"""
ODD = f"""\
import sys; sys.path.insert(0, {str(TESTS)!r})
from pieces import ODD, worded
import gemmascope as gs
model = worded()
tokens = [2, *model.tokenizer.encode("".join(ODD))]
other = [2, *tokens[:0:-1]]
odd = gs.patching_lab(tokens, other, ODD[0], ODD[1], model=model, at_once=False)
odd"""

pytestmark = pytest.mark.nano


def outputs_of(notebook: Path) -> object:
    """What the last cell of a saved notebook shows; None while JupyterLab is still writing the file."""
    try:
        return json.loads(notebook.read_text(encoding="utf-8"))["cells"][-1]["outputs"]
    except json.JSONDecodeError:
        return None


@pytest.fixture
def opened(lab: Lab, chromium: Any) -> Iterator[Any]:
    """A function that runs cells as a notebook and gives its page. Nothing may ask the network, fail or alert."""
    made: list[Any] = []

    with ExitStack() as pages:

        def open_(*cells: str, name: str = "lab.ipynb") -> Any:
            page = pages.enter_context(page_of(chromium))
            made.append(page)
            lab.run(page, name, cells)
            n_labs = sum(cell.splitlines()[-1].isidentifier() for cell in cells)
            page.wait_for_function(f"document.querySelectorAll('.gs-lab canvas[role=application]').length >= {n_labs}")
            return page

        yield open_
        for page in made:
            assert (page.beyond, page.errors) == ([], [])


def test_a_click_and_a_brush_compute_what_they_cover(opened: Any) -> None:
    exact = gs.sweep(CLEAN, CORRUPT, gs.logit_diff(" Mary", " John"), site="resid_pre", progress=False).effect.values
    page = opened(NANO)
    press(page, "Show as table")
    cells = Pointer(page, within=LAB)
    x, y = find(cells, 2, 10)
    page.mouse.move(cells.box["x"] + x, cells.box["y"] + y)
    page.mouse.down()
    page.mouse.up()
    wait_for(page, lambda: is_exact(table(page)[2][10]))
    assert number(table(page)[2][10]) == pytest.approx(exact[2, 10], rel=1e-3)
    assert sum(is_exact(cell) for row in table(page) for cell in row) == 61  # 60 are 0 without a run
    (x, y), (to_x, to_y) = find(cells, 1, 9), find(cells, 3, 12)
    page.mouse.move(cells.box["x"] + x, cells.box["y"] + y)
    page.mouse.down()
    page.mouse.move(cells.box["x"] + to_x, cells.box["y"] + to_y, steps=4)
    page.mouse.up()
    wait_for(page, lambda: sum(is_exact(cell) for row in table(page) for cell in row) >= 60 + 9)
    shown = table(page)
    done = np.array([[is_exact(cell) for cell in row] for row in shown])
    expected = np.zeros_like(done)
    expected[:, :10] = True  # where the prompts are alike
    expected[1:4, 9:13] = True
    assert np.array_equal(done, expected)
    for row, column in np.argwhere(done):
        assert number(shown[row][column]) == pytest.approx(exact[row, column], rel=1e-3, abs=1e-4)
    bound = np.abs(exact[done]).max()
    page.mouse.move(0, 0)
    cells.canvas.press("Escape")
    for row, column in ((1, 9), (1, 10), (3, 12)):
        x, y = find(cells, row, column)
        page.mouse.move(0, 0)
        wanted = between(RED_BLUE, 0.5 + exact[row, column] / (2 * bound))
        assert np.abs(cells.pixel(x - 5, y - 4) - wanted).max() <= 3


def find(cells: Pointer, layer: int, pos: int) -> tuple[float, float]:
    """The middle of a cell of nano's grid."""
    t = gs.trace(CORRUPT)
    return cells.find(f"layer {layer} ({t.layers[layer].kind}), position {pos}: {t.tokens[pos].replace(' ', '·')}")


def test_a_cancel_ends_within_a_chunk_and_keeps_what_is_done(opened: Any) -> None:
    page = opened(SLOW)
    press(page, "Show as table")
    press(page, "Run all exactly")
    wait_for(page, lambda: sum(is_exact(cell) for row in table(page) for cell in row) > 0)
    page.locator(".gs-lab button[data-gs-do=cancel]").click()  # the other one ends the loading of a model
    page.get_by_text("cancelled: what was done is kept").wait_for(timeout=60_000)
    kept = [[is_exact(cell) for cell in row] for row in table(page)]
    n_kept = sum(map(sum, kept))
    assert 0 < n_kept < 24 * 48
    page.wait_for_timeout(700)
    assert [[is_exact(cell) for cell in row] for row in table(page)] == kept
    assert not any("under way" in cell for row in table(page) for cell in row)
    press(page, "Run all exactly")
    wait_for(page, lambda: sum(is_exact(cell) for row in table(page) for cell in row) > n_kept)
    page.locator(".gs-lab canvas[role=application]").press("Escape")
    wait_for(page, lambda: page.locator(".gs-lab button[data-gs-do=cancel]").is_disabled(), 60)
    assert sum(is_exact(cell) for row in table(page) for cell in row) < 24 * 48


def test_a_click_while_a_cell_runs_is_answered_and_until_then_the_page_says_why_not(opened: Any, lab: Lab) -> None:
    """Whether it is answered beside the cell or after it is the kernel's to say: ipykernel 7.4 lets it wait."""
    page = opened(NANO, "print('before')")
    press(page, "Show as table")
    canvas = page.locator(".gs-lab canvas[role=application]")
    page.locator(".jp-Cell").last.locator(".cm-content").fill("import time; time.sleep(7); print('slept', 'well')")
    lab.command(page, "notebook:run-cell")
    page.wait_for_timeout(500)
    canvas.focus()
    for key in ("Home", "PageUp", "End", "Enter"):
        canvas.press(key)
    status = page.locator(".gs-lab .gs-status")
    wait_for(page, lambda: is_exact(table(page)[5][14]) or "The kernel is busy" in status.inner_text(), 60)
    wait_for(page, lambda: is_exact(table(page)[5][14]), 60)
    page.get_by_text("slept well", exact=True).wait_for()
    wait_for(page, lambda: "The kernel is busy" not in status.inner_text(), 60)


def test_two_labs_on_a_page_do_not_mix(opened: Any) -> None:
    other = (
        NANO.replace("lab", "lab2").replace("patching_lab2", "patching_lab").replace("' Mary', ' John'", "' John', ' Mary'")
    )
    page = opened(NANO, other)
    for nth in (0, 1):
        press(page, "Show as table", nth)
    for nth in (0, 1):
        press(page, "Run all exactly", nth)
    wait_for(page, lambda: all(is_exact(cell) for nth in (0, 1) for row in table(page, nth) for cell in row))
    one, two = ([[number(cell) for cell in row] for row in table(page, nth)] for nth in (0, 1))
    np.testing.assert_allclose(one, -np.array(two), rtol=1e-3, atol=1e-3)


def test_odd_words_are_words(opened: Any) -> None:
    page = opened(ODD)
    chips = page.locator(".gs-lab .gs-chip").all_inner_texts()
    for token in ("<img·src=x·onerror=alert(1)>", "</script>", "&amp;", r"\x1b[31m", r"\u202e", "שלום", "😀"):
        assert token in chips
    press(page, "Run all exactly")
    page.locator(".gs-lab canvas[role=application]").press("Enter")
    page.locator(".gs-detail .gs-cell:visible").wait_for()
    assert page.locator(".gs-lab img, .gs-lab script").count() == 0


def test_what_is_saved_is_seen_without_a_kernel_and_as_a_page(opened: Any, lab: Lab, chromium: Any, tmp_path: Path) -> None:
    patched = float(
        gs.sweep(CLEAN, CORRUPT, gs.logit_diff(" Mary", " John"), site="resid_pre", progress=False).effect[0, 10]
    )
    page = opened(f"{NANO.removesuffix('lab')}_ = lab.run()", "lab.save('grid.html')", "lab", name="kept.ipynb")
    lab.command(page, "docmanager:save")
    path = lab.folder / "kept.ipynb"
    wait_for(page, lambda: DONE in str(outputs_of(path)))
    with page_of(chromium) as again:
        lab.open(again, "kept.ipynb", kernel=False)
        again.wait_for_selector("[data-gs][data-gemmascope-ready] canvas", timeout=30_000)
        assert again.get_by_text("Error displaying widget").count() == 0
        assert again.beyond == []
    command = [sys.executable, "-m", "nbconvert", "--to", "html", "--output-dir", str(tmp_path), str(path)]
    subprocess.run(command, check=True, capture_output=True)
    for exported in (lab.folder / "grid.html", tmp_path / "kept.html"):
        with page_of(chromium) as static:
            static.goto(exported.as_uri(), wait_until="domcontentloaded")
            static.wait_for_selector("[data-gs][data-gemmascope-ready] canvas", timeout=60_000)
            assert static.beyond == [] or exported.name == "kept.html"
            cells = Pointer(static)
            x, y = find(cells, 0, 10)
            assert number(cells.says(x, y).splitlines()[1]) == pytest.approx(patched, rel=1e-3)


def test_the_dark_theme_is_dark(opened: Any) -> None:
    page = opened(NANO)
    cells = Pointer(page, within=LAB)
    light = cells.pixel(1, 1)
    page.evaluate("() => { window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'}); }")
    page.wait_for_function("document.body.dataset.jpThemeLight === 'false'")
    wait_for(page, lambda: sum(cells.pixel(1, 1)) < 100)
    assert sum(light) > 700
    low = page.evaluate((TESTS / "js" / "contrast.js").read_text(encoding="utf-8"), [".gs-lab *", 4.5])
    assert low == []


def test_what_is_taken_away_is_what_was_found_and_runs_are_compared(opened: Any, lab: Lab) -> None:
    exact = gs.sweep(CLEAN, CORRUPT, gs.logit_diff(" Mary", " John"), site="resid_pre", progress=False).effect.values
    page = opened(NANO)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    press(page, "Show as table")
    press(page, "Run all exactly")
    wait_for(page, lambda: all(is_exact(cell) for row in table(page) for cell in row))
    take_away(page, "Copy Python")
    page.get_by_text("the Python of this experiment was copied").wait_for()
    scope: dict[str, Any] = {}
    exec(page.evaluate("navigator.clipboard.readText()"), scope)
    np.testing.assert_allclose(scope["result"].effect.values, exact, atol=1e-4)
    files = {}
    for name in ("CSV", "HTML", "PNG"):
        with page.expect_download() as download:
            take_away(page, name)
        files[name] = Path(download.value.path()).read_bytes()
    cells = list(csv.DictReader(io.StringIO(files["CSV"].decode())))
    np.testing.assert_allclose([float(cell["effect"]) for cell in cells], exact.ravel(), atol=1e-4)
    assert files["HTML"].startswith(b"<!doctype html>")
    assert files["PNG"].startswith(b"\x89PNG")
    page.get_by_label("what is patched").select_option(label=SITES["resid_mid"])
    page.locator(LAB).get_by_label("resid_mid patched into").first.wait_for()
    press(page, "Run all exactly")
    runs = page.locator(".gs-run")
    wait_for(page, lambda: runs.count() == 2 and "all 90 exact" in runs.nth(1).inner_text())
    runs.first.click(modifiers=["Shift"])
    page.get_by_text("This run less: the residual stream").wait_for()
    assert page.locator(".gs-lab canvas[role=application]").count() == 2
    runs.first.click()
    page.locator(LAB).get_by_label("resid_pre patched into").first.wait_for()
    wait_for(page, lambda: all(is_exact(cell) for row in table(page) for cell in row))  # the earlier run's are there again


def test_a_session_that_the_page_saved_is_opened_from_its_menu_and_another_file_is_refused(
    opened: Any, tmp_path: Path
) -> None:
    exact = gs.sweep(CLEAN, CORRUPT, gs.logit_diff(" Mary", " John"), site="resid_pre", progress=False).effect.values
    page = opened(NANO)
    press(page, "Show as table")
    press(page, "Run all exactly")
    wait_for(page, lambda: all(is_exact(cell) for row in table(page) for cell in row))
    with page.expect_download() as download:
        take_away(page, "Save session")
    session = tmp_path / download.value.suggested_filename
    download.value.save_as(session)

    page = opened(NANO.replace("store", "park").replace("' Mary', ' John'", "' John', ' Mary'"), name="other.ipynb")

    def open_file(path: Path) -> None:
        with page.expect_file_chooser() as chooser:
            take_away(page, "Open session …")
        chooser.value.set_files(path)

    press(page, "Show as table")
    (tmp_path / "other.json").write_text("[1, 2]", encoding="utf-8")
    open_file(tmp_path / "other.json")
    page.locator(".gs-lab .gs-error:visible", has_text="other.json").wait_for()
    assert page.locator("[data-gs-do=prompts]").is_visible()
    open_file(session)
    page.get_by_label("corrupted −11.61, clean +11.86").wait_for()
    page.locator(".gs-heads button", has_text="·store").wait_for()
    wait_for(page, lambda: len(table(page)) == 6 and all(is_exact(cell) for row in table(page) for cell in row))
    shown = [[number(cell) for cell in row] for row in table(page)]
    np.testing.assert_allclose(shown, exact, rtol=1e-3, atol=1e-3)
    assert page.locator(".gs-lab .gs-error:visible").count() == 0
    assert page.locator(".gs-run").count() >= 1

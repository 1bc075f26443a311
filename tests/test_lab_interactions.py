"""The patching lab in a real JupyterLab, on nano: every way to go on from a cell, a prompt or a run, one after the other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from browser import page_of
from jupyter import jupyterlab
from lab_page import CLEAN, CORRUPT, NANO, effect, is_exact, number, press, table, wait_for

import gemmascope as gs

TYPED = CORRUPT.replace("store", "park")

pytestmark = pytest.mark.nano


@pytest.fixture(scope="module")
def jupyter(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with jupyterlab(tmp_path_factory.mktemp("lab"), subshells=True) as running:
        yield running


@pytest.fixture
def page(jupyter: Any, chromium: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A lab on nano with its table, before anything is computed."""
    with page_of(chromium) as opened:
        jupyter.run(opened, f"{request.node.name[:20]}.ipynb", [NANO])
        opened.locator(".gs-lab canvas[role=application]").wait_for(timeout=60_000)
        press(opened, "Show as table")
        ends_are(opened, CLEAN, CORRUPT)
        yield opened
        assert (opened.beyond, opened.errors) == ([], [])


def ends_are(page: Any, clean: str, corrupt: str, answers: tuple[str, str] = (" Mary", " John")) -> None:
    """Wait until the ruler says the metric of these two prompts."""
    ids = [gs.load().tokenizer.single(answer) for answer in answers]
    logits = [gs.trace(prompt).next_logits for prompt in (corrupt, clean)]
    ends = [f"{float(each[ids[0]] - each[ids[1]]):+.4g}".replace("-", "−") for each in logits]
    page.get_by_label(f"corrupted {ends[0]}, clean {ends[1]}").wait_for(timeout=60_000)


def click(page: Any, layer: int, column: int) -> None:
    """Click a cell of nano's grid, found by its place in the canvas. The button is held for longer than a kernel takes."""
    canvas = page.locator(".gs-lab canvas[role=application]").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    left = page.locator(".gs-lab .gs-names").first.bounding_box()["width"]
    width = page.locator(".gs-heads [role=listitem]").nth(1).bounding_box()["x"]
    width -= page.locator(".gs-heads [role=listitem]").nth(0).bounding_box()["x"]
    height = (box["height"] - 8) / 6
    page.mouse.click(box["x"] + left + (column + 0.5) * width, box["y"] + 6 + (5.5 - layer) * height, delay=300)


def exact(page: Any, layer: int, column: int) -> float:
    """The number of a cell, once it is exact."""
    wait_for(page, lambda: len(table(page)) == 6 and is_exact(table(page)[layer][column]), 60)
    return number(table(page)[layer][column])


def test_a_cell_goes_on_to_the_head_lab_and_runs_are_compared_and_undone(page: Any) -> None:
    click(page, 2, 10)
    assert exact(page, 2, 10) == pytest.approx(effect(CLEAN, CORRUPT, 2, 10), rel=1e-3)
    page.locator(".gs-detail .gs-big", has_text="100%").wait_for()
    to_heads = page.locator("[data-gs-do=head_lab]")
    layer, head = re.findall(r"\d+", to_heads.inner_text())
    to_heads.click()
    page.get_by_role("button", name=f"layer {layer} head {head}: muted").wait_for(timeout=60_000)

    page.locator(".gs-heads button", has_text="·store").click()
    page.get_by_label("token, position 9").or_(page.get_by_label("token, position 8")).fill("park")
    page.get_by_role("button", name="Swap", exact=True).click()
    swapped = [prompt.replace("store", "park") for prompt in (CLEAN, CORRUPT)]
    ends_are(page, *swapped)
    page.locator(".gs-heads button", has_text="·park").wait_for()
    click(page, 2, 10)
    now = exact(page, 2, 10)
    assert now == pytest.approx(effect(*swapped, 2, 10), rel=1e-3)
    runs = page.locator(".gs-run")
    wait_for(page, lambda: runs.count() == 2)

    runs.nth(1 if runs.first.get_attribute("aria-pressed") == "true" else 0).click(modifiers=["Shift"])
    page.get_by_text("This run less:").wait_for()
    beside = page.locator(".gs-beside")
    beside.get_by_role("button", name="Show as table").click()
    difference = beside.locator("tbody tr").nth(3).locator("td").nth(10)
    assert number(difference.inner_text()) == pytest.approx(now - effect(CLEAN, CORRUPT, 2, 10), abs=2e-3)
    page.get_by_role("button", name="Close comparison").click()
    beside.wait_for(state="hidden")

    page.locator("[data-gs-do=undo]").click()
    ends_are(page, CLEAN, CORRUPT)
    page.locator(".gs-heads button", has_text="·store").wait_for()
    assert exact(page, 2, 10) == pytest.approx(effect(CLEAN, CORRUPT, 2, 10), rel=1e-3), "its cells are there again"


def test_a_click_made_while_a_prompt_is_typed_is_answered_and_a_family_has_a_next_pair(page: Any) -> None:
    page.locator("[data-gs-do=prompts]").click()
    page.get_by_role("textbox", name="corrupted prompt").fill(TYPED)  # and neither Enter nor Tab
    click(page, 1, 10)
    ends_are(page, CLEAN, TYPED)
    wait_for(page, lambda: len(table(page)) == 6)  # a table stays when another grid takes the place of its own
    assert exact(page, 1, 10) == pytest.approx(effect(CLEAN, TYPED, 1, 10), rel=1e-3)

    before = page.get_by_role("textbox", name="clean prompt").input_value()
    page.locator("[data-gs-do=next]").click()
    fields = {name: page.get_by_role("textbox", name=name, exact=True) for name in ("answer", "against")}
    wait_for(page, lambda: page.get_by_role("textbox", name="clean prompt").input_value() != before)
    clean, corrupt = (page.get_by_role("textbox", name=f"{name} prompt").input_value() for name in ("clean", "corrupted"))
    ends_are(page, clean, corrupt, (fields["answer"].input_value(), fields["against"].input_value()))

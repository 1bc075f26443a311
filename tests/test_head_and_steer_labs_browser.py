"""The head lab and the steering lab in a real JupyterLab: clicks and sliders compute in Python."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from browser import page_of
from jupyter import Lab

import gemmascope as gs

PROMPT = "When Mary and John went to the store, John gave a drink to"
POSITIVE, NEGATIVE = ["Mary was", "Anna was"], ["John was", "Peter was"]
CELLS = [
    f"import gemmascope as gs\nheads = gs.head_lab({PROMPT!r}, ' Mary', ' John', max_new_tokens=6)\nheads",
    f"d = gs.direction({POSITIVE}, {NEGATIVE}, layer=4)\n"
    "steer = gs.steer_lab('Peter was tired because', d, strengths=(-4, 4), max_new_tokens=6)\nsteer",
]

pytestmark = pytest.mark.nano


@pytest.fixture
def page(lab: Lab, chromium: Any) -> Iterator[Any]:
    with page_of(chromium) as opened:
        lab.run(opened, "labs.ipynb", CELLS)
        opened.wait_for_selector("[data-gemmascope-pictures='1']", timeout=30_000)
        yield opened
        assert opened.beyond == []
        assert opened.errors == []


def lab_of(page: Any, nth: int) -> Any:
    """A live lab of the page: not its still, nor the views inside."""
    return page.locator(".gs-card:has(.gs-strip):not([data-gs-fallback] *, .gs-card *)").nth(nth)


def difference_of(edits: Any) -> str:
    """The difference of the two logits, as the page prints it."""
    last = gs.trace(PROMPT, edits=edits).next_logits
    mary, john = (gs.load().tokenizer.single(name) for name in (" Mary", " John"))
    return f"{float(last[mary] - last[john]):.4g}".replace("-", "\u2212")


def test_clicks_keys_and_undo_show_the_numbers_of_edited_runs(page: Any) -> None:
    lab = lab_of(page, 0)
    before = difference_of([])
    lab.get_by_text(f"{before} before, {before} after").wait_for()
    lab.get_by_role("button", name="mute layer 2 head 3").click()
    ablated = [gs.ablate("z", layer=2, head=3)]
    lab.get_by_text(f"{before} before, {difference_of(ablated)} after").wait_for()
    lab.get_by_text("Layer 2 · head 3").wait_for()
    lab.get_by_text("Pattern of layer 2, head 3: after").wait_for()
    lab.get_by_role("button", name="layer 2 head 3: muted").wait_for()
    assert lab.locator(".gs-silent").count() == 1
    text = gs.generate(PROMPT, edits=ablated, max_new_tokens=6).text
    lab.locator(".gs-text", has_text="text after").get_by_text(text, exact=True).wait_for()
    lab.locator(".gs-look[aria-current=true]").focus()
    page.keyboard.press("ArrowUp")
    lab.get_by_text("Layer 3 · head 3").wait_for()
    page.keyboard.press("s")
    lab.get_by_role("button", name="layer 3 head 3: as it is, soloed").wait_for()
    alone = [gs.scale("z", 0.0, layer=i, head=j) for i in range(6) for j in range(4) if (i, j) != (3, 3)]
    lab.get_by_text(f"{before} before, {difference_of(alone)} after").wait_for()
    assert lab.locator(".gs-silent").count() == 23
    page.keyboard.press("Control+z")
    lab.get_by_text(f"{before} before, {difference_of(ablated)} after").wait_for()
    lab.get_by_role("button", name="difference").click()
    lab.get_by_text("Pattern of layer 3, head 3: after less before").wait_for()
    lab.get_by_role("button", name="Reset").click()
    lab.get_by_text(f"{before} before, {before} after").wait_for()
    lab.get_by_role("button", name="Undo").click()
    lab.get_by_role("button", name="layer 2 head 3: muted").wait_for()


def test_the_slider_lies_on_its_curve_and_tokens_say_where_to_steer(page: Any) -> None:
    lab = lab_of(page, 1)
    d = gs.direction(POSITIVE, NEGATIVE, layer=4)
    slider = lab.get_by_role("slider", name="strength")
    slider.focus()
    slider.press("End")
    lab.get_by_text("strength +4.00", exact=False).wait_for()
    steered = gs.generate("Peter was tired because", edits=[d.add(4.0)], max_new_tokens=6).text
    lab.locator(".gs-text", has_text="text after").get_by_text(steered, exact=True).wait_for()
    with gs.steer_lab("Peter was tired because", d, strengths=(-4, 4), max_new_tokens=6) as same:
        rungs = same.ladder()
    most, least = max(rungs), min(rungs)
    lab.locator(".gs-rung").first.get_by_text(rungs[most], exact=True).wait_for()
    lab.locator(".gs-rung").last.click()
    lab.get_by_text(f"strength {least:+.2f}", exact=False).first.wait_for()
    lab.locator(f"input[type=range][aria-valuetext^='strength \u2212{-least:g}:']").wait_for(state="attached")
    assert float(slider.input_value()) == least
    lab.locator(".gs-chip", has_text="tired").click()
    lab.get_by_text("Steered: position 3.", exact=False).wait_for()
    there = gs.generate("Peter was tired because", edits=[d.add(least, pos=[3])], max_new_tokens=6).text
    lab.locator(".gs-text", has_text="text after").get_by_text(there, exact=True).wait_for()
    lab.get_by_role("button", name="Everywhere").click()
    lab.get_by_text("Steered: every position.", exact=False).wait_for()

"""The head lab and the steering lab in a real JupyterLab: clicks and sliders compute in Python."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from browser import page_of
from jupyter import Lab

import gemmascope as gs

PROMPT = "When Mary and John went to the store, John gave a drink to"
ODD = "When <img src=x onerror=alert(1)> and </script> went"
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


def test_clicks_and_sliders_show_the_numbers_of_edited_runs(page: Any) -> None:
    ablated = [gs.ablate("z", layer=2, head=3)]
    logits = [gs.trace(PROMPT, edits=edits).next_logits for edits in ([], ablated)]
    ids = [gs.load().tokenizer.single(name) for name in (" Mary", " John")]
    before, after = (float(last[ids[0]] - last[ids[1]]) for last in logits)
    page.get_by_role("button", name="2 local", exact=True).first.click()
    page.get_by_role("button", name="head 3", exact=True).first.click()
    page.get_by_text("layer 2, head 3:").wait_for()
    page.get_by_role("button", name="Ablate (× 0)").click()
    page.get_by_text(f"{before:.4g} before, {after:.4g} after").wait_for()
    page.wait_for_selector("[data-gemmascope-pictures='2']")
    page.get_by_text("Attention in nano, with the heads scaled").wait_for()
    assert page.get_by_role("button", name="2 local", exact=True).first.get_attribute("aria-pressed") == "true"
    text = gs.generate(PROMPT, edits=ablated, max_new_tokens=6).text
    page.locator(".gs-text", has_text="text after").first.get_by_text(text, exact=True).wait_for()
    page.get_by_role("button", name="layer 2 head 3 × 0").click()
    page.get_by_text("No head is scaled").wait_for()
    typed = page.locator(".jp-OutputArea input[type=text]").first
    typed.fill(ODD)
    typed.press("Enter")
    page.wait_for_selector("[data-gemmascope-pictures='4']")
    assert page.locator(".jp-OutputArea img").count() == 0
    typed.fill("")
    typed.press("Enter")
    page.locator(".gs-error:visible").wait_for()

    handle = page.locator(".noUi-handle")
    handle.focus()
    for _ in range(32):
        handle.press("ArrowRight")
    page.get_by_text("strength +4.00", exact=False).wait_for()
    d = gs.direction(POSITIVE, NEGATIVE, layer=4)
    steered = gs.generate("Peter was tired because", edits=[d.add(4.0)], max_new_tokens=6).text
    page.locator(".gs-text", has_text="text after").last.get_by_text(steered, exact=True).wait_for()

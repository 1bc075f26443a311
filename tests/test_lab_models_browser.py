"""Choosing a model on a lab's page in a real JupyterLab: the list is looked up when it is opened, and the numbers follow."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import page_of
from checkpoints import checkpoint
from jupyter import Lab

import gemmascope as gs
from gemmascope.views.module import _joined

CLEAN, CORRUPT = [2, 5, 7, 9, 11], [2, 6, 7, 9, 11]
CELLS = [
    f"import gemmascope as gs\nlab = gs.patching_lab({CLEAN}, {CORRUPT}, 5, 9, model=gs.load('first'))\nlab",
    f"heads = gs.head_lab({CLEAN}, 5, 9, model=gs.load('first'), max_new_tokens=4)\nheads",
]


def saved(folder: Path) -> None:
    """Models of one vocabulary, with two layers, three, and two."""
    for seed, name in enumerate(("first", "second", "third")):
        checkpoint("lgl"[: 2 + seed % 2], seed).save_pretrained(folder / name)


@pytest.fixture
def page(lab: Lab, chromium: Any) -> Iterator[Any]:
    saved(lab.folder)
    with page_of(chromium) as opened:
        lab.run(opened, "models.ipynb", CELLS)
        opened.wait_for_selector(".gs-lab canvas[role=application]", timeout=30_000)
        yield opened
        assert opened.beyond == []
        assert opened.errors == []


def test_a_model_is_chosen_from_the_list_and_the_numbers_follow(page: Any, lab: Lab) -> None:
    first, second = (gs.load(lab.folder / name) for name in ("first", "second"))
    page.get_by_label(ends(first)).wait_for()
    for nth in (0, 1):
        models = page.locator(".gs-models select").nth(nth)
        assert models.locator("option").count() == 1
        models.focus()
        models.locator("option", has_text="second (Gemma 2").wait_for(state="attached", timeout=60_000)
        assert models.input_value() == "first"
        models.select_option("second")
    page.get_by_label(ends(second)).wait_for(timeout=30_000)
    page.get_by_role("button", name="mute layer 2 head 0").wait_for(timeout=30_000)  # the second model has a layer more
    assert page.locator(".gs-models select").evaluate_all("all => all.map(one => one.value)") == ["second", "second"]
    page.locator(".gs-lab button", has_text=re.compile("Show as table")).first.click()
    rows = page.locator(".gs-lab .gs-grid tbody tr")  # the second model has a layer more
    rows.nth(2).wait_for()
    assert rows.count() == 3

    (lab.folder / "third" / "model.safetensors").write_bytes(b"no weights")
    page.locator(".gs-models select").first.select_option("third")
    page.locator(".gs-lab .gs-error:visible", has_text="model.safetensors").wait_for(timeout=30_000)
    page.wait_for_function("document.querySelector('.gs-models select').value === 'second'")
    page.get_by_label(ends(second)).wait_for()


def test_the_list_returns_to_the_present_model_when_another_was_refused_at_once(chromium: Any) -> None:
    """Python's choice is then the one that was drawn before, since the page never saw the other one loading."""
    options = [{"load": name, "label": name} for name in ("first", "broken")]
    choice = {"name": "first", "present": "first", "options": options, "looked": True, "loading": None}
    script = f"""(choice) => {{
        {_joined("models.js")}
        const sent = [];
        const list = modelList((type, more) => sent.push([type, more]));
        document.body.append(list.element);
        list.update(choice);
        const select = list.element.querySelector("select");
        select.value = "broken";
        select.dispatchEvent(new Event("change"));
        const chosen = select.value;
        list.update(choice);
        return [sent.at(-1), chosen, select.value];
    }}"""
    with page_of(chromium) as opened:
        assert opened.evaluate(script, choice) == [["choose_model", {"load": "broken"}], "broken", "first"]


def ends(model: gs.Model) -> str:
    """What the patching lab says of its two prompts."""
    runs = [gs.trace(prompt, model=model).next_logits for prompt in (CLEAN, CORRUPT)]
    clean, corrupt = (float(logits[5] - logits[9]) for logits in runs)
    return f"corrupted {corrupt:+.4g}, clean {clean:+.4g}".replace("-", "−")

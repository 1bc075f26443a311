"""Labs and views on stand-ins for VS Code and Colab: every view is drawn, and every lab answers, whatever gets lost."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import pages_of
from front_ends import FRONT_ENDS, FrontEnd, Kernel, kernel  # noqa: F401
from test_views import every_view, trace

import gemmascope as gs

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
POSITIVE, NEGATIVE = ["Mary was", "Anna was"], ["John was", "Peter was"]


@pytest.fixture(params=FRONT_ENDS, ids=[one.name for one in FRONT_ENDS])
def front_end(request: pytest.FixtureRequest, chromium: Any, kernel: Kernel, tmp_path: Path) -> Iterator[FrontEnd]:  # noqa: F811
    """A stand-in, in which nothing may fail or ask the network."""
    with pages_of(chromium) as open_one:
        page = open_one()
        page.set_default_timeout(120_000)  # messages come late, and machines are busy
        yield request.param(page, kernel, tmp_path)


def difference_of(edits: Any) -> str:
    """The difference of the two logits after these edits, as a page prints it."""
    last = gs.trace(CLEAN, edits=edits).next_logits
    mary, john = (gs.load().tokenizer.single(name) for name in (" Mary", " John"))
    return f"{float(last[mary] - last[john]):.4g}".replace("-", "\u2212")


def test_every_view_is_drawn(front_end: FrontEnd) -> None:
    t = trace()
    views = [*every_view(t), gs.plan_view([t.model], [64])]
    for view in views:
        output = front_end.show(view)
        output.wait_for_selector("[data-gs][data-gemmascope-ready]:not([data-seen])", state="attached")
        output.evaluate("document.querySelectorAll('[data-gs]').forEach((el) => { el.dataset.seen = 1; })")
        assert output.locator("[data-gs] .gs").last.evaluate("el => getComputedStyle(el).colorScheme") == "dark"


@pytest.mark.nano
def test_the_head_lab_answers_to_clicks_and_shows_what_other_cells_change(front_end: FrontEnd) -> None:
    before, ablated = difference_of([]), [gs.ablate("z", layer=2, head=3)]
    with gs.head_lab(CLEAN, " Mary", " John", max_new_tokens=4) as lab:
        page = front_end.show(lab)
        page.get_by_text(f"{before} before, {before} after").wait_for()
        page.get_by_role("button", name="mute layer 2 head 3").click()
        page.get_by_text(f"{before} before, {difference_of(ablated)} after").wait_for()
        text = gs.generate(CLEAN, edits=ablated, max_new_tokens=4).text
        page.locator(".gs-text", has_text="text after").get_by_text(text, exact=True).wait_for()
        lab.undo()
        page.get_by_text(f"{before} before, {before} after").wait_for()
        assert page.locator(".gs-gone").is_hidden()


@pytest.mark.nano
def test_the_graph_lab_answers_and_shows_what_other_cells_change(front_end: FrontEnd) -> None:
    with gs.graph_lab(CLEAN, targets=gs.logit_diff(" Mary", " John"), max_nodes=30, max_new_tokens=2) as lab:
        page = front_end.show(lab)
        page.get_by_text("Graph 1 of 1").wait_for()
        lab.group("one", list(lab.graph.nodes.query("kind == 'feature'").nlargest(1, "influence")["id"]))
        half = lab.graph.intervene({"one": 0.5}).to_dataframe().iloc[0]
        page.get_by_role("group", name="one: what it writes").get_by_role("button", name="Half").click()
        predicted, true = (f"{half[name]:+.4g}".replace("-", "\u2212") for name in ("predicted", "true"))
        page.get_by_text(f"predicted {predicted}, true {true}").wait_for()
        lab.reset()
        page.get_by_text("nothing is changed").wait_for()
        assert page.locator(".gs-gone").is_hidden()


@pytest.mark.nano
def test_the_steering_lab_answers_and_fills_its_curve_and_ladder(front_end: FrontEnd) -> None:
    d = gs.direction(POSITIVE, NEGATIVE, layer=4)
    with gs.steer_lab("Peter was tired because", d, strengths=(-4, 4), max_new_tokens=4) as lab:
        page = front_end.show(lab)
        page.locator(".gs-rung").nth(4).wait_for()
        slider = page.get_by_role("slider", name="strength")
        slider.focus()
        slider.press("End")
        steered = gs.generate("Peter was tired because", edits=[d.add(4.0)], max_new_tokens=4).text
        page.locator(".gs-text", has_text="text after").get_by_text(steered, exact=True).wait_for()
        page.get_by_text("strength +4.00", exact=False).wait_for()


@pytest.mark.nano
def test_the_patching_lab_runs_a_grid_and_gives_its_table_away(front_end: FrontEnd) -> None:
    exact = gs.sweep(CLEAN, CORRUPT, gs.logit_diff(" Mary", " John"), site="resid_pre", progress=False).effect.values
    with gs.patching_lab(CLEAN, CORRUPT, " Mary", " John", at_once=False) as lab:
        page = front_end.show(lab)
        page.get_by_role("button", name="Show as table").click()
        page.get_by_role("button", name="Run all exactly").click()
        row = page.locator(".gs-lab tbody tr", has=page.locator("th", has_text=re.compile("^5")))
        cell = row.locator("td").nth(14)
        cell.get_by_text(f"{exact[5, 14]:+.4g}".replace("-", "\u2212"), exact=False).wait_for(state="attached")
        page.get_by_role("button", name="export and copy").click()
        name, text = front_end.saved(lambda: page.get_by_role("menuitem", name="CSV").click())
        assert name.endswith(".csv")
        assert f"{exact[5, 14]:.4f}"[:6] in text


@pytest.mark.nano
def test_a_file_that_is_lost_on_its_way_is_asked_for_again_and_at_last_given_up(front_end: FrontEnd) -> None:
    lost: list[Any] = []

    def loses(data: Any) -> bool:
        is_file = data.get("content", {}).get("type") == "file"
        lost.extend([data] * is_file)
        return is_file and len(lost) != 3

    front_end.kernel.loses = loses
    with gs.patching_lab(CLEAN, CORRUPT, " Mary", " John", at_once=False) as lab:
        page = front_end.show(lab)
        page.get_by_label("corrupted \u221211.61, clean +11.86").wait_for()

        def choose(name: str) -> None:
            page.get_by_role("button", name="export and copy").click()
            page.get_by_role("menuitem", name=name).click()

        name, text = front_end.saved(lambda: choose("CSV"))
        assert (name, text) == ("patching_lab.csv", lost[2]["content"]["text"])
        assert len(lost) == 3
        choose("HTML")
        page.get_by_text("the answer did not arrive").wait_for()
        assert len(lost) == 3 + 5


@pytest.mark.nano
def test_a_file_about_settings_that_have_changed_is_not_another_one(kernel: Kernel) -> None:  # noqa: F811
    with gs.patching_lab(CLEAN, CORRUPT, " Mary", " John", at_once=False) as lab:
        lab.wait_until_prepared()
        page = next(one.model_id for one in lab.widget.children if hasattr(one, "_esm"))

        def answers(**message: Any) -> list[Any]:
            sent = kernel.handle(page, {"type": "file", "what": "csv", "request": 7, **message})
            return [one.data["content"] for one in sent if one.data["method"] == "custom"]

        [file] = answers(seq=lab.seq)
        assert (file["type"], file["request"]) == ("file", 7)
        assert answers(seq=lab.seq - 1) == [{"type": "late", "request": 7}]
        assert answers(what="docx")[-1] == {"type": "refused", "request": 7}
        assert "docx" in str(lab.error)


@pytest.mark.nano
def test_prompts_heads_and_texts_are_printed_and_what_is_pressed_is_not(front_end: FrontEnd) -> None:
    d = gs.direction(POSITIVE, NEGATIVE, layer=4)
    with (
        gs.steer_lab("Peter was tired because", d, strengths=(-4, 4), max_new_tokens=2) as steer,
        gs.patching_lab(CLEAN, CORRUPT, " Mary", " John", at_once=False) as patching,
    ):
        steering, grid = front_end.show(steer), front_end.show(patching)
        steering.locator(".gs-rung").nth(4).wait_for()
        grid.locator(".gs-heads .gs-tok").nth(14).wait_for()
        front_end.page.emulate_media(media="print")
        assert steering.get_by_label("prompt", exact=True).is_visible()
        assert steering.locator(".gs-rung:visible").count() == 5
        assert grid.locator(".gs-heads .gs-tok:visible").count() == 15
        for output, name in ((steering, "Undo"), (grid, "Prompts and answers"), (grid, "Show as table")):
            assert output.get_by_role("button", name=name, include_hidden=True).first.is_hidden()
        assert steering.locator(".gs-models").first.is_hidden()

"""Views in a real browser, with the network stopped: numbers under the pointer, keys, colours, themes, text as text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import pages_of
from checkpoints import checkpoint, model_of, prompt
from pointer import BLUES, RED_BLUE, Pointer, between
from test_views import CLEAN, CORRUPT, every_view, odd, trace, wide

import gemmascope as gs
from gemmascope.tokens.tokenizer import visible_text
from gemmascope.views.page import page as page_with


@pytest.fixture
def open_page(chromium: Any, tmp_path: Path) -> Iterator[Any]:
    """A function that opens views on one page and returns the page once drawn. No request, error or alert is allowed."""
    number = count()
    with pages_of(chromium) as open_one:

        def show_page(*views: gs.View, **options: Any) -> Any:
            path = tmp_path / f"{next(number)}.html"
            path.write_text(page_with(list(views)), encoding="utf-8")
            page = open_one(**options)
            page.goto(path.as_uri())
            page.wait_for_function(f"document.querySelectorAll('[data-gs][data-gemmascope-ready]').length === {len(views)}")
            return page

        yield show_page


def number(text: str) -> float:
    """A number as the module writes it."""
    return float(text.replace("−", "-").replace("+", ""))


def test_attention_under_the_pointer_has_the_number_and_colour_of_the_trace(open_page: Any) -> None:
    t = trace()
    pattern = t["pattern", 1][3].numpy()
    page = open_page(gs.attention_view(t, layer=1, head=3))
    cells = Pointer(page)
    most = np.tril(pattern)[:, 1:].max()  # the first position is left out of the range
    for q, k in ((6, 2), (14, 10), (9, 9), (3, 1)):
        x, y = cells.find(f"query {q}: {visible_text(t.tokens[q])}, key {k}: {visible_text(t.tokens[k])}")
        match = re.search(r"probability: (\S+)", cells.says(x, y))
        assert match
        assert number(match[1]) == pytest.approx(pattern[q, k], abs=6e-5)
        page.mouse.move(0, 0)
        assert np.abs(cells.pixel(x - 4, y - 4) - between(BLUES, min(1, pattern[q, k] / most))).max() <= 2
    x, y = cells.find("query 2: ·Mary, key 8: ·store")
    assert "a later position: not seen" in cells.says(x, y)


def test_heads_on_the_wall_are_chosen_with_the_keyboard(open_page: Any) -> None:
    t = trace()
    page = open_page(gs.attention_view(t))
    heading = page.locator(".gs-head")
    assert heading.inner_text() == "Layer 0 (local), head 0"
    page.get_by_role("button", name="layer 0, head 0").focus()
    page.keyboard.press("ArrowUp")  # layer 0 is at the bottom
    assert heading.inner_text() == "Layer 1 (global), head 0"
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert heading.inner_text() == "Layer 2 (local), head 0"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert heading.inner_text() == "Layer 1 (global), head 2"
    assert page.locator(".gs-thumb[aria-pressed=true]").get_attribute("data-head") == "1.2"
    assert "Every query sees all keys" in page.locator(".gs-window").inner_text()
    page.locator("canvas[tabindex='0']").focus()
    page.keyboard.press("ArrowDown")  # the first key shows where the selection is
    for _ in range(6):
        page.keyboard.press("ArrowDown")
    announced = page.locator(".gs-live").last.text_content()
    assert announced.startswith("query 6: ·to, key 0: <bos>\nprobability: ")
    assert number(announced.split(": ")[-1]) == pytest.approx(float(t["pattern", 1][2, 6, 0]), abs=6e-5)
    page.get_by_role("button", name="Show as table").click()
    rows = [row.locator("td").all_inner_texts() for row in page.locator("tbody tr").all()]
    expected = np.tril(t["pattern", 1][2].numpy())
    assert np.abs(np.array([[number(c.split(" ")[-1] or "0") for c in row] for row in rows]) - expected).max() < 6e-5
    page.locator("canvas[tabindex='0']").focus()
    page.keyboard.press("Escape")
    assert page.locator(".gs-live").last.text_content() == "nothing selected"


def test_the_wall_is_sorted_by_what_heads_do_and_nothing_moves(open_page: Any) -> None:
    t = trace()
    scores = gs.head_scores(t.model, ["induction", "entropy"], prompts=[t.ids])
    page = open_page(gs.attention_view(t))
    before = page.locator(".gs-text-pane").bounding_box()
    for kind in ("induction", "entropy"):
        page.get_by_label("what heads are sorted by").select_option(label=kind)
        shown = page.locator(".gs-thumb").evaluate_all("all => all.map(one => [one.dataset.head, one.ariaLabel])")
        best = [f"{layer}.{head}" for layer, head, _ in scores[kind].best(5)]
        assert [head for head, _ in shown[:5]] == best
        layer, head, score = scores[kind].best(1)[0]
        says = f"{score:.1%}" if kind == "induction" else f"{score:.2f} nats"
        assert shown[0][1] == f"layer {layer}, head {head}, {kind} {says}"
        assert page.locator(".gs-text-pane").bounding_box() == before
    page.locator(".gs-thumb").first.click()
    row = page.get_by_role("listitem", name=re.compile("^entropy: "))
    assert row.get_attribute("aria-label") == f"entropy: {scores['entropy'].best(1)[0][2]:.2f} nats"


def test_a_token_shows_where_it_looks_and_a_click_keeps_it(open_page: Any) -> None:
    t = trace()
    pattern = t["pattern", 1][3].numpy()
    page = open_page(gs.attention_view(t, layer=1, head=3), gs.lens_view(t))

    def looks(query: int, values: Any) -> None:
        named = page.locator(".gs-looks").inner_text()
        assert named.startswith(f"{visible_text(t.tokens[query])} ({query}) ")
        best = int(np.argmax(values))
        assert f"{visible_text(t.tokens[best])} ({best}) {values[best]:.1%}" in named

    looks(14, pattern[14])
    chips = page.locator(".gs-text-pane .gs-chip")
    chips.nth(6).hover()
    looks(6, pattern[6])
    assert chips.nth(6).evaluate("chip => chip.classList.contains('gs-lit')")
    assert chips.nth(9).evaluate("chip => chip.classList.contains('gs-unseen')"), "a later token"
    chips.nth(6).click()
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur()")
    looks(6, pattern[6])
    assert "after ·to (6)" in page.locator(".gs-cell .gs-title").first.inner_text(), "the lens of the prompt follows"
    page.get_by_label("what the text shows").select_option(label="what looks at it")
    looks(6, pattern[:, 6])
    cells = Pointer(page)
    x, y = cells.find("query 12: ·a, key 3: ·and")
    page.mouse.move(cells.box["x"] + x, cells.box["y"] + y)
    assert page.locator(".gs-looks").inner_text().startswith("·a (12) is looked at by ")
    assert page.locator(".gs-text-pane .gs-lit").inner_text() == "·a"


def test_a_long_pattern_is_magnified_where_it_is_dragged_over(open_page: Any) -> None:
    t = wide(120)
    pattern = t["pattern", 1][0].numpy()
    page = open_page(gs.attention_view(t, layers=[1]))
    page.set_viewport_size({"width": 1280, "height": 1800})
    canvas = page.locator("canvas[tabindex='0']")
    tall = canvas.bounding_box()["height"]
    first = Pointer(page).find(f"query 60: {t.ids[60]}, key 20: {t.ids[20]}")
    last = Pointer(page).find(f"query 90: {t.ids[90]}, key 50: {t.ids[50]}")
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + first[0], box["y"] + first[1])
    page.mouse.down()
    page.mouse.move(box["x"] + last[0], box["y"] + last[1], steps=4)
    page.mouse.up()
    page.get_by_text("queries 60 to 90, keys 20 to 50").wait_for()
    below = page.locator(".gs-zoom")
    cells = Pointer(page)
    x, y = cells.find(f"query 70: {t.ids[70]}, key 33: {t.ids[33]}")
    match = re.search(r"probability: (\S+)", cells.says(x, y))
    assert match
    assert number(match[1]) == pytest.approx(pattern[70, 33], abs=6e-5)
    below.get_by_role("button", name="Whole pattern").click()
    assert canvas.bounding_box()["height"] == tall
    assert open_page(gs.attention_view(trace())).locator(".gs-zoom").count() == 0


def test_a_sentence_says_whether_the_window_cuts_the_prompt(open_page: Any) -> None:
    short, long = open_page(gs.attention_view(trace("When Mary"))), open_page(gs.attention_view(trace()))
    assert "cuts nothing off: the prompt has 3" in short.locator(".gs-window").inner_text()
    assert "A query sees 4 positions" in long.locator(".gs-window").inner_text()
    assert "Colours leave out the first position" in long.locator(".gs-window").inner_text()
    assert long.locator(".gs-edge").get_attribute("data-pos") == "11", "the window's edge in the text"
    cells = Pointer(long)
    x, y = cells.find("query 14: ·to, key 10: ·John")
    assert cells.says(x, y).endswith("outside the window: not seen")
    x, y = cells.find("query 14: ·to, key 11: ·gave")
    assert re.search(r"probability: 0\.\d{4}$", cells.says(x, y))
    long.get_by_label("whether colours take in the first position").select_option(label="with the first position")
    assert "Colours leave out" not in long.locator(".gs-window").inner_text()


def test_two_prompts_are_drawn_side_by_side_with_their_difference(open_page: Any) -> None:
    a, b = trace(), trace(CORRUPT)
    first, second = a["pattern", 1][3].numpy(), b["pattern", 1][3].numpy()
    page = open_page(gs.attention_view(a, compare=b, layer=1, head=3))
    page.set_viewport_size({"width": 1280, "height": 1800})
    titles = [text.split(",")[0] for text in page.locator(".gs-patterns .gs-title").all_inner_texts()]
    assert titles == ["first prompt", "second prompt", "second less first"]
    cells = Pointer(page, 2)
    x, y = cells.find("query 12: ·a, key 10: ·John ≠ ·Mary")
    numbers = dict(re.findall(r"(second less first|first prompt|second prompt):? (\S+)", cells.says(x, y)))
    assert number(numbers["first prompt"]) == pytest.approx(first[12, 10], abs=6e-5)
    assert number(numbers["second prompt"]) == pytest.approx(second[12, 10], abs=6e-5)
    assert number(numbers["second less first"]) == pytest.approx(second[12, 10] - first[12, 10], abs=8e-5)
    page.mouse.move(0, 0)
    most = np.abs(second - first)[:, 1:].max()
    place = ((second - first)[12, 10] / most + 1) / 2
    assert np.abs(cells.pixel(x - 2, y - 2) - between(RED_BLUE, place)).max() <= 3
    page.mouse.click(cells.box["x"] + x, cells.box["y"] + y)  # a selection in one panel selects in all
    page.locator("canvas[tabindex='0']").nth(0).focus()
    page.keyboard.press("ArrowUp")
    assert page.locator(".gs-live").nth(0).text_content().startswith("query 11: ·gave, key 10: ·John\n")
    page.get_by_label("which panel the wall and the text show").select_option(label="second less first")
    page.get_by_label("what heads are sorted by").select_option(label="change between the prompts")
    moved = np.abs(np.stack([b["pattern", n].numpy() - a["pattern", n].numpy() for n in range(3)])).sum((2, 3)) / 2 / 14
    layer, head = np.unravel_index(moved.argmax(), moved.shape)
    assert page.locator(".gs-thumb").first.get_attribute("data-head") == f"{layer}.{head}"
    unequal = open_page(gs.attention_view(a, compare=trace("When Mary and John"), layer=1))
    assert "15 and 5 tokens, so there is no difference to show" in unequal.locator(".gs-note").first.inner_text()
    assert unequal.locator("canvas[tabindex='0']").count() == 2


def test_several_prompts_are_drawn_as_their_mean_and_its_standard_error(open_page: Any) -> None:
    runs = [trace(), trace(CORRUPT), trace()]
    patterns = np.stack([run["pattern", 1][3].numpy() for run in runs])
    mean, error = patterns.mean(0), patterns.std(0, ddof=1) / 3**0.5
    page = open_page(gs.attention_view(runs, layer=1, head=3))
    page.set_viewport_size({"width": 1280, "height": 1800})
    titles = [text.split(",")[0] for text in page.locator(".gs-patterns .gs-title").all_inner_texts()]
    assert titles == ["mean of 3 prompts", "standard error of the mean"]
    cells = Pointer(page, 1)
    x, y = cells.find("query 12: ·a, key 10: ·John, ·Mary")
    numbers = dict(re.findall(r"(mean of 3 prompts|standard error of the mean):? (\S+)", cells.says(x, y)))
    assert number(numbers["mean of 3 prompts"]) == pytest.approx(mean[12, 10], abs=6e-5)
    assert number(numbers["standard error of the mean"]) == pytest.approx(error[12, 10], abs=6e-5)
    page.mouse.move(0, 0)
    most = np.tril(error)[:, 1:].max()
    assert np.abs(cells.pixel(x - 2, y - 2) - between(BLUES, error[12, 10] / most)).max() <= 3


def test_the_lens_is_drawn_in_the_colours_of_its_numbers(open_page: Any) -> None:
    t = trace()
    lens = gs.lens(t, answer=3)
    page = open_page(gs.lens_view(t, answer=3))
    cells = Pointer(page)
    x, y = cells.find("layer 1 (global), position 2: ·Mary")
    prob, rank = float(lens.answer_prob.sel(layer=1)[2]), int(lens.answer_rank.sel(layer=1)[2])
    tops = [f"{visible_text(token)}  {prob:.4f}" for token, prob, *_ in _tops(lens, 1, 2)]
    lines = cells.says(x, y).split("\n")
    assert lines[1] == f"probability of the answer: {prob:.4f}"
    assert lines[2:7] == tops
    assert lines[7] == f"answer When: {prob:.4f}, rank {rank}"
    page.mouse.move(0, 0)
    assert np.abs(cells.pixel(x, y - 10) - between(BLUES, prob)).max() <= 2
    page.get_by_label("what the colour says").select_option(label="colour: rank of the answer (0: the likeliest)")
    worst = float(lens.answer_rank.max())
    assert np.abs(cells.pixel(x, y - 10) - between(BLUES, 1 - np.log1p(rank) / np.log1p(worst))).max() <= 2
    page.get_by_label("what the colour says").select_option(label="colour: entropy")
    entropy = lens.entropy
    assert np.abs(cells.pixel(x, y - 10) - between(BLUES, float(entropy.sel(layer=1)[2] / entropy.max()))).max() <= 2


def test_a_click_in_the_lens_lists_ten_tokens_and_the_way_of_the_answer(open_page: Any) -> None:
    t = trace()
    ten, answer = gs.lens(t, top=10), int(t.logits[9].argmax())
    ranks = gs.lens(t, answer=answer).answer_rank[:, 9].values.tolist()
    page = open_page(gs.lens_view(t))
    cells = Pointer(page)
    x, y = cells.find("layer 1 (global), position 9: ,")
    page.mouse.click(cells.box["x"] + x, cells.box["y"] + y)
    page.get_by_text("Layer 1 after , (9)").wait_for()
    names = page.locator(".gs-cell .gs-name").all_inner_texts()
    assert names == [visible_text(str(token)) for token in ten.top_tokens.sel(layer=1)[9].values]
    line = page.locator(".gs-cell svg").get_attribute("aria-label")
    assert line.endswith(", ".join(f"layer {n}: {rank}" for n, rank in enumerate(ranks)))
    leads = [n for n, rank in enumerate(ranks) if rank == 0]
    assert f"leads from layer {leads[0]} on" in page.locator(".gs-cell").inner_text() or leads[0] == 0
    assert cells.find("layer 0 (local), position 9: ,")[1] > y, "layer 0 is at the bottom"
    page.mouse.move(0, 0)
    for n in range(3):
        x, y = cells.find(f"layer {n} ({t.layers[n].kind}), position 9: ,")
        row = [tuple(cells.pixel(float(x) + dx, float(y))) for dx in range(-40, 0)]
        assert ((199, 119, 0) in row) == (n == leads[0]), "outlined where the answer first leads"


def _tops(lens: gs.Lens, layer: int, pos: int) -> list[tuple[str, float]]:
    tokens, probs = lens.top_tokens.sel(layer=layer)[pos].values, lens.top_probs.sel(layer=layer)[pos].values
    return list(zip(map(str, tokens), map(float, probs), strict=True))


def test_a_lens_wider_than_the_page_scrolls_and_its_cells_stay_under_the_pointer(open_page: Any) -> None:
    t = wide(120)
    lens = gs.lens(t, answer=3)
    page = open_page(gs.lens_view(t, answer=3), width=800)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
    assert page.get_by_role("application", name=re.compile("^Lens on resid_post in random: 2 by 120 cells")).count() == 1
    page.locator("canvas[tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("End")
    live = page.locator(".gs-live").text_content()
    assert live.startswith(f"layer 0 (local), position 119: {t.ids[119]}\n")
    assert number(live.split("\n")[1].split(": ")[1]) == pytest.approx(float(lens.answer_prob[0, 119]), abs=6e-5)
    box = page.locator(".gs-wide").bounding_box()
    tip = page.locator(".gs-tip:visible").bounding_box()
    assert box["x"] <= tip["x"] <= box["x"] + box["width"] - tip["width"]
    page.keyboard.press("Home")
    for key in ["ArrowRight"] * 60 + ["ArrowLeft"] * 8:
        page.keyboard.press(key)
    before = page.locator(".gs-tip:visible").bounding_box()
    page.keyboard.press("ArrowLeft")
    assert before["x"] - page.locator(".gs-tip:visible").bounding_box()["x"] == pytest.approx(40, abs=1), "beside its cell"
    page.mouse.move(box["x"] + 300, box["y"] + 20)
    assert "layer 1 (global)" in page.locator(".gs-tip:visible").inner_text()


def test_positions_of_the_stream_are_chosen_by_their_tokens(open_page: Any) -> None:
    t = trace()
    page = open_page(gs.stream_view(t, answer=3))
    page.get_by_role("button", name="·store").click()
    page.get_by_role("button", name="Show as table").click()
    row = [number(c) for c in page.locator("tbody tr").nth(1).locator("td").all_inner_texts()]
    at = t.tokens.index(" store")
    parts = gs.direct_logits(t, 3, pos=at).parts
    expected = [
        float(t["resid_post", 1][at].norm()),
        float(t["attn_out", 1][at].norm()),
        float(t["mlp_out", 1][at].norm()),
        float(torch.cosine_similarity(t["resid_post", 1][at], t["resid_post", 2][at], dim=0)),
        float(parts.sel(part="layers.1.attn_out")),
        float(parts.sel(part="layers.1.mlp_out")),
    ]
    assert row == pytest.approx(expected, rel=1e-3)
    page.locator("canvas[tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    announced = page.locator(".gs-live").text_content()
    assert announced.startswith(f"layer 1 ◆, position {at}, ·store")
    assert [number(n) for n in re.findall(r"(?:stream|attention|MLP) (\S+)$", announced, re.MULTILINE)] == pytest.approx(
        expected, rel=1e-3
    )


def test_a_token_lists_its_features_and_a_click_shows_where_a_feature_is_active(open_page: Any) -> None:
    t = gs.trace(CLEAN)
    features = gs.load_sae("nano").encode(t)
    page = open_page(gs.sae_view(features, most=8))
    chosen = features.strongest(8)
    values = features.acts.sel(feature=chosen).values  # [pos, feature]
    page.locator(".gs-flow .gs-chip").nth(7).hover()
    here = sorted((float(value), feature) for value, feature in zip(values[7], chosen, strict=True) if value > 0)[::-1]
    names = page.locator(".gs-side-pane .gs-name").all_inner_texts()
    assert [int(name.split()[0]) for name in names] == [feature for _, feature in here]
    shown = [number(text) for text in page.locator(".gs-side-pane .gs-value").all_inner_texts()]
    assert shown == pytest.approx([value for value, _ in here], rel=1e-3)
    page.get_by_label("order of the features").select_option(label="number")
    page.locator("canvas[tabindex='0']").focus()
    page.keyboard.press("ArrowDown")  # the first key shows where the selection is
    page.keyboard.press("ArrowDown")
    second = sorted(chosen)[1]
    assert page.locator(".gs-side-pane .gs-head").inner_text().split()[1] == str(second)
    active = page.locator(".gs-flow .gs-chip").evaluate_all("chips => chips.map((chip) => chip.style.background !== '')")
    expected = features.acts.sel(feature=second).values
    assert active == [value > 0.005 * values[1:].max() for value in expected]


def test_cells_of_a_sweep_that_were_not_run_are_hatched_and_labelled(open_page: Any) -> None:
    s = gs.sweep(CLEAN, CORRUPT, gs.logit_diff(" Mary", " John"), site="resid_pre", model=trace().model, progress=False)
    s.values[0, 1, 3] = np.nan
    page = open_page(gs.sweep_view(s))
    cells = Pointer(page)
    x, y = cells.find("layer 1 (global), position 3: ·and")
    assert cells.says(x, y).endswith("\nnot run")
    page.mouse.move(0, 0)
    colours = {tuple(cells.pixel(x + dx, y)) for dx in range(-8, 8)}
    assert len(colours) > 1, "hatched, not of one colour"
    page.get_by_role("button", name="Show as table").click()
    rows = page.locator("tbody tr")  # the last layer comes first, as in the picture
    last = len(s.effect) - 1
    assert rows.nth(last - 1).locator("td").nth(3).inner_text() == "not run"
    assert number(rows.nth(last - 2).locator("td").nth(10).inner_text()) == pytest.approx(
        float(s.effect[2, 10]), rel=1e-3, abs=1e-4
    )


def test_one_view_twice_on_a_page_is_drawn_twice(open_page: Any) -> None:
    view = gs.lens_view(trace())
    page = open_page(view, view)
    assert page.locator("canvas[tabindex='0']").count() == 2


def test_a_page_is_redrawn_when_its_theme_turns_dark(open_page: Any) -> None:
    page = open_page(gs.attention_view(trace()))
    cells = Pointer(page)
    light = cells.pixel(1, 1)
    page.evaluate("document.body.dataset.jpThemeLight = 'false'")
    page.wait_for_timeout(50)
    assert sum(cells.pixel(1, 1)) < 100 < 700 < sum(light)


def test_small_pictures_are_not_drawn_again_for_another_head(open_page: Any) -> None:
    page = open_page(gs.attention_view(wide(), layers=[1]))
    assert page.locator(".gs-thumb").count() == 32
    drawn = page.evaluate(
        """() => {
            let n = 0;
            const put = CanvasRenderingContext2D.prototype.putImageData;
            CanvasRenderingContext2D.prototype.putImageData = function (...given) { n += 1; return put.apply(this, given); };
            for (const b of document.querySelectorAll(".gs-thumb")) b.click();
            return n;
        }"""
    )
    assert drawn == 0, "they do not change with the head, and thirty-two of them take a third of a second"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 800])
def test_every_view_is_drawn_with_odd_tokens_in_both_themes(open_page: Any, scheme: str, width: int) -> None:
    page = open_page(*every_view(odd()), scheme=scheme, width=width)
    assert (sum(Pointer(page).pixel(1, 1)) > 700) == (scheme == "light")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
    for button in page.get_by_role("button", name="Show as table").all():
        button.click()
    text = page.locator("body").inner_text()
    for token in ("<img·src=x·onerror=alert(1)>", "</script>", "<!--", "&amp;", r"\x1b[31m", r"\u202e", "שלום"):
        assert token in text
    assert page.locator("img").count() == 0


def test_without_a_script_a_page_shows_its_text_and_a_table(chromium: Any, tmp_path: Path) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    path = tmp_path / "page.html"
    t = gs.trace(prompt(9), model=model_of(checkpoint("lg")))
    path.write_text(page_with([gs.attention_view(t)]), encoding="utf-8")
    page.goto(path.as_uri())
    at = int(t["pattern", 0][5, -1, 1:].argmax()) + 1
    assert page.locator("tr").nth(6).locator("td").all_inner_texts() == [
        "5", f"{at}: {t.ids[at]}", f"{float(t['pattern', 0][5, -1, at]):.4f}"
    ]  # fmt: skip
    context.close()


def test_a_long_prompt_begins_at_the_token_that_is_shown(open_page: Any) -> None:
    t = wide(150)
    lens = open_page(gs.lens_view(t))
    cells = lens.locator(".gs-lens .gs-wide")
    lens.wait_for_function("document.querySelector('.gs-lens .gs-wide').scrollLeft > 0")
    canvas = lens.locator(".gs-lens canvas[tabindex='0']").bounding_box()
    box = cells.bounding_box()
    assert 0 < canvas["x"] + canvas["width"] - (box["x"] + box["width"]) < 120, (
        "of what is right of the last cell, at most the bar"
    )
    flow = open_page(gs.attention_view(wide(240), layers=[1]), width=420).locator(".gs-flow").first
    assert flow.evaluate("flow => flow.scrollHeight - flow.clientHeight") > 40, "the text is longer than its room"
    last, room = flow.locator("button[data-pos='239']").bounding_box(), flow.bounding_box()
    assert room["y"] <= last["y"] <= last["y"] + last["height"] <= room["y"] + room["height"]
    # From then on the reader scrolls, and what is pointed at moves nothing.
    flow.evaluate("flow => { flow.scrollTop = 20; }")
    flow.locator("button[data-pos='60']").dispatch_event("pointerenter")
    flow.locator("button[data-pos='60']").dispatch_event("pointerleave")
    assert flow.evaluate("flow => flow.scrollTop") == 20

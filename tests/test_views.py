"""Views: what they hold, how large they are, that text stays text, and what a browser draws of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import browser, page_of
from checkpoints import checkpoint, model_of, prompt
from pieces import ODD, worded

import gemmascope as gs
from gemmascope.errors import DictionaryError, GemmascopeError, SiteError, SweepError
from gemmascope.widgets.page import in_script, page

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"


def trace(text: str = CLEAN, **asked: Any) -> gs.Trace:
    found = gs.trace(text, model=worded(), **asked)
    assert isinstance(found, gs.Trace)
    return found


def odd() -> gs.Trace:
    found = gs.trace(worded().tokenizer.encode("".join(ODD)), model=worded())
    assert isinstance(found, gs.Trace)
    return found


def every_view(t: gs.Trace) -> list[gs.View]:
    sweep = gs.sweep(t.ids, [*t.ids.tolist()[:-1], 5], gs.logit_diff(3, 4), site="resid_pre", model=t.model, progress=False)
    return [
        gs.attention_view(t),
        gs.attention_view(t, compare=t, layer=1),
        gs.lens_view(t, answer=3),
        gs.stream_view(t, answer=3, against=4),
        gs.sweep_view(sweep),
    ]


class Elements(HTMLParser):
    """Every element of a page, and the text of those that are no script or style."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)


def test_a_view_is_a_page_part_with_all_it_needs() -> None:
    for view in every_view(trace()):
        part = view._repr_html_()
        assert part.count("<script") == part.count("</script>") == 1
        assert not re.search(r"""<[^>]*\s(?:src|href)\s*=|https?:|url\(|@import""", part)
        assert view.to_html() != part  # each has a name of its own, so that one page can hold it twice
        assert view.title in repr(view)


def test_text_is_never_markup() -> None:
    for view in every_view(odd()):
        elements = Elements()
        elements.feed(view.to_html())
        assert set(elements.tags) <= {"div", "script", "b", "p", "table", "tr", "td"}
        assert elements.tags.count("script") == 1
        assert "<img" not in view.to_html()
    assert json.loads(in_script({"</script>": ["<!--", "&amp;", "\u2028"]})) == {"</script>": ["<!--", "&amp;", "\u2028"]}
    assert "<" not in in_script("</script><!--")


def test_a_view_is_written_as_a_page_and_replaces_one(tmp_path: Path) -> None:
    path = tmp_path / "view.html"
    path.write_text("before")
    gs.lens_view(trace()).save(path)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert [p.name for p in tmp_path.iterdir()] == ["view.html"]


def test_pages_stay_small() -> None:
    shape = {"num_attention_heads": 32, "num_key_value_heads": 16, "sliding_window": 64, "max_position_embeddings": 256}
    wide = model_of(checkpoint("lg", **shape))
    t = gs.trace(prompt(200), model=wide)
    one = gs.attention_view(t, layers=[1])
    assert len(one.to_html()) < 1_500_000
    both = gs.attention_view(t, layer=1)
    assert len(both.to_html()) < 1_600_000
    held = [layer["index"] for layer in both.spec["layers"]]
    assert 1 in held
    assert (len(held) == 2) == ("note" not in both.spec)
    ten = [view for _ in range(2) for view in every_view(trace())]
    assert sum(len(view.to_html()) for view in ten) < 5_000_000


def test_layers_without_room_are_left_out_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemmascope.widgets.attention.MOST_BYTES", 10)
    view = gs.attention_view(trace(), layer=2)
    assert [layer["index"] for layer in view.spec["layers"]] == [2]
    assert view.spec["note"] == "2 layers are left out for the size of the page: layers=[...] chooses others."


def other() -> gs.Trace:
    found = gs.trace([3, 4], model=model_of(checkpoint("lg")))
    assert isinstance(found, gs.Trace)
    return found


def by_head() -> gs.SweepResult:
    return gs.sweep(CLEAN, CORRUPT, gs.rank(3), site="z", by="head", model=worded(), progress=False)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gs.attention_view("When"), SiteError, "trace is a trace, gs.trace"),
        (lambda: gs.attention_view(trace(), compare="When"), SiteError, "compare is a trace"),
        (lambda: gs.attention_view(trace(), layer=9), SiteError, "there is no layer 9"),
        (lambda: gs.attention_view(trace(), layer=0, layers=[1]), SiteError, "layer 0 is not among"),
        (lambda: gs.attention_view(trace(), head=8), SiteError, "heads go from 0 to 7"),
        (lambda: gs.attention_view(trace(), compare=other()), SiteError, "whose shape"),
        (lambda: gs.lens_view("When"), SiteError, "a lens view is of a trace"),
        (lambda: gs.lens_view(trace(), colour="red"), SiteError, "colour is one of"),
        (lambda: gs.lens_view(trace(), colour="rank"), SiteError, "rank needs answer="),
        (lambda: gs.stream_view("When"), SiteError, "a stream view is of a trace"),
        (lambda: gs.stream_view(trace(), against=" Mary"), SiteError, "is subtracted from an answer"),
        (lambda: gs.stream_view(trace(), pos=[1, 2]), SiteError, "one position is shown at first"),
        (lambda: gs.sae_view(trace()), DictionaryError, "what sae.encode"),
        (lambda: gs.sweep_view(by_head()), SweepError, "a grid has two axes; this sweep has 1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call: Any, error: type[GemmascopeError], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# In a browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.fixture
def shown(chromium: Any, tmp_path: Path) -> Iterator[Any]:
    """A function that opens views on one page and gives the page, drawn."""
    opened: list[Any] = []

    def show(*views: gs.View, **asked: Any) -> Any:
        path = tmp_path / f"{len(opened)}.html"
        path.write_text(page(list(views)), encoding="utf-8")
        manager = page_of(chromium, **asked)
        found = manager.__enter__()
        opened.append((manager, found))
        found.goto(path.as_uri())
        found.wait_for_function(f"document.querySelectorAll('[data-gs][data-gemmascope-ready]').length === {len(views)}")
        return found

    yield show
    for manager, found in opened:
        assert found.errors == []
        assert found.beyond == []
        manager.__exit__(None, None, None)


def pixel(page: Any, canvas: str, x: float, y: float) -> list[int]:
    found: list[int] = page.evaluate(
        """([canvas, x, y]) => {
            const element = document.querySelector(canvas), ratio = window.devicePixelRatio;
            return [...element.getContext("2d").getImageData(x * ratio, y * ratio, 1, 1).data].slice(0, 3);
        }""",
        [canvas, x, y],
    )
    return found


def blues(value: float) -> np.ndarray[Any, Any]:
    stops = np.array([[247, 251, 255], [198, 219, 239], [107, 174, 214], [33, 113, 181], [8, 48, 107]])
    return np.array([np.interp(value, np.linspace(0, 1, 5), stops[:, i]) for i in range(3)])


def cells_of(page: Any, canvas: str, label: str) -> tuple[float, float, float]:
    """Where the first cell of a grid of attention is, and how large cells are: found by pointing, as a user would."""
    box = page.locator(canvas).bounding_box()
    found = []
    for x in range(20, int(box["width"]) - 90, 3):
        page.mouse.move(box["x"] + x, box["y"] + 12)
        text = page.locator(".gs-tip:visible").all_inner_texts()
        if text and label in text[0]:
            found.append(x)
    return min(found), max(found), box["x"]


def test_the_lens_is_drawn_in_the_colours_of_its_numbers(shown: Any) -> None:
    t = trace()
    found = gs.lens(t, answer=3)
    page = shown(gs.lens_view(t, answer=3), gs.lens_view(t, answer=3, colour="entropy"))
    first, last, _ = cells_of(page, "canvas >> nth=0", "layer 2 (local), position 1: When")
    prob = float(found.answer_prob.sel(layer=2).values[1])
    colour = np.array(pixel(page, "canvas", (first + last) / 2, 9))
    assert np.abs(colour - blues(prob)).max() <= 3
    text = page.locator(".gs-tip:visible").all_inner_texts()
    page.locator("canvas").first.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    said = page.locator(".gs-live").first.text_content()
    assert "position 2: ·Mary" in said
    assert f"{float(found.answer_prob.sel(layer=0).values[2]):.3f}"[:4] in said
    assert text is not None


def test_layers_and_heads_of_attention_are_chosen_by_keys(shown: Any) -> None:
    t = trace()
    page = shown(gs.attention_view(t))
    assert page.locator(".gs-title").nth(1).inner_text() == "layer 0 (local), head 0"
    page.get_by_role("button", name="0 local").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".gs-title").nth(1).inner_text() == "layer 1 (global), head 0"
    page.get_by_role("button", name="head 0").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator(".gs-title").nth(1).inner_text() == "layer 1 (global), head 2"
    assert "every query sees all keys" in page.locator(".gs-note").first.inner_text()
    canvas = page.locator("canvas[tabindex='0']")
    canvas.focus()
    page.keyboard.press("ArrowDown")  # the first key shows where the selection is
    for _ in range(6):
        page.keyboard.press("ArrowDown")
    said = page.locator(".gs-live").last.text_content()
    value = float(t["pattern", 1][2, 6, 0])
    shown_value = re.search(r"\n(\S+)", said)
    assert shown_value
    assert float(shown_value[1].replace("−", "-")) == pytest.approx(value, abs=2e-5, rel=1e-3)


def test_the_sentence_says_whether_the_window_cuts(shown: Any) -> None:
    short, long = shown(gs.attention_view(trace("When Mary"))), shown(gs.attention_view(trace()))
    assert "cuts nothing off: the prompt has 3" in short.locator(".gs-note").first.inner_text()
    assert "a query sees 4 positions" in long.locator(".gs-note").first.inner_text()
    assert "Colours leave out the first position" in long.locator(".gs-note").first.inner_text()
    long.get_by_label("colours take in the first position").check()
    assert "Colours leave out" not in long.locator(".gs-note").first.inner_text()


def test_two_prompts_and_their_difference(shown: Any) -> None:
    a, b = trace(), trace(CORRUPT)
    page = shown(gs.attention_view(a, compare=b, layer=1, head=3))
    page.get_by_label("which prompt").select_option("difference")
    page.get_by_role("button", name="Show as table").click()
    cell = page.locator("tbody tr").nth(12).locator("td").nth(10).inner_text()
    expected = float(b["pattern", 1][3, 12, 10] - a["pattern", 1][3, 12, 10])
    assert float(cell.replace("−", "-").replace("+", "")) == pytest.approx(expected, abs=3e-5)
    other = shown(gs.attention_view(a, compare=trace("When Mary and John"), layer=1))
    assert "15 and 5 tokens, so there is no difference to show" in other.locator(".gs-note").first.inner_text()


def test_positions_of_the_stream_are_chosen_by_their_tokens(shown: Any) -> None:
    t = trace()
    page = shown(gs.stream_view(t, answer=3))
    page.get_by_role("button", name="·store").click()
    page.get_by_role("button", name="Show as table").click()
    row = [float(c.replace("−", "-")) for c in page.locator("tbody tr").nth(1).locator("td").all_inner_texts()]
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


def test_a_sweep_s_cells_that_were_not_run_are_hatched_and_said(shown: Any) -> None:
    s = gs.sweep(CLEAN, CORRUPT, gs.logit_diff(" Mary", " John"), site="resid_pre", model=worded(), progress=False)
    s.values[0, 1, 3] = np.nan
    page = shown(gs.sweep_view(s))
    page.get_by_role("button", name="Show as table").click()
    rows = page.locator("tbody tr")
    assert rows.nth(1).locator("td").nth(3).inner_text() == "not run"
    cell = rows.nth(2).locator("td").nth(10).inner_text().replace("−", "-").replace("+", "")
    assert float(cell) == pytest.approx(float(s.effect[2, 10]), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 800])
def test_every_view_is_drawn_with_odd_tokens_in_both_themes(shown: Any, scheme: str, width: int) -> None:
    views = every_view(odd())
    page = shown(*views, scheme=scheme, width=width)
    ground = pixel(page, "canvas[tabindex='0']", 1, 1)
    assert (sum(ground) > 700) == (scheme == "light")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
    text = page.locator("body").inner_text()
    assert "<img·src=x·onerror=alert(1)>" in text
    assert page.locator("img").count() == 0

"""The pieces that all views share, on a page of their own: menus, strip, panes, bars, arcs and the bus of tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from browser import pages_of

from gemmascope.views.module import FOLDER, system_module

PIECES = Path(__file__).parent / "js" / "pieces.js"
CONTRAST = Path(__file__).parent / "js" / "contrast.js"
EXTRA = "body{{margin:24px;{body}}}"


def written(path: Path, copies: int = 1, body: str = "", html: str = "") -> str:
    """A page with so many copies of all pieces, each with a module of its own, as views on a notebook's page have."""
    parts = "".join(
        f'<div id="el{i}"></div><script type="module">{system_module()}\n{PIECES.read_text(encoding="utf-8")}\n'
        f'show(document.getElementById("el{i}"));</script>'
        for i in range(copies)
    )
    path.write_text(
        f'<!doctype html><html {html}><meta charset="utf-8"><style>{EXTRA.format(body=body)}</style>{parts}', "utf-8"
    )
    return path.as_uri()


@pytest.fixture
def show(chromium: Any, tmp_path: Path) -> Iterator[Any]:
    number = count()
    with pages_of(chromium) as open_one:

        def open_page(*, width: int = 1280, scheme: str = "light", **options: Any) -> Any:
            page = open_one(width=width, scheme=scheme)
            page.goto(written(tmp_path / f"{next(number)}.html", **options))
            page.wait_for_selector("[data-ready]")
            return page

        yield open_page


def test_a_word_in_a_sentence_is_a_list_that_keys_and_names_reach(show: Any) -> None:
    page = show()
    words = page.get_by_label("what is patched")
    assert page.locator(".gs-word").first.inner_text().startswith("the residual stream")
    words.select_option("attn")
    assert page.locator("#el0").get_attribute("data-place") == "attn"
    assert page.locator(".gs-word").first.inner_text().startswith("attention output")
    page.get_by_label("axes").focus()
    page.keyboard.press("ArrowUp")
    assert page.locator("#el0").get_attribute("data-axes") == "layer × position"
    boxes = page.evaluate(
        """[...document.querySelectorAll('.gs-word')].map(
            word => [word, word.querySelector('select')].map(one => one.getBoundingClientRect().width))"""
    )
    assert all(abs(word - select) <= 1 for word, select in boxes), "a click on the word opens the list"


def test_the_menu_of_exports_opens_with_keys_and_closes(show: Any) -> None:
    page = show()
    opener = page.get_by_role("button", name="Export")
    opener.focus()
    page.keyboard.press("ArrowDown")
    assert page.get_by_role("menuitem", name="Copy Python").evaluate("one => one === document.activeElement")
    page.keyboard.press("ArrowDown")
    assert page.get_by_role("menuitem", name="PNG").evaluate("one => one === document.activeElement"), (
        "past the disabled one"
    )
    page.keyboard.press("Enter")
    assert page.locator("#el0").get_attribute("data-done") == "png"
    assert opener.evaluate("one => one === document.activeElement")
    opener.click()
    assert opener.get_attribute("aria-expanded") == "true"
    page.keyboard.press("Escape")
    assert opener.get_attribute("aria-expanded") == "false"
    opener.click()
    page.locator(".gs-head").click()
    assert page.get_by_role("menu").count() == 0


@pytest.mark.parametrize(("width", "columns"), [(1280, 2), (900, 1), (480, 1)])
def test_panes_stand_side_by_side_where_there_is_room(show: Any, width: int, columns: int) -> None:
    page = show(width=width)
    left, right = (page.locator(f".gs-{name}-pane").bounding_box() for name in ("main", "side"))
    assert (right["x"] > left["x"] + left["width"] - 2) == (columns == 2)
    assert (right["y"] >= left["y"] + left["height"] - 1) == (columns == 1)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_strip_stays_in_sight(show: Any) -> None:
    page = show(copies=2)
    page.set_viewport_size({"width": 1280, "height": 300})
    page.evaluate("window.scrollTo(0, 200)")
    assert page.locator(".gs-strip").first.bounding_box()["y"] == 0


def test_bars_grow_to_the_right_from_zero_and_signed_ones_from_the_middle(show: Any) -> None:
    page = show()
    places = page.evaluate(
        """[...document.querySelectorAll('.gs-track')].map(track => [...track.querySelectorAll('i')].map(bar => {
            const [all, one] = [track, bar].map(e => e.getBoundingClientRect());
            return [(one.left - all.left) / all.width, (one.right - all.left) / all.width];
        })[0] ?? null)"""
    )
    assert places[0] == pytest.approx([0, 0.998], abs=0.01)
    assert places[1][0] == 0
    assert places[2] == pytest.approx([0.5, 0.875], abs=0.01)
    assert places[3] == pytest.approx([0.3125, 0.5], abs=0.01)
    assert places[4] is None, "zero is no bar"
    values = page.locator(".gs-value").all_inner_texts()
    assert values == ["<0.1% → 99.8%", "99.7% → <0.1%", "+1.5", "−0.75", "0"]


def test_arcs_say_where_a_query_looks_and_leave_out_what_it_passes_over(show: Any) -> None:
    page = show()
    short, long = page.locator(".gs-arcs svg").all()
    assert (
        short.get_attribute("aria-label") == "·to, position 14, looks at: ·John 82.0%, ·Mary 10.0%, ·John 3.0%, <bos> 2.0%"
    )
    assert 10 <= short.locator("g").count() < 15, "the pane is narrower than the prompt"
    assert short.locator("path").count() == 4
    assert long.get_attribute("aria-label") == "·word149, position 149, looks at: ·word70 60.0%"
    assert long.locator("path").count() == 1
    assert "…" in long.locator("text").all_text_contents()
    box, pane = long.bounding_box(), page.locator(".gs-side-pane").bounding_box()
    assert box["width"] <= pane["width"]


def test_a_token_is_lit_in_every_part_and_in_the_other_views_of_its_prompt(show: Any) -> None:
    page = show(copies=2)
    chips = "[data-pos='10']"
    page.locator(f"#el0 {chips}").hover()
    for part in (f"#el0 {chips}", f"#el1 {chips}", "#el0 rect.gs-lit", "#el1 rect.gs-lit"):
        assert page.locator(part).evaluate("one => one.classList.contains('gs-lit')")
    assert page.locator(".gs-lit").count() == 4
    page.locator("#el1 .gs-arcs g").filter(has_text="10: ").click()
    page.mouse.move(0, 0)
    assert page.locator(".gs-lit").count() == 0
    assert page.locator(".gs-pinned").count() == 4
    page.locator(f"#el0 {chips}").click()
    assert page.locator(".gs-pinned").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_is_legible_in_both_themes(show: Any, scheme: str) -> None:
    page = show(scheme=scheme)
    assert page.evaluate(CONTRAST.read_text(encoding="utf-8"), [".gs *:not(svg *)", 4.5]) == []


def test_the_colours_of_the_page_are_taken_where_text_is_legible_in_them(show: Any) -> None:
    named = "--jp-layout-color0:#fdf6e3;--jp-content-font-color1:#073642;--jp-brand-color1:#fff000"
    page = show(body=named)
    colour = "name => getComputedStyle(document.querySelector('.gs')).getPropertyValue(name)"
    assert page.evaluate(colour, "--gs-ground") == "rgb(253,246,227)"
    assert page.evaluate(colour, "--gs-ink") == "rgb(7,54,66)"
    assert page.evaluate(colour, "--gs-accent") == "#1f5fae", "yellow on cream cannot be read"
    dark = show(body=named, html='data-theme="dark"')
    assert dark.evaluate(colour, "--gs-ground") == "#111316", "a light ground on a page that says it is dark is not believed"


def test_printed_pages_have_no_buttons_and_no_scroll_bars(show: Any) -> None:
    page = show(width=800)
    page.emulate_media(media="print")
    assert not page.get_by_role("button", name="Run all exactly").is_visible()
    assert not page.get_by_role("button", name="Export").is_visible()
    scrolling = """[...document.querySelectorAll('.gs *')]
        .filter(one => /auto|scroll/.test(getComputedStyle(one).overflow)).map(one => one.className)"""
    assert page.evaluate(scrolling) == []


def test_every_piece_is_part_of_the_page_of_all_pieces() -> None:
    text = PIECES.read_text(encoding="utf-8")
    for path in sorted((FOLDER / "system").glob("*.js")):
        assert path.name == "style.js" or any(f"{name}(" in text for name in _exported(path)), (
            f"{path.name} is not drawn in tests/js/pieces.js"
        )


def _exported(path: Path) -> list[str]:
    return re.findall(r"^export (?:async )?function (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)

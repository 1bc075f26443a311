"""Characters that take several tokens: found in Python, and drawn once, over their tokens, in views, chips and figures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import pages_of
from front_ends import Kernel, VSCode, kernel  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st

import gemmascope as gs
from gemmascope.labs.patching.picture import difference_text
from gemmascope.tokens.characters import characters_of, text_of
from gemmascope.views.page import page as page_with

PROMPT = "The boy saw 中 and a 😀 there"

pytestmark = pytest.mark.nano


def bytes_of(text: str) -> list[str]:
    return [f"<0x{byte:02X}>" for byte in text.encode()]


@settings(deadline=None, max_examples=100)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), min_size=1, max_size=20))
def test_the_tokens_of_any_text_are_that_text_again(text: str) -> None:
    tokenizer = gs.load().tokenizer
    assert text_of(tokenizer.texts(tokenizer.encode(text))) == text


def test_each_byte_of_a_character_is_named_and_broken_ones_are_not() -> None:
    found = characters_of(["a", *bytes_of("中"), "b", *bytes_of("é"), *bytes_of("😀")])
    assert [str(one) for one in found if one][:3] == [f"byte {n} of 3 of 中" for n in (1, 2, 3)]
    assert [one and one.text for one in found] == [None, *"中中中", None, *"éé", *"😀😀😀😀"]
    for broken in (bytes_of("中")[:2], bytes_of("中")[1:], ["<0xC0>", "<0x80>"], ["<0xED>", "<0xA0>", "<0x80>"], ["<0x41>"]):
        assert characters_of(broken) == [None] * len(broken)
    after_half = [*bytes_of("中")[:1], *bytes_of("中")]
    assert [one and one.nth for one in characters_of(after_half)] == [None, 0, 1, 2]


def test_a_figure_has_the_character_at_its_first_token_and_the_bytes_under_the_pointer() -> None:
    figure = gs.lens(gs.trace(PROMPT)).plot()
    ticks = list(figure.layout.xaxis.ticktext)
    place = ticks.index("中")
    assert ticks[place : place + 3] == ["中", "", ""]
    assert f"position {place + 1}: &lt;0xB8&gt; (byte 2 of 3 of 中)" in figure.data[-1].customdata[0][place + 1]


@pytest.fixture
def opened(chromium: Any, tmp_path: Path) -> Iterator[Any]:
    """A page with the lens, the attention and the stream of a prompt with characters of several tokens."""
    t = gs.trace(PROMPT)
    (tmp_path / "views.html").write_text(
        page_with([gs.lens_view(t), gs.attention_view(t), gs.stream_view(t)]), encoding="utf-8"
    )
    with pages_of(chromium) as open_one:
        page = open_one()
        page.set_default_timeout(120_000)
        page.goto((tmp_path / "views.html").as_uri())
        page.wait_for_function("document.querySelectorAll('[data-gs][data-gemmascope-ready]').length === 3")
        yield page


def test_chips_show_a_character_once_and_stay_one_for_each_token(opened: Any) -> None:
    tokens = gs.trace(PROMPT).tokens
    text = opened.locator(".gs-text-pane")
    assert text.locator("button.gs-chip").count() == len(tokens)
    assert text.locator(".gs-character-text").all_inner_texts() == ["中", "😀"]
    first = text.locator(".gs-character").first.locator("button")
    assert first.count() == 3
    place = tokens.index("<0xE4>")
    assert first.nth(1).get_attribute("title") == f"{place + 1}: <0xB8>: <0xB8>, byte 2 of 3 of 中"
    first.nth(1).click()
    opened.locator(f".gs-text-pane [data-pos='{place + 1}'][aria-pressed=true]").wait_for()
    assert opened.locator(".gs-pinned").count() > 1, "the token is kept in the other views of the prompt, too"


def test_the_line_below_the_attention_text_names_a_character_once(opened: Any) -> None:
    tokens = gs.trace(PROMPT).tokens
    place = tokens.index("<0xE4>")
    looks = opened.locator(".gs-looks")
    said = set()
    for button in opened.locator(".gs-text-pane button.gs-chip").all():
        button.focus()
        said.add(looks.inner_text())
    assert all("<0x" not in text for text in said)
    assert any(f"中 ({place} to {place + 2}) " in text.split(" looks at ")[1] for text in said)
    assert any(text.startswith(f"中, byte 2 of 3 ({place + 1}) looks at ") for text in said)


def test_the_heads_of_a_patching_grid_show_a_character_once(chromium: Any, kernel: Kernel, tmp_path: Path) -> None:  # noqa: F811
    clean, corrupt = "The boy saw 中 and a é there", "The boy saw 中 and a è there"
    tokens = gs.trace(clean).tokens
    with pages_of(chromium) as open_one, gs.patching_lab(clean, corrupt, " Mary", " John", at_once=False) as lab:
        page = open_one()
        page.set_default_timeout(120_000)
        VSCode(page, kernel, tmp_path).show(lab)
        heads = page.locator(".gs-heads")
        heads.get_by_role("listitem").nth(len(tokens) - 1).wait_for()
        texts = heads.locator(".gs-chip").all_inner_texts()
        assert not any("<0x" in text or "\\x" in text for text in texts)
        assert [text for text in texts if text in ("中", "é", "è")] == ["中", "é", "è"]
        place = tokens.index("<0xE4>")
        ends = """(element, at) => at.map((i) =>
            element.querySelectorAll("[role=listitem]")[i].querySelector(".gs-chip").getBoundingClientRect().right)"""
        over, under = heads.evaluate(ends, [place, place + 2])  # at once: the heads may be drawn anew meanwhile
        assert abs(over - under) < 4, "it stands over all of its bytes"
        heads.get_by_label(f"{place + 1}: <0xB8>, byte 2 of 3 of 中").wait_for()
        assert lab.experiment is not None
        assert difference_text(lab.experiment) == '"... and a é there" against "... and a è there"'
        differs = tokens.index("<0xA9>")
        heads.get_by_label(
            f"{differs}: differs: clean <0xA9>, byte 2 of 2 of é, corrupted <0xA8>, byte 2 of 2 of è"
        ).wait_for()

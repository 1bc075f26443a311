"""How a trace is displayed: the same content as text, HTML and data, with tokens escaped."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest
import torch
from checkpoints import checkpoint, model_of, prompt
from hypothesis import given, settings
from hypothesis import strategies as st
from pieces import ODD, STORY, Pieces, worded

import gemmascope as gs
from gemmascope.edits.kinds import Ablate, Custom
from gemmascope.model.model import Model
from gemmascope.run.show import as_html, as_text, to_dict
from gemmascope.run.trace import Trace
from gemmascope.tokens.tokenizer import Tokenizer, visible_text

TEXT = "When Mary and John went to the store, John gave a drink to"
# The only tags that the page may have: any other comes from a token.
TAGS = {"html", "head", "meta", "title", "body", "div", "style", "span", "b", "i", "code", "table", "caption", "tr", "td"}
ATTRIBUTES = {"class", "style", "title", "lang", "charset", "name", "content"}


class Page(HTMLParser):
    """The tags, attributes, token chips and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.chips: list[str] = []
        self.text: list[str] = []
        self.comments: list[str] = []
        self._in_chip = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self._in_chip = "gs-chip" in (dict(attrs).get("class") or "")
        if self._in_chip:
            self.chips.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_chip = False

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._in_chip:
            self.chips[-1] += data

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)


def model_with(pieces: list[str], name: str = "random") -> Model:
    return Model(worded().network, Tokenizer(Pieces(pieces), bos_id=2), name)


def test_text_shows_tokens_model_answers_and_layers() -> None:
    t = gs.trace(TEXT, model=worded(), edits=[Ablate(site="z", layer=1, pos=3, head=2)])
    head, tokens, edit, following, columns, *layers = repr(t).split("\n")
    assert head == "Trace of random: 15 tokens"
    assert tokens.split() == [visible_text(text) for text in t.tokens]
    assert edit.strip() == "edit gs.ablate('z', layer=1, pos=3, head=2)"
    best, _, probability = t.top(1)[0]
    assert following.split()[:3] == ["next", visible_text(best), f"{probability:.1%}"]
    assert columns.split() == ["layer", "kind", "would", "answer"]
    probs = torch.from_numpy(t.lens().values).softmax(-1).max(-1)
    answers = [visible_text(text) for text in t.model.texts(probs.indices)]
    kinds = ["local", "global", "local"]
    shares = [f"{p:.1%}" for p in probs.values.tolist()]
    assert [line.split() for line in layers] == [list(map(str, row)) for row in zip(range(3), kinds, answers, shares)]  # noqa: B905
    assert len({line.index("%") for line in layers}) == 1


def test_columns_are_aligned_whatever_the_width_of_the_characters() -> None:
    model = model_with(["文字" if i % 2 else "é" for i in range(58)])
    widths = set()
    for first in range(3, 60):
        layers = as_text(gs.trace([2, first], model=model)).split("\n")[-3:]
        line_widths = {sum(2 if char in "文字" else 1 for char in line) for line in layers}
        assert len(line_widths) == 1
        widths |= {"文" in line for line in layers} if len({"文" in line for line in layers}) == 2 else set()
    assert widths == {True, False}  # both kinds occurred in one table


def test_html_holds_the_numbers_of_the_text() -> None:
    t = gs.trace(TEXT, model=worded(), edits=[Ablate(site="z", layer=1, pos=3, head=2)])
    page, words = Page(t._repr_html_()), " ".join(Page(t._repr_html_()).text)
    data = to_dict(t)
    layers = [row["top"][0]["text"] for row in data["layers"]]
    assert page.chips == [visible_text(x) for x in [*t.tokens, *(a["text"] for a in data["top"]), *layers]]
    for part in ("random", "15 tokens", "gs.ablate('z', layer=1, pos=3, head=2)", "▭ local", "◯ global"):
        assert part in words
    assert page.tags <= TAGS
    assert "http" not in as_html(t)  # self-contained: nothing is fetched


def test_data_is_json_with_tokens_as_they_are() -> None:
    t = gs.trace("When Mary\n went", model=worded())
    data = json.loads(json.dumps(to_dict(t)))
    assert data["model"] == "random"
    assert [(token["pos"], token["id"], token["text"]) for token in data["tokens"]] == list(
        zip(range(5), t.ids.tolist(), t.tokens, strict=True)
    )
    assert [(a["text"], a["id"], a["probability"]) for a in data["top"]] == t.top(5)
    assert [(row["layer"], row["kind"], row["window"]) for row in data["layers"]] == [
        (0, "local", 4), (1, "global", None), (2, "local", 4),
    ]  # fmt: skip
    assert all(len(row["top"]) == 5 for row in data["layers"])
    last = data["layers"][-1]["top"]
    assert [a["id"] for a in last] == [a["id"] for a in data["top"]]


def assert_only_text(t: Trace) -> None:
    page = Page(as_html(t))
    assert page.tags <= TAGS
    assert page.attributes <= ATTRIBUTES
    assert page.comments == []
    assert len(page.chips) == len(t) + 5 + t.model.n_layers
    text = as_text(t)
    assert all(char.isprintable() or char in "\n\u200c\u200d" for char in text)
    assert len(text.split("\n")) == 4 + len(t.edits) + t.model.n_layers


@pytest.mark.parametrize("odd", ODD)
def test_odd_tokens_are_escaped(odd: str) -> None:
    t = gs.trace(f"When{odd}{odd}", model=worded())
    assert t.tokens == ["<bos>", "When", odd, odd]
    assert_only_text(t)
    drawn = Page(as_html(t)).chips[2]
    assert drawn == Page(as_html(t)).chips[3]
    assert drawn.replace("·", " ") == odd or odd in "\n\t" or any(not char.isprintable() for char in odd)


def test_odd_tokens_are_drawn_so_that_they_can_be_seen() -> None:
    t = gs.trace("".join(ODD), model=worded())
    drawn = dict(zip(ODD, Page(as_html(t)).chips[1:], strict=False))
    assert [drawn[x] for x in ("\n", "\t", " ", "\x1b[31m", "\x00", "\u202e")] == [
        "⏎",
        "⇥",
        "·",
        "\\x1b[31m",
        "\\x00",
        "\\u202e",
    ]
    assert drawn["👩‍👩‍👧"] == "👩‍👩‍👧"  # its joiners are kept
    assert [drawn[x] for x in ("שלום", "&amp;", "</script>", "'")] == ["שלום", "&amp;", "</script>", "'"]


@settings(deadline=None, max_examples=60, derandomize=True)
@given(piece=st.text(min_size=1, max_size=12), name=st.text(min_size=1, max_size=12))
def test_any_text_is_text(piece: str, name: str) -> None:
    model = model_with([piece, "When"], name)
    assert_only_text(gs.trace([2, 3, 4, 3], model=model))


def test_a_model_and_an_edit_with_markup_in_their_names_are_text() -> None:
    def nasty(x: torch.Tensor) -> torch.Tensor:
        return x

    nasty.__name__ = "<script>alert(1)</script>\x1b[2J"
    t = gs.trace("When", model=model_with(list(STORY), "<u>name</u>"), edits=[Custom(site="z", fn=nasty, layer=0)])
    assert_only_text(t)
    assert "<script>" not in as_html(t)
    assert as_html(t).count("&lt;u&gt;name") == 1


def test_a_long_prompt_is_shown_by_its_ends() -> None:
    long = model_of(checkpoint("lg", max_position_embeddings=200))
    t = gs.trace(prompt(130), model=long)
    words = as_text(t).split("\n")[1].split()
    assert words == [*map(str, t.ids.tolist()[:40]), "…", "50", "more", "…", *map(str, t.ids.tolist()[-40:])]
    assert "<i>… 50 more …</i>" in as_html(t)
    assert len(Page(as_html(t)).chips) == 80 + 5 + 2
    assert "more" not in as_text(gs.trace(prompt(80), model=long))


def test_a_prompt_of_one_token_is_shown() -> None:
    assert repr(gs.trace([7], model=worded())).startswith("Trace of random: 1 token\n")
    assert "1 token<" in gs.trace([7], model=worded())._repr_html_()


def test_a_small_probability_is_not_shown_as_0() -> None:
    assert "<0.1%" in repr(gs.trace(TEXT, model=worded()))
    assert " 0.0%" not in repr(gs.trace(TEXT, model=worded()))


def test_a_model_without_a_tokenizer_shows_ids() -> None:
    t = gs.trace(prompt(5), model=model_of(checkpoint("lgl")))
    assert as_text(t).split("\n")[1].split() == list(map(str, prompt(5)))
    assert_only_text(t)

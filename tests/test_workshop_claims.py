"""Guesses and claims come before the numbers, and a drawing shows where heads read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gemmascope as gs
from gemmascope.errors import GemmascopeError
from gemmascope.workshop import claim, draw_points, draw_reading, measure_pair, predict, setup
from gemmascope.workshop.building.notebook import notebook

SOURCES = sorted((Path(__file__).parent.parent / "notebooks" / "teaching" / "source").glob("*.py"))
PROMPT = "When Mary and John went to the store, John gave a drink to"


def test_a_verdict_waits_for_what_a_learner_writes() -> None:
    mine = claim("9", "2 + 2 is 5")
    asks = "claim 9: write what you think in the box above, then run this cell again for the verdict"
    assert mine.verdict("refuted") == asks
    for empty in ("", "  \n"):
        with pytest.raises(GemmascopeError, match="claim 9: write a sentence; given"):
            mine.write(empty)
    assert mine.verdict("refuted") == asks
    mine.write(" No. ")
    assert mine.verdict("refuted") == "you wrote:       No.\nthe numbers say: refuted"
    assert "No." in repr(mine)


def test_a_claim_keeps_what_was_written_as_long_as_it_says_the_same() -> None:
    claim("8", "2 + 2 is 5").write("No.")
    assert claim("8", "2 + 2 is 5").written == "No."
    assert claim("8", "2 + 2 is 4").written == ""
    assert claim("7", "2 + 2 is 5").written == ""
    with pytest.raises(GemmascopeError, match="a claim has a text; given ''"):
        claim("8", "")


class Shown:
    """A Jupyter kernel's stand-in: keeps the widgets that are displayed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.widgets: list[Any] = []
        self.texts: list[str] = []
        # By its name: in the package, the function of the same name stands before the module.
        monkeypatch.setattr(sys.modules["gemmascope.workshop.claim"], "kernel", lambda: object())
        monkeypatch.setattr(sys.modules["gemmascope.workshop.claim"], "show_widget", self.show)

    def show(self, widget: Any, text: str) -> None:
        self.widgets.append(widget)
        self.texts.append(text)


def test_the_box_and_the_claim_hold_the_same_text(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Shown(monkeypatch)
    mine = claim("6", "<b>2 + 2</b> is 5")
    mine._ipython_display_()
    text, box = shown.widgets[0].children
    assert "&lt;b&gt;2 + 2&lt;/b&gt; is 5" in text.value
    box.value = "typed"
    assert mine.written == "typed"
    mine.write("said in code")
    assert box.value == "said in code"
    box.value = " "
    assert "write what you think" in mine.verdict("refuted")


def test_an_exported_notebook_has_the_text_of_a_claim_and_of_a_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    for name in ("claim", "predict"):
        monkeypatch.setattr(sys.modules[f"gemmascope.workshop.{name}"], "kernel", lambda: object())
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    mine, guess = claim("5", "2 + 2 is 4"), predict("5", "Which is it?", ["4", "5"])
    mine._ipython_display_()
    guess._ipython_display_()
    assert [one["text/plain"] for one in shown] == [repr(mine), repr(guess)]
    assert all("application/vnd.jupyter.widget-view+json" in one for one in shown)


def test_the_set_up_gives_no_guess_away() -> None:
    said = repr(setup())
    assert "Mary" not in said
    assert "nano          runs, and answers as it should" in said


@pytest.mark.parametrize("source", [s for s in SOURCES if s.stem[0] in "012345678"], ids=lambda s: s.stem)
def test_a_guess_or_a_claim_stands_before_what_answers_it(source: Path) -> None:
    """Cells that show a guess's answer, or a verdict, come after the guess; the last code cell lists the exercises."""
    code = [cell.source for cell in notebook(source, "exercise").cells if cell.cell_type == "code"]
    assert code[-1] == f"check.summary({source.stem[0]})"
    text = "\n".join(code)
    for asked, answered in (("predict(", ".reveal("), ("claim(", ".verdict(")):
        assert text.count(f" {asked}") == text.count(answered) >= 1
        for name in (line.split(" = ")[0] for line in text.splitlines() if f" = {asked}" in line):
            # The cell that asks ends by showing its widget, and answers nothing.
            cell = next(one for one in code if f"{name} = {asked}" in one)
            assert cell.rstrip().endswith(f"\n{name}")
            assert text.index(f"{name} = {asked}") < text.index(f"{name}{answered}")
    assert ".write(" not in text


def test_a_drawing_shows_the_attention_of_each_head() -> None:
    t = gs.trace(PROMPT)
    figure = draw_reading(t, [(2, 3), [3, 0]])
    assert figure.layout.yaxis.ticktext == ("2.3", "3.0")
    assert figure.layout.xaxis.ticktext[2] == "·Mary"
    for row, (layer, head) in enumerate([(2, 3), (3, 0)]):
        dots = next(one for one in figure.data if one.mode == "markers+text" and one.y and one.y[0] == row)
        shares = t["pattern", layer][head, -1].numpy()
        assert list(dots.x) == np.flatnonzero(shares >= 0.03).tolist()
        assert dots.hovertext[int(np.argmax(shares[list(dots.x)]))].endswith(f"{shares.max():.1%}")
    assert "position 4, " in draw_reading(t, [(0, 0)], pos=4).layout.title.text


@pytest.mark.parametrize(
    ("heads", "pos", "message"),
    [
        ([], -1, "there is no head to draw"),
        ([(2, 3, 1)], -1, r"a head is \(layer, head\), such as \(2, 3\); given \(2, 3, 1\)"),
        ([(9, 0)], -1, "layer"),
        ([(0, 4)], -1, "head"),
        ([(0, 0)], 15, "pos"),
    ],
)
def test_a_head_that_there_is_not_is_refused(heads: Any, pos: int, message: str) -> None:
    with pytest.raises(GemmascopeError, match=message):
        draw_reading(gs.trace(PROMPT), heads, pos)


def test_a_pair_of_one_s_own_is_measured_and_judged(capsys: pytest.CaptureFixture[str]) -> None:
    known = gs.prompts.Pair("The capital of France is", "The capital of Spain is", " Paris", " Madrid")
    metric = measure_pair(known)
    lead = float(metric.bind(gs.load())(gs.trace(known.clean).next_logits[None])[0])
    said, verdict = capsys.readouterr().out.splitlines()
    assert said.startswith(f"' Paris' less ' Madrid': {lead:+.2f} after the clean prompt, -")
    assert verdict == "the model can do this"
    measure_pair(gs.prompts.Pair(known.corrupt, known.clean, " Paris", " Madrid"), gs.load())
    assert capsys.readouterr().out.splitlines()[1] == "the model gets one of the two wrong: choose another pair"


def test_a_pair_that_cannot_be_patched_is_refused() -> None:
    longer = gs.prompts.Pair("The capital of France is", "The capital of the France is", " Paris", " Madrid")
    with pytest.raises(
        GemmascopeError, match=r"as many tokens as each other(?s:.*)6: \['<bos>', 'The'(?s:.*)7: \['<bos>', "
    ):
        measure_pair(longer)
    with pytest.raises(GemmascopeError, match=r"give a pair, gs\.prompts\.Pair\(.*\); given str"):
        measure_pair("The capital of France is")  # type: ignore[arg-type]


def test_points_are_drawn_where_they_are() -> None:
    series = {"<b>a</b>": (range(3), torch.tensor([1.0, 4.0, 2.0])), "b": ([0.5], np.array([-3.0]))}
    figure = draw_points(series, title="T", x="layer", y="logit", lines=True, equal=True, levels={"clean": 2.5})
    equal, first, second = figure.data
    assert (list(equal.x), list(equal.y)) == ([-3.0, 4.0], [-3.0, 4.0])
    assert (list(first.x), list(first.y), first.mode) == ([0.0, 1.0, 2.0], [1.0, 4.0, 2.0], "lines+markers")
    assert (list(second.x), list(second.y)) == ([0.5], [-3.0])
    assert first.name == "&lt;b&gt;a&lt;/b&gt;"  # text, not markup
    (level,) = figure.layout.shapes
    assert (level.y0, level.y1) == (2.5, 2.5)
    assert figure.layout.annotations[0].text == "clean"
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("layer", "logit")
    assert draw_points({"b": ([0.5], [1.0])}, title="T", x="x", y="y").data[0].mode == "markers"


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ({}, "there is nothing to draw"),
        ({"a": ([], [])}, "'a' has 0 x and 0 y: give as many of both, and one at least"),
        ({"a": ([1, 2], [1])}, "'a' has 2 x and 1 y"),
    ],
)
def test_points_that_cannot_be_drawn_are_refused(series: Any, message: str) -> None:
    with pytest.raises(GemmascopeError, match=message):
        draw_points(series, title="T", x="x", y="y")

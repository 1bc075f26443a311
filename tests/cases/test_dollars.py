"""Plots escape text: no TeX between two dollars, no markup, no template field, no control or direction character."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import hostile
import pytest
from browser import page_of
from hostile import UNFIT

from gemmascope.figures.theme import escape_label

# What our own labels may hold besides text.
OWN = re.compile(
    r'<br>|<extra>(?:%\{fullData\.name\})?</extra>|<span style="fill-opacity:[\d.]+">|</span>|&(?:amp|lt|gt|#36|#37);'
)
PLACES = re.compile(r"%\{(?:customdata(?:\[\d\])?|text|x|y|z)(?::[^}]*)?\}")
# As plotly.js looks for TeX, in lib/svg_text_utils.js.
TEX = re.compile(r"([^$]*)([$]+[^$]*[$]+)([^$]*)")

FIGURES = [name for name, make in hostile.SHOWN.items() if "lab" not in name and "view" not in name]

# What a plot must be given.
PLOTTED = {"TopExamples": (("feature", 0),)}


@cache
def figure(name: str) -> Any:
    """The figure of a result; None if it has none."""
    shown = hostile.SHOWN[name]()
    plot = getattr(shown, "plot", None)
    return None if plot is None else plot(*PLOTTED.get(name, ()))


def strings(value: Any) -> Iterator[str]:
    """Every text in a figure, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from strings(one)
    elif hasattr(value, "__iter__"):
        for one in value:
            yield from strings(one)


def drawn() -> list[str]:
    return [name for name in FIGURES if figure(name) is not None]


def test_figures_with_hostile_text_are_drawn() -> None:
    assert len(drawn()) >= 12
    everything = " ".join(one for name in drawn() for one in strings(figure(name).to_dict()))
    for escaped in ("&#36;", "&lt;", r"\x1b", r"\u202e"):
        assert escaped in everything


@pytest.mark.parametrize("name", FIGURES)
def test_every_text_in_a_picture_is_escaped(name: str) -> None:
    plotly_figure = figure(name)
    if plotly_figure is None:
        pytest.skip("it has no picture")
    content = plotly_figure.to_dict()
    content["layout"].pop("template", None)
    for one in strings(content):
        assert UNFIT.search(one) is None, ascii(one)
        assert "\n" not in one, ascii(one)
        assert "$" not in one, one
        bare = PLACES.sub("", OWN.sub("", one))
        assert not re.search(r"<|&|%\{", bare), one


@pytest.mark.parametrize("label", ["$x$", "a $ b $ c", "$$x$$", r"\$x$", "$ $", "&#36;x&#36;", "$\\unicode{41}$"])
def test_plotly_reads_no_tex_in_an_escaped_label(label: str) -> None:
    assert TEX.match(escape_label(label)) is None


def test_plotly_still_looks_for_tex_with_this_pattern() -> None:
    import plotly.offline

    assert "([^$]*)([$]+[^$]*[$]+)([^$]*)" in plotly.offline.get_plotlyjs()


def test_a_dollar_is_drawn_as_a_dollar(chromium: Any) -> None:
    import plotly.graph_objects as go

    hostile_text = "$a$ <b>b</b> & $c$ %{x} \x1b\u202e"
    escaped, title, tick = (escape_label(f"{what}{hostile_text}") for what in ("", "title ", "tick "))
    plotly_figure = go.Figure(go.Bar(x=[1], y=[1], customdata=[escaped], name=escaped, showlegend=True))
    plotly_figure.update_traces(hovertemplate="%{customdata}<br>" + escape_label("%{y} $h$") + "<extra></extra>")
    plotly_figure.update_layout(title=title, xaxis={"tickvals": [1], "ticktext": [tick]})
    with page_of(chromium) as page:
        page.set_content(plotly_figure.to_html(include_plotlyjs=True, include_mathjax=False))
        page.evaluate("() => { window.MathJax = { Hub: { Queue() { throw Error('TeX was found'); } } }; }")
        page.wait_for_selector(".gtitle")
        page.evaluate("() => Plotly.redraw(document.querySelector('.plotly-graph-div'))")
        bar = page.locator(".bars path").first.bounding_box()
        page.mouse.move(bar["x"] + bar["width"] / 2, bar["y"] + bar["height"] / 2)
        page.wait_for_selector(".hovertext")
        drawn_text = r"$a$ <b>b</b> & $c$ %{x} \x1b\u202e"
        assert page.locator(".gtitle").text_content() == f"title {drawn_text}"
        assert page.locator(".xtick text").text_content() == f"tick {drawn_text}"
        assert page.locator(".legendtext").text_content() == drawn_text
        assert page.locator(".hovertext").text_content() == f"{drawn_text}%{{y}} $h$"
        assert page.errors == []

"""The static still of a steering lab: its curve, and the texts at five strengths, as HTML that needs no script."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from html import escape
from math import isnan

from gemmascope.labs.steering.curve import Curve
from gemmascope.labs.steering.ladder import Ladder, stretches
from gemmascope.legible import legible, legible_line

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 152, 64, 16, 12, 28
# The colour of the curve and of what has collapsed: legible on light and on dark pages.
INK, WARN = "#2f7cc4", "#b36b00"

_CELL = "padding:4px 12px 4px 0;vertical-align:baseline;text-align:left;border:0;border-top:1px solid rgba(128,136,148,.35)"
_FAINT = "opacity:.75;font-size:12px"


def still_html(
    title: str,
    facts: Mapping[str, str],
    curve: Curve,
    ladder: Ladder,
    strength: float,
    follows: str | None,
    *,
    is_share: bool,
) -> str:
    """A part of a page, in the colours of the page around it.

    facts: lines below the title, by their name. follows: what the curve shows, in words; None while that is not known.
    is_share: whether that is a probability.
    """
    known = [value for value in curve.metric.tolist() if not isnan(value)]
    number = partial(_number, is_share=is_share, most=max(map(abs, known), default=0.0))
    lines = "".join(f"<span style='{_FAINT}'>{escape(name)}</span>{_text(value)}" for name, value in facts.items())
    grid = "display:grid;grid-template-columns:max-content minmax(0,1fr);gap:4px 16px;align-items:baseline;margin:8px 0"
    parts = [f"<b style='font-size:14px'>{_text(title)}</b>", f"<div style='{grid}'>{lines}</div>"]
    if curve.unsteered is not None and follows is not None:
        shaded = "; shaded: the text collapses" if curve.collapsed.any() else ""
        caption = f"<div style='{_FAINT}'>{_text(follows)}, by strength{shaded}</div>"
        parts += [caption, _curve_svg(curve, strength, number)]
    if ladder.texts:
        parts.append(_table(curve, ladder, number))
    style = "font:14px/1.4 system-ui,sans-serif;max-width:760px;padding:8px 0"
    return f"<div style='{style}'>{''.join(parts)}</div>"


def _text(text: str) -> str:
    return f"<span dir='auto' style='white-space:pre-wrap'>{escape(legible(text))}</span>"


def _number(value: float, *, is_share: bool, most: float) -> str:
    """A probability as a percentage, a difference to three digits, 0 where it is next to nothing beside the largest."""
    if is_share:
        return "<0.1%" if value < 0.001 else f"{100 * value:.1f}%"
    return "0" if abs(value) < 0.001 * most else _signed(value, 3)


def _signed(value: float, digits: int = 6) -> str:
    return f"{value:+.{digits}g}".replace("-", "\u2212")


def _table(curve: Curve, ladder: Ladder, number: Callable[[float], str]) -> str:
    """The texts, the strongest on top; words that the unsteered text has not are underlined."""
    rows = []
    for strength, text in sorted(zip(ladder.strengths, ladder.texts, strict=True), reverse=True):
        point = curve.near(strength)
        metric = curve.unsteered[0] if curve.unsteered and strength == 0 else float(curve.metric[point])
        follows = "" if isnan(metric) else escape(number(metric))
        says = "collapsed" if strength and curve.collapsed[point] else follows
        said = [(escape(legible_line(part)), is_new) for part, is_new in stretches(text, ladder.unsteered)]
        words = "".join(f"<u>{part}</u>" if is_new else part for part, is_new in said)
        name = "0" if strength == 0 else _signed(strength)
        rows.append(
            f"<tr><th style='{_CELL};text-align:right'>{name}</th>"
            f"<td style='{_CELL};white-space:pre-wrap' dir='auto'>{words}</td>"
            f"<td style='{_CELL};{_FAINT};text-align:right'>{says}</td></tr>"
        )
    head = f"<div style='{_FAINT};margin-top:8px'>The text at five strengths; underlined: not in the unsteered text</div>"
    return f"{head}<table style='border-collapse:collapse;width:100%'>{''.join(rows)}</table>"


def _curve_svg(curve: Curve, strength: float, number: Callable[[float], str]) -> str:
    metric, collapsed = curve.metric.tolist(), curve.collapsed.tolist()
    points = zip(curve.strengths, metric, collapsed, strict=True)
    known: list[tuple[float, float, bool]] = [point for point in points if not isnan(point[1])]
    low, high = curve.strengths[0], curve.strengths[-1]
    least, most = min(m for _, m, _ in known), max(m for _, m, _ in known)
    bottom = HEIGHT - BOTTOM

    def x(s: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (min(high, max(low, s)) - low) / (high - low)

    def y(m: float) -> float:
        return bottom - (bottom - TOP) * (m - least) / ((most - least) or 1)

    def text(at: float, height: float, anchor: str, says: str) -> str:
        return f"<text x='{at:.1f}' y='{height:.1f}' text-anchor='{anchor}'>{says}</text>"

    half = (high - low) / (len(curve.strengths) - 1) / 2
    shade = f"height='{bottom - TOP}' fill='{WARN}' fill-opacity='.15'"
    ends = escape(number(least)), escape(number(most))
    shaded = [(x(s - half), x(s + half)) for s, _, has_collapsed in known if has_collapsed]
    parts = [
        *(f"<rect x='{left:.1f}' y='{TOP}' width='{right - left:.1f}' {shade}/>" for left, right in shaded),
        f"<line x1='{x(strength):.1f}' x2='{x(strength):.1f}' y1='{TOP}' y2='{bottom}' stroke='currentColor'/>",
        f"<polyline points='{' '.join(f'{x(s):.1f},{y(m):.1f}' for s, m, _ in known)}' fill='none' stroke='{INK}'/>",
        text(LEFT - 8, y(least) + 4, "end", ends[0]),
        text(LEFT - 8, y(most) + 4, "end", ends[1]),
        text(x(low), HEIGHT - 8, "start", _signed(low)),
        text(x(0), HEIGHT - 8, "middle", "0"),
        text(x(high), HEIGHT - 8, "end", _signed(high)),
    ]
    label = f"the curve from {ends[0]} to {ends[1]}; shaded: the text collapses"
    style = f"max-width:{WIDTH}px;width:100%;font:12px system-ui,sans-serif"
    picture = f"viewBox='0 0 {WIDTH} {HEIGHT}' style='{style}' fill='currentColor' stroke-width='2' role='img'"
    return f"<svg {picture} aria-label='{label}'>{''.join(parts)}</svg>"

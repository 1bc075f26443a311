"""A check's result as a page: the verdict, the machine, and each step with its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from gemmascope.checking.step import Figure, StepResult
from gemmascope.legible import legible, legible_line

_COLOURS = {"pass": "#1a7f37", "differs": "#cf222e", "failed": "#bc4c00", "interrupted": "#bc4c00"}
_STYLE = """
.gs-check{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto}
.gs-check table{border-collapse:collapse;width:100%;margin:.3rem 0 1rem}
.gs-check td,.gs-check th{text-align:left;padding:.2rem .8rem .2rem 0;border-bottom:1px solid #8884;vertical-align:top}
.gs-check td.n,.gs-check th.n{width:8rem;text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.gs-check .v{display:inline-block;min-width:6.5rem;text-align:center;border-radius:.4rem;color:#fff;padding:0 .5rem}
.gs-check h3{margin:1.4rem 0 .2rem} .gs-check p{margin:.2rem 0;white-space:pre-wrap}
.gs-check .out{color:#cf222e;font-weight:600}
"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title><style>body{{margin:24px;background:#fff;color:#1a1a1a}}
@media (prefers-color-scheme:dark){{body{{background:#111316;color:#ececec}}}}</style></head>
<body>{body}</body></html>
"""


Facts = Mapping[str, object]


def report(verdict: str, model: Facts, environment: Facts, steps: Sequence[StepResult]) -> str:
    """The page. It loads nothing and runs no script."""
    title = f"Check of {_text(model.get('name'))}: {_text(verdict)}"
    return _PAGE.format(title=title, body=body(verdict, model, environment, steps))


def body(verdict: str, model: Facts, environment: Facts, steps: Sequence[StepResult]) -> str:
    """The page's body, for a notebook."""
    summary = "".join(_summary(step) for step in steps)
    return (
        f"<style>{_STYLE}</style><div class=gs-check>"
        f"<h2>Check of {_text(model.get('name'))} {_verdict(verdict)}</h2>"
        f"<table>{summary}</table>{''.join(_step(step) for step in steps)}"
        f"<h3>Model</h3>{_facts(model)}<h3>Machine</h3>{_facts(environment)}</div>"
    )


def _summary(step: StepResult) -> str:
    verdict, seconds = _verdict(step.verdict), f"{step.seconds:.1f} s"
    return f"<tr><td style='width:8rem'>{verdict}</td><td>{_text(step.name)}</td><td class=n>{seconds}</td></tr>"


def _step(step: StepResult) -> str:
    rows = "".join(_row(figure) for figure in step.figures)
    head = "<tr><th>figure</th><th class=n>value</th><th class=n>limit</th></tr>"
    table = f"<table>{head}{rows}</table>" if rows else ""
    return f"<h3>{_verdict(step.verdict)} {_text(step.name)}</h3><p>{escape(legible(step.text))}</p>{table}"


def _row(figure: Figure) -> str:
    value = f"{figure.value:.4g}{f' {figure.unit}' if figure.unit else ''}"
    mark = "n" if figure.is_within else "n out"
    return (
        f"<tr><td>{_text(figure.name)}</td><td class='{mark}'>{_text(value)}</td><td class=n>{figure.limit_text}</td></tr>"
    )


def _facts(facts: Facts) -> str:
    rows = "".join(f"<tr><td>{_text(name)}</td><td>{_text(value)}</td></tr>" for name, value in facts.items())
    return f"<table>{rows}</table>"


def _verdict(verdict: str) -> str:
    return f"<span class=v style='background:{_COLOURS.get(verdict, '#6e7781')}'>{_text(verdict)}</span>"


def _text(value: object) -> str:
    return escape(legible_line(str(value)))

"""A plan as text, as HTML and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from gemmascope.memory.cards import memory_text
from gemmascope.memory.sizes import GENERATE, SWEEP, TASKS, TRACE

if TYPE_CHECKING:
    from gemmascope.memory.plan import Plan, TableRow

_TASKS = {TRACE: "a trace", GENERATE: "generating", SWEEP: "a sweep"}


def as_data(plan: Plan) -> dict[str, object]:
    """A plan as JSON, in bytes and seconds."""
    return {
        "model": plan.name,
        "weights": plan.weights,
        "dtype": str(plan.formats.dtype).removeprefix("torch."),
        "device": str(plan.device),
        "context": plan.context,
        "rows": plan.rows,
        "memory": plan.memory,
        "free": plan.free,
        "parts": [{"name": p.name, "bytes": p.n_bytes, "note": p.note, "tasks": list(p.tasks)} for p in plan.parts],
        "peaks": plan.peaks,
        "total": plan.total,
        "fits": None if plan.limit is None else plan.total <= plan.limit,
        "layers_kept": list(plan.kept),
        "layers_streamed": list(plan.streamed),
        "moved_per_pass": plan.moved,
        "rates": None if plan.rates is None else plan.rates.to_dict(),
        "seconds": plan.seconds,
        "cards": [fit.to_dict() for fit in plan.cards()],
        "table": plan.table(),
    }


def as_text(plan: Plan) -> str:
    """A plan as text, for a terminal."""
    cards = [[fit.card.name, str(fit)] for fit in plan.cards()]
    rows = _aligned([*_parts(plan), *_tasks(plan)])
    rows.insert(len(plan.parts), "")
    return "\n".join([_title(plan), *rows, "", *_sentences(plan), "", "does it fit on", *_aligned(cards)])


def as_html(plan: Plan) -> str:
    """A plan as self-contained HTML, with names escaped."""
    cards = [[fit.card.name, str(fit)] for fit in plan.cards()]
    sentences = "".join(f"<div>{escape(line)}</div>" for line in _sentences(plan))
    return (
        f"<div class='gs-plan'>{_STYLE}<div><b>{escape(_title(plan))}</b></div>"
        f"{_table(_parts(plan), ('part', 'bytes', 'what'))}"
        f"{_table(_tasks(plan), ('task', 'bytes', 'what'))}{sentences}{_table(cards, ('does it fit on', ''))}</div>"
    )


def table_text(rows: Sequence[TableRow]) -> str:
    """The rows of Plan.table as text, with a column for each context."""
    contexts = sorted({row["context"] for row in rows})
    total = {(row["weights"], row["context"]): gigabytes(row["total"]) for row in rows}
    body = [[kind, *(total[kind, n] for n in contexts)] for kind in dict.fromkeys(row["weights"] for row in rows)]
    head = ["everything on the device, generating", *(f"{n:,} positions" for n in contexts)]
    return "\n".join(_aligned([head, *body], right=range(1, len(head))))


def gigabytes(n_bytes: int) -> str:
    """Bytes as text in GB (10^9), MB or kB."""
    unit, name = next(((u, n) for u, n in ((10**9, "GB"), (10**6, "MB")) if n_bytes >= u / 10), (10**3, "kB"))
    return f"{n_bytes / unit:.2f} {name}"


def _title(plan: Plan) -> str:
    memory = "no budget" if plan.memory is None else f"memory of {gigabytes(plan.memory)}"
    dtype = str(plan.formats.dtype).removeprefix("torch.")
    name = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in plan.name)
    return f"Plan of {name}: {plan.weights} weights, computed in {dtype}, {plan.context:,} positions, {memory}"


def _parts(plan: Plan) -> list[list[str]]:
    return [[part.name, gigabytes(part.n_bytes), part.note] for part in plan.parts]


def _tasks(plan: Plan) -> list[list[str]]:
    """A line for each task: its peak, and the parts that it needs."""
    own = {task: [part.name for part in plan.parts if task in part.tasks and part.tasks != TASKS] for task in _TASKS}
    return [[_TASKS[task], gigabytes(n), f"at once: weights, {', '.join(own[task])}"] for task, n in plan.peaks.items()]


def _sentences(plan: Plan) -> list[str]:
    return [_staying(plan), _fitting(plan), *_timing(plan)]


def _staying(plan: Plan) -> str:
    if not plan.streamed and plan.placement.embedded:
        return f"All {plan.config.n_layers} layers stay: nothing is brought in a pass."
    table = "" if plan.placement.embedded else ", the embedding in its file"
    return (
        f"{len(plan.kept)} layers stay, {len(plan.streamed)} stream{table}: a pass brings {gigabytes(plan.moved)}, "
        "however many rows it carries."
    )


def _fitting(plan: Plan) -> str:
    """A sentence that says whether the model fits, and what to do if not."""
    if plan.limit is None:
        return f"It needs {gigabytes(plan.total)}."
    what = f"what is free on {plan.device}" if plan.memory is None else "the budget"
    if plan.total <= plan.limit:
        return f"It fits: {gigabytes(plan.total)} of {gigabytes(plan.limit)}, {what}."
    beginning = f"It does not fit: {gigabytes(plan.total)} are needed and {what} is {gigabytes(plan.limit)}."
    if placement := plan.memory_need.placement_within(plan.limit):
        given = memory_text(placement.weights + placement.work)
        return f"{beginning} gs.load(memory={given!r}) leaves it room: {len(placement.kept)} layers stay."
    smaller = "a shorter context" if plan.weights == "int8" else "int8 weights, a shorter context"
    return f"{beginning} At least {gigabytes(plan.memory_need.least)} are needed: take {smaller}, or a larger device."


def _timing(plan: Plan) -> list[str]:
    if plan.rates is None or plan.seconds is None:
        return []
    return [
        f"Measured here: {plan.rates}.",
        f"Predicted: a trace of {plan.context:,} positions {_time(plan.seconds[TRACE])}; "
        f"a sweep's chunk of {plan.rows:,} rows through every layer {_time(plan.seconds[SWEEP])}.",
    ]


def _time(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def _aligned(rows: list[list[str]], right: range = range(1, 2)) -> list[str]:
    """Rows as lines of aligned columns; the columns in `right` are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = right if len(widths) > 2 else range(0)
    lines = (
        "  ".join(
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return [f"  {line}".rstrip() for line in lines]


_STYLE = """<style>
.gs-plan{font:14px/1.5 system-ui,sans-serif;max-width:62em}
.gs-plan table{border-collapse:collapse;margin:.5em 0}
.gs-plan th,.gs-plan td{padding:1px 16px 1px 0;text-align:left;border:0;background:none}
.gs-plan td:nth-child(2){white-space:nowrap;font-variant-numeric:tabular-nums}
</style>"""


def _table(rows: list[list[str]], head: tuple[str, ...]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"

"""A plan as text and as HTML."""

from __future__ import annotations

from html import escape
from typing import Protocol

import torch

from gemmascope.config import GemmaConfig
from gemmascope.legible import legible_line
from gemmascope.memory.cards import Fit, MemoryNeed, memory_text
from gemmascope.memory.placement import Placement
from gemmascope.memory.plan_cards import CardPlan
from gemmascope.memory.plan_tables import STYLE, TableRow, aligned, gigabytes, html_table, table_cells
from gemmascope.memory.planned_model import Formats
from gemmascope.memory.rates import Rates
from gemmascope.memory.sizes import GENERATE, SWEEP, TASKS, TRACE, Part


class ShownPlan(Protocol):
    """What the text of a plan needs. Plan implements it, and says what each member is."""

    @property
    def name(self) -> str: ...
    @property
    def config(self) -> GemmaConfig: ...
    @property
    def formats(self) -> Formats: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def devices(self) -> tuple[CardPlan, ...]: ...
    @property
    def context(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def memory(self) -> int | None: ...
    @property
    def limit(self) -> int | None: ...
    @property
    def placement(self) -> Placement: ...
    @property
    def parts(self) -> tuple[Part, ...]: ...
    @property
    def total_tasks(self) -> tuple[str, ...]: ...
    @property
    def rates(self) -> Rates | None: ...
    @property
    def weights(self) -> str: ...
    @property
    def kept(self) -> tuple[int, ...]: ...
    @property
    def streamed(self) -> tuple[int, ...]: ...
    @property
    def peaks(self) -> dict[str, int]: ...
    @property
    def total(self) -> int: ...
    @property
    def moved(self) -> int: ...
    @property
    def fits_here(self) -> bool | None: ...
    @property
    def seconds(self) -> dict[str, float] | None: ...
    @property
    def memory_need(self) -> MemoryNeed: ...
    def cards(self) -> list[Fit]: ...
    def table(self) -> list[TableRow]: ...


NO_BREAK = "\u00a0"  # a space at which no line ends
_TASKS = {TRACE: "a trace", GENERATE: "generating", SWEEP: "a sweep"}


def as_text(plan: ShownPlan) -> str:
    """A plan as text, for a terminal."""
    cards = [[fit.card.name, str(fit)] for fit in plan.cards()]
    rows = aligned([*_parts(plan), *_tasks(plan)])
    rows.insert(len(plan.parts), "")
    rows += ["", *aligned(_devices(plan))] if plan.devices else []
    return "\n".join([_title(plan), *rows, "", *_sentences(plan), "", "does it fit on", *aligned(cards)])


def as_html(plan: ShownPlan) -> str:
    """A plan as self-contained HTML, with names escaped."""
    cards = [[fit.card.name, str(fit)] for fit in plan.cards()]
    devices = html_table(_devices(plan), ("device", "bytes", "what")) if plan.devices else ""
    sentences = "".join(f"<div>{escape(line)}</div>" for line in _sentences(plan))
    head, *table = ([cell.replace(" ", NO_BREAK) for cell in row] for row in table_cells(plan.table()))
    return (
        f"<div class='gs-plan'>{STYLE}<div><b>{escape(_title(plan))}</b></div>"
        f"{html_table(_parts(plan), ('part', 'bytes', 'what'))}"
        f"{html_table(_tasks(plan), ('task', 'bytes', 'what'))}{devices}{sentences}"
        f"{html_table(cards, ('does it fit on', ''))}{html_table(table, tuple(head))}</div>"
    )


def _title(plan: ShownPlan) -> str:
    memory = "no budget" if plan.memory is None else f"memory of {gigabytes(plan.memory)}"
    dtype = str(plan.formats.dtype).removeprefix("torch.")
    how = f"{plan.weights} weights, computed in {dtype}, {plan.context:,} positions, {memory}"
    return f"Plan of {legible_line(plan.name)}: {how}"


def _parts(plan: ShownPlan) -> list[list[str]]:
    return [[part.name, gigabytes(part.n_bytes), part.note] for part in plan.parts]


def _devices(plan: ShownPlan) -> list[list[str]]:
    """A line for each of several GPUs: the most that it takes, and its layers."""
    return [one.row(plan.total_tasks) for one in plan.devices]


def _tasks(plan: ShownPlan) -> list[list[str]]:
    """A line for each task: its peak, and the parts that it needs."""
    own = {task: [part.name for part in plan.parts if task in part.tasks and part.tasks != TASKS] for task in _TASKS}
    return [[_TASKS[task], gigabytes(n), f"at once: weights, {', '.join(own[task])}"] for task, n in plan.peaks.items()]


def _sentences(plan: ShownPlan) -> list[str]:
    return [_staying(plan), _fitting(plan), *_timing(plan)]


def _staying(plan: ShownPlan) -> str:
    if not plan.streamed and plan.placement.embedded:
        return f"All {plan.config.n_layers} layers stay: nothing is brought in a pass."
    table = "" if plan.placement.embedded else ", the embedding in its file"
    return (
        f"{len(plan.kept)} layers stay, {len(plan.streamed)} stream{table}: a pass brings {gigabytes(plan.moved)}, "
        "however many rows it carries."
    )


def _fitting(plan: ShownPlan) -> str:
    """A sentence that says whether the model fits, and what to do if not."""
    if plan.devices:
        if plan.fits_here:
            return f"It fits: each of the {len(plan.devices)} devices has what its layers need."
        return "It does not fit: take a budget for each device, memory=, int8 weights, a shorter context, or more devices."
    if plan.limit is None:
        return f"It needs {gigabytes(plan.total)}."
    what = f"what is free on {plan.device}" if plan.memory is None else "the budget"
    if plan.total <= plan.limit:
        return f"It fits: {gigabytes(plan.total)} of {gigabytes(plan.limit)}, {what}."
    beginning = f"It does not fit: {gigabytes(plan.total)} are needed and {what} is {gigabytes(plan.limit)}."
    if placement := plan.memory_need.placement_within(plan.limit):
        budget = memory_text(placement.weights + placement.workspace)
        return f"{beginning} gs.load(memory={budget!r}) leaves it room: {len(placement.kept)} layers stay."
    smaller = "a shorter context" if plan.weights == "int8" else "int8 weights, a shorter context"
    return f"{beginning} At least {gigabytes(plan.memory_need.least)} are needed: take {smaller}, or a larger device."


def _timing(plan: ShownPlan) -> list[str]:
    if plan.rates is None or plan.seconds is None:
        return []
    return [
        f"Measured here: {plan.rates}.",
        f"Predicted: a trace of {plan.context:,} positions {_time(plan.seconds[TRACE])}; "
        f"a sweep's chunk of {plan.rows:,} rows through every layer {_time(plan.seconds[SWEEP])}.",
    ]


def _time(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.2g} s"

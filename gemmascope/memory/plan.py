"""Plan: how much memory a model takes and where it fits, which gs.plan returns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from html import escape

import torch

from gemmascope.config import GemmaConfig
from gemmascope.legible import legible_line, prints_legibly
from gemmascope.memory.cards import CARDS, DRIVER, Card, Fit, MemoryNeed, find_card, memory_text
from gemmascope.memory.placement import (
    Placement,
    Sizes,
    free_bytes,
    place_layers,
    work_bytes,
)
from gemmascope.memory.plan_tables import STYLE, TableRow, aligned, gigabytes, html_table
from gemmascope.memory.planned_model import Formats
from gemmascope.memory.rates import Rates
from gemmascope.memory.sizes import GENERATE, SWEEP, TASKS, TRACE, Part, run_parts, weight_parts

# The contexts in Plan.table, in positions.
CONTEXTS = (1024, 4096, 8192)


@dataclass(frozen=True)
class Plan:
    """How much memory a model takes, in bytes, and where it fits. gs.plan returns it; printed, it is a table.

    Attributes:
        name: The model's name.
        config: Its shape.
        formats: The dtypes of its weights and of the computation.
        device: The device it is planned for.
        context: Positions of the prompt.
        rows: Rows of a sweep's chunk.
        memory: The budget in bytes; None for none.
        free: Bytes that were free on the device; None if that is unknown.
        placement: What stays on the device.
        parts: What takes memory on the device, and the tasks that need it ("trace", "generate", "sweep").
        total_tasks: The tasks that `total` covers.
        rates: What the probe measured; None without one.
    """

    name: str
    config: GemmaConfig
    formats: Formats
    device: torch.device
    context: int
    rows: int
    memory: int | None
    free: int | None
    placement: Placement
    parts: tuple[Part, ...]
    total_tasks: tuple[str, ...]
    rates: Rates | None = None

    @property
    def weights(self) -> str:
        """ "int8", or the dtype of the stored weights."""
        return self.formats.weights

    @property
    def kept(self) -> tuple[int, ...]:
        """The layers that stay on the device."""
        return self.placement.kept

    @property
    def streamed(self) -> tuple[int, ...]:
        """The layers that stream in every pass."""
        return tuple(sorted(set(range(self.config.n_layers)) - set(self.placement.kept)))

    @cached_property
    def peaks(self) -> dict[str, int]:
        """Bytes on the device at once, by task: the sum of the task's parts."""
        return {task: sum(part.n_bytes for part in self.parts if task in part.tasks) for task in TASKS}

    @property
    def total(self) -> int:
        """The largest peak of a trace and generation; of a sweep too if rows= was given."""
        return max(self.peaks[task] for task in self.total_tasks)

    @property
    def moved(self) -> int:
        """Bytes that a pass moves to the device: the layers that do not stay, and the embedding once if it does not."""
        table = self.config.vocab_size * self.config.d_model * self.formats.stored.itemsize
        return len(self.streamed) * self.memory_need.sizes.layer + (0 if self.placement.embedded else table)

    @property
    def limit(self) -> int | None:
        """The budget, or else the bytes that were free on the device."""
        return self.free if self.memory is None else self.memory

    @property
    def seconds(self) -> dict[str, float] | None:
        """Predicted seconds of a trace of `context` positions and of a sweep's chunk of `rows` rows; None without a probe.

        The longer of moving the weights and computing, from the measured rates. A rough estimate: it counts matrix products
        and dequantising, but no norms, softmax or Python. On two busy cores, traces of a model of 96 million parameters took
        0.4 to 2 times as long as predicted.
        """
        if self.rates is None:
            return None
        moving = self.rates.moving(self.moved, free_bytes(torch.device("cpu")) // 2)
        passes = {TRACE: (self.context, True), SWEEP: (self.rows, False)}
        computing = {
            task: self.rates.computing(self.config, rows, one_prompt=one_prompt)
            for task, (rows, one_prompt) in passes.items()
        }
        return {task: max(moving, seconds) for task, seconds in computing.items()}

    @cached_property
    def memory_need(self) -> MemoryNeed:
        """The memory that must fit on a card."""
        all_weights = sizes_of(self.config, self.formats, streams=False).weights(self.config.n_layers, 1, embedded=True)
        run_bytes = self.total - sum(part.n_bytes for part in self.parts if set(part.tasks) == set(TASKS))
        return MemoryNeed(
            self.config, sizes_of(self.config, self.formats, streams=True), self.formats.dtype, all_weights, run_bytes
        )

    def fits(self, card: Card | str | int) -> Fit:
        """Whether the model fits on a card: a name such as "T4", or an amount of memory. The result is falsy if not."""
        resolved = find_card(card)
        return self.memory_need.on(resolved, resolved.n_bytes - DRIVER)

    def cards(self) -> list[Fit]:
        """How the model fits on common GPUs."""
        return [self.fits(card) for card in CARDS]

    def table(self) -> list[TableRow]:
        """Memory by quantisation and context, in bytes, with everything on the device and computed in bfloat16.

        Each row has the weights, the KV cache and the activations of generation. A trace keeps its residual stream instead
        of a KV cache.
        """
        contexts = [n for n in CONTEXTS if n <= self.config.context] or [self.config.context]
        formats = (Formats(False, torch.bfloat16, torch.bfloat16), Formats(True, torch.bfloat16, torch.bfloat16))
        return [_row(self.config, each, context) for each in formats for context in contexts]

    def to_dict(self) -> dict[str, object]:
        """The plan as JSON, in bytes and seconds."""
        return {
            "model": self.name,
            "weights": self.weights,
            "dtype": str(self.formats.dtype).removeprefix("torch."),
            "device": str(self.device),
            "context": self.context,
            "rows": self.rows,
            "memory": self.memory,
            "free": self.free,
            "parts": [{"name": p.name, "bytes": p.n_bytes, "note": p.note, "tasks": list(p.tasks)} for p in self.parts],
            "peaks": self.peaks,
            "total": self.total,
            "fits": None if self.limit is None else self.total <= self.limit,
            "layers_kept": list(self.kept),
            "layers_streamed": list(self.streamed),
            "moved_per_pass": self.moved,
            "rates": None if self.rates is None else self.rates.to_dict(),
            "seconds": self.seconds,
            "cards": [fit.to_dict() for fit in self.cards()],
            "table": self.table(),
        }

    @prints_legibly
    def __repr__(self) -> str:
        return _as_text(self)

    def _repr_html_(self) -> str:
        return _as_html(self)


def sizes_of(config: GemmaConfig, formats: Formats, *, streams: bool) -> Sizes:
    """The sizes of a model's parts. streams: whether layers stay packed in their stored dtype; else loading casts them."""
    stored = formats.stored if streams or formats.int8 else formats.dtype
    return Sizes.of(config, formats.weights, formats.dtype, stored)


def parts_of(
    config: GemmaConfig, formats: Formats, sizes: Sizes, placement: Placement, context: int, rows: int
) -> tuple[Part, ...]:
    chunk = Part("sweep chunk", work_bytes(config, formats.dtype, rows), f"{rows:,} rows", (SWEEP,))
    of_run = run_parts(config, formats.dtype, context)
    return (*weight_parts(config, sizes, placement, formats.dtype), *of_run, chunk)


def _row(config: GemmaConfig, formats: Formats, context: int) -> TableRow:
    sizes = sizes_of(config, formats, streams=False)
    parts = parts_of(config, formats, sizes, place_layers(config, sizes, formats.dtype, None), context, 1)
    size = {part.name: part.n_bytes for part in parts}
    weights = sum(part.n_bytes for part in parts if set(part.tasks) == set(TASKS))
    kv, activations = size["keys and values"], size["activations"] + size["logits"]
    return {
        "weights": formats.weights, "context": context, "weight_bytes": weights, "kv_bytes": kv,
        "activation_bytes": activations, "total": weights + kv + activations,
    }  # fmt: skip


# -- as text --

_TASKS = {TRACE: "a trace", GENERATE: "generating", SWEEP: "a sweep"}


def _as_text(plan: Plan) -> str:
    """A plan as text, for a terminal."""
    cards = [[fit.card.name, str(fit)] for fit in plan.cards()]
    rows = aligned([*_parts(plan), *_tasks(plan)])
    rows.insert(len(plan.parts), "")
    return "\n".join([_title(plan), *rows, "", *_sentences(plan), "", "does it fit on", *aligned(cards)])


def _as_html(plan: Plan) -> str:
    """A plan as self-contained HTML, with names escaped."""
    cards = [[fit.card.name, str(fit)] for fit in plan.cards()]
    sentences = "".join(f"<div>{escape(line)}</div>" for line in _sentences(plan))
    return (
        f"<div class='gs-plan'>{STYLE}<div><b>{escape(_title(plan))}</b></div>"
        f"{html_table(_parts(plan), ('part', 'bytes', 'what'))}"
        f"{html_table(_tasks(plan), ('task', 'bytes', 'what'))}{sentences}{html_table(cards, ('does it fit on', ''))}</div>"
    )


def _title(plan: Plan) -> str:
    memory = "no budget" if plan.memory is None else f"memory of {gigabytes(plan.memory)}"
    dtype = str(plan.formats.dtype).removeprefix("torch.")
    how = f"{plan.weights} weights, computed in {dtype}, {plan.context:,} positions, {memory}"
    return f"Plan of {legible_line(plan.name)}: {how}"


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
        budget = memory_text(placement.weights + placement.workspace)
        return f"{beginning} gs.load(memory={budget!r}) leaves it room: {len(placement.kept)} layers stay."
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

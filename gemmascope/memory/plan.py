"""gs.plan: how much memory a model takes and where it fits, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypedDict

import torch

from gemmascope.arguments import true_or_false, whole_number
from gemmascope.checkpoints.device import choose_device
from gemmascope.config import GemmaConfig
from gemmascope.errors import BudgetError
from gemmascope.legible import legibly
from gemmascope.memory.cards import CARDS, DRIVER, Card, Fit, MemoryNeed, find_card
from gemmascope.memory.host_memory import measured_bytes
from gemmascope.memory.placement import (
    RESIDENT_ROWS,
    Placement,
    Sizes,
    free_bytes,
    parse_bytes,
    place_layers,
    rows_in,
    work_bytes,
)
from gemmascope.memory.planned_model import Formats, find_formats, find_planned_model
from gemmascope.memory.rates import Rates, probe
from gemmascope.memory.sizes import GENERATE, SWEEP, TASKS, TRACE, Part, run_parts, weight_parts

# The contexts in Plan.table, in positions.
CONTEXTS = (1024, 4096, 8192)


class TableRow(TypedDict):
    """A row of Plan.table: the memory of one kind of weights at one context, in bytes."""

    weights: str
    context: int
    weight_bytes: int
    kv_bytes: int
    activation_bytes: int
    total: int


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
        all_weights = _sizes(self.config, self.formats, streams=False).weights(self.config.n_layers, 1, embedded=True)
        run_bytes = self.total - sum(part.n_bytes for part in self.parts if set(part.tasks) == set(TASKS))
        return MemoryNeed(
            self.config, _sizes(self.config, self.formats, streams=True), self.formats.dtype, all_weights, run_bytes
        )

    def fits(self, card: Card | str | int) -> Fit:
        """Whether the model fits on a card: a name such as "T4", or an amount of memory. The result is falsy if not."""
        found = find_card(card)
        return self.memory_need.on(found, found.n_bytes - DRIVER)

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
        from gemmascope.memory.plan_report import as_data

        return as_data(self)

    @legibly
    def __repr__(self) -> str:
        from gemmascope.memory.plan_report import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        from gemmascope.memory.plan_report import as_html

        return as_html(self)


def plan(
    source: object = "nano",
    *,
    weights: str = "auto",
    context: int | None = None,
    memory: int | str | None = None,
    rows: int | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    probe: bool = False,
) -> Plan:
    """Predict how much memory a model takes, which layers stay on the device, and on which GPUs it fits. Loads nothing.

    Args:
        source: One of Google's hub ids, or "2b", "9b" or "27b", none of which needs a network; a folder with a config.json;
            a model; or "nano".
        weights: "auto" (as stored; bfloat16 for hub ids), "bf16", "float32" or "int8".
        context: Positions of the prompt. None: the most that the model takes.
        memory: The memory= that gs.load will get, as a number of bytes or a text such as "20GiB". None: everything stays
            on the device.
        rows: Rows of a sweep's chunk. None: as many as the memory holds, or 32,768 without a budget.
        device: As in gs.load.
        dtype: As in gs.load.
        probe: Whether to measure this machine for some seconds and predict the time of a pass, roughly (Plan.seconds).

    Returns:
        A plan. Printed, it is a table of the parts, the tasks and the GPUs; `fits("T4")`, `peaks`, `kept`, `streamed`,
        `table()` and `to_dict()` give the same as values, in bytes.

    Raises:
        CheckpointError: The source is not known.
        DeviceError: The weights, the device or the dtype are not available.
        BudgetError: The context is longer than the model's, rows is not a positive number, or the memory is too little.

    Example:
        >>> p = gs.plan("27b", weights="int8", context=4096, memory="24GB", device="cpu")
        >>> len(p.kept), len(p.streamed)
        (32, 14)
        >>> print(p.fits("T4"))
        streams: 13 of 46 layers stay, with memory='12.83GB'
    """
    probe = true_or_false(probe, "probe", error=BudgetError)
    model = find_planned_model(source)
    config, formats, target = model.config, find_formats(model, weights, dtype), choose_device(device)
    n_pos = config.context if context is None else _whole("context", context)
    if n_pos > config.context:
        raise BudgetError(f"context={n_pos:,} is more than {model.name!r} takes: at most {config.context:,} positions")
    budget = None if memory is None else parse_bytes(memory)
    sizes = _sizes(config, formats, streams=budget is not None)
    placement = place_layers(config, sizes, formats.dtype, budget)
    n_rows = _rows(config, formats.dtype, placement, budget) if rows is None else _whole("rows", rows)
    return Plan(
        name=model.name,
        config=config,
        formats=formats,
        device=target,
        context=n_pos,
        rows=n_rows,
        memory=budget,
        free=_free(target),
        placement=placement,
        parts=_parts(config, formats, sizes, placement, n_pos, n_rows),
        total_tasks=(TRACE, GENERATE) if rows is None else TASKS,
        rates=_probe(config, formats, target, model.folder, (n_pos, n_rows)) if probe else None,
    )


def _free(device: torch.device) -> int | None:
    """Bytes that are free on a device; None if that is unknown, or if models are not loaded into its memory."""
    if device.type in ("meta", "mps"):
        return None
    return free_bytes(device) if device.type == "cuda" else measured_bytes()


def _probe(config: GemmaConfig, formats: Formats, device: torch.device, folder: Path | None, rows: tuple[int, int]) -> Rates:
    return probe(config, formats.dtype, device, folder, rows, formats.int8)


def _whole(name: str, given: object) -> int:
    return whole_number(given, name, least=1, most=2**62, error=BudgetError)


def _sizes(config: GemmaConfig, formats: Formats, *, streams: bool) -> Sizes:
    """streams: whether layers stay packed in their stored dtype; if all of them stay, loading casts them to dtype."""
    stored = formats.stored if streams or formats.int8 else formats.dtype
    return Sizes.of(config, formats.weights, formats.dtype, stored)


def _rows(config: GemmaConfig, dtype: torch.dtype, placement: Placement, memory: int | None) -> int:
    return RESIDENT_ROWS if memory is None else rows_in(config, dtype, placement.work)


def _parts(
    config: GemmaConfig, formats: Formats, sizes: Sizes, placement: Placement, context: int, rows: int
) -> tuple[Part, ...]:
    chunk = Part("sweep chunk", work_bytes(config, formats.dtype, rows), f"{rows:,} rows", (SWEEP,))
    of_run = run_parts(config, formats.dtype, context)
    return (*weight_parts(config, sizes, placement, formats.dtype), *of_run, chunk)


def _row(config: GemmaConfig, formats: Formats, context: int) -> TableRow:
    sizes = _sizes(config, formats, streams=False)
    parts = _parts(config, formats, sizes, place_layers(config, sizes, formats.dtype, None), context, 1)
    size = {part.name: part.n_bytes for part in parts}
    weights = sum(part.n_bytes for part in parts if set(part.tasks) == set(TASKS))
    kv, activations = size["keys and values"], size["activations"] + size["logits"]
    return {
        "weights": formats.weights, "context": context, "weight_bytes": weights, "kv_bytes": kv,
        "activation_bytes": activations, "total": weights + kv + activations,
    }  # fmt: skip

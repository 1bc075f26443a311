"""Plan: how much memory a model takes and where it fits, which gs.plan returns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from gemmascope.config import GemmaConfig
from gemmascope.legible import prints_legibly
from gemmascope.memory.cards import CARDS, DRIVER, Card, Fit, MemoryNeed, find_card, smallest_holding
from gemmascope.memory.placement import (
    Placement,
    Sizes,
    free_bytes,
    place_layers,
)
from gemmascope.memory.plan_cards import CardPlan, parts_of_run, parts_on
from gemmascope.memory.plan_tables import TableRow
from gemmascope.memory.plan_text import as_html, as_text
from gemmascope.memory.planned_model import Formats
from gemmascope.memory.rates import Rates
from gemmascope.memory.sizes import SWEEP, TASKS, TRACE, Part, device_parts
from gemmascope.memory.spread import CardShare

# The contexts in Plan.table, in positions.
CONTEXTS = (1024, 4096, 8192)
# What llama.cpp's Q4_0 takes for a weight: blocks of 32 weights of 4 bits share a scale of 16.
FOUR_BITS, BITS_4_BIT = "4 bits", 4.5


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
        devices: What each of several GPUs holds; empty for one device.
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
    devices: tuple[CardPlan, ...] = ()

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
    def fits_here(self) -> bool | None:
        """Whether it fits within the budget, or within what is free, of each of its devices. None if that is unknown."""
        if self.devices:
            needed = ((max(one.peaks[task] for task in self.total_tasks), one.limit) for one in self.devices)
            return all(n_bytes <= limit for n_bytes, limit in needed if limit is not None)
        return None if self.limit is None else self.total <= self.limit

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
        run = (*parts_of_run(self.config, self.formats.dtype, self.context, self.rows), *device_parts(self.device))
        run_bytes = max(sum(part.n_bytes for part in run if task in part.tasks) for task in self.total_tasks)
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

        Each row has the weights, the KV cache and the activations of generation, and the memory of the smallest common GPU
        that holds them, 1 GB being left to its driver. A trace keeps its residual stream instead of a KV cache.
        The rows "4 bits" are what llama.cpp takes for a Q4_0 file, 4.5 bits a weight. gemmascope opens such files, and
        computes with their weights as bfloat16 or int8, so that for it the other rows hold.
        """
        contexts = [n for n in CONTEXTS if n <= self.config.context] or [self.config.context]
        formats = (Formats(False, torch.bfloat16, torch.bfloat16), Formats(True, torch.bfloat16, torch.bfloat16))
        rows = [_row(self.config, each, context) for each in formats for context in contexts]
        return rows + [_in_4_bits(self.config, row) for row in rows[: len(contexts)]]

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
            "fits": self.fits_here,
            "layers_kept": list(self.kept),
            "layers_streamed": list(self.streamed),
            "moved_per_pass": self.moved,
            "rates": None if self.rates is None else self.rates.to_dict(),
            "seconds": self.seconds,
            "devices": [one.to_dict() for one in self.devices],
            "cards": [fit.to_dict() for fit in self.cards()],
            "table": self.table(),
        }

    @prints_legibly
    def __repr__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)


def sizes_of(config: GemmaConfig, formats: Formats, *, streams: bool) -> Sizes:
    """The sizes of a model's parts. streams: whether layers stay packed in their stored dtype; else loading casts them."""
    stored = formats.stored if streams or formats.int8 else formats.dtype
    return Sizes.of(config, formats.weights, formats.dtype, stored)


def _row(config: GemmaConfig, formats: Formats, context: int) -> TableRow:
    sizes = sizes_of(config, formats, streams=False)
    share = CardShare(torch.device("cpu"), range(config.n_layers), place_layers(config, sizes, formats.dtype, None))
    parts = parts_on(config, sizes, share, formats.dtype, context, 1)
    size = {part.name: part.n_bytes for part in parts}
    weights = sum(part.n_bytes for part in parts if set(part.tasks) == set(TASKS))
    return _sum(formats.weights, context, weights, size["keys and values"], size["activations"] + size["logits"])


def _in_4_bits(config: GemmaConfig, row: TableRow) -> TableRow:
    """A row of bfloat16 with the weights at 4.5 bits."""
    weights = int(config.n_params * BITS_4_BIT / 8)
    return _sum(FOUR_BITS, row["context"], weights, row["kv_bytes"], row["activation_bytes"])


def _sum(weights: str, context: int, n_weights: int, n_kv: int, n_activations: int) -> TableRow:
    total = n_weights + n_kv + n_activations
    return {
        "weights": weights, "context": context, "weight_bytes": n_weights, "kv_bytes": n_kv,
        "activation_bytes": n_activations, "total": total, "card_bytes": smallest_holding(total),
    }  # fmt: skip

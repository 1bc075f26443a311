"""gs.plan: what a model takes, and where it fits, before anything of it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from gemmascope.arguments import true_or_false, whole_number
from gemmascope.checkpoints.device import choose_device
from gemmascope.config import GemmaConfig
from gemmascope.errors import BudgetError
from gemmascope.legible import legibly
from gemmascope.memory.cards import CARDS, DRIVER, Fit, MemoryNeed, find_card
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
from gemmascope.memory.planned_model import Formats, find_formats, find_source
from gemmascope.memory.rates import Rates, probe
from gemmascope.memory.sizes import GENERATE, SWEEP, TASKS, TRACE, Part, run_parts, weight_parts

# The contexts of the table by quantisation and context.
CONTEXTS = (1024, 4096, 8192)


@dataclass(frozen=True)
class Plan:
    """What a model takes, in bytes, and where it fits. Made by gs.plan; printed, it is a table.

    parts: what takes memory on the device, and which tasks need it ("trace", "generate", "sweep"). kept: the layers that
    stay there. context: positions of the prompt. rows: of a sweep's chunk. memory: the budget, None for none. free: what
    was free on the device. rates: what the probe found, None if there was none.
    """

    name: str
    config: GemmaConfig
    formats: Formats
    device: torch.device
    context: int
    rows: int
    memory: int | None
    free: int | None
    share: Placement
    parts: tuple[Part, ...]
    held_to: tuple[str, ...]
    rates: Rates | None = None

    @property
    def weights(self) -> str:
        """'int8', or the dtype of the weights where they lie."""
        return self.formats.weights

    @property
    def kept(self) -> tuple[int, ...]:
        """The layers that stay on the device."""
        return self.share.kept

    @property
    def streamed(self) -> tuple[int, ...]:
        """The layers that are brought in every pass."""
        return tuple(sorted(set(range(self.config.n_layers)) - set(self.share.kept)))

    @cached_property
    def peaks(self) -> dict[str, int]:
        """Bytes on the device at once, by task: the sum of the parts that it needs."""
        return {task: sum(part.n_bytes for part in self.parts if task in part.tasks) for task in TASKS}

    @property
    def total(self) -> int:
        """The largest peak: a trace's or generation's; a sweep's as well if its rows were given."""
        return max(self.peaks[task] for task in self.held_to)

    @property
    def moved(self) -> int:
        """Bytes brought to the device in a pass: layers that do not stay, and the embedding once if it does not."""
        table = self.config.vocab_size * self.config.d_model * self.formats.stored.itemsize
        return len(self.streamed) * self.demand.sizes.layer + (0 if self.share.embedded else table)

    @property
    def limit(self) -> int | None:
        """What there is: the budget, or else what was free on the device."""
        return self.free if self.memory is None else self.memory

    @property
    def seconds(self) -> dict[str, float] | None:
        """Predicted seconds of a pass of `context` rows and of a sweep's chunk through all layers; None without rates."""
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
    def demand(self) -> MemoryNeed:
        """What must fit on a card."""
        whole = _sizes(self.config, self.formats, streams=False).weights(self.config.n_layers, 1, embedded=True)
        beside = self.total - sum(part.n_bytes for part in self.parts if set(part.tasks) == set(TASKS))
        return MemoryNeed(self.config, _sizes(self.config, self.formats, streams=True), self.formats.dtype, whole, beside)

    def fits(self, card: Any) -> Fit:
        """Whether it fits on a card: "T4" or another name of the list, or an amount of memory. False if it does not."""
        found = find_card(card)
        return self.demand.on(found, found.n_bytes - DRIVER)

    def cards(self) -> list[Fit]:
        """How it fits on common GPUs."""
        return [self.fits(card) for card in CARDS]

    def table(self) -> list[dict[str, Any]]:
        """Memory by quantisation and context, everything on the device: weights, keys and values, activations, in bytes.

        Computed in bfloat16. A trace takes its stream instead of keys and values.
        """
        contexts = [n for n in CONTEXTS if n <= self.config.context] or [self.config.context]
        formats = (Formats(False, torch.bfloat16, torch.bfloat16), Formats(True, torch.bfloat16, torch.bfloat16))
        return [_row(self.config, one, context) for one in formats for context in contexts]

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON holds it, in bytes and seconds."""
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
    source: Any = "nano",
    *,
    weights: str = "auto",
    context: int | None = None,
    memory: int | str | None = None,
    rows: int | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    probe: bool = False,
) -> Plan:
    """What a model takes in memory, which of its layers stay on the device, and on which GPUs it fits. Loads nothing.

    source: one of Google's hub ids, or "2b", "9b", "27b", for which no network is needed; a folder with config.json; a
        model; "nano".
    weights: "auto" (as stored; bfloat16 for hub ids), "bf16", "float32" or "int8".
    context: positions of the prompt, by default the most that the model takes.
    memory: what gs.load will be given, such as "20GiB"; None: everything stays on the device.
    rows: rows of a sweep's chunk, by default as many as the memory holds, 32,768 without a budget.
    device, dtype: as in gs.load.
    probe: measure the rates of this machine, which takes some seconds, and predict a pass's time from them.

    Raises CheckpointError for a source that is not known, DeviceError for formats or a device that are not there,
    BudgetError for a context beyond the model's, rows that are none, or a budget below the least.
    """
    probe = true_or_false(probe, "probe", error=BudgetError)
    found = find_source(source)
    config, formats, place = found.config, find_formats(found, weights, dtype), choose_device(device)
    n_pos = config.context if context is None else _whole("context", context)
    if n_pos > config.context:
        raise BudgetError(f"context={n_pos:,} is more than {found.name!r} takes: at most {config.context:,} positions")
    budget = None if memory is None else parse_bytes(memory)
    sizes = _sizes(config, formats, streams=budget is not None)
    share = place_layers(config, sizes, formats.dtype, budget)
    n_rows = _rows(config, formats.dtype, share, budget) if rows is None else _whole("rows", rows)
    return Plan(
        name=found.name,
        config=config,
        formats=formats,
        device=place,
        context=n_pos,
        rows=n_rows,
        memory=budget,
        free=_free(place),
        share=share,
        parts=_parts(config, formats, sizes, share, n_pos, n_rows),
        held_to=(TRACE, GENERATE) if rows is None else TASKS,
        rates=_probed(config, formats, place, found.folder, (n_pos, n_rows)) if probe else None,
    )


def _free(device: torch.device) -> int | None:
    """What is free there; None where that is not known, or where it is not memory that a model is loaded into."""
    if device.type in ("meta", "mps"):
        return None
    return free_bytes(device) if device.type == "cuda" else measured_bytes()


def _probed(config: GemmaConfig, formats: Formats, device: torch.device, folder: Any, rows: tuple[int, int]) -> Rates:
    return probe(config, formats.dtype, device, folder, rows, formats.int8)


def _whole(name: str, given: Any) -> int:
    return whole_number(given, name, least=1, most=2**62, error=BudgetError)


def _sizes(config: GemmaConfig, formats: Formats, *, streams: bool) -> Sizes:
    """streams: whether layers are packed as they are stored; those that all stay are turned into dtype while loading."""
    stored = formats.stored if streams or formats.int8 else formats.dtype
    return Sizes.of(config, formats.weights, formats.dtype, stored)


def _rows(config: GemmaConfig, dtype: torch.dtype, share: Placement, memory: int | None) -> int:
    return RESIDENT_ROWS if memory is None else rows_in(config, dtype, share.work)


def _parts(
    config: GemmaConfig, formats: Formats, sizes: Sizes, share: Placement, context: int, rows: int
) -> tuple[Part, ...]:
    chunk = Part("sweep chunk", work_bytes(config, formats.dtype, rows), f"{rows:,} rows", (SWEEP,))
    of_run = run_parts(config, formats.dtype, context)
    return (*weight_parts(config, sizes, share, formats.dtype), *of_run, chunk)


def _row(config: GemmaConfig, formats: Formats, context: int) -> dict[str, Any]:
    sizes = _sizes(config, formats, streams=False)
    parts = _parts(config, formats, sizes, place_layers(config, sizes, formats.dtype, None), context, 1)
    size = {part.name: part.n_bytes for part in parts}
    weights = sum(part.n_bytes for part in parts if set(part.tasks) == set(TASKS))
    beside = size["keys and values"], size["activations"] + size["logits"]
    return {
        "weights": formats.weights, "context": context, "weight_bytes": weights, "kv_bytes": beside[0],
        "activation_bytes": beside[1], "total": weights + sum(beside),
    }  # fmt: skip

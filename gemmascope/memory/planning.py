"""gs.plan: predicts how much memory a model takes and where it fits, before anything is loaded."""

from __future__ import annotations

import torch

from gemmascope.arguments import true_or_false, whole_number
from gemmascope.checkpoints.device import DeviceChoice, choose_devices
from gemmascope.config import GemmaConfig
from gemmascope.errors import BudgetError
from gemmascope.memory.host_memory import measured_bytes
from gemmascope.memory.placement import RESIDENT_ROWS, Placement, free_bytes, parse_bytes, rows_in
from gemmascope.memory.plan import Plan, sizes_of
from gemmascope.memory.plan_cards import CardPlan, parts_on, sum_of_parts
from gemmascope.memory.planned_model import find_formats, find_planned_model
from gemmascope.memory.rates import probe as probe_rates
from gemmascope.memory.sizes import GENERATE, TASKS, TRACE
from gemmascope.memory.spread import spread_layers, whole_placement


def plan(
    source: object = "nano",
    *,
    weights: str = "auto",
    context: int | None = None,
    memory: int | str | None = None,
    rows: int | None = None,
    device: DeviceChoice = "auto",
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
        device: As in gs.load. With several GPUs, the plan says which layers lie where and what each holds.
        dtype: As in gs.load.
        probe: Whether to measure this machine for some seconds and predict the time of a pass, roughly (Plan.seconds).

    Returns:
        A plan. Printed, it is a table of the parts, the tasks and the GPUs; `fits("T4")`, `peaks`, `kept`, `streamed`,
        `devices`, `table()` and `to_dict()` give the same as values, in bytes.

    Raises:
        CheckpointError: The source is not known.
        DeviceError: The weights, the device or the dtype are not available.
        BudgetError: The context is longer than the model's, rows is not a positive number, or the memory is too little, of
            a device or of several together.

    Examples:
        >>> p = gs.plan("27b", weights="int8", context=4096, memory="24GB", device="cpu")
        >>> len(p.kept), len(p.streamed)
        (32, 14)
        >>> print(p.fits("T4"))
        streams: 13 of 46 layers stay, with memory='12.83GB'
    """
    probe = true_or_false(probe, "probe", error=BudgetError)
    model = find_planned_model(source)
    config, formats, devices = model.config, find_formats(model, weights, dtype), choose_devices(device)
    n_pos = config.context if context is None else _whole_number("context", context)
    if n_pos > config.context:
        raise BudgetError(f"context={n_pos:,} is more than {model.name!r} takes: at most {config.context:,} positions")
    budget = None if memory is None else parse_bytes(memory)
    sizes = sizes_of(config, formats, streams=budget is not None)
    shares = spread_layers(config, sizes, formats.dtype, devices, budget, must_fit=False)
    placement, target = whole_placement(shares), shares[0].device
    n_rows = _rows(config, formats.dtype, placement, budget) if rows is None else _whole_number("rows", rows)
    parts = [parts_on(config, sizes, share, formats.dtype, n_pos, n_rows) for share in shares]
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
        parts=sum_of_parts(parts),
        total_tasks=(TRACE, GENERATE) if rows is None else TASKS,
        rates=probe_rates(config, formats.dtype, target, model.folder, (n_pos, n_rows), formats.int8) if probe else None,
        devices=tuple(
            CardPlan(share.device, share.layers, share.placement, budget or share.free, own)
            for share, own in zip(shares, parts, strict=True)
            if len(shares) > 1
        ),
    )


def _free(device: torch.device) -> int | None:
    """Bytes that are free on a device; None if that is unknown, or if models are not loaded into its memory."""
    if device.type in ("meta", "mps"):
        return None
    return free_bytes(device) if device.type == "cuda" else measured_bytes()


def _whole_number(name: str, value: object) -> int:
    return whole_number(value, name, least=1, most=2**62, error=BudgetError)


def _rows(config: GemmaConfig, dtype: torch.dtype, placement: Placement, memory: int | None) -> int:
    return RESIDENT_ROWS if memory is None else rows_in(config, dtype, placement.workspace)

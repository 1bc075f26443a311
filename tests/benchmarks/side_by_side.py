"""One row of a table: ours, transformers in one batch and one by one, and the floor, in turn on the same weights.

Each measure_ function takes the model of transformers, on its device, and ours over the same weights. It returns the row;
its caller keeps it and then calls hold, which raises where the numbers differ by more than rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from floors import forward_flops, read_weights, sweep_flops, token_flops
from measuring import DisagreementError, Rounds, Turn, in_turn, products, reading, spread
from rivals import Cell, PatchedRuns, config_of, edit_hooks, greedy, prompt, short_of_the_likeliest
from torch import Tensor
from transformers import Gemma2ForCausalLM

import gemmascope as gs

Row = dict[str, Any]

TOKENS = (11, 12)
METRIC = gs.logit_diff(*TOKENS)
AXES = {"resid_pre": ("layer", "pos"), "z": ("layer", "head")}
# How many pairs of prompts bfloat16 is compared over. The cells of one pair share most of their run, and so their rounding
# error: from a single pair, either side's error is little more than one draw.
PAIRS, CELLS = 8, 8
EDITED_LAYER, EDITED_HEAD = 1, 1
SHORT = {torch.float32: 1e-5, torch.bfloat16: 0.03}  # what rounding may take from the likeliest token


@dataclass(frozen=True)
class Effort:
    """How much of a rival's work is run, in positions: a batch of cells has its cells times the prompt's length.

    sizes: of the batches that are tried. sample: of what a round runs; one by one a quarter of it.
    """

    sizes: Sequence[int]
    sample: int


EFFORT = {"cpu": Effort((256, 1024, 4096), 8192), "cuda": Effort((4096, 8192, 16384), 65536)}


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def measure_sweep(
    source: Gemma2ForCausalLM, exact: Gemma2ForCausalLM, model: Any, length: int, site: str, rounds: int
) -> Row:
    """exact: the same weights in float32, from whose numbers the distances are taken, beside how far those lie apart."""
    config, device, effort = config_of(source), source.device, EFFORT[source.device.type]
    pair = prompt(length, config.vocab_size, 1), prompt(length, config.vocab_size, 2)
    runs = PatchedRuns(source, *pair, site, TOKENS)

    def sweep() -> Any:
        return gs.sweep(*pair, METRIC, site=site, by=AXES[site], model=model, progress=False)

    size = runs.quickest_size([max(1, n // length) for n in effort.sizes])
    batched = runs.sample(size * max(1, -(-effort.sample // (size * length))))
    single = runs.sample(max(8, min(effort.sample // 4 // length, 64)))
    ours: dict[Cell, float] = dict(zip(runs.cells, sweep().values[0].ravel().tolist(), strict=True))
    took = in_turn(
        {
            "ours": Turn(sweep),
            "batched": Turn(lambda: runs.run(batched, size), len(runs.cells) / len(batched)),
            "one": Turn(lambda: runs.run(single, 1), len(runs.cells) / len(single)),
            "floor": products(sweep_flops(config, length, site), config.d_model, config.d_mlp, source.dtype, device),
        },
        rounds,
        device,
    )
    if exact is source:
        wanted = runs.run(single, 1)
        apart, rival_apart = (spread(found, wanted) for found in ([ours[cell] for cell in single], runs.run(single, size)))
    else:
        apart, rival_apart = rounding_errors(source, exact, model, length, site)
    return {
        "site": site, "positions": length, "dtype": name_of(source.dtype), "cells": len(runs.cells), "rounds": rounds,
        "ours_s": took.median("ours"), "batched_s": took.median("batched"), "batch": size, "batched_ran": len(batched),
        "one_by_one_s": took.median("one"), "one_by_one_ran": len(single), "floor_s": took.median("floor"),
        "batched/ours": took.ratio("batched", "ours"), "one/ours": took.ratio("one", "ours"),
        "ours/floor": took.ratio("ours", "floor"),
        "apart": apart, "rival_apart": rival_apart,
    }  # fmt: skip


def rounding_errors(
    source: Gemma2ForCausalLM, exact: Gemma2ForCausalLM, model: Any, length: int, site: str
) -> tuple[float, float]:
    """Ours and the rival's distance from exact: the root mean square over some cells of PAIRS pairs of prompts.

    The cells are of the middle layer. Beside the standard deviation of exact's numbers.
    """
    found: list[list[float]] = [[], [], []]
    axis = AXES[site][1]
    for number in range(PAIRS):
        pair = [prompt(length, source.config.vocab_size, seed) for seed in (2 * number + 1, 2 * number + 2)]
        runs, exact_runs = (PatchedRuns(one, *pair, site, TOKENS) for one in (source, exact))
        layer, n_places = runs.n_layers // 2, len(runs.cells) // runs.n_layers
        n_cells = min(CELLS, n_places)
        places = [i * n_places // n_cells for i in range(n_cells)]
        sweep: Any = {"site": site, "by": AXES[site], "layer": layer, axis: places, "model": model, "progress": False}
        cells = [(layer, place) for place in places]
        found[0] += gs.sweep(*pair, METRIC, **sweep).values[0].ravel().tolist()
        found[1] += runs.run(cells, n_cells)
        found[2] += exact_runs.run(cells, n_cells)
    ours, rival, wanted = (torch.tensor(numbers, dtype=torch.float64) for numbers in found)
    deviation = wanted.std(correction=0)
    return tuple(float((one - wanted).square().mean().sqrt() / deviation) for one in (ours, rival))  # type: ignore[return-value]


def measure_trace(
    source: Gemma2ForCausalLM, exact: Gemma2ForCausalLM, model: Any, count: int, length: int, rounds: int
) -> Row:
    """Traces with all logits. exact: as in measure_sweep."""
    config, device = config_of(source), source.device
    ids = torch.stack([prompt(length, config.vocab_size, 200 + seed) for seed in range(count)])

    def forward(whole: Gemma2ForCausalLM, ids: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = whole(ids.to(device), use_cache=False).logits
        return logits

    def traces() -> list[Tensor]:
        return [t.logits for t in gs.trace(list(ids), model=model)]

    def bare() -> object:
        return gs.trace(list(ids), model=model)

    wanted = forward(exact, ids[:1])[0, -1].tolist()
    numbers = traces()[0][-1], forward(source, ids)[0, -1]
    bare()
    turns = {
        "ours": Turn(traces),
        "batched": Turn(lambda: forward(source, ids)),
        "bare": Turn(bare),
        "floor": products(count * forward_flops(config, length), config.d_model, config.d_mlp, source.dtype, device),
    }
    if count > 1:
        turns["one"] = Turn(lambda: forward(source, ids[:1]), count)
    took = in_turn(turns, rounds, device)
    apart, rival_apart = (spread(found.float().tolist(), wanted) for found in numbers)
    return {
        "prompts": count, "positions": length, "dtype": name_of(source.dtype), "rounds": rounds,
        "ours_ms": 1e3 * took.median("ours"), "batched_ms": 1e3 * took.median("batched"), "one_by_one_ms": _ms(took, "one"),
        "floor_ms": 1e3 * took.median("floor"), "ours/batched": took.ratio("ours", "batched"),
        "ours/one": _ratio(took, "ours", "one"), "ours/floor": took.ratio("ours", "floor"),
        "no_logits/batched": took.ratio("bare", "batched"), "apart": apart, "rival_apart": rival_apart,
    }  # fmt: skip


def measure_tokens(
    source: Gemma2ForCausalLM, model: Any, count: int, length: int, n_new: int, edited: bool, rounds: int
) -> Row:
    """Greedy tokens, with and without two edits at every position of prompt and text."""
    config, dtype, device = config_of(source), source.dtype, source.device
    ids = torch.stack([prompt(length, config.vocab_size, 100 + seed) for seed in range(count)])
    vector = torch.randn(config.d_model, generator=torch.Generator().manual_seed(3)).to(dtype)
    edits: list[Any] = []
    if edited:
        edits = [gs.ablate("z", layer=EDITED_LAYER, head=EDITED_HEAD), gs.add("resid_pre", vector, layer=EDITED_LAYER + 1)]
    hooks = edit_hooks(source, EDITED_LAYER, EDITED_HEAD, vector) if edited else []

    def ours(n: int) -> Tensor:
        return torch.stack([g.ids.cpu() for g in gs.generate(list(ids), model=model, max_new_tokens=n, edits=edits)])

    found, wanted = ours(n_new), greedy(source, ids, n_new, hooks).cpu()
    turns = {}
    for name, n in (("whole", n_new), ("first", 1)):
        turns[f"ours {name}"] = Turn(lambda n=n: ours(n))  # type: ignore[misc]
        turns[f"batched {name}"] = Turn(lambda n=n: greedy(source, ids, n, hooks))  # type: ignore[misc]
        if count > 1:
            turns[f"one {name}"] = Turn(lambda n=n: greedy(source, ids[:1], n, hooks), count)  # type: ignore[misc]
    turns["reading"] = reading(read_weights(config) * dtype.itemsize, device)
    turns["products"] = products(token_flops(config, count), config.d_model, config.d_mlp, dtype, device)
    took = in_turn(turns, rounds, device)
    for name in ("ours", "batched", "one")[: 3 if count > 1 else 2]:
        took = took.less(name, f"{name} whole", f"{name} first", 1 / (n_new - 1))
    floor = max(("reading", "products"), key=took.median)
    return {
        "prompts": count, "positions": length, "dtype": name_of(dtype), "edits": "yes" if edited else "no",
        "rounds": rounds, "tokens": n_new, "ours_ms": 1e3 * took.median("ours"), "batched_ms": 1e3 * took.median("batched"),
        "one_by_one_ms": _ms(took, "one"), "reading_ms": 1e3 * took.median("reading"),
        "products_ms": 1e3 * took.median("products"), "ours/batched": took.ratio("ours", "batched"),
        "ours/one": _ratio(took, "ours", "one"), "ours/floor": took.ratio("ours", floor),
        "first_ms": 1e3 * took.median("ours first"), "first/batched": took.ratio("ours first", "batched first"),
        "same": "yes" if torch.equal(found, wanted) else "no",
        "short": short_of_the_likeliest(source, found, length, hooks),
    }  # fmt: skip


def _ms(took: Rounds, name: str) -> float | None:
    return 1e3 * took.median(name) if name in took else None


def _ratio(took: Rounds, above: str, below: str) -> float | None:
    return took.ratio(above, below) if below in took else None


def hold(row: Row) -> None:
    """Raise DisagreementError where our numbers are further from transformers' than rounding explains.

    float32 to rounding; bfloat16 to twice the distance that transformers' own bfloat16 has from float32, and a trace, which
    is of one prompt, to three times: the largest of a few errors is a chancy number. Generated tokens must be the likeliest
    in transformers' run of our text, or short of that by rounding, and in float32 the same.
    """
    is_float32 = row["dtype"] == "float32"
    if "short" in row:
        allowed = SHORT[torch.float32 if is_float32 else torch.bfloat16]
        ok = row["short"] <= allowed and (row["same"] == "yes" or not is_float32)
    else:
        allowed = 1e-3 if is_float32 else max((2 if "site" in row else 3) * row["rival_apart"], 1e-3)
        ok = row["apart"] <= allowed  # NaN is no agreement
    if not ok:
        raise DisagreementError(f"ours differs by more than {allowed:.1e}: {row}")

"""The 27B shape on a GPU, int8, resident and streamed: times beside their bounds, and peaks beside the plan.

Aims: wall time at most 1.15 times the larger of streaming and computing, at three numbers of rows; the measured peak
within 10% of the plan's; the same on cards of 8, 16 and 24 GB, emulated by a share of this one's memory. Also the fused
product that torch.compile makes of dequantising and multiplying, beside dequantising first, which is what is done here.

Random weights: nothing here says anything about Gemma. On a machine without CUDA it says so and ends; --device cpu with
--shape small tries the script itself.

Run: python tests/benchmarks/gpu.py FOLDER [--shape 27b|small] [--memory 8GB 16GB 24GB]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from stream27b import NoReading, write

import gemmascope as gs
from gemmascope.config import PRESETS, GemmaConfig
from gemmascope.memory.placement import parse_bytes
from gemmascope.streaming.int8 import dequantise, n_groups
from gemmascope.streaming.store import MANIFEST

ROWS = (16, 512, 4096)
SMALL = {"d_model": 256, "n_heads": 4, "n_kv_heads": 2, "d_head": 64, "d_mlp": 1024, "vocab_size": 2000}


def shape(name: str) -> GemmaConfig:
    config = PRESETS["27b"]
    return config if name == "27b" else replace(config, kinds=config.kinds[:6], **SMALL)  # type: ignore[arg-type]


def settled(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function: Callable[[], Any], device: torch.device, rounds: int = 3) -> float:
    """The median time of some rounds, the first left out."""
    times = []
    for _ in range(rounds + 1):
        settled(device)
        start = time.perf_counter()
        function()
        settled(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def streaming(layer_source: Any) -> None:
    """Bring every streamed layer, and compute nothing."""
    for index in range(len(layer_source.packed)):
        if index not in layer_source.kept:
            layer_source.transfer.wait(layer_source.fill(index, layer_source.buffers[0]))
            layer_source.transfer.release(layer_source.buffers[0])


def streamed(folder: Path, memory: str, device: torch.device) -> None:
    """One budget: the times of passes beside their bounds, and the peak beside the plan's."""
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, parse_bytes(memory) / whole), device)
        torch.cuda.reset_peak_memory_stats(device)
    plan = gs.plan(folder, weights="int8", context=max(ROWS), memory=memory, device=device)
    model = gs.load(folder, device=device, memory=memory)
    layer_source: Any = model.network.layer_source
    moving = seconds(lambda: streaming(layer_source), device)
    for rows in ROWS:
        ids = torch.randint(model.config.vocab_size, (rows,))

        def run(ids: torch.Tensor = ids) -> None:
            gs.trace(ids, model=model)

        wall = seconds(run, device)
        transfer, layer_source.transfer = layer_source.transfer, NoReading()
        computing = seconds(run, device)
        layer_source.transfer = transfer
        ratio = wall / max(moving, computing)
        print(
            f"{memory}, {rows:5d} rows: {wall:.3f} s; streaming alone {moving:.3f}, computing alone {computing:.3f}: "
            f"{ratio:.2f} times the larger (aim 1.15)",
            flush=True,
        )
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        print(
            f"{memory}: peak {peak / 1e9:.2f} GB, planned {plan.peaks['trace'] / 1e9:.2f}: {peak / plan.peaks['trace']:.2f}"
        )


def fused(config: GemmaConfig, device: torch.device) -> None:
    """Dequantise-then-multiply beside what torch.compile makes of both, for the largest matrix of a layer."""
    size = (config.d_mlp, config.d_model)
    q = torch.randint(-127, 128, size, dtype=torch.int8, device=device)
    scale = torch.full((size[0], n_groups(size[1])), 0.01, dtype=torch.float16, device=device)
    scratch = torch.empty(size, dtype=torch.bfloat16, device=device)

    def both(x: torch.Tensor) -> torch.Tensor:
        weight = q.view(*scale.shape, -1).float() * scale.float()[..., None]
        return torch.nn.functional.linear(x, weight.view(size).to(x.dtype))

    def first(x: torch.Tensor) -> torch.Tensor:
        dequantise(q, scale, scratch)
        return torch.nn.functional.linear(x, scratch)

    compiled = torch.compile(both)
    for rows in ROWS:
        x = torch.randn(rows, size[1], dtype=torch.bfloat16, device=device)
        ours, theirs = seconds(lambda x=x: first(x), device), seconds(lambda x=x: compiled(x), device)  # type: ignore[misc]
        print(f"{rows:5d} rows: dequantised first {1e3 * ours:.2f} ms, compiled {1e3 * theirs:.2f} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=("27b", "small"), default="27b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--memory", nargs="*", default=["8GB", "16GB", "24GB"])
    parser.add_argument("--no-compile", action="store_true")
    given = parser.parse_args()
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA GPU here: nothing was measured")
        return
    config = shape(given.shape)
    if not (given.folder / MANIFEST).is_file():
        write(given.folder, config)
    print(torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu", torch.__version__)
    for memory in given.memory:
        streamed(given.folder, memory, device)
    if not given.no_compile:
        fused(config, device)


if __name__ == "__main__":
    main()

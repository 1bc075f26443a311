"""What the benchmarks share: runs that take turns, the rates of the machine, tables, and a record as JSON.

Times of one run are compared with times of another only within a round: what else the machine does falls on both alike.
A ratio is the median of the rounds' ratios, which on a loaded machine is steadier than the ratio of two medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

CPU = torch.device("cpu")
_clock = time.perf_counter


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function: Callable[[], object], device: torch.device = CPU) -> float:
    settle(device)
    start = _clock()
    function()
    settle(device)
    return _clock() - start


@dataclass(frozen=True)
class Turn:
    """Something to time. scale: what its seconds are multiplied by, where it runs a sample of the work."""

    run: Callable[[], object]
    scale: float = 1.0


@dataclass(frozen=True)
class Rounds:
    """The seconds of each turn, round by round."""

    times: Mapping[str, Sequence[float]]

    def __contains__(self, name: str) -> bool:
        return name in self.times

    def median(self, name: str) -> float:
        return statistics.median(self.times[name])

    def ratio(self, above: str, below: str) -> float:
        return statistics.median(a / b for a, b in zip(self.times[above], self.times[below], strict=True))

    def less(self, name: str, whole: str, part: str, share: float) -> Rounds:
        """With a turn more: round by round what whole took beyond part, times share."""
        beyond = [share * (a - b) for a, b in zip(self.times[whole], self.times[part], strict=True)]
        return Rounds({**self.times, name: beyond})


def in_turn(turns: Mapping[str, Turn], rounds: int, device: torch.device = CPU) -> Rounds:
    """Run them in turn, rounds times: ours, rival, ours, rival. Whoever calls has run each once, so that it is warm."""
    times: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds):
        # Every other round runs backwards: no turn always has the same one before it.
        for name in list(turns)[:: -1 if number % 2 else 1]:
            times[name].append(turns[name].scale * seconds(turns[name].run, device))
    return Rounds(times)


def products(flops: float, d_model: int, d_mlp: int, dtype: torch.dtype, device: torch.device = CPU) -> Turn:
    """The time of so many operations at the rate of the machine's matrix products, from some 0.1 seconds of them."""
    n_rows = 1024 if device.type == "cpu" else 16384
    x = torch.randn(n_rows, d_model, dtype=dtype, device=device)
    up = torch.randn(d_mlp, d_model, dtype=dtype, device=device)
    down = torch.randn(d_model, d_mlp, dtype=dtype, device=device)

    def pair(times: int = 1) -> None:
        for _ in range(times):
            torch.nn.functional.linear(torch.nn.functional.linear(x, up), down)

    pair()
    times = max(1, min(200, int(0.1 / seconds(pair, device))))
    return Turn(lambda: pair(times), flops / (times * 4 * n_rows * d_model * d_mlp))


def reading(n_bytes: float, device: torch.device = CPU) -> Turn:
    """The time of reading so many bytes from memory once, from a sample of as many bytes within limits."""
    sample = int(min(max(n_bytes, 2**27), 2**29 if device.type == "cpu" else 2**31))
    x = torch.ones(sample // 4, device=device)
    torch.dot(x, x)
    return Turn(lambda: torch.dot(x, x), n_bytes / (4 * len(x)))


def machine(device: torch.device = CPU) -> dict[str, Any]:
    """What stands beside every figure."""
    import transformers

    found: dict[str, Any] = {
        "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
        "processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "seconds": "of the CPU" if _clock is time.process_time else "of the clock",
    }  # fmt: skip
    if hasattr(os, "getloadavg"):
        found["load"] = round(os.getloadavg()[0], 1)
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found |= {"card": card.name, "card_bytes": card.total_memory, "cuda": torch.version.cuda}
    return found


def spread(found: Sequence[float], wanted: Sequence[float]) -> float:
    """The largest difference from wanted, beside how far wanted's own numbers lie apart."""
    largest = max(abs(a - b) for a, b in zip(found, wanted, strict=True))
    return largest / (max(wanted) - min(wanted))


class DisagreementError(AssertionError):
    """Two ways to the same number differ by more than rounding."""


@dataclass
class Table:
    """Rows of numbers, printed as they come, and kept for the record."""

    title: str
    columns: Sequence[str]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, **row: Any) -> None:
        if not self.rows:
            print(f"\n{self.title}\n" + "  ".join(f"{name:>{self._width(name)}}" for name in self.columns))
        self.rows.append(row)
        print("  ".join(f"{_text(row.get(name)):>{self._width(name)}}" for name in self.columns), flush=True)

    def _width(self, name: str) -> int:
        return max(9, len(name))


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def parser(about: str | None, *, lengths: Sequence[int] = (), rounds: int) -> argparse.ArgumentParser:
    """The options that all have."""
    found = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    if lengths:
        found.add_argument("--lengths", type=int, nargs="*", default=list(lengths), help="positions of the prompts")
    found.add_argument("--dtype", nargs="*", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    found.add_argument("--rounds", type=int, default=rounds, help="how often each takes its turn")
    found.add_argument("--small", action="store_true", help="a small model and few rounds: tries the script itself")
    found.add_argument("--json", type=Path, metavar="FILE", help="write the tables there as well")
    found.add_argument("--cpu-seconds", action=_CountCpuSeconds, help=_CountCpuSeconds.__doc__)
    return found


class _CountCpuSeconds(argparse.Action):
    """Time this process's CPU seconds, not those of the clock: for machines that other work shares, with one thread."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=False, **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: object) -> None:
        if torch.get_num_threads() > 1:
            parser.error(
                f"--cpu-seconds adds up what all {torch.get_num_threads()} threads take, and waiting ones look like work: "
                "set OMP_NUM_THREADS=1"
            )
        global _clock
        _clock = time.process_time
        setattr(namespace, self.dest, True)


def record(path: Path | None, tables: Sequence[Table]) -> None:
    """The tables as JSON, with the command and the machine."""
    if path is not None:
        said = {
            "command": " ".join(["python", *sys.argv]),
            "machine": machine(),
            "tables": [{"title": t.title, "rows": t.rows} for t in tables],
        }
        path.write_text(json.dumps(said, indent=1), encoding="utf-8")

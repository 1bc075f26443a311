"""Counts of what a device is asked to do, by the line of the package that asked."""

from __future__ import annotations

import sys
from collections import Counter

import torch

_EMULATION = __file__.rpartition("counts.py")[0]


def line_of_package() -> str:
    """The innermost line of the package on this thread's stack, or else of the tests."""
    frame = sys._getframe(1)
    test = "outside"
    while frame is not None:
        path = frame.f_code.co_filename
        if "/gemmascope/" in path:
            return f"{path.rpartition('/gemmascope/')[2]}:{frame.f_lineno}"
        if test == "outside" and "/tests/" in path and not path.startswith(_EMULATION):
            test = f"tests/{path.rpartition('/tests/')[2]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return test


class Counts:
    """Kernels, synchronisations, pageable copies and copies between devices by line; kernels by operator; bytes each way."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.kernels: Counter[str] = Counter()
        self.operators: Counter[str] = Counter()
        self.syncs: Counter[str] = Counter()
        self.pageable: Counter[str] = Counter()
        self.between_devices: Counter[str] = Counter()
        self.to_device = self.to_host = 0

    def kernel(self, operator: str) -> None:
        self.kernels[line_of_package()] += 1
        self.operators[operator] += 1

    def sync(self, why: str) -> None:
        """The host waits for the device."""
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(f"operation not permitted when stream is capturing: {why}")
        self.syncs[f"{line_of_package()} ({why})"] += 1

    @property
    def n_kernels(self) -> int:
        return self.kernels.total()

    @property
    def n_syncs(self) -> int:
        return self.syncs.total()

    def __str__(self) -> str:
        lines = [f"{self.n_kernels} kernels, {self.n_syncs} synchronisations, {self.pageable.total()} pageable copies"]
        for what, counter in (
            ("kernels", self.kernels),
            ("synchronisations", self.syncs),
            ("pageable copies", self.pageable),
        ):
            lines += [f"  {count:6d} {what} {line}" for line, count in counter.most_common(12)]
        return "\n".join(lines)

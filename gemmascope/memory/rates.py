"""The speed of this machine, measured for some seconds: reading, copying to a GPU, dequantising, matrix products."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import torch

from gemmascope.config import GemmaConfig
from gemmascope.errors import BudgetError
from gemmascope.legible import prints_legibly
from gemmascope.memory.sizes import operations
from gemmascope.streaming.int8 import dequantise, n_groups
from gemmascope.streaming.packed import private_memory

# Bytes that are read and copied to measure a rate, and the longest side of the matrices that are multiplied.
SAMPLE, SIDE = 128 * 2**20, 4096
ROUNDS = 3


@dataclass(frozen=True)
class Rates:
    """What this machine does in a second.

    Attributes:
        folder: The folder that was read from.
        read: Bytes read from the folder's disk.
        copy: Bytes copied from host memory to the GPU; None on a CPU.
        dequantise: Weights dequantised; None if the weights are not int8.
        prompt: Operations of matrix products with the rows of a prompt.
        chunk: Operations of matrix products with the rows of a sweep's chunk.
    """

    folder: str
    read: float
    copy: float | None
    dequantise: float | None
    prompt: float
    chunk: float

    def moving(self, n_bytes: int, from_host: int) -> float:
        """Seconds to move n_bytes to the device; on a GPU, from_host of them come from host memory."""
        if self.copy is None:
            return n_bytes / self.read
        return max((n_bytes - from_host) / self.read, n_bytes / self.copy)

    def computing(self, config: GemmaConfig, rows: int, *, one_prompt: bool) -> float:
        """Seconds of the matrix products of `rows` rows through all layers, and of dequantising the layers once."""
        products = operations(config, rows, one_prompt=one_prompt) / (self.prompt if one_prompt else self.chunk)
        weights = operations(config, 1, one_prompt=False) / 2
        return products + (weights / self.dequantise if self.dequantise else 0.0)

    def to_dict(self) -> dict[str, str | float | None]:
        return asdict(self)

    @prints_legibly
    def __str__(self) -> str:
        parts = [f"{self.read / 1e9:.2g} GB/s from the disk of {self.folder}"]
        parts += [f"{self.copy / 1e9:.2g} GB/s to the GPU"] if self.copy else []
        parts += [f"{self.dequantise / 1e9:.2g} G weights/s dequantised"] if self.dequantise else []
        return ", ".join([*parts, f"{self.prompt / 1e12:.2g} (sweep: {self.chunk / 1e12:.2g}) TFLOP/s"])


def probe(
    config: GemmaConfig, dtype: torch.dtype, device: torch.device, folder: Path | None, rows: tuple[int, int], int8: bool
) -> Rates:
    """Measure the rates. folder: the model's folder; rows: those of a prompt and of a sweep's chunk."""
    probed = folder if folder is not None and os.access(folder, os.W_OK) else Path(tempfile.gettempdir())
    prompt, chunk = (_products(config, dtype, device, min(n, 1024)) for n in rows)
    return Rates(
        folder=str(probed),
        read=_read(probed),
        copy=_copy(device) if device.type == "cuda" else None,
        dequantise=_dequantise(config, dtype, device) if int8 else None,
        prompt=prompt,
        chunk=chunk,
    )


def _best(operation: Callable[[], object], device: torch.device) -> float:
    """The shortest time of several runs, in seconds, after a warm-up."""
    times = []
    for _ in range(ROUNDS + 1):
        start = perf_counter()
        operation()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(perf_counter() - start)
    return min(times[1:])


def _products(config: GemmaConfig, dtype: torch.dtype, device: torch.device, rows: int) -> float:
    n_in, n_out = min(config.d_model, SIDE), min(config.d_mlp, SIDE)
    x, weight = torch.ones(rows, n_in, dtype=dtype, device=device), torch.ones(n_out, n_in, dtype=dtype, device=device)
    return 2 * rows * n_in * n_out / _best(lambda: torch.nn.functional.linear(x, weight), device)


def _dequantise(config: GemmaConfig, dtype: torch.dtype, device: torch.device) -> float:
    shape = min(config.d_mlp, SIDE), min(config.d_model, SIDE)
    q = torch.ones(shape, dtype=torch.int8, device=device)
    scale = torch.ones(shape[0], n_groups(shape[1]), dtype=torch.float16, device=device)
    into = torch.empty(shape, dtype=dtype, device=device)
    return q.numel() / _best(lambda: dequantise(q, scale, into), device)


def _copy(device: torch.device) -> float:
    source = torch.empty(SAMPLE, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(source, device=device)
    return SAMPLE / _best(lambda: target.copy_(source, non_blocking=True), device)


def _read(folder: Path) -> float:
    """Bytes per second from the disk, without the page cache. Raises BudgetError if the disk has no room for the sample."""
    if shutil.disk_usage(folder).free < 2 * SAMPLE:
        raise BudgetError(f"the disk of {folder} has no room for a probe of {SAMPLE:,} bytes: plan without probe=True")
    buffer = private_memory(2**24)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(SAMPLE // len(buffer)):
            file.write(os.urandom(2**16) * (len(buffer) // 2**16))  # random, so that disks compress little of it
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = perf_counter()
        file.seek(0)
        for _ in range(0, SAMPLE, len(buffer)):
            file.readinto(buffer)
        return SAMPLE / (perf_counter() - start)

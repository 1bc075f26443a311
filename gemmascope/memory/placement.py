"""Placement: the size of a model's parts in bytes, and which of them stay on the device within a memory budget."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch

from gemmascope.arguments import is_whole, short_repr
from gemmascope.config import GemmaConfig
from gemmascope.errors import BudgetError
from gemmascope.memory.host_memory import available_bytes
from gemmascope.streaming.file_embedding import CHUNK_BYTES
from gemmascope.streaming.packed import int8_layout, layer_shapes, plain_layout

MOST_BYTES = 2**62
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

# Rows that go through a layer at once, and the fewest that a pass must be able to carry. Measured on two cores.
MICROBATCH_ROWS = 1024

# The most on an accelerator, where few rows leave it waiting for the host. Measured on an H100: a sweep of 2B took 4.5 s
# with 1,024 and 1.8 s with 16,384.
DEVICE_MICROBATCH_ROWS = 16384

# Rows that a budget reserves memory for before any layer stays. All rows share one stream of the weights, so memory is
# better spent on rows than on layers. A sweep of 27B over 46 layers x 16 positions has 11,776.
RESERVED_ROWS = 16 * MICROBATCH_ROWS

# The most rows in a sweep's chunk if no layer streams. More rows would not be faster, and a chunk is the granularity of
# finished cells, the progress bar and interrupts: some seconds of a small model.
RESIDENT_ROWS = 32 * MICROBATCH_ROWS


def parse_bytes(amount: object) -> int:
    """Bytes from a number or a text such as "2GiB" or "500 MB". Raises BudgetError for anything else."""
    if is_whole(amount) and int(amount) > 0:
        return min(int(amount), MOST_BYTES)  # more than any machine has means all of it
    if (
        isinstance(amount, str)
        and (match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", amount))
        and match[2].upper() in UNITS
    ):
        return min(int(min(float(match[1]), MOST_BYTES) * UNITS[match[2].upper()]), MOST_BYTES)
    raise BudgetError(f"memory is a number of bytes or a text such as '2GiB' or '500MB'; given {short_repr(amount)}")


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model's weights in bytes.

    Attributes:
        n_layers: Layers of the model.
        layer: One packed layer.
        scratch: One unpacked layer; 0 if layers are computed with as they are packed.
        embedding: The embedding.
        part: What is in memory of the embedding if it stays in its file.
    """

    n_layers: int
    layer: int
    scratch: int
    embedding: int
    part: int

    @classmethod
    def of(cls, config: GemmaConfig, weights: str, dtype: torch.dtype, stored: torch.dtype | None = None) -> Sizes:
        """Sizes for "int8" weights, or for weights in the dtype they are stored in (stored None: dtype)."""
        stored = stored or dtype
        pieces = int8_layout(config, stored) if weights == "int8" else plain_layout(config, stored)
        unpacked = sum(math.prod(shape) for shape in layer_shapes(config).values()) * dtype.itemsize
        table = config.vocab_size * config.d_model
        scratch = 0 if weights != "int8" and stored == dtype else unpacked
        # A chunk is read in the stored dtype and cast to dtype.
        part = min(CHUNK_BYTES, table * stored.itemsize) * (1 if stored == dtype else 1 + dtype.itemsize // stored.itemsize)
        return cls(config.n_layers, max(p.stop for p in pieces), scratch, table * dtype.itemsize, part)

    def weights(self, n_kept: int, ahead: int, *, embedded: bool) -> int:
        """Bytes on the device with n_kept layers there, `ahead` layers loading, and the embedding there or in its file."""
        n_buffers = min(self.n_layers - n_kept, ahead + 1)
        scratch = self.scratch if self.n_layers else 0
        return (n_kept + n_buffers) * self.layer + scratch + (self.embedding if embedded else self.part)


@dataclass(frozen=True)
class Placement:
    """What stays on the device.

    Attributes:
        kept: The numbers of the layers that stay.
        embedded: Whether the embedding stays.
        weights: Bytes of both, and of the buffers and scratch weights that the other layers need.
        workspace: Bytes left for the rows of a pass.
    """

    kept: tuple[int, ...]
    embedded: bool
    weights: int
    workspace: int


def free_bytes(device: torch.device) -> int:
    """Free memory of a device now, in bytes. All devices but CUDA ones use the host's memory."""
    if device.type != "cuda":
        return available_bytes()
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch keeps what was freed
    return torch.cuda.mem_get_info(device)[0] + cached


def layer_bytes(config: GemmaConfig, dtype: torch.dtype) -> int:
    """Bytes that one row takes inside a layer: gate, up and their product; q, k, v, z; norms in float32."""
    of_heads = 4 * config.n_heads * config.d_head * dtype.itemsize
    return 3 * config.d_mlp * dtype.itemsize + of_heads + 4 * config.d_model * 4


def work_bytes(config: GemmaConfig, dtype: torch.dtype, rows: int) -> int:
    """Bytes that a pass of so many rows takes: its input and output rows, and MICROBATCH_ROWS of them inside a layer."""
    return MICROBATCH_ROWS * layer_bytes(config, dtype) + rows * 2 * config.d_model * dtype.itemsize


def rows_in(config: GemmaConfig, dtype: torch.dtype, workspace: int) -> int:
    """How many rows a pass may carry within `workspace` bytes; negative if not even one microbatch fits."""
    return (workspace - work_bytes(config, dtype, 0)) // (2 * config.d_model * dtype.itemsize)


def place_layers(config: GemmaConfig, sizes: Sizes, dtype: torch.dtype, memory: int | None, ahead: int = 1) -> Placement:
    """What stays on the device within a memory budget: first memory for rows, then the embedding, then layers.

    With memory=None everything stays. The layers that stay are spread evenly, so that computing them hides the loading of
    those between. Raises BudgetError, with the least amount that would do, for a budget that is too small.
    """
    if memory is None:
        all_weights = sizes.weights(sizes.n_layers, ahead, embedded=True)
        return Placement(tuple(range(sizes.n_layers)), embedded=True, weights=all_weights, workspace=0)
    least_work = work_bytes(config, dtype, min(config.context, MICROBATCH_ROWS))
    least = sizes.weights(0, ahead, embedded=False) + least_work
    if memory < least:
        raise BudgetError(
            f"memory of {memory:,} bytes is too little: this model needs {least:,} bytes at least, {sizes.scratch:,} of "
            f"them for one layer as it is computed with, {min(sizes.n_layers, ahead + 1) * sizes.layer:,} for layers on "
            f"their way, {sizes.part:,} for a part of the embedding and {least_work:,} for the rows of a pass"
            + ("" if sizes.scratch else ". weights='int8' would halve the layers on their way")
            + ("" if dtype == torch.bfloat16 else ". dtype='bfloat16' would halve what is computed with")
        )
    workspace = min(work_bytes(config, dtype, RESERVED_ROWS), least_work + memory - least)
    embedded = sizes.weights(0, ahead, embedded=True) + workspace <= memory
    n_kept = max(
        n for n in range(sizes.n_layers + 1) if n == 0 or sizes.weights(n, ahead, embedded=embedded) + workspace <= memory
    )
    kept = tuple(sorted({i * sizes.n_layers // n_kept for i in range(n_kept)})) if n_kept else ()
    weights = sizes.weights(n_kept, ahead, embedded=embedded)
    return Placement(kept, embedded, weights, memory - weights)

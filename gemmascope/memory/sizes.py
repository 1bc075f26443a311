"""The memory that a trace, generation or a sweep takes, part by part, in bytes.

The sizes of activations follow the code of the pass in model/; tests compare them with its live tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from gemmascope.config import GemmaConfig
from gemmascope.memory.placement import Placement, Sizes, work_bytes
from gemmascope.model.attention import CHUNK_ELEMENTS, CHUNK_ROWS

TRACE, GENERATE, SWEEP = TASKS = ("trace", "generate", "sweep")


@dataclass(frozen=True)
class Part:
    """Something that takes memory on the device; note says what it is, tasks which tasks need it.

    of_device: whether CUDA and its libraries take it, not the model.
    """

    name: str
    n_bytes: int
    note: str
    tasks: tuple[str, ...] = TASKS
    of_device: bool = False


def weight_parts(config: GemmaConfig, sizes: Sizes, placement: Placement, dtype: torch.dtype) -> Iterator[Part]:
    """The weights: what stays on the device, and the buffers of the layers that stream."""
    n_kept = len(placement.kept)
    n_buffers = min(sizes.n_layers - n_kept, 2)  # one to compute with, one to load
    if not sizes.embedding:
        pass  # it is on another device
    elif placement.embedded:
        yield Part("embedding", sizes.embedding, f"{config.vocab_size:,} tokens, also the unembedding")
    else:
        yield Part("embedding, a part", sizes.part, f"the table of {sizes.embedding / 1e9:.2f} GB stays in its file")
    yield Part("layers that stay", n_kept * sizes.layer, f"{n_kept} of {sizes.n_layers}, {sizes.layer / 1e9:.3f} GB each")
    if n_buffers:
        yield Part("slots", n_buffers * sizes.layer, f"for layers on their way, {n_buffers} of them")
    if sizes.scratch:
        yield Part("scratch", sizes.scratch, "one layer as it is computed with")
    if sizes.embedding:
        yield Part("last norm", config.d_model * dtype.itemsize, "the other norms are in the layers")


# The workspace that cuBLAS takes through torch on a Hopper GPU: 32 MiB; less on earlier ones. On an H100 a trace of 16
# positions of 2B took 39.7 MB beside the weights; the parts below are 6.0 MB of them.
CUBLAS_WORKSPACE = 2**25
# What the driver takes of each GPU that a process uses: some 0.6 GB on a data centre's card. It is in no budget, since torch
# does not allocate it, and no longer free when free memory is asked for.
CUDA_CONTEXT = 6 * 10**8


def device_parts(device: torch.device) -> Iterator[Part]:
    """What CUDA and its libraries take on a device."""
    if device.type == "cuda":
        yield Part("cuBLAS workspace", CUBLAS_WORKSPACE, "for matrix products, the most on any GPU", TASKS, True)
        yield Part("CUDA context", CUDA_CONTEXT, "of the driver: outside the budget and the sums below", (), True)


def sweep_part(config: GemmaConfig, dtype: torch.dtype, rows: int) -> Part:
    """The rows of a sweep's chunk."""
    return Part("sweep chunk", work_bytes(config, dtype, rows), f"{rows:,} rows", (SWEEP,))


def run_parts(config: GemmaConfig, dtype: torch.dtype, context: int, layers: range | None = None) -> Iterator[Part]:
    """What a prompt of `context` positions takes beside the weights. layers: those of the device; None: all."""
    layers = range(config.n_layers) if layers is None else layers
    n_local = sum(config.kinds[layer] == "local" for layer in layers)
    within = f"{n_local} local layers keep {min(config.window, context):,} positions, {len(layers) - n_local} global all"
    yield Part("keys and values", kv_bytes(config, dtype, context, layers), within, (GENERATE,))
    yield Part("activations", activation_bytes(config, dtype, context), f"{context:,} rows in a layer", (TRACE, GENERATE))
    n_places = len(layers) + (layers.start == 0)  # where the stream leaves a layer, and at first the embedding
    stream = n_places * context * config.d_model * dtype.itemsize
    yield Part("trace", stream, f"the stream at {n_places} places", (TRACE,))
    if layers.start == 0:
        yield Part("logits", 3 * config.vocab_size * 4, "of one position", (TRACE, GENERATE))


def kv_bytes(config: GemmaConfig, dtype: torch.dtype, context: int, layers: range | None = None) -> int:
    """The KV cache of layers (None: all) at `context` positions; a local layer keeps no more than its window."""
    kinds = config.kinds if layers is None else config.kinds[layers.start : layers.stop]
    positions = sum(min(context, config.window) if kind == "local" else context for kind in kinds)
    return positions * 2 * config.n_kv_heads * config.d_head * dtype.itemsize


def activation_bytes(config: GemmaConfig, dtype: torch.dtype, rows: int) -> int:
    """The most that one prompt's rows take inside a layer, in its attention or its MLP."""
    size, d_q, d_kv = dtype.itemsize, config.n_heads * config.d_head, config.n_kv_heads * config.d_head
    always = rows * (3 * config.d_model * size + 2 * config.d_head * 4)  # the stream twice, a norm's output, RoPE's tables
    mlp = rows * 3 * config.d_mlp * size
    at_once = min(rows, CHUNK_ROWS, max(1, CHUNK_ELEMENTS // (config.n_heads * rows)))
    # Scores of a chunk of rows: softmax's input and output in float32, a copy in dtype, and one of the chunk before.
    scores = config.n_heads * rows * at_once * (8 + size * (1 if at_once == rows else 2))
    attention = rows * (3 * d_q + 2 * d_kv) * size + scores
    return always + max(mlp, attention)


def operations(config: GemmaConfig, rows: int, *, one_prompt: bool) -> int:
    """Multiplications and additions of a pass through all layers. one_prompt: count the rows' attention to each other."""
    d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
    products = 2 * rows * config.n_layers * config.d_model * (2 * d_q + 2 * d_kv + 3 * config.d_mlp)
    spans = [min(rows, config.window) if kind == "local" else rows for kind in config.kinds]
    pairs = sum(rows * span - span * (span - 1) // 2 for span in spans) if one_prompt else 0
    return products + 4 * d_q * pairs

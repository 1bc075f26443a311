"""Networks whose layers are packed, or stay in files: made from a store, or straight from a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gemmascope.checkpoints.device import choose_dtype, not_offered
from gemmascope.checkpoints.folder import Checkpoint, require_tied
from gemmascope.checkpoints.from_transformers import empty_network, parameter_shapes, put
from gemmascope.checkpoints.source import resolve_source
from gemmascope.checkpoints.tensor_names import EMBEDDING
from gemmascope.config import GemmaConfig
from gemmascope.errors import CheckpointError, DeviceError
from gemmascope.files.paths import user_path
from gemmascope.memory.host_memory import measured_bytes
from gemmascope.memory.placement import Placement, Sizes, free_bytes, place_layers
from gemmascope.model.gemma2 import Gemma2
from gemmascope.streaming.convert import alone, convert, identity_of
from gemmascope.streaming.file_embedding import FileEmbedding
from gemmascope.streaming.layer_stream import HostTransfer, Stream, Transfer
from gemmascope.streaming.packed import (
    NORM,
    FileRange,
    PackedLayer,
    TensorSlice,
    laid_out,
    layer_shapes,
    pieces_in,
    stamp_of,
)
from gemmascope.streaming.store import OUTER, Store, is_store
from gemmascope.streaming.store_cache import cached_store, hold

WEIGHTS = ("auto", "int8")


def require_weights(weights: str) -> None:
    """DeviceError for weights= that are not offered."""
    if not isinstance(weights, str) or weights not in WEIGHTS:
        raise not_offered(weights, "or 'int8'")


@dataclass(frozen=True)
class Wanted:
    """How a model is to be loaded: what can be refused before hours of conversion is."""

    device: torch.device
    dtype: torch.dtype | None
    memory: int | None

    def check(self, checkpoint: Checkpoint) -> None:
        """DeviceError for a device to which nothing streams, BudgetError for too little memory."""
        _require_streaming(self.device)
        stored = checkpoint.stored[EMBEDDING].dtype
        dtype = choose_dtype(self.dtype or "auto", checkpoint.dtype_name, checkpoint.dtypes)
        place_layers(checkpoint.config, Sizes.of(checkpoint.config, "int8", dtype, stored), dtype, self.memory)


def int8_store(folder: Path, name: str, cache: str | os.PathLike[str] | None, wanted: Wanted) -> Store:
    """The store of a checkpoint: the folder itself if it is one, else one in the cache, made now if it is not whole."""
    if is_store(folder):
        return Store(folder)
    with Checkpoint(folder) as checkpoint:
        wanted.check(checkpoint)
        checkpoint.require(parameter_shapes(checkpoint.config))
        return cached_store(checkpoint, name, cache)


def quantize(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
    """Write a checkpoint's int8 weights to a folder, which is then a source for gs.load.

    source: a folder in the transformers layout, or a hub id. target: a new or empty folder, or one in which a conversion
    of the same checkpoint was interrupted: it goes on there. Holds one layer in int8 and two tensors in memory.
    Raises CheckpointError for a source that cannot be read, changes meanwhile or is int8 already, and for a target that
    holds something else; BudgetError, before writing, for a disk without the room.
    """
    folder, name = resolve_source(source)
    if is_store(folder):
        raise CheckpointError(f"{folder} is int8 already: load it with gs.load")
    path = user_path(target, error=CheckpointError, what="a folder")
    with Checkpoint(folder) as checkpoint:
        checkpoint.require(parameter_shapes(checkpoint.config))
        require_tied(checkpoint)
        identity = identity_of(checkpoint)
        with alone(path):
            convert(checkpoint, path, name, identity)
    return path


def network_of_store(store: Store, device: torch.device, dtype: torch.dtype, memory: int | None) -> Gemma2:
    """A network in int8: layers packed on the device as far as memory goes, the others brought as a pass goes."""
    store.require_outer()
    sizes = Sizes.of(store.config, "int8", dtype, store.dtype)
    share = place_layers(store.config, sizes, dtype, memory)
    table = (store.folder / OUTER, store.outer_data, store.outer[EMBEDDING])
    network = _network(store.config, store.layers(), store.outer_tensor, table, device, dtype, share)
    hold(store.folder, network)
    return network


def network_of_checkpoint(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, memory: int) -> Gemma2:
    """A network whose layers are read from a checkpoint's own files, where they do not fit in memory."""
    checkpoint.require(parameter_shapes(checkpoint.config))
    layers = _plain_layers(checkpoint, checkpoint.config)
    stored = checkpoint.stored[EMBEDDING]
    same = all(packed.ready(dtype) for packed in layers)
    sizes = Sizes.of(checkpoint.config, "stored", dtype, dtype if same else stored.dtype)
    pieces, data = pieces_in(stored.shard)
    share = place_layers(checkpoint.config, sizes, dtype, memory)
    table = (stored.shard, data, pieces[stored.name])
    return _network(checkpoint.config, layers, checkpoint.read, table, device, dtype, share)


def _plain_layers(checkpoint: Checkpoint, config: GemmaConfig) -> list[PackedLayer]:
    """Every layer's bytes in the shards of a checkpoint, as they are stored."""
    where = {path: pieces_in(path) for path in {stored.shard for stored in checkpoint.stored.values()}}
    stamps = {path: stamp_of(path) for path in where}
    found = []
    for index in range(config.n_layers):
        names = {name: f"model.layers.{index}.{name}" for name in layer_shapes(config)}
        stored = {name: checkpoint.stored[full] for name, full in names.items()}
        layout = laid_out({name: (one.dtype, one.shape) for name, one in stored.items()})
        spans = []
        for piece in layout:
            path = stored[piece.name].shard
            pieces, data = where[path]
            spans.append(
                FileRange(path, data + pieces[stored[piece.name].name].start, piece.n_bytes, piece.start, stamps[path])
            )
        found.append(PackedLayer(tuple(spans), tuple(layout)))
    return found


def _network(
    config: GemmaConfig,
    layers: list[PackedLayer],
    read: Callable[[str], Tensor],
    table: tuple[Path, int, TensorSlice],
    device: torch.device,
    dtype: torch.dtype,
    share: Placement,
) -> Gemma2:
    _require_streaming(device)
    network = empty_network(config).to(dtype).requires_grad_(False)
    network.owned = True
    put(network, NORM, nn.Parameter(read(NORM).to(device, dtype), requires_grad=False))
    if share.embedded:
        put(network, EMBEDDING, nn.Parameter(read(EMBEDDING).to(device, dtype), requires_grad=False))
    else:
        network.model.embed_tokens = FileEmbedding(*table, dtype, device)  # type: ignore[assignment]
    brought = {index: packed for index, packed in enumerate(layers) if index not in share.kept}
    network.layer_source = Stream(config, layers, dtype, device, share.kept, lane=_lane(device, brought))
    network.work_bytes = share.work or None
    return network


def _require_streaming(device: torch.device) -> None:
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"layers are unpacked and stream on a CPU or a CUDA device; given device={str(device)!r}")


def _lane(device: torch.device, brought: dict[int, PackedLayer]) -> Transfer:
    """The way of layers to a device. For a GPU, as many as half of the free host memory takes wait there."""
    if device.type == "cpu":
        free = measured_bytes()
        return HostTransfer(direct=free is not None and sum(packed.n_bytes for packed in brought.values()) > free // 2)
    from gemmascope.streaming.cuda import CudaTransfer

    free, hold = free_bytes(torch.device("cpu")) // 2, {}
    for index, packed in brought.items():
        if packed.n_bytes <= free:
            hold[index], free = packed, free - packed.n_bytes
    return CudaTransfer(device, hold)

"""Networks whose layers are packed, or stay in files: made from a store, or straight from a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from gemmascope.config import GemmaConfig
from gemmascope.errors import CheckpointError, DeviceError
from gemmascope.model.gemma2 import Gemma2
from gemmascope.weights.adopt import empty_network, put
from gemmascope.weights.budget import Share, Sizes, free_bytes, share_out
from gemmascope.weights.checkpoint import EMBEDDING, Checkpoint
from gemmascope.weights.embedding import FileEmbedding
from gemmascope.weights.locate import locate
from gemmascope.weights.packed import Packed, Piece, pieces_in
from gemmascope.weights.store import NORM, OUTER, Store, convert, identity_of, is_store, plain_layers
from gemmascope.weights.stream import HostLane, Lane, Stream

WEIGHTS = ("auto", "int8")


def require_weights(weights: str) -> None:
    """DeviceError for weights= that are not offered."""
    if weights not in WEIGHTS:
        why = " (4 bits are not offered: they change what is found)" if "4" in str(weights) else ""
        raise DeviceError(f"weights={weights!r} is not offered{why}; give 'auto' for what is stored, or 'int8'")


def cache_folder(cache: str | os.PathLike[str] | None, name: str, identity: str) -> Path:
    """Where a checkpoint's int8 weights are kept: GEMMASCOPE_CACHE or ~/.cache/gemmascope, unless a folder is given."""
    if cache is not None:
        return Path(cache).expanduser()
    base = os.environ.get("GEMMASCOPE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "gemmascope"
    plain = "".join(c if c.isalnum() or c in "-._" else "-" for c in Path(name).name) or "model"
    return Path(base).expanduser() / "int8" / f"{plain}-{identity[:16]}"


def int8_store(folder: Path, name: str, cache: str | os.PathLike[str] | None) -> Store:
    """The store of a checkpoint: the folder itself if it is one, else one in the cache, made now if it is not whole."""
    if is_store(folder):
        return Store(folder)
    with Checkpoint(folder) as checkpoint:
        checkpoint.require({name: p.shape for name, p in empty_network(checkpoint.config).named_parameters()})
        target = cache_folder(cache, name, identity_of(checkpoint))
        convert(checkpoint, target, name, shown_progress())
    return Store(target)


def quantize(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
    """Write a checkpoint's int8 weights to a folder, which is then a source for gs.load.

    source: a folder in the transformers layout, or a hub id. target: a new or empty folder, or one in which a conversion
    of the same checkpoint was interrupted: it goes on there. Holds one layer in int8 and two tensors in memory.
    Raises CheckpointError for a source that cannot be read, changes meanwhile or is int8 already, and for a target that
    holds something else; BudgetError, before writing, for a disk without the room.
    """
    folder, name = locate(source)
    if is_store(folder):
        raise CheckpointError(f"{folder} is int8 already: load it with gs.load")
    int8_store(folder, name, target)
    return Path(target).expanduser()


def shown_progress() -> Callable[[int, int], None]:
    """A bar of files, for a conversion that takes more than a second."""
    from tqdm.auto import tqdm

    bar = tqdm(desc="int8", unit="file", delay=1.0, leave=False)

    def told(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return told


def network_of_store(store: Store, device: torch.device, dtype: torch.dtype, memory: int | None) -> Gemma2:
    """A network in int8: layers packed on the device as far as memory goes, the others brought as a pass goes."""
    store.require_outer()
    sizes = Sizes.of(store.config, "int8", dtype, store.dtype)
    share = _share(store.config, sizes, dtype, memory)
    table = (store.folder / OUTER, store.outer_data, store.outer[EMBEDDING])
    return _network(store.config, store.layers(), store.outer_tensor, table, device, dtype, share)


def network_of_checkpoint(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, memory: int) -> Gemma2:
    """A network whose layers are read from a checkpoint's own files, where they do not fit in memory."""
    network = empty_network(checkpoint.config)
    checkpoint.require({name: parameter.shape for name, parameter in network.named_parameters()})
    layers = plain_layers(checkpoint, checkpoint.config)
    stored = checkpoint.stored[EMBEDDING]
    same = all(packed.ready(dtype) for packed in layers)
    sizes = Sizes.of(checkpoint.config, "stored", dtype, dtype if same else stored.dtype)
    pieces, data = pieces_in(stored.shard)
    share = _share(checkpoint.config, sizes, dtype, memory)
    table = (stored.shard, data, pieces[EMBEDDING])
    return _network(checkpoint.config, layers, checkpoint.read, table, device, dtype, share)


def _share(config: GemmaConfig, sizes: Sizes, dtype: torch.dtype, memory: int | None) -> Share:
    if memory is None:
        return Share(tuple(range(config.n_layers)), True, sizes.weights(config.n_layers, 1, embedded=True), 0)
    return share_out(config, sizes, dtype, memory)


def _network(
    config: GemmaConfig,
    layers: list[Packed],
    read: Callable[[str], Tensor],
    table: tuple[Path, int, Piece],
    device: torch.device,
    dtype: torch.dtype,
    share: Share,
) -> Gemma2:
    network = empty_network(config).to(dtype).requires_grad_(False)
    put(network, NORM, nn.Parameter(read(NORM).to(device, dtype), requires_grad=False))
    if share.embedded:
        put(network, EMBEDDING, nn.Parameter(read(EMBEDDING).to(device, dtype), requires_grad=False))
    else:
        network.model.embed_tokens = FileEmbedding(*table, dtype, device)  # type: ignore[assignment]
    brought = {index: packed for index, packed in enumerate(layers) if index not in share.kept}
    network.supply = Stream(config, layers, dtype, device, share.kept, lane=_lane(device, brought))
    network.work = share.work or None
    return network


def _lane(device: torch.device, brought: dict[int, Packed]) -> Lane:
    """The way of layers to a device. For a GPU, as many as half of the free host memory takes wait there."""
    if device.type == "cpu":
        return HostLane(direct=sum(packed.n_bytes for packed in brought.values()) > free_bytes(device) // 2)
    if device.type == "cuda":
        from gemmascope.weights.cuda import CudaLane

        room, hold = free_bytes(torch.device("cpu")) // 2, {}
        for index, packed in brought.items():
            if packed.n_bytes <= room:
                hold[index], room = packed, room - packed.n_bytes
        return CudaLane(device, hold)
    raise DeviceError(f"layers stream to a CPU or a CUDA device; given {device}")

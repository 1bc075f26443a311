"""Networks whose layers are packed or stay in files, made from an int8 store or a checkpoint; and gs.quantize."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gemmascope.checkpoints.device import Devices, choose_dtype, weights_error
from gemmascope.checkpoints.folder import Checkpoint, require_finite, require_tied
from gemmascope.checkpoints.from_transformers import empty_network, parameter_shapes, set_parameter
from gemmascope.checkpoints.source import resolve_source
from gemmascope.checkpoints.tensor_names import EMBEDDING
from gemmascope.config import GemmaConfig
from gemmascope.errors import CheckpointError, DeviceError, warn
from gemmascope.files.paths import user_path
from gemmascope.memory.host_memory import measured_bytes
from gemmascope.memory.placement import Sizes, free_bytes
from gemmascope.memory.spread import CardShare, spread_layers, whole_placement
from gemmascope.model.gemma2 import Gemma2
from gemmascope.streaming.convert import convert, exclusive, identity_of
from gemmascope.streaming.file_embedding import FileEmbedding
from gemmascope.streaming.layer_stream import LayerStream
from gemmascope.streaming.packed import (
    NORM,
    FileRange,
    PackedLayer,
    TensorSlice,
    file_stamp,
    layer_shapes,
    pack_layout,
    read_header,
)
from gemmascope.streaming.spread_stream import SpreadStream
from gemmascope.streaming.store import OUTER, Store, is_store
from gemmascope.streaming.store_cache import cached_store, mark_in_use
from gemmascope.streaming.transfer import HostTransfer, Transfer

WEIGHTS = ("auto", "int8")

# How the names of the layers' parameters begin.
LAYERS = "model.layers."


def require_weights(weights: str) -> None:
    """Refuses weights= that are not offered."""
    if not isinstance(weights, str) or weights not in WEIGHTS:
        raise weights_error(weights, "or 'int8'")


def warn_of_wide_window(config: GemmaConfig) -> None:
    """Warn of local layers whose window no prompt exceeds: they see as much as global ones."""
    if config.window > config.context and "local" in config.kinds:
        warn(
            f"the window of local layers is {config.window} and the longest prompt {config.context}: local layers then see "
            "all that global ones see. Was sliding_window or max_position_embeddings meant otherwise?"
        )


@dataclass(frozen=True)
class LoadRequest:
    """How to load an int8 model: checked before a conversion that may take hours."""

    devices: Devices
    dtype: torch.dtype | None
    memory: int | None

    def check(self, checkpoint: Checkpoint) -> None:
        """Raises DeviceError for a device that layers cannot stream to, and BudgetError for too little memory."""
        _require_streaming(self.devices.first)
        stored = checkpoint.stored[EMBEDDING].dtype
        dtype = choose_dtype(self.dtype or "auto", checkpoint.dtype_name, checkpoint.dtypes)
        sizes = Sizes.of(checkpoint.config, "int8", dtype, stored)
        spread_layers(checkpoint.config, sizes, dtype, self.devices, self.memory)


def int8_store(folder: Path, name: str, cache: str | os.PathLike[str] | None, request: LoadRequest) -> Store:
    """A checkpoint's int8 store: the folder itself if it is one, else one in the cache, converted now if need be."""
    if is_store(folder):
        return Store(folder)
    with Checkpoint(folder) as checkpoint:
        request.check(checkpoint)
        checkpoint.require_tensors(parameter_shapes(checkpoint.config))
        return cached_store(checkpoint, name, cache)


def quantize(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
    """Write a checkpoint's int8 weights to a folder, which gs.load then takes as a source.

    The layers' matrices are quantised symmetrically in groups of 128 along the input, with a float16 scale for each group;
    the embedding and the norms stay as they are. An interrupted conversion continues when it is called again. It holds one
    layer in int8 and two tensors in memory.

    Args:
        source: A folder in the transformers layout, a hub id, or "nano".
        target: The folder to write to: new, empty, or with an interrupted conversion of the same checkpoint.

    Returns:
        The path of the target.

    Raises:
        CheckpointError: The source cannot be read, changes meanwhile or is int8 already; or the target holds other files.
        BudgetError: The disk has no room. Nothing is written.

    Examples:
        >>> folder = gs.quantize("nano", "nano-int8")
        >>> gs.load(folder, memory="16MB").n_layers
        6
    """
    folder, name = resolve_source(source)
    if is_store(folder):
        raise CheckpointError(f"{folder} is int8 already: load it with gs.load")
    path = user_path(target, error=CheckpointError, what="a folder")
    with Checkpoint(folder) as checkpoint:
        checkpoint.require_tensors(parameter_shapes(checkpoint.config))
        require_tied(checkpoint)
        identity = identity_of(checkpoint)
        with exclusive(path):
            convert(checkpoint, path, name, identity)
    return path


def dense_network(checkpoint: Checkpoint, devices: Devices, dtype: torch.dtype, check: bool) -> Gemma2:
    """A checkpoint's network: built without values, then filled tensor by tensor."""
    network = empty_network(checkpoint.config)
    network.owned = True
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    checkpoint.require_tensors(shapes)
    if devices.first.type == "meta":
        return network.to(dtype)
    require_tied(checkpoint)
    sizes = Sizes.of(network.config, "stored", dtype)
    set_layer_devices(network, spread_layers(network.config, sizes, dtype, devices, None))
    for name in shapes:
        tensor = checkpoint.read(name)
        if check:
            require_finite(tensor, f"tensor {name!r} of {checkpoint.stored[name].shard}")
        moved = tensor.to(device_of_parameter(network, name, devices.first), dtype)
        if tensor.dtype == torch.float64:
            _require_representable(tensor, moved, f"tensor {name!r} of {checkpoint.stored[name].shard}")
        set_parameter(network, name, nn.Parameter(moved, requires_grad=False))
    return network


def _require_representable(tensor: Tensor, moved: Tensor, what: str) -> None:
    """Refuses a number that is finite in float64 and infinite in the dtype to compute in."""
    if bool((tensor.isfinite() & moved.isinf().to(tensor.device)).any()):
        largest = float(tensor.abs().nan_to_num(posinf=0).max())
        raise CheckpointError(f"{what} holds {largest:.3g} in float64, which {moved.dtype} cannot hold")


def network_of_store(store: Store, devices: Devices, dtype: torch.dtype, memory: int | None) -> Gemma2:
    """An int8 network: as many packed layers on the device as memory allows; the others stream in every pass."""
    store.require_outer()
    sizes = Sizes.of(store.config, "int8", dtype, store.dtype)
    shares = spread_layers(store.config, sizes, dtype, devices, memory)
    table = (store.folder / OUTER, store.outer_data, store.outer[EMBEDDING])
    network = _network(store.config, store.layers(), store.outer_tensor, table, dtype, shares)
    mark_in_use(store.folder, network)
    return network


def network_of_checkpoint(checkpoint: Checkpoint, devices: Devices, dtype: torch.dtype, memory: int) -> Gemma2:
    """A network whose layers stream from a checkpoint's own files where they do not fit in memory."""
    checkpoint.require_tensors(parameter_shapes(checkpoint.config))
    layers = _plain_layers(checkpoint, checkpoint.config)
    stored = checkpoint.stored[EMBEDDING]
    same = all(packed.computes_in(dtype) for packed in layers)
    sizes = Sizes.of(checkpoint.config, "stored", dtype, dtype if same else stored.dtype)
    slices, data = read_header(stored.shard)
    shares = spread_layers(checkpoint.config, sizes, dtype, devices, memory)
    table = (stored.shard, data, slices[stored.name])
    return _network(checkpoint.config, layers, checkpoint.read, table, dtype, shares)


def _plain_layers(checkpoint: Checkpoint, config: GemmaConfig) -> list[PackedLayer]:
    """Where each layer's bytes lie in the shards of a checkpoint."""
    headers = {path: read_header(path) for path in {stored.shard for stored in checkpoint.stored.values()}}
    stamps = {path: file_stamp(path) for path in headers}
    packed = []
    for index in range(config.n_layers):
        names = {name: f"{LAYERS}{index}.{name}" for name in layer_shapes(config)}
        stored = {name: checkpoint.stored[full] for name, full in names.items()}
        layout = pack_layout({name: (one.dtype, one.shape) for name, one in stored.items()})
        ranges = []
        for slice_ in layout:
            path = stored[slice_.name].shard
            slices, data = headers[path]
            start = data + slices[stored[slice_.name].name].start
            ranges.append(FileRange(path, start, slice_.n_bytes, slice_.start, stamps[path]))
        packed.append(PackedLayer(tuple(ranges), tuple(layout)))
    return packed


def _network(
    config: GemmaConfig,
    layers: list[PackedLayer],
    read: Callable[[str], Tensor],
    table: tuple[Path, int, TensorSlice],
    dtype: torch.dtype,
    shares: Sequence[CardShare],
) -> Gemma2:
    device, placement = shares[0].device, whole_placement(shares)
    _require_streaming(device)
    network = empty_network(config).to(dtype).requires_grad_(False)
    network.owned = True
    set_parameter(network, NORM, nn.Parameter(read(NORM).to(device, dtype), requires_grad=False))
    if placement.embedded:
        set_parameter(network, EMBEDDING, nn.Parameter(read(EMBEDDING).to(device, dtype), requires_grad=False))
    else:
        network.model.embed_tokens = FileEmbedding(*table, dtype, device)  # type: ignore[assignment]
    streams = [_stream(config, layers, dtype, share, len(shares)) for share in shares]
    network.layer_source = streams[0] if len(streams) == 1 else SpreadStream(streams)
    network.work_bytes = placement.workspace or None
    set_layer_devices(network, shares)
    return network


def _stream(
    config: GemmaConfig, layers: list[PackedLayer], dtype: torch.dtype, share: CardShare, n_devices: int
) -> LayerStream:
    """The layers of one device."""
    kept = share.placement.kept
    streamed = {index: layers[index] for index in share.layers if index not in kept}
    transfer = _transfer(share.device, streamed, n_devices)
    return LayerStream(config, layers, dtype, share.device, kept, transfer=transfer, indices=share.layers)


def set_layer_devices(network: Gemma2, shares: Sequence[CardShare]) -> None:
    """Note the device of each layer where there are several."""
    if len(shares) > 1:
        network.layer_devices = tuple(share.device for share in shares for _ in share.layers)


def device_of_parameter(network: Gemma2, name: str, first: torch.device) -> torch.device:
    """The device of a parameter: that of its layer, or the first one."""
    number = name.removeprefix(LAYERS).partition(".")[0] if name.startswith(LAYERS) else None
    return first if number is None or not network.layer_devices else network.layer_devices[int(number)]


def _require_streaming(device: torch.device) -> None:
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"layers are unpacked and stream on a CPU or a CUDA device; given device={str(device)!r}")


def _transfer(device: torch.device, streamed: dict[int, PackedLayer], n_devices: int) -> Transfer:
    """How layers get to one of so many devices. For a GPU, as many as fit in its part of half of the free host memory are
    held there.
    """
    if device.type == "cpu":
        free = measured_bytes()
        return HostTransfer(direct=free is not None and sum(packed.n_bytes for packed in streamed.values()) > free // 2)
    from gemmascope.streaming.cuda import CudaTransfer

    free, in_host_memory = free_bytes(torch.device("cpu")) // (2 * n_devices), {}
    for index, packed in streamed.items():
        if packed.n_bytes <= free:
            in_host_memory[index], free = packed, free - packed.n_bytes
    return CudaTransfer(device, in_host_memory)

"""gs.load_parallel: a Gemma 2 whose layers are divided among the processes of torch.distributed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from torch import nn

from gemmascope.arguments import equals_text
from gemmascope.checkpoints.device import choose_device, choose_dtype
from gemmascope.checkpoints.folder import Checkpoint, require_tied
from gemmascope.checkpoints.from_transformers import empty_network, parameter_shapes, set_parameter
from gemmascope.checkpoints.source import resolve_source
from gemmascope.config import GemmaConfig
from gemmascope.errors import DeviceError
from gemmascope.loading.load import read_tokenizer
from gemmascope.loading.pickling import load_arguments
from gemmascope.memory.limits import explain_oom_in_loading
from gemmascope.model.gemma2 import Gemma2
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.parallel.group import Group
from gemmascope.parallel.layer import DividedLayer, DividedLinear
from gemmascope.streaming.store import is_store
from gemmascope.tokens.folder import has_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from gemmascope.tokens.tokenizer import Tokenizer


@computes
def load_parallel(
    source: str | os.PathLike[str] | None = "nano",
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    tokenizer: str | os.PathLike[str] | Tokenizer | PreTrainedTokenizerFast | None = None,
    revision: str | None = None,
) -> Model:
    """Load a Gemma 2 whose layers are divided among the processes of torch.distributed, where one device holds no layer.

    Every process runs the same script, which torchrun starts, with the same calls and arguments. Each has some of the heads
    and of the MLP's columns; the embedding, the norms and the stream are whole in all. Results are whole in every process.
    What reads a whole matrix of a layer is a DeviceError: `ov` and `qk`, gs.composition, gs.direct_logits by head, neuron or
    token, gs.lens of head_out, and gs.path_sweep from heads. A process reads what it or a process of the same number saved.

    Args:
        source: A folder in the transformers layout, a hub id or "nano", as in gs.load.
        device: The device of this process. "auto" is the GPU of the number that torchrun gives it (LOCAL_RANK) if there are
            GPUs, else the CPU.
        dtype: As in gs.load.
        tokenizer: As in gs.load.
        revision: As in gs.load.

    Returns:
        The model.

    Raises:
        DeviceError: There is no process group; the number of processes divides the key-value heads or the MLP's columns with
            a rest; the source is in int8; or the device is not available.
        CheckpointError: As in gs.load.

    Examples:
        >>> gs.load_parallel("nano")
        Traceback (most recent call last):
        ...
        gemmascope.errors.DeviceError: a model is divided among the processes of torch.distributed, ...

    References:
        Shoeybi et al., "Megatron-LM" (arXiv 1909.08053).
    """
    group, target = Group.current(), choose_device(_device_of_process() if equals_text(device, "auto") else device)
    arguments = load_arguments(device=device, dtype=dtype, tokenizer=tokenizer, revision=revision)
    folder, name = resolve_source(source, revision)
    if is_store(folder):
        raise DeviceError(f"{folder} holds int8 weights, which are not divided: give the checkpoint that they came from")
    with explain_oom_in_loading(name, target), Checkpoint(folder) as checkpoint:
        _require_divisible(checkpoint.config, group)
        own = folder if has_tokenizer(folder) else None
        reader = read_tokenizer(own if tokenizer is None else tokenizer, checkpoint.config)
        chosen = choose_dtype(dtype, checkpoint.dtype_name, checkpoint.dtypes)
        network = _divided_network(checkpoint, target, chosen, group)
    return Model(network, reader, name, arguments)


def _device_of_process() -> str:
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def _require_divisible(config: GemmaConfig, group: Group) -> None:
    for what, n in (("key-value heads", config.n_kv_heads), ("columns of the MLP", config.d_mlp)):
        if n % group.size:
            raise DeviceError(
                f"{group.size} processes cannot share {n} {what} evenly: start as many as divide {config.n_kv_heads}"
            )


def _divided_network(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, group: Group) -> Gemma2:
    """This process's part of a checkpoint's network, read tensor by tensor."""
    config = checkpoint.config
    checkpoint.require_tensors(parameter_shapes(config))
    require_tied(checkpoint)
    network = empty_network(config)
    network.owned, network.n_processes = True, group.size
    network.model.layers = nn.ModuleList(DividedLayer(config, index, group) for index in range(config.n_layers)).eval()
    for name in dict(network.named_parameters()):
        path, _, leaf = name.rpartition(".")
        module = network.get_submodule(path)
        whole = checkpoint.read(f"{path}.weight" if leaf == "part" else name)
        # A copy, without which the whole tensor would stay in memory.
        own_part = module.own(whole).clone() if isinstance(module, DividedLinear) else whole
        value = own_part.to(device, dtype)
        set_parameter(network, name, nn.Parameter(value, requires_grad=False))
    return network

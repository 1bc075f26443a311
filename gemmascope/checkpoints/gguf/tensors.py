"""The tensors of a GGUF file, or of the parts of one: under transformers' names, dequantised one at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gemmascope.checkpoints.gguf.header import Entry, Header, read_header
from gemmascope.checkpoints.shards import StoredTensor
from gemmascope.checkpoints.tensor_names import EMBEDDING, HEAD
from gemmascope.errors import CheckpointError

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

# The names of tensors in GGUF files and in transformers; in a layer, behind "blk.N." and "model.layers.N.".
_OUTER = {"token_embd.weight": EMBEDDING, "output_norm.weight": "model.norm.weight", "output.weight": HEAD}
_INNER = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_PART = re.compile(r"(?P<stem>.*)-(?P<part>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf")


def open_parts(path: Path, *, skip_lists: bool = False) -> list[Header]:
    """The headers of a GGUF file: of all its parts, if it is split, in their order. CheckpointError if one is missing.

    skip_lists: As read_header takes it.
    """
    split = _PART.fullmatch(path.name)
    if split is None:
        header = read_header(path, skip_lists=skip_lists)
        count = header.metadata.get("split.count", 0)
        if isinstance(count, int) and count > 1:
            raise CheckpointError(
                f"{path} is one of {count} parts and is not named like one: parts are read by their names, "
                f"such as model-00001-of-{count:05}.gguf"
            )
        return [header]
    count = int(split["count"])
    paths = [path.with_name(f"{split['stem']}-{part:05}-of-{count:05}.gguf") for part in range(1, count + 1)]
    if missing := [each.name for each in paths if not each.is_file()]:
        raise CheckpointError(f"{path} is one of {count} parts, and {missing[0]} is not in {path.parent}: fetch it again")
    return [read_header(each, skip_lists=skip_lists) for each in paths]


class GGUFTensors:
    """The tensors of the parts of a GGUF file, by the names of checkpoints.

    Norms are stored with the 1 that Gemma adds to them, which is taken off; everything else is as the file has it.

    Attributes:
        stored: Each tensor's shape and dtype as it is read: float32 for a quantised one.
    """

    def __init__(self, headers: Sequence[Header]) -> None:
        """Raises CheckpointError for a type that cannot be read, a name that no Gemma has, or a file that is cut short."""
        self.stored: dict[str, StoredTensor] = {}
        self._entries: dict[str, tuple[Entry, GGMLQuantizationType, int]] = {}
        for header in headers:
            n_bytes = header.path.stat().st_size
            for entry in header.entries:
                self._add(header.path, entry, n_bytes)

    def _add(self, path: Path, entry: Entry, file_bytes: int) -> None:
        gguf = _gguf()
        name = _name(entry.name, path)
        if name is None:
            return
        if name in self.stored:
            raise CheckpointError(f"tensor {entry.name!r} lies in two files: {self.stored[name].shard.name} and {path.name}")
        try:
            kind = gguf.GGMLQuantizationType(entry.type_id)
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError):
            raise CheckpointError(
                f"tensor {entry.name!r} of {path} has type {entry.type_id}, which the gguf package does not know: "
                "pip install --upgrade gguf"
            ) from None
        if kind.name not in _PLAIN and kind not in gguf.quants._type_traits:
            raise CheckpointError(
                f"tensor {entry.name!r} of {path} is {kind.name}, which the gguf package cannot dequantise: "
                "give the file in another quantisation"
            )
        if not entry.shape or entry.shape[-1] % block:
            raise CheckpointError(f"tensor {entry.name!r} of {path} has shape {list(entry.shape)}, not in blocks of {block}")
        n_bytes = math.prod(entry.shape) // block * block_bytes
        if entry.offset + n_bytes > file_bytes:
            raise CheckpointError(
                f"{path} is cut short: tensor {entry.name!r} ends at {entry.offset + n_bytes:,} bytes, the file at "
                f"{file_bytes:,}: fetch it again"
            )
        self.stored[name] = StoredTensor(name, path, entry.shape, _PLAIN.get(kind.name, torch.float32))
        self._entries[name] = (entry, kind, n_bytes)

    @property
    def types(self) -> Mapping[str, str]:
        """The type of each tensor in the file, such as "Q4_K"."""
        return {name: kind.name for name, (_, kind, _) in self._entries.items()}

    def read(self, name: str) -> Tensor:
        """The tensor of this name, on the CPU, dequantised. The caller owns its memory."""
        stored, (entry, kind, n_bytes) = self.stored[name], self._entries[name]
        try:
            content = np.fromfile(stored.shard, dtype=np.uint8, count=n_bytes, offset=entry.offset)
        except OSError as error:
            raise CheckpointError(f"tensor {entry.name!r} of {stored.shard} cannot be read: {error}") from error
        if len(content) < n_bytes:
            raise CheckpointError(f"{stored.shard} changed while it was read: load it again")
        if kind.name in _PLAIN:
            tensor = torch.from_numpy(content).view(_PLAIN[kind.name]).view(stored.shape)
        else:
            rows = content.reshape(math.prod(stored.shape[:-1]), -1)
            tensor = torch.from_numpy(_gguf().quants.dequantize(rows, kind)).view(stored.shape)
        return tensor - 1 if name.endswith("norm.weight") else tensor

    def close(self) -> None:
        """Nothing: each read opens its file."""


def _name(stored: str, path: Path) -> str | None:
    """A tensor's name in transformers; None for RoPE's factors, which are computed. CheckpointError for any other name."""
    if stored in _OUTER:
        return _OUTER[stored]
    if stored.startswith("rope_freqs."):
        return None
    inner = re.fullmatch(r"blk\.([0-9]{1,9})\.(\w+)\.weight", stored)
    if inner is None or inner[2] not in _INNER:
        raise CheckpointError(f"tensor {stored!r} of {path} is in no Gemma 2 or Gemma 3")
    return f"model.layers.{int(inner[1])}.{_INNER[inner[2]]}.weight"


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise CheckpointError("GGUF files are read with the gguf package: pip install gguf") from error
    return gguf

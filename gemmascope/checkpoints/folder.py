"""A checkpoint, in a folder of the transformers layout or in a GGUF file: its configuration and its tensors, checked."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from gemmascope.arguments import short_repr
from gemmascope.checkpoints.gguf import GGUFFile, GGUFTensors
from gemmascope.checkpoints.shards import Shards, StoredTensor
from gemmascope.checkpoints.tensor_names import EMBEDDING as EMBEDDING
from gemmascope.checkpoints.tensor_names import HEAD, canonical_names
from gemmascope.config import GemmaConfig
from gemmascope.errors import CheckpointError, ConfigError, warn
from gemmascope.files.json_reader import MAX_BYTES, is_regular_file, read_bytes, read_json
from gemmascope.tokens.tokenizer import Tokenizer

_EXPECTED = (
    "config.json, model.safetensors (or model.safetensors.index.json and the shards that it names), "
    "and tokenizer.json or tokenizer.model"
)


class Checkpoint:
    """An open checkpoint, to be used as a context manager. Opening reads the configuration and the file headers.

    Attributes:
        folder: The folder; or the GGUF file.
        gguf: The open GGUF file; None for a folder.
        config: The model's shape.
        dtype_name: The dtype that config.json names; None if it names none.
        stored: Each tensor's header, by the tensor's name in Gemma2ForCausalLM or Gemma3ForCausalLM.
    """

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError, or ConfigError for another architecture; both name the faulty file."""
        self.folder, self.gguf = folder, GGUFFile.open(folder) if folder.is_file() else None
        self._index: dict[str, str] = {}
        self._shards: Shards | GGUFTensors
        if self.gguf is not None:
            self.config, self.dtype_name, self._shards = self.gguf.config, None, self.gguf.tensors
        else:
            self.config, self.dtype_name = read_config(folder)
            self._index = _index(folder)
            self._shards = Shards(_shard_paths(folder, self._index))
        try:
            names = canonical_names(self._shards.stored, folder)
            self.stored: Mapping[str, StoredTensor] = {new: self._shards.stored[old] for new, old in names.items()}
            self._require_layers()
        except BaseException:
            self._shards.close()
            raise

    def _require_layers(self) -> None:
        """Refuses a folder with far fewer layers than config.json says, before a network of that size is built."""
        present = {int(name.split(".")[2]) for name in self.stored if re.match(r"model\.layers\.\d{1,9}\.", name)}
        if self.config.n_layers > 2 * max(present, default=0) + 64:
            raise CheckpointError(
                f"{self.folder}: config.json says num_hidden_layers {self.config.n_layers}, "
                f"and its files hold {len(present)}"
            )

    @property
    def dtypes(self) -> set[torch.dtype]:
        """The dtypes of the stored tensors."""
        return {stored.dtype for stored in self.stored.values()}

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU, in the dtype it is stored in."""
        return self._shards.read(self.stored[name].name)

    def companion(self, name: str) -> bytes | None:
        """The content of a file of configuration or tokenizer that is beside the tensors; None if there is none."""
        if self.gguf is not None:
            return self.gguf.companions.get(name)
        return read_bytes(self.folder / name, MAX_BYTES) if is_regular_file(self.folder / name) else None

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of a GGUF file; None without one, and for a folder, whose tokenizer is read by itself."""
        return None if self.gguf is None else self.gguf.tokenizer

    def require_tensors(self, shapes: Mapping[str, torch.Size]) -> None:
        """Refuses a checkpoint whose tensors are not exactly these. A copy of the embedding as lm_head is allowed."""
        if missing := [name for name in shapes if name not in self.stored]:
            raise CheckpointError(f"{self.folder}: {_are(missing, 'missing')}; {self._expected_place(missing[0])}")
        if extra := [name for name in self.stored if name not in shapes and name != HEAD]:
            shard = self.stored[extra[0]].shard.name
            raise CheckpointError(
                f"{self.folder}: {_are(extra, f'unknown to {self.config.family} of this config')}; it is in {shard}"
            )
        expected = {**shapes, HEAD: shapes[EMBEDDING]}
        for name, stored in self.stored.items():
            if stored.shape != tuple(expected[name]):
                raise CheckpointError(
                    f"{self.folder}: tensor {name!r} of {stored.shard.name} has shape {list(stored.shape)}; "
                    f"config.json asks for {list(expected[name])}"
                )

    def _expected_place(self, missing: str) -> str:
        """Where a missing tensor should have been."""
        if missing in self._index:
            return f"the index says it is in {self._index[missing]}, and it is not"
        files = sorted({stored.shard.name for stored in self.stored.values()})
        return f"there are {len(self.stored)} tensors in {', '.join(files)}"

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._shards.close()


def read_config(folder: Path) -> tuple[GemmaConfig, str | None]:
    """A checkpoint folder's configuration, and the dtype that its config.json names (None if it names none).

    Raises:
        CheckpointError: The folder has no readable config.json.
        ConfigError: It is of another architecture.
    """
    path = folder / "config.json"
    refuse_adapter(folder)
    if not is_regular_file(path):
        raise CheckpointError(f"{folder} is no checkpoint: it has no config.json. {_expectation(folder)}")
    content = read_json(path)
    _refuse_quantised(content, path)
    try:
        config = GemmaConfig.from_dict(content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    name = content.get("dtype") or content.get("torch_dtype")
    generation = folder / "generation_config.json"
    if is_regular_file(generation):
        try:
            config = with_end_tokens(config, read_json(generation).get("eos_token_id"))
        except ConfigError as error:
            raise ConfigError(f"{generation}: eos_token_id: {error}") from error
    return config, name if isinstance(name, str) else None


# How far apart two quantisations of one matrix may be, as a fraction of its norm.
ROUNDED = 0.25

# Adapters of peft that learn tokens or keys rather than changes of weights, so they cannot be merged.
UNMERGEABLE = frozenset(("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT", "CPT"))


def refuse_adapter(folder: Path) -> None:
    """Refuses a folder that holds an adapter: transformers would load it with its base, which gives different numbers."""
    names = [
        name
        for name in ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
        if (folder / name).exists()
    ]
    if not names:
        return
    config = folder / "adapter_config.json"
    about = read_json(config) if is_regular_file(config) else {}
    base, kind = about.get("base_model_name_or_path"), about.get("peft_type")
    beside = "beside a model" if os.path.lexists(folder / "config.json") else "and no model"
    if kind in UNMERGEABLE:
        raise CheckpointError(
            f"{folder} holds an adapter ({', '.join(names)}) of type {kind} {beside}: it adds tokens or keys that are no "
            "weights, so it cannot be merged, and it is not read. Remove it, if the model without it is meant"
        )
    raise CheckpointError(
        f"{folder} holds an adapter ({', '.join(names)}) {beside}. Merge it into its base"
        f"{f' ({base})' if isinstance(base, str) else ''} first: with peft, "
        "PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(new_folder); or remove it, if the model "
        "without it is meant"
    )


def _refuse_quantised(config: Mapping[str, object], path: Path) -> None:
    about = config.get("quantization_config")
    if about:
        method = about.get("quant_method", "a method that it does not name") if isinstance(about, dict) else about
        raise CheckpointError(
            f"{path}: the checkpoint is quantised ({short_repr(method)}), which is not read: give the original one. "
            "weights='int8' quantises it here"
        )


def with_end_tokens(config: GemmaConfig, ids: int | list[int] | None) -> GemmaConfig:
    """The config with the end tokens of a generation config, where chat checkpoints name `<end_of_turn>`."""
    if ids is None:
        return config
    return dataclasses.replace(config, eos_ids=tuple(ids) if isinstance(ids, list) else (ids,))


def _index(folder: Path) -> dict[str, str]:
    """Tensor name to shard name; empty for a checkpoint in one file."""
    path = folder / "model.safetensors.index.json"
    if is_regular_file(folder / "model.safetensors") or not is_regular_file(path):
        return {}
    names = read_json(path).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(shard, str) for shard in names.values()):
        raise CheckpointError(f"{path} has no weight_map from tensor names to shards")
    if outside := [shard for shard in names.values() if Path(shard).name != shard]:
        raise CheckpointError(f"{path} names a shard outside its folder: {outside[0]!r}")
    return names


def _shard_paths(folder: Path, index: Mapping[str, str]) -> list[Path]:
    if index:
        paths = [folder / shard for shard in sorted(set(index.values()))]
        if missing := [path.name for path in paths if not os.path.lexists(path)]:
            raise CheckpointError(
                f"the shard {missing[0]} is not in {folder}: fetch it again. model.safetensors.index.json names it"
            )
        return paths
    if is_regular_file(folder / "model.safetensors"):
        return [folder / "model.safetensors"]
    if parts := sorted(path.name for path in folder.glob("model-*-of-*.safetensors")):
        raise CheckpointError(f"{folder} has {parts[0]} and no model.safetensors.index.json, which says what it holds")
    if packed := sorted(path.name for path in folder.glob("*.gguf")):
        raise CheckpointError(f"{folder} has its weights only as {packed[0]}. {gguf_advice(folder, packed[0])}")
    pickled = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    if pickled:
        raise CheckpointError(
            f"{folder} has its weights only as {pickled[0]}, a pickle, which can run code and is not opened: "
            "convert it with transformers: from_pretrained(folder), then save_pretrained(new_folder)"
        )
    raise CheckpointError(f"{folder} has a config.json and no weights. {_expectation(folder)}")


def gguf_advice(folder: Path, name: str) -> str:
    """Advice for a folder whose weights are a GGUF file."""
    return f"A GGUF file is loaded by its own path: gs.load({str(folder / name)!r})"


def _expectation(folder: Path) -> str:
    if not folder.is_dir():
        return f"Expected: {_EXPECTED}. There is no such folder"
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        return f"Expected: {_EXPECTED}. The folder cannot be listed: {error.strerror}"
    names = [entry.name for entry in entries]
    if packed := [name for name in names if name.endswith(".gguf")]:
        return f"There is {packed[0]}. {gguf_advice(folder, packed[0])}"
    if inner := [entry for entry in entries if os.path.isfile(entry / "config.json")]:
        return f"Expected: {_EXPECTED}. There is one in {inner[0]}: was that meant?"
    return f"Expected: {_EXPECTED}. There is: {', '.join(names[:8]) or 'nothing'}{', ...' if names[8:] else ''}"


def _are(names: list[str], what: str) -> str:
    more = f" (and {len(names) - 1} more: {', '.join(names[1:4])}{', ...' if len(names) > 4 else ''})" if names[1:] else ""
    return f"tensor {names[0]!r} is {what}{more}"


def require_tied(checkpoint: Checkpoint) -> None:
    """Refuses a checkpoint whose lm_head differs from its embedding: Gemma ties the two."""
    if HEAD not in checkpoint.stored:
        return
    head, embedding = checkpoint.read(HEAD), checkpoint.read(EMBEDDING)
    if checkpoint.gguf is not None and head.shape == embedding.shape:
        distance = float((head - embedding).norm() / embedding.norm())
        if 0 < distance < ROUNDED:
            warn(
                f"{checkpoint.folder} holds its unembedding beside its embedding, quantised differently "
                f"({distance:.1%} apart): the embedding is used for both, as Gemma ties them and as transformers does"
            )
            return
    if not torch.equal(head, embedding):
        raise CheckpointError(
            f"{HEAD!r} of {checkpoint.stored[HEAD].shard} differs from the embedding. {checkpoint.config.family} unembeds "
            "with its embedding, so this model cannot be run as one"
        )


def require_finite(tensor: Tensor, what: str) -> None:
    """Refuses a tensor with NaN or infinity; the error gives the first position and the number of them."""
    low, high = tensor.detach().aminmax()  # NaN propagates, and unlike isfinite() this allocates nothing
    if not (low.isfinite() and high.isfinite()):
        positions = (~tensor.detach().isfinite()).nonzero()
        value = tensor.detach()[tuple(positions[0])].item()
        raise CheckpointError(
            f"{what} holds {value} at {positions[0].tolist()}, and {len(positions) - 1} more NaN or infinite values"
        )

"""Looking at one folder or GGUF file: its configuration and the headers of its weights, as loading would, but no tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch

from gemmascope.checkpoints.at_hand.entry import LeftOut, ModelAtHand, size_label
from gemmascope.checkpoints.folder import Checkpoint, read_config
from gemmascope.checkpoints.from_transformers import parameter_shapes
from gemmascope.checkpoints.gguf import GGUFFile, is_gguf
from gemmascope.checkpoints.gguf.header import read_architecture
from gemmascope.checkpoints.tensor_names import EMBEDDING
from gemmascope.config import GemmaConfig
from gemmascope.config_json import FAMILIES, GEMMA_3, GGUF_FAMILIES, MULTIMODAL
from gemmascope.errors import CheckpointError, GemmascopeError
from gemmascope.files.json_reader import read_json

Found = ModelAtHand | LeftOut | None

# By model_type in config.json.
_FAMILIES = {**FAMILIES, MULTIMODAL: GEMMA_3}
# What gs.quantize writes beside the weights.
_STORE = "gemmascope.json"


def look_at_folder(folder: Path, name: str, where: str, load: str) -> Found:
    """The model in a folder; None if it is not the folder of a model."""
    try:
        if not (folder / "config.json").is_file():
            return None
        architecture = read_json(folder / "config.json").get("model_type")
    except (GemmascopeError, OSError):
        return None  # anybody's config.json, not to be read, or no JSON
    if not isinstance(architecture, str):
        return None
    if architecture not in _FAMILIES:
        return LeftOut(architecture)
    facts = _facts_of_folder(folder, _stamps(sorted(folder.iterdir())))
    return ModelAtHand(name, _FAMILIES[architecture].name, facts[0], facts[1], where, facts[2], load, folder, facts[3])


def look_at_gguf(path: Path, name: str, where: str, load: str) -> Found:
    """The model in a GGUF file; None if it is no such file."""
    if not is_gguf(path):
        return None
    try:
        architecture = read_architecture(path)
    except CheckpointError as error:  # which model it was to be cannot be said
        return ModelAtHand(name, "", "", "", where, path.stat().st_size, load, path, str(error))
    if architecture not in GGUF_FAMILIES:
        return LeftOut(architecture or "unknown")
    stem, is_split, count = path.stem.rpartition("-of-")
    parts = sorted(path.parent.glob(f"*-of-{count}.gguf")) if is_split and stem else [path]
    facts = _facts_of_gguf(path, _stamps(parts))
    return ModelAtHand(name, GGUF_FAMILIES[architecture].name, facts[0], facts[1], where, facts[2], load, path, facts[3])


# Size, format of the weights, bytes, problem.
_Facts = tuple[str, str, int, str]
_Stamps = tuple[tuple[str, int, int], ...]


def _stamps(paths: Sequence[Path]) -> _Stamps:
    """What tells that files changed: names, sizes and times."""
    stats = [(path.name, path.stat()) for path in paths if path.exists()]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


@lru_cache(maxsize=1024)
def _facts_of_folder(folder: Path, stamps: _Stamps) -> _Facts:
    del stamps  # a part of the key: a folder that changed is looked at again
    size, n_bytes = "", sum(path.stat().st_size for path in folder.glob("*.safetensors") if path.exists())
    try:
        config, _ = read_config(folder)
        size = size_label(config)
        if (folder / _STORE).is_file():
            _require_whole_store(folder)
            return size, "int8", n_bytes, ""
        with Checkpoint(folder) as checkpoint:
            return size, _require_whole(checkpoint, config), n_bytes, ""
    except (GemmascopeError, OSError) as error:
        return size, "", n_bytes, str(error)


@lru_cache(maxsize=1024)
def _facts_of_gguf(path: Path, stamps: _Stamps) -> _Facts:
    del stamps
    size, n_bytes = "", path.stat().st_size
    try:
        file = GGUFFile.open(path, skip_lists=True)
        size = size_label(file.config)
        n_bytes = sum(part.stat().st_size for part in {stored.shard for stored in file.tensors.stored.values()})
        if missing := sorted(_shapes(file.config).keys() - file.tensors.stored.keys()):
            raise CheckpointError(f"{path} lacks {len(missing)} of its tensors, such as {missing[0]!r}: fetch it again")
        return size, _format_of(file), n_bytes, ""
    except (GemmascopeError, OSError) as error:
        return size, "", n_bytes, str(error)


def _format_of(file: GGUFFile) -> str:
    """llama.cpp's name of a file's quantisation, such as "Q4_K_M"; where the file does not say it, most matrices' type."""
    import gguf

    try:
        kind = gguf.LlamaFileType(file.metadata.get("general.file_type"))
    except ValueError:
        types = Counter(kind for name, kind in file.tensors.types.items() if name.endswith("proj.weight"))
        return types.most_common(1)[0][0]
    return str(kind.name).removeprefix("MOSTLY_").removeprefix("ALL_")


@lru_cache(maxsize=16)
def _shapes(config: GemmaConfig) -> Mapping[str, torch.Size]:
    """The parameters' shapes; of a network that is built for them, once for all checkpoints of a shape."""
    return parameter_shapes(config)


def _require_whole(checkpoint: Checkpoint, config: GemmaConfig) -> str:
    """The dtype of a checkpoint's embedding. CheckpointError if it lacks a tensor or has one of another shape."""
    checkpoint.require_tensors(_shapes(config))
    return str(checkpoint.stored[EMBEDDING].dtype).removeprefix("torch.")


def _require_whole_store(folder: Path) -> None:
    manifest = read_json(folder / _STORE)
    files = manifest.get("files")
    if not manifest.get("complete") or not isinstance(files, dict):
        raise CheckpointError(f"{folder} holds an interrupted conversion to int8: gs.quantize goes on with it")
    for name, entry in files.items():
        path = folder / str(name)
        if not path.is_file() or not isinstance(entry, dict) or path.stat().st_size != entry.get("bytes"):
            raise CheckpointError(f"{path} is missing or of another size than was written: quantise again")

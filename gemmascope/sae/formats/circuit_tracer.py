"""circuit-tracer's transcoders of single layers: layer_N.safetensors, with config.yaml beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gemmascope.errors import DictionaryError
from gemmascope.files.json_reader import is_regular_file, read_bytes
from gemmascope.sae.catalogue import TRANSCODER
from gemmascope.sae.formats.common import Contents, relu_arrays
from gemmascope.sae.formats.hooks import transcoder_sites
from gemmascope.sae.formats.tensors import read_safetensors, require_tensors

CONFIG = "config.yaml"
THRESHOLD = "activation_function.threshold"

# The encoder is stored [feature, d_in], the skip connection [d_out, d_in].
_AXES = {
    "W_enc": ("feature", "d_in"),
    "W_dec": ("feature", "d_out"),
    "b_enc": ("feature",),
    "b_dec": ("d_out",),
    THRESHOLD: ("feature",),
    "W_skip": ("d_out", "d_in"),
}
_LARGEST = 2**20


@dataclass(frozen=True)
class TranscoderConfig:
    """What config.yaml says of a set of transcoders: what each reads and writes, and the model."""

    input_site: str | None
    output_site: str
    model: str | None


def layer_of(name: str) -> int | None:
    """The layer of a file's name; None for another name."""
    match = re.fullmatch(r"layer_([0-9]{1,6})\.safetensors", name)
    return int(match[1]) if match else None


def read_transcoder(path: Path, layer: int) -> Contents:
    """The transcoder of a layer. The site stays open if no config.yaml says what it reads."""
    tensors = read_safetensors(path)
    require_tensors(tensors, _AXES, path, optional=(THRESHOLD, "W_skip"))
    arrays = relu_arrays(tensors["W_enc"].T, tensors["W_dec"], tensors["b_enc"], tensors["b_dec"], tensors.get(THRESHOLD))
    if "W_skip" in tensors:
        arrays = replace(arrays, W_skip=tensors["W_skip"].float().T.contiguous())
    config = read_config(path.parent)
    if config is None:
        return Contents(arrays, None, layer)
    return Contents(arrays, TRANSCODER, layer, config.input_site, config.output_site, config.model)


def read_config(folder: Path) -> TranscoderConfig | None:
    """The config.yaml of a folder; None if there is none. DictionaryError for one that says something else."""
    path = folder / CONFIG
    if not is_regular_file(path, error=DictionaryError):
        return None
    content = _yaml(path)
    hooks = [content.get(name) for name in ("feature_input_hook", "feature_output_hook")]
    if not all(isinstance(hook, str) for hook in hooks):
        raise DictionaryError(f"{path} does not say feature_input_hook and feature_output_hook")
    try:
        input_site, output_site = transcoder_sites(str(hooks[0]), str(hooks[1]))
    except DictionaryError as error:
        raise DictionaryError(f"{path}: {error}") from error
    model = content.get("model_name")
    return TranscoderConfig(input_site, output_site, model if isinstance(model, str) else None)


def _yaml(path: Path) -> Mapping[str, object]:
    import yaml  # type: ignore[import-untyped]  # comes with huggingface_hub

    try:
        content = yaml.safe_load(read_bytes(path, _LARGEST, error=DictionaryError))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise DictionaryError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise DictionaryError(f"{path} holds no settings by name")
    return content

"""SAELens' own format: cfg.json beside sae_weights.safetensors, of any version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from gemmascope.arguments import short_repr
from gemmascope.errors import DictionaryError
from gemmascope.files.json_reader import read_json
from gemmascope.sae.arrays import DictionaryArrays
from gemmascope.sae.formats.common import Contents, gated_arrays, relu_arrays, with_decoder_norms, with_input_bias
from gemmascope.sae.formats.hooks import Place, place_of_hook, place_of_transcoder
from gemmascope.sae.formats.tensors import Tensors, read_safetensors, require_tensors
from gemmascope.sae.normalization import CONSTANT_NORM, LAYER_NORM, Normalization

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"

_MATRICES = {"W_enc": ("d_in", "feature"), "W_dec": ("feature", "d_out"), "b_dec": ("d_out",)}
_RELU = {**_MATRICES, "b_enc": ("feature",)}
_JUMP = {**_RELU, "threshold": ("feature",)}
_BATCH = {**_RELU, "topk_threshold": ()}
_SKIP = {"W_skip": ("d_out", "d_in")}
# The tensors of each architecture, with their axes.
_TENSORS: dict[str, Mapping[str, tuple[str, ...]]] = {
    "standard": _RELU,
    "gated": {**_MATRICES, "b_gate": ("feature",), "b_mag": ("feature",), "r_mag": ("feature",)},
    "jumprelu": _JUMP,
    "topk": _RELU,
    "batchtopk": _BATCH,
    "matryoshka_batchtopk": _BATCH,
    "transcoder": _RELU,
    "skip_transcoder": {**_RELU, **_SKIP},
    "jumprelu_transcoder": _JUMP,
    "jumprelu_skip_transcoder": {**_JUMP, **_SKIP},
}
_NORMALIZATIONS = {"layer_norm": LAYER_NORM, "constant_norm_rescale": CONSTANT_NORM}
_UNSCALED = (
    "was trained on activations that were scaled to a mean length of sqrt(d_in) ('expected_average_only_in'), and its files "
    "do not hold the factor: it is used on activations as they are, as SAELens does with a folder. With the factor, "
    ".rescaled(factor) corrects it"
)

Config = Mapping[str, object]


def read_saelens(folder: Path) -> Contents:
    """A dictionary that SAELens saved. DictionaryError, which names the file, for anything in it that is not known."""
    path = folder / CONFIG
    config = _with_metadata(read_json(path, error=DictionaryError))
    try:
        architecture = _architecture(config)
        place, model = _place(config, architecture), config.get("model_name")
        normalization = config.get("normalize_activations") or "none"
        if normalization is True:
            normalization = "expected_average_only_in"
        arrays = _arrays(config, architecture, folder / WEIGHTS)
        if normalization in _NORMALIZATIONS:
            scale = Normalization(_NORMALIZATIONS[str(normalization)], scales_back="transcoder" not in architecture)
            arrays = replace(arrays, normalization=scale)
        elif normalization not in ("none", "expected_average_only_in"):
            known = ", ".join(["none", "expected_average_only_in", *_NORMALIZATIONS])
            raise DictionaryError(f"normalize_activations is {short_repr(normalization)}; known are {known}")
    except DictionaryError as error:
        raise error if str(folder) in str(error) else DictionaryError(f"{path}: {error}") from error
    remark = _UNSCALED if normalization == "expected_average_only_in" else ""
    contents = Contents(arrays, model=model if isinstance(model, str) else None, remark=remark)
    return replace(contents, **place._asdict()) if place else contents


def _with_metadata(config: dict[str, object]) -> Config:
    """Every setting at one level: since version 6 some stand under "metadata". Old names become the new ones."""
    metadata = config.get("metadata")
    flat = {**config, **(metadata if isinstance(metadata, dict) else {})}
    for old, new in (("hook_point", "hook_name"), ("activation_fn_str", "activation_fn")):
        if old in flat:
            flat.setdefault(new, flat[old])
    return flat


def _architecture(config: Config) -> str:
    """The architecture's name. DictionaryError for one that is not known, or whose activation function is not."""
    name, activation = config.get("architecture", "standard"), config.get("activation_fn", "relu")
    if name == "standard" and activation == "topk":
        name = "topk"
    if not isinstance(name, str) or name not in _TENSORS:
        raise DictionaryError(f"the architecture {short_repr(name)} is not read; known are {', '.join(_TENSORS)}")
    if activation not in ("relu", "topk", None):
        raise DictionaryError(f"the activation function {short_repr(activation)} is not read; known are relu, topk")
    if config.get("hook_head_index") is not None:
        raise DictionaryError("a dictionary of one head (hook_head_index) is not read; those of all heads side by side are")
    if "transcoder" in name and config.get("apply_b_dec_to_input", False):
        raise DictionaryError("a transcoder that subtracts b_dec from its input is not known: SAELens writes none")
    return name


def _place(config: Config, architecture: str) -> Place | None:
    """The site and layer; None if the file does not say them."""
    hook, hook_out, hf_hook = (config.get(name) for name in ("hook_name", "hook_name_out", "hf_hook_name"))
    if not isinstance(hook, str):
        return None
    if "transcoder" not in architecture:
        return place_of_hook(hook)
    return place_of_transcoder(
        hook, hook_out if isinstance(hook_out, str) else None, hf_hook if isinstance(hf_hook, str) else None
    )


def _arrays(config: Config, architecture: str, path: Path) -> DictionaryArrays:
    tensors = _without_ones(read_safetensors(path))
    require_tensors(tensors, _TENSORS[architecture], path)
    _require_sizes(config, tensors, path)
    W_enc, W_dec, b_dec = (tensors[name] for name in _MATRICES)
    if architecture == "gated":
        arrays = gated_arrays(W_enc, W_dec, tensors["b_gate"], tensors["b_mag"], tensors["r_mag"], b_dec)
    else:
        threshold = tensors.get("threshold", tensors.get("topk_threshold"))
        k = _k(config) if architecture == "topk" else None
        arrays = relu_arrays(W_enc, W_dec, tensors["b_enc"], b_dec, threshold, k=k)
    if config.get("rescale_acts_by_decoder_norm") and architecture in ("topk", "batchtopk", "matryoshka_batchtopk"):
        threshold = arrays.threshold  # of activations that are multiplied by the decoder's lengths already
        arrays = replace(with_decoder_norms(arrays), threshold=threshold)
    if "W_skip" in tensors:
        arrays = replace(arrays, W_skip=tensors["W_skip"].float().T.contiguous())
    subtracts = config.get("apply_b_dec_to_input", True) and "transcoder" not in architecture
    return with_input_bias(arrays, arrays.b_dec) if subtracts else arrays


def _k(config: Config) -> object:
    arguments = config.get("activation_fn_kwargs")
    k = config.get("k", arguments.get("k") if isinstance(arguments, dict) else None)
    if k is None:
        raise DictionaryError("k is missing: how many features a TopK dictionary keeps of each row")
    return k


def _without_ones(tensors: Tensors) -> Tensors:
    """Early versions stored a scaling_factor that does nothing: ones."""
    factor = tensors.get("scaling_factor")
    if factor is None or not bool(torch.allclose(factor.float(), torch.ones(()))):
        return tensors
    return {name: tensor for name, tensor in tensors.items() if name != "scaling_factor"}


def _require_sizes(config: Config, tensors: Tensors, path: Path) -> None:
    """DictionaryError for arrays of other sizes than the configuration says."""
    d_in, n_features = tensors["W_enc"].shape
    for name, size in (("d_in", d_in), ("d_sae", n_features)):
        if config.get(name, size) != size:
            raise DictionaryError(f"{path} has {name} {size}, and {CONFIG} beside it says {short_repr(config[name])}")

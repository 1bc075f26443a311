"""The format of dictionary_learning and SAEBench: ae.pt, with the trainer's config.json beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from gemmascope.arguments import short_repr
from gemmascope.errors import DictionaryError
from gemmascope.files.json_reader import is_regular_file, read_json
from gemmascope.sae.arrays import DictionaryArrays
from gemmascope.sae.formats.common import Contents, gated_arrays, relu_arrays, with_decoder_norms, with_input_bias
from gemmascope.sae.formats.tensors import Axes, Tensors, read_torch, require_tensors

CONFIG, WEIGHTS = "config.json", "ae.pt"

# Linear layers store their weights [output, input].
_LINEAR = {"encoder.weight": ("feature", "d_in"), "decoder.weight": ("d_in", "feature")}
_PLAIN = {"W_enc": ("d_in", "feature"), "W_dec": ("feature", "d_in"), "b_enc": ("feature",), "b_dec": ("d_in",)}
_TOPK = {**_LINEAR, "encoder.bias": ("feature",), "b_dec": ("d_in",), "k": (), "threshold": ()}


def read_dictionary_learning(folder: Path) -> Contents:
    """A dictionary that dictionary_learning trained. DictionaryError, which names the file, for what is not known."""
    config, weights = folder / CONFIG, folder / WEIGHTS
    if not is_regular_file(config, error=DictionaryError):
        raise DictionaryError(f"there is no {CONFIG} beside {weights}, which says of which kind it is (dict_class)")
    trainer = read_json(config, error=DictionaryError).get("trainer")
    if not isinstance(trainer, dict):
        raise DictionaryError(f"{config} has no 'trainer', as dictionary_learning writes it")
    kind = trainer.get("dict_class")
    if kind not in _CLASSES:
        raise DictionaryError(f"{config}: the class {short_repr(kind)} is not read; known are {', '.join(_CLASSES)}")
    axes, optional, arrays_of = _CLASSES[kind]
    tensors = read_torch(weights)
    require_tensors(tensors, axes, weights, optional)
    try:
        arrays = arrays_of(tensors, trainer)
    except DictionaryError as error:
        raise DictionaryError(f"{config}: {error}") from error
    site, layer = _place(trainer, folder)
    model = trainer.get("lm_name")
    return Contents(arrays, site, layer, model=model if isinstance(model, str) else None)


def _standard(tensors: Tensors, _: object) -> DictionaryArrays:
    """AutoEncoder. The library multiplies activations by the decoder's lengths as it loads one, and so do we."""
    arrays = relu_arrays(*_linear(tensors), tensors["bias"])
    norms = arrays.W_dec.norm(dim=-1)
    if not torch.allclose(norms, torch.ones_like(norms)):
        arrays = with_decoder_norms(arrays)
    return with_input_bias(arrays, arrays.b_dec)


def _new(tensors: Tensors, _: object) -> DictionaryArrays:
    return relu_arrays(*_linear(tensors), tensors["decoder.bias"])


def _gated(tensors: Tensors, _: object) -> DictionaryArrays:
    biases = (tensors[name] for name in ("gate_bias", "mag_bias", "r_mag", "decoder_bias"))
    arrays = gated_arrays(tensors["encoder.weight"].T, tensors["decoder.weight"].T, *biases)
    return with_input_bias(arrays, arrays.b_dec)


def _jump_relu(tensors: Tensors, _: object) -> DictionaryArrays:
    return relu_arrays(*(tensors[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")))


def _top_k(tensors: Tensors, trainer: Mapping[str, object]) -> DictionaryArrays:
    arrays = relu_arrays(*_linear(tensors), tensors["b_dec"], k=_k(tensors, trainer))
    return with_input_bias(arrays, arrays.b_dec)


def _batch_top_k(tensors: Tensors, trainer: Mapping[str, object]) -> DictionaryArrays:
    """Trained with the k largest of a batch; used with the threshold that it learnt, where a batch plays no part."""
    _k(tensors, trainer)
    return with_input_bias(arrays := relu_arrays(*_linear(tensors), tensors["b_dec"], tensors["threshold"]), arrays.b_dec)


def _matryoshka(tensors: Tensors, trainer: Mapping[str, object]) -> DictionaryArrays:
    """The same with features in groups, all of which are used."""
    _k(tensors, trainer)
    arrays = _jump_relu(tensors, trainer)
    return with_input_bias(arrays, arrays.b_dec)


Reader = Callable[[Tensors, Mapping[str, object]], DictionaryArrays]
# By dict_class: the tensors and their axes, those that old files lack, and what makes the arrays of them.
_CLASSES: dict[str, tuple[Axes, tuple[str, ...], Reader]] = {
    "AutoEncoder": ({**_LINEAR, "encoder.bias": ("feature",), "bias": ("d_in",)}, (), _standard),
    "AutoEncoderNew": ({**_LINEAR, "encoder.bias": ("feature",), "decoder.bias": ("d_in",)}, (), _new),
    "GatedAutoEncoder": (
        {
            **_LINEAR,
            **dict.fromkeys(("r_mag", "gate_bias", "mag_bias"), ("feature",)),
            "decoder_bias": ("d_in",),
        },
        (),
        _gated,
    ),
    "JumpReluAutoEncoder": ({**_PLAIN, "threshold": ("feature",)}, (), _jump_relu),
    "AutoEncoderTopK": (_TOPK, ("k", "threshold"), _top_k),
    "BatchTopKSAE": (_TOPK, (), _batch_top_k),
    "MatryoshkaBatchTopKSAE": (
        {**_PLAIN, "k": (), "threshold": (), "group_sizes": ("group",)},
        (),
        _matryoshka,
    ),
}


def _linear(tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return tensors["encoder.weight"].T, tensors["decoder.weight"].T, tensors["encoder.bias"]


def _k(tensors: Tensors, trainer: Mapping[str, object]) -> int:
    """How many features are kept. DictionaryError if the two files disagree, or neither says it."""
    stored = int(tensors["k"]) if "k" in tensors else None
    k = trainer.get("k", stored)
    if not isinstance(k, int) or (stored is not None and stored != k):
        raise DictionaryError(f"k is {short_repr(k)}, and {stored} in {WEIGHTS} beside it")
    return k


def _place(trainer: Mapping[str, object], folder: Path) -> tuple[str | None, int | None]:
    """The site and layer: those of submodule_name, or of a folder named like one. None for what neither says."""
    layer = trainer.get("layer")
    for name in (trainer.get("submodule_name"), *reversed(folder.resolve().parts)):
        if isinstance(name, str) and (match := re.fullmatch(r"resid_post_layer_([0-9]{1,6})(?:_checkpoints)?", name)):
            return "resid_post", int(match[1])
    return None, layer if isinstance(layer, int) and not isinstance(layer, bool) else None

"""circuit-tracer's cross-layer transcoders: W_enc_N.safetensors and W_dec_N.safetensors for each layer, and config.yaml.

The encoders and decoders of a large one take hundreds of gigabytes, so they stay in their files: a layer's encoder is read
to encode, and of a decoder the rows of the features that are active.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from gemmascope.checkpoints.shards import Shards
from gemmascope.errors import CheckpointError, DictionaryError
from gemmascope.sae.formats.circuit_tracer import CONFIG

_ENCODER = re.compile(r"W_enc_([0-9]{1,6})\.safetensors")


def files_of_layers(names: Iterable[str]) -> list[str]:
    """The files of a cross-layer transcoder among others, with its config.yaml. [] if it is none."""
    present = set(names)
    layers = sorted(int(match[1]) for name in present if (match := _ENCODER.fullmatch(name)))
    files = [f"W_{kind}_{layer}.safetensors" for layer in layers for kind in ("enc", "dec")]
    return [*files, *[CONFIG] * (CONFIG in present)] if layers else []


@dataclass(frozen=True)
class CrossLayerFiles:
    """The files of a transcoder whose layers are 0 to n_layers - 1, with their shapes checked.

    b_enc: [feature] for each layer, b_dec: [d_model], threshold: [feature]; zeros for a ReLU.
    """

    folder: Path
    n_layers: int
    d_model: int
    n_features: int
    b_enc: tuple[Tensor, ...]
    b_dec: tuple[Tensor, ...]
    threshold: tuple[Tensor, ...]

    @classmethod
    def open(cls, folder: Path) -> CrossLayerFiles:
        """Reads the biases, and the headers of the rest. DictionaryError, which names a file, for damage or gaps."""
        if not folder.is_dir():
            raise DictionaryError(f"there is no folder {folder}")
        layers = sorted(int(match[1]) for path in folder.iterdir() if (match := _ENCODER.fullmatch(path.name)))
        if not layers or layers != list(range(len(layers))):
            raise DictionaryError(
                f"{folder} holds no cross-layer transcoder: W_enc_0.safetensors, W_enc_1.safetensors, ... without gaps; it "
                f"has {'none' if not layers else f'those of layers {layers}'}"
            )
        read = [_biases(folder, layer) for layer in layers]
        (n_features,), (d_model,) = read[0][0].shape, read[0][1].shape
        biases, outs, limits = (tuple(part) for part in zip(*read, strict=True))
        files = cls(folder, len(layers), d_model, n_features, biases, outs, limits)
        for layer in layers:
            files._require_shapes(layer)
        return files

    def encoder(self, layer: int) -> Float[Tensor, "feature d_model"]:
        """The encoder of a layer, float32."""
        with _opened(self.folder / f"W_enc_{layer}.safetensors") as shards:
            return shards.read(f"W_enc_{layer}").float()

    def decoder_rows(self, layer: int, features: Sequence[int]) -> Float[Tensor, "some out_layer d_model"]:
        """What features of a layer write to it and to each later layer, float32."""
        from safetensors import SafetensorError, safe_open

        path = self.folder / f"W_dec_{layer}.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                rows = file.get_slice(f"W_dec_{layer}")
                return torch.cat([rows[feature : feature + 1] for feature in features]).float()
        except (SafetensorError, OSError) as error:
            raise DictionaryError(f"{path} cannot be read: {error}") from error

    def _require_shapes(self, layer: int) -> None:
        expected = {
            "enc": (self.n_features, self.d_model),
            "dec": (self.n_features, self.n_layers - layer, self.d_model),
        }
        for kind, shape in expected.items():
            path, name = self.folder / f"W_{kind}_{layer}.safetensors", f"W_{kind}_{layer}"
            with _opened(path) as shards:
                stored = shards.stored.get(name)
            if stored is None or stored.shape != shape:
                found = "lacks it" if stored is None else f"has {stored.shape}"
                raise DictionaryError(
                    f"{path}: {name} has shape {shape}, as the biases and the number of layers say; it {found}"
                )
        if self.b_enc[layer].shape != (self.n_features,) or self.b_dec[layer].shape != (self.d_model,):
            raise DictionaryError(f"{self.folder}: the biases of layer {layer} have other sizes than those of layer 0")


class _opened:
    """A safetensors file, closed at the end; its errors as DictionaryError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Shards:
        try:
            self.shards = Shards([self.path])
        except CheckpointError as error:
            raise DictionaryError(str(error)) from error
        return self.shards

    def __exit__(self, *_: object) -> None:
        self.shards.close()


def _biases(folder: Path, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """b_enc, b_dec and the thresholds of a layer, float32."""
    path = folder / f"W_enc_{layer}.safetensors"
    with _opened(path) as shards:
        missing = [name for name in (f"b_enc_{layer}", f"b_dec_{layer}") if name not in shards.stored]
        if missing:
            raise DictionaryError(f"{path} lacks {', '.join(missing)}")
        b_enc, b_dec = (shards.read(f"{name}_{layer}").float() for name in ("b_enc", "b_dec"))
        limit = f"threshold_{layer}"
        threshold = shards.read(limit).float().reshape(-1) if limit in shards.stored else torch.zeros_like(b_enc)
    if b_enc.dim() != 1 or b_dec.dim() != 1 or threshold.shape != b_enc.shape:
        raise DictionaryError(f"{path}: b_enc and threshold are [feature], b_dec [d_model]")
    if not all(bool(each.isfinite().all()) for each in (b_enc, b_dec, threshold)):
        raise DictionaryError(f"{path}: the biases or thresholds hold NaN or infinity")
    return b_enc, b_dec, threshold

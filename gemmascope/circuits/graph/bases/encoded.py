"""The active features of one dictionary in a run, with the rows of its arrays that they need and no others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gemmascope.circuits.frozen import FrozenLayer
from gemmascope.circuits.graph.bases.written import Active
from gemmascope.circuits.graph.nodes import NodeKeys, Unit
from gemmascope.errors import DictionaryError
from gemmascope.model.maths import root_mean_square
from gemmascope.sae.cross_layer import CrossLayerTranscoder
from gemmascope.sae.dictionary import Dictionary
from gemmascope.sae.normalization import LAYER_NORM, Normalization
from gemmascope.values import moved

# What SAELens adds to the standard deviation of a row, as sae/normalization.py does.
_EPS = 1e-5


@dataclass(frozen=True)
class Encoded:
    """The active features of a dictionary in a run, without those of position 0.

    Attributes:
        unit: The dictionary.
        reads: The site that it reads, of SITES.
        writes: The site that it writes: of SITES, or "mlp_raw".
        pos: The position of each activation, [active], rising.
        row: The row of its feature below.
        value: Its value.
        features: The features that are active anywhere, [some], rising.
        encoder: What each of them reads, [some, d_in].
        b_enc: Its bias, [some].
        decoders: What it writes, to this layer and, of a cross-layer one, to each later layer: [some, layers, d_out].
        b_dec: The decoder's bias, [d_out].
        read_gain: What the site is multiplied by before it is read: [pos, 1] or [pos, d_in]; None for the site as it is.
        write_scale: What all that is decoded is multiplied by, [pos, 1]; None for nothing.
        W_skip: A transcoder's skip connection, [d_in, d_out]; None without.
        scale_of: By what rows of the site are divided before they are read, [.., 1] of [.., d_in]; None for nothing.
    """

    unit: Unit
    reads: str
    writes: str
    pos: Int[Tensor, " active"]
    row: Int[Tensor, " active"]
    value: Float[Tensor, " active"]
    features: Int[Tensor, " some"]
    encoder: Float[Tensor, "some d_in"]
    b_enc: Float[Tensor, " some"]
    decoders: Float[Tensor, "some layers d_out"]
    b_dec: Float[Tensor, " d_out"]
    read_gain: Tensor | None = None
    write_scale: Tensor | None = None
    W_skip: Tensor | None = None
    scale_of: Callable[[Tensor], Tensor] | None = None

    def active(self, keys: NodeKeys, unit: int, layer: int) -> Active | None:
        """What the features write at a layer; None before or after the layers that they write to."""
        offset = layer - self.unit.layer
        if not 0 <= offset < self.decoders.shape[1]:
            return None
        scale = 1.0 if self.write_scale is None else self.write_scale[self.pos, 0]
        nodes = keys.features(unit, self.pos, self.features[self.row])
        several = self.decoders.shape[1] > 1
        return Active(
            nodes, self.pos, self.row, self.value * scale, self.decoders[:, offset], unit if several else -1, offset > 0
        )

    def index(self, pos: Tensor, feature: Tensor) -> Int[Tensor, " node"]:
        """Where activations of features at positions are among the active ones. DictionaryError for one that is not."""
        width = self.unit.n_features
        place = self.pos * width + self.features[self.row]
        order = place.argsort()
        wanted = (pos.long() * width + feature.long()).to(place.device)
        at = torch.searchsorted(place[order], wanted).clamp(max=max(0, len(place) - 1))
        if not len(place) or not bool((place[order[at]] == wanted).all()):
            raise DictionaryError(f"a feature of {self.unit.name} is not active at the position that was named")
        return order[at]

    def readers(self, pos: Tensor, feature: Tensor) -> Float[Tensor, "node d_in"]:
        """What features read of the site, each at its position."""
        at = self.index(pos, feature)
        read = self.encoder[self.row[at]]
        return read if self.read_gain is None else read * self.read_gain[self.pos[at]]

    def inputs_of_runs(
        self, pos: Tensor, feature: Tensor, values: Float[Tensor, "run pos d_in"], *, scales_held: bool
    ) -> Float[Tensor, "run node"]:
        """What features take of the site in each run, without their biases; see Basis.inputs_of_runs."""
        at = self.index(pos, feature)
        positions, read = self.pos[at], self.readers(pos, feature)
        first = None if scales_held or self.scale_of is None else self.scale_of(values[0, positions].float())
        found = []
        for run in values:
            rows = run[positions].float()
            taken = (rows * read).sum(-1)
            found.append(taken if first is None or self.scale_of is None else taken * (first / self.scale_of(rows))[:, 0])
        return torch.stack(found)

    def biases(self) -> Float[Tensor, "pos d_out"]:
        """What the decoder's bias writes."""
        n_pos = 1 if self.write_scale is None else len(self.write_scale)
        written = self.b_dec.expand(n_pos, -1)
        return written if self.write_scale is None else written * self.write_scale

    def decoded(self, layer: int, n_pos: int) -> Float[Tensor, "pos d_out"]:
        """What the features write at a layer, without the decoder's bias. No row of the decoder is copied for it."""
        table, scale = self.decoders[:, layer - self.unit.layer], self.write_scale
        value = self.value if scale is None else self.value * scale[self.pos, 0]
        starts = torch.searchsorted(self.pos, torch.arange(n_pos, device=self.pos.device))
        return F.embedding_bag(self.row, table, starts, mode="sum", per_sample_weights=value)

    def on(self, device: torch.device) -> Encoded:
        """The same on a device."""
        if self.pos.device == device:
            return self
        tensors = {name: moved(value, device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)  # type: ignore[arg-type]


def encode(dictionary: Dictionary | CrossLayerTranscoder, frozen: FrozenLayer, values: dict[str, Tensor]) -> Encoded:
    """The active features of a dictionary in this layer, on the layer's device. values: the layer's sites."""
    if isinstance(dictionary, CrossLayerTranscoder):
        return _of_cross_layer(dictionary, frozen, values)
    return _of_one(dictionary, frozen, values)


def _of_one(dictionary: Dictionary, frozen: FrozenLayer, values: dict[str, Tensor]) -> Encoded:
    x = dictionary.input_of(values[dictionary.read_from])
    pos, feature, value = dictionary.sparse(x)
    pos, feature, value = (part[pos > 0] for part in (pos, feature, value))
    features, row = torch.unique(feature, return_inverse=True)
    encoder = dictionary.W_enc[:, features].T.contiguous()
    gain, scale_of = _transcoder_gain(dictionary.input_site, frozen) if dictionary.is_transcoder else (None, None)
    write_scale = None
    if (norm := dictionary.normalization) is not None:
        if dictionary.is_transcoder or not norm.scales_back:
            raise DictionaryError(f"{dictionary.call} scales its input by the row and not back: no graph can be made of it")
        write_scale = norm.scale(x)
        eps = _EPS if norm.kind == LAYER_NORM else 0.0
        gain, scale_of = 1 / (write_scale + eps), partial(_row_scale, norm, eps)
        if norm.kind == LAYER_NORM:
            encoder = encoder - encoder.mean(-1, keepdim=True)
    return Encoded(
        Unit(dictionary.writes.replace("mlp_raw", "mlp_out"), frozen.index, dictionary.n_features, dictionary.call),
        "resid_mid" if dictionary.is_transcoder else dictionary.site,
        dictionary.writes,
        pos, row, value, features, encoder, dictionary.b_enc[features], dictionary.W_dec[features, None], dictionary.b_dec,
        gain, write_scale, dictionary.W_skip, scale_of,
    ).on(frozen.device)  # fmt: skip


def _of_cross_layer(transcoder: CrossLayerTranscoder, frozen: FrozenLayer, values: dict[str, Tensor]) -> Encoded:
    """The active features that a cross-layer transcoder reads at this layer."""
    layer, files = frozen.index, transcoder.files
    x = values[transcoder.input_site or "resid_mid"].float().cpu()
    if transcoder.input_site is None:
        x = x / values["mlp_in_scale"].cpu()[:, None]
    encoder, threshold = files.encoder(layer), files.threshold[layer]
    pre = x @ encoder.T + files.b_enc[layer]
    active = (pre > 0) & (pre > threshold)
    active[0] = False
    pos, feature = active.nonzero(as_tuple=True)
    features, row = torch.unique(feature, return_inverse=True)
    n_layers, d = files.n_layers - layer, files.d_model
    gain, scale_of = _transcoder_gain(transcoder.input_site, frozen)
    decoders = files.decoder_rows(layer, features.tolist()) if len(features) else torch.zeros(0, n_layers, d)
    return Encoded(
        Unit("mlp_out", layer, files.n_features, transcoder.call), "resid_mid", transcoder.output_site,
        pos, row, pre[pos, feature], features, encoder[features], files.b_enc[layer][features], decoders, files.b_dec[layer],
        gain, scale_of=scale_of,
    ).on(frozen.device)  # fmt: skip


def _transcoder_gain(input_site: str | None, frozen: FrozenLayer) -> tuple[Tensor | None, Callable[[Tensor], Tensor] | None]:
    """What a transcoder's input site is of resid_mid, and its scale in other runs: over its root mean square, the norm's
    output, or the stream as it is.
    """
    if input_site == "resid_mid":
        return None, None
    scale_of = partial(_root_mean_square, frozen.config.norm_eps)
    return (frozen.mlp_in_gain if input_site == "mlp_in" else 1 / frozen.scale("mlp_in_scale")[:, None]), scale_of


def _root_mean_square(eps: float, rows: Tensor) -> Tensor:
    return root_mean_square(rows, eps)[..., None]


def _row_scale(norm: Normalization, eps: float, rows: Tensor) -> Tensor:
    return norm.scale(rows) + eps

"""DictionaryWeights: the arrays of a JumpReLU sparse autoencoder or transcoder, and what they compute.

acts = relu(pre) * (pre > threshold), pre = x @ W_enc + b_enc; reconstruction = acts @ W_dec + b_dec
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from gemmascope.arguments import as_numbers, is_whole, short_repr
from gemmascope.config import PRESETS
from gemmascope.errors import DeviceError, DictionaryError
from gemmascope.legible import legible_line, prints_legibly
from gemmascope.model.digests import join_digests, tensor_digest
from gemmascope.model.maths import rms_scale
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.sae.catalogue import TRANSCODER
from gemmascope.sites import find_site
from gemmascope.values import chunks, real_tensor

if TYPE_CHECKING:
    import numpy as np

# Activations in memory at once, in elements: 64 MB.
CHUNK_ELEMENTS = 2**24
# The epsilon of Gemma 2's norms, which a transcoder's input goes through.
NORM_EPS = 1e-6


@dataclass(frozen=True)
class Tie:
    """A feature's tie to a concept, measured on texts: activations above `above` stand for tokens of the concept."""

    concept: str
    above: float
    precision: float
    recall: float


@dataclass(frozen=True)
class TrainedFor:
    """The model that a dictionary was trained for; None for what is not known.

    size: the preset of the model, such as "2b". fingerprint: the model's network_fingerprint.
    """

    model: str | None = None
    size: str | None = None
    fingerprint: str | None = None

    @prints_legibly
    def __str__(self) -> str:
        name = legible_line(self.model or "a model that its files do not name")
        if self.size is None:
            return name
        return f"{name} ({PRESETS[self.size].n_layers} layers, d_model {PRESETS[self.size].d_model})"


@dataclass(frozen=True, eq=False, repr=False)
class DictionaryWeights:
    """The arrays of a dictionary of features, what they compute, and what they were trained for."""

    W_enc: Float[Tensor, "d_in feature"]
    W_dec: Float[Tensor, "feature d_out"]
    b_enc: Float[Tensor, " feature"]
    b_dec: Float[Tensor, " d_out"]
    threshold: Float[Tensor, " feature"]
    site: str
    layer: int | None
    call: str = "sae"
    trained_for: TrainedFor = field(default_factory=TrainedFor)
    concepts: Mapping[int, Tie] = field(default_factory=dict)
    any_model: bool = False

    def __post_init__(self) -> None:
        if not self.is_transcoder:
            site = find_site(self.site)
            if site.is_edges or site.axes[-1] == "vocab" or (site.in_layer != (self.layer is not None)):
                raise DictionaryError(f"a dictionary is of a site with rows; given {self.site!r}, layer {self.layer}")
            if self.d_in != self.d_out:
                raise DictionaryError(
                    f"this dictionary reads {self.d_in} numbers and writes {self.d_out}: an autoencoder of '{self.site}' "
                    "writes what it reads. If it is a transcoder, say site='transcoder'"
                )

    @property
    def n_features(self) -> int:
        """The number of features."""
        return len(self.b_enc)

    @property
    def d_in(self) -> int:
        """The width of the rows that it reads."""
        return len(self.W_enc)

    @property
    def d_out(self) -> int:
        """The width of the rows that it writes."""
        return len(self.b_dec)

    @property
    def is_transcoder(self) -> bool:
        """Whether it reads the MLP's input and writes mlp_out."""
        return self.site == TRANSCODER

    @property
    def read_from(self) -> str:
        """The site whose rows input_of takes: resid_mid for a transcoder."""
        return "resid_mid" if self.is_transcoder else self.site

    @property
    def writes(self) -> str:
        """The site that the reconstruction stands for: mlp_out for a transcoder."""
        return "mlp_out" if self.is_transcoder else self.site

    @property
    def device(self) -> torch.device:
        """The device of its arrays."""
        return self.W_enc.device

    @computes
    def decode(self, acts: Tensor | np.ndarray) -> Float[Tensor, "pos d_out"]:
        """The reconstruction acts @ W_dec + b_dec, float32.

        Args:
            acts: Activations [pos, feature], dense or a sparse tensor.
        """
        self.require_values()
        if not isinstance(acts, Tensor) or not acts.is_sparse or acts.is_complex() or acts.is_meta:
            acts = real_tensor(acts, "activations", DictionaryError)
        self._require_width(acts, self.n_features, "has features:")
        acts = acts.to(self.device, torch.float32)
        read: Tensor = torch.sparse.mm(acts, self.W_dec) if acts.is_sparse else acts @ self.W_dec
        return read + self.b_dec

    def activations(
        self, x: Tensor | np.ndarray, features: Sequence[int] | Tensor | None = None
    ) -> Float[Tensor, "pos some_or_all"]:
        """Dense activations of rows, float32.

        Args:
            x: Rows [pos, d_in].
            features: The features to compute; None means all.
        """
        self.require_values()
        rows: Tensor = real_tensor(x, "the rows", DictionaryError).to(self.device, torch.float32)
        self._require_width(rows, self.d_in, "reads")
        columns = slice(None) if features is None else self._columns(features)
        pre = rows @ self.W_enc[:, columns] + self.b_enc[columns]
        return pre.relu() * (pre > self.threshold[columns])

    def _columns(self, features: object) -> Tensor:
        """Features as column numbers. DictionaryError for anything that is not a list of them."""
        numbers = as_numbers(features)
        if numbers is None or not all(is_whole(one) and 0 <= int(one) < self.n_features for one in numbers):
            raise DictionaryError(f"features are numbers from 0 to {self.n_features - 1}; given {short_repr(features)}")
        return torch.tensor([int(one) for one in numbers if is_whole(one)], device=self.device, dtype=torch.long)

    def sparse(self, x: Float[Tensor, "pos d_in"]) -> tuple[Tensor, Tensor, Tensor]:
        """The activations above zero: the position, the feature and the value of each, position by position.

        Rows are encoded a few at a time: dense activations of a million features at eight thousand positions would not fit.

        Args:
            x: Rows [pos, d_in].
        """
        step = max(1, CHUNK_ELEMENTS // self.n_features)
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        with torch.no_grad():
            for part in chunks(len(x), step):
                acts = self.activations(x[part])
                pos, feature = acts.nonzero(as_tuple=True)
                parts.append((pos + part.start, feature, acts[pos, feature]))
        pos, feature, value = (torch.cat(part) for part in zip(*parts, strict=True))
        return pos, feature, value

    def summed(
        self, pos: Int[Tensor, " active"], feature: Int[Tensor, " active"], value: Float[Tensor, " active"], n_pos: int
    ) -> Float[Tensor, "pos d_out"]:
        """The reconstruction from sparse activations, a few of them at a time.

        Args:
            pos: The position of each activation.
            feature: Its feature.
            value: Its value.
            n_pos: The number of positions.
        """
        total = self.b_dec.expand(n_pos, -1).clone()
        step = max(1, CHUNK_ELEMENTS // self.d_out)
        for part in chunks(len(pos), step):
            total.index_add_(0, pos[part], value[part, None] * self.W_dec[feature[part]])
        return total

    def input_of(self, rows: Float[Tensor, "pos ..."]) -> Float[Tensor, "pos d_in"]:
        """What the dictionary reads, float32.

        Args:
            rows: Rows of the site read_from: resid_mid for a transcoder.
        """
        x = rearrange(rows, "pos ... -> pos (...)").to(self.device, torch.float32)
        return x * rms_scale(x, NORM_EPS) if self.is_transcoder else x

    def require_fit(self, model: Model) -> None:
        """DictionaryError, which names both, if a model is not what the dictionary was trained for.

        Args:
            model: The model that it is to be used with.
        """
        self.require_values()
        config, trained = model.config, self.trained_for
        expected = f"the dictionary {self.call} was trained for {trained}, {self._place}"
        actual = f"given {model.name!r} ({config.n_layers} layers, d_model {config.d_model})"
        hint = "gs.load_sae(..., any_model=True) lets it be used with others of its shape"
        if not self.any_model:
            preset = PRESETS[trained.size] if trained.size else config
            if (preset.n_layers, preset.d_model) != (config.n_layers, config.d_model):
                raise DictionaryError(f"{expected}; {actual}. {hint}")
            if trained.fingerprint is not None and trained.fingerprint != (fingerprint := model.network_fingerprint):
                raise DictionaryError(
                    f"{expected} (its about.json has fingerprint {trained.fingerprint}); {actual}, whose weights or dtype "
                    f"differ (fingerprint {fingerprint}). {hint}"
                )
        if self.layer is not None and self.layer >= config.n_layers:
            raise DictionaryError(f"{expected}; {actual}: there is no layer {self.layer}")
        sides = (("reads", self.d_in, self.read_from), ("writes", self.d_out, self.writes))
        for verb, width, site in sides:
            site_width = 1
            for axis in find_site(site).axes[1:]:
                site_width *= config.size_of(axis, 0)
            if site_width != width:
                raise DictionaryError(f"{expected}, and {verb} {width} numbers; {actual}, whose '{site}' has {site_width}")
        if self.is_transcoder and config.norm_eps != NORM_EPS:
            raise DictionaryError(f"{expected}: norms with an epsilon of {NORM_EPS}; {actual}, with {config.norm_eps}")

    @property
    def fingerprint(self) -> str:
        """A hash of the site, the layer and every number of the arrays, as they are now."""
        arrays = (self.W_enc, self.b_enc, self.W_dec, self.b_dec, self.threshold)
        return join_digests((repr((self.site, self.layer)), *map(tensor_digest, arrays)))[:16]

    @property
    def _place(self) -> str:
        """The site and layer, as text."""
        site = "the MLP (a transcoder)" if self.is_transcoder else f"'{self.site}'"
        return site if self.layer is None else f"{site} of layer {self.layer}"

    def require_values(self) -> None:
        """DeviceError for a dictionary on the meta device, which has shapes and no numbers."""
        if self.W_enc.is_meta:
            raise DeviceError(f"{self.call} is on the meta device, which has shapes and no values: load it on another one")

    def _require_width(self, rows: Tensor, width: int, what: str) -> None:
        if rows.dim() != 2 or rows.shape[-1] != width:
            raise DictionaryError(
                f"the dictionary {self.call}, trained for {self.trained_for}, {self._place}, {what} {width} numbers a "
                f"position, [pos, {width}]; given shape {tuple(rows.shape)}"
            )

    @prints_legibly
    def __repr__(self) -> str:
        sizes = f"{self.d_in} -> {self.n_features:,} features -> {self.d_out}"
        tied = f"; {len(self.concepts)} features tied to a concept" if self.concepts else ""
        return f"Dictionary({self.call}: {self._place}, {sizes}; trained for {self.trained_for}{tied})"

"""Dictionary: a sparse autoencoder or transcoder with the JumpReLU, as Gemma Scope releases them.

    acts = relu(pre) * (pre > threshold), pre = x @ W_enc + b_enc; reconstruction = acts @ W_dec + b_dec

Sources: "Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse Autoencoders" (arXiv 2407.14435);
"Gemma Scope" (arXiv 2408.05147).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from gemmascope.arguments import as_numbers, is_whole, shown
from gemmascope.config import PRESETS
from gemmascope.edits.sources import is_trace
from gemmascope.errors import DeviceError, DictionaryError
from gemmascope.legible import legibly, spelled
from gemmascope.model.digests import join_digests, tensor_digest
from gemmascope.model.maths import rms_scale
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.sae.catalogue import TRANSCODER
from gemmascope.sites import find_site
from gemmascope.values import is_array, real_tensor

if TYPE_CHECKING:
    from gemmascope.run.trace import Trace
    from gemmascope.sae.features import Features
    from gemmascope.sae.loss import LossRecovered

# Activations held at once, in elements: 64 MB.
CHUNK_ELEMENTS = 2**24
# The epsilon of Gemma 2's norms, which a transcoder's input goes through.
NORM_EPS = 1e-6


@dataclass(frozen=True)
class TrainedFor:
    """What a dictionary was trained for. size: the preset of its model; fingerprint: the model's
    network_fingerprint; None if not known."""

    model: str | None = None
    size: str | None = None
    fingerprint: str | None = None

    @legibly
    def __str__(self) -> str:
        name = spelled(self.model or "a model that its files do not name")
        if self.size is None:
            return name
        return f"{name} ({PRESETS[self.size].n_layers} layers, d_model {PRESETS[self.size].d_model})"


@dataclass(frozen=True)
class Tie:
    """A feature's tie to a concept, measured on texts: of the tokens where its activation is above so much, the share that
    are of the concept (precision), and the share of the concept's tokens where it is (recall)."""

    concept: str
    above: float
    precision: float
    recall: float


@dataclass(frozen=True, eq=False, repr=False)
class Dictionary:
    """A dictionary of features at one site of one layer. Made by gs.load_sae. Float32.

    site: what it reconstructs: a site, or "transcoder" for one that reads the MLP's input and writes mlp_out. layer: None
    at the site embed. call: the Python that loads it. concepts: features that were tied to a concept, by number.
    any_model: whether it may be used with other models than the one that it was trained for, if the shapes fit.
    """

    W_enc: Float[Tensor, "d_in feature"]
    W_dec: Float[Tensor, "feature d_out"]
    b_enc: Float[Tensor, " feature"]
    b_dec: Float[Tensor, " d_out"]
    threshold: Float[Tensor, " feature"]
    site: str
    layer: int | None
    call: str = "sae"
    trained_for: TrainedFor = TrainedFor()
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
        return len(self.b_enc)

    @property
    def d_in(self) -> int:
        return len(self.W_enc)

    @property
    def d_out(self) -> int:
        return len(self.b_dec)

    @property
    def is_transcoder(self) -> bool:
        return self.site == TRANSCODER

    @property
    def writes(self) -> str:
        """The site that the reconstruction stands for."""
        return "mlp_out" if self.is_transcoder else self.site

    @property
    def device(self) -> torch.device:
        return self.W_enc.device

    @computes
    def encode(self, source: Trace | Tensor) -> Features:
        """The features of a run, or of rows [pos, d_in] of one's own: sparse activations at every position.

        A transcoder's input is the stream before the MLP over its root mean square, without the gain of the norm: read
        from resid_mid, so that it is exact where the gain is near zero (an edit of mlp_in itself is not seen).
        Rows given to a transcoder are that input. Raises DictionaryError for a run of another model, and for rows of
        another width.
        """
        from gemmascope.sae.features import Features

        self.require_values()
        if is_trace(source) or not is_array(source):
            return Features.of_trace(self, source)
        rows = real_tensor(source, "the rows", DictionaryError)
        self._require_width(rows, self.d_in, "reads")
        return Features.of_rows(self, rows.detach().to(self.device, torch.float32))

    @computes
    def decode(self, acts: Any) -> Float[Tensor, "pos d_out"]:
        """The reconstruction from activations [pos, feature], dense or sparse: acts @ W_dec + b_dec. Float32."""
        self.require_values()
        if not isinstance(acts, Tensor) or not acts.is_sparse or acts.is_complex() or acts.is_meta:
            acts = real_tensor(acts, "activations", DictionaryError)
        self._require_width(acts, self.n_features, "has features:")
        acts = acts.to(self.device, torch.float32)
        read: Tensor = torch.sparse.mm(acts, self.W_dec) if acts.is_sparse else acts @ self.W_dec
        return read + self.b_dec

    def activations(self, x: Any, features: Any = None) -> Float[Tensor, "pos some_or_all"]:
        """The activations of rows [pos, d_in], dense: of some features, or of all."""
        self.require_values()
        rows: Tensor = real_tensor(x, "the rows", DictionaryError).to(self.device, torch.float32)
        self._require_width(rows, self.d_in, "reads")
        some = slice(None) if features is None else self._numbers(features)
        pre = rows @ self.W_enc[:, some] + self.b_enc[some]
        return pre.relu() * (pre > self.threshold[some])

    def _numbers(self, features: Any) -> Tensor:
        """Features as the numbers of columns. DictionaryError for what is no list of them."""
        found = as_numbers(features)
        if found is None or not all(is_whole(one) and 0 <= int(one) < self.n_features for one in found):
            raise DictionaryError(f"features are numbers from 0 to {self.n_features - 1}; given {shown(features)}")
        return torch.tensor([int(one) for one in found if is_whole(one)], device=self.device, dtype=torch.long)

    def sparse(self, x: Float[Tensor, "pos d_in"]) -> tuple[Tensor, Tensor, Tensor]:
        """The activations above zero: position, feature and value of each, position by position.

        The rows go a few at a time: a million features at eight thousand positions are never held together.
        """
        step = max(1, CHUNK_ELEMENTS // self.n_features)
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        with torch.no_grad():
            for first in range(0, len(x), step):
                acts = self.activations(x[first : first + step])
                pos, feature = acts.nonzero(as_tuple=True)
                found.append((pos + first, feature, acts[pos, feature]))
        pos, feature, value = (torch.cat(part) for part in zip(*found, strict=True))
        return pos, feature, value

    def summed(self, pos: Tensor, feature: Tensor, value: Tensor, n_pos: int) -> Float[Tensor, "pos d_out"]:
        """The reconstruction from sparse activations, a few of them at a time."""
        total = self.b_dec.expand(n_pos, -1).clone()
        step = max(1, CHUNK_ELEMENTS // self.d_out)
        for first in range(0, len(pos), step):
            part = slice(first, first + step)
            total.index_add_(0, pos[part], value[part, None] * self.W_dec[feature[part]])
        return total

    def input_of(self, rows: Float[Tensor, "pos ..."]) -> Float[Tensor, "pos d_in"]:
        """What the dictionary reads, from rows of the site that it is read from: resid_mid for a transcoder. Float32."""
        x = rearrange(rows, "pos ... -> pos (...)").to(self.device, torch.float32)
        return x * rms_scale(x, NORM_EPS) if self.is_transcoder else x

    @property
    def read_from(self) -> str:
        """The site whose rows input_of takes."""
        return "resid_mid" if self.is_transcoder else self.site

    @computes
    def loss_recovered(self, prompts: Any, *, model: Model | None = None) -> LossRecovered:
        """How much of the next-token loss is kept when the reconstruction stands in the place of the site.

        prompts: one, or a list; one of them at least has two tokens after <bos>. See LossRecovered in loss.py.
        """
        from gemmascope.sae.loss import loss_recovered

        return loss_recovered(self, prompts, model)

    def require_fit(self, model: Model) -> None:
        """DictionaryError, which says both, if a model is not what the dictionary was trained for."""
        self.require_values()
        config, trained = model.config, self.trained_for
        wants = f"the dictionary {self.call} was trained for {trained}, {self._place()}"
        given = f"given {model.name!r} ({config.n_layers} layers, d_model {config.d_model})"
        other = "gs.load_sae(..., any_model=True) lets it be used with others of its shape"
        if not self.any_model:
            preset = PRESETS[trained.size] if trained.size else config
            if (preset.n_layers, preset.d_model) != (config.n_layers, config.d_model):
                raise DictionaryError(f"{wants}; {given}. {other}")
            if trained.fingerprint is not None and trained.fingerprint != (found := model.network_fingerprint):
                raise DictionaryError(
                    f"{wants} (fingerprint {trained.fingerprint}); {given}, whose weights or dtype differ "
                    f"(fingerprint {found}). {other}"
                )
        if self.layer is not None and self.layer >= config.n_layers:
            raise DictionaryError(f"{wants}; {given}: there is no layer {self.layer}")
        for what, width, site in (("reads", self.d_in, self.read_from), ("writes", self.d_out, self.writes)):
            there = 1
            for axis in find_site(site).axes[1:]:
                there *= config.size_of(axis, 0)
            if there != width:
                raise DictionaryError(f"{wants}, and {what} {width} numbers; {given}, whose '{site}' has {there}")
        if self.is_transcoder and config.norm_eps != NORM_EPS:
            raise DictionaryError(f"{wants}: norms with an epsilon of {NORM_EPS}; {given}, with {config.norm_eps}")

    @property
    def fingerprint(self) -> str:
        """A digest of the place and of every number of the arrays, as they are now."""
        arrays = (self.W_enc, self.b_enc, self.W_dec, self.b_dec, self.threshold)
        return join_digests((repr((self.site, self.layer)), *map(tensor_digest, arrays)))[:16]

    def require_values(self) -> None:
        """DeviceError for a dictionary on the meta device, which has shapes and no numbers."""
        if self.W_enc.is_meta:
            raise DeviceError(f"{self.call} is on the meta device, which has shapes and no values: load it on another one")

    def _require_width(self, given: Tensor, width: int, what: str) -> None:
        if given.dim() != 2 or given.shape[-1] != width:
            raise DictionaryError(
                f"the dictionary {self.call}, trained for {self.trained_for}, {self._place()}, {what} {width} numbers a "
                f"position, [pos, {width}]; given shape {tuple(given.shape)}"
            )

    def _place(self) -> str:
        where = "the MLP (a transcoder)" if self.is_transcoder else f"'{self.site}'"
        return where if self.layer is None else f"{where} of layer {self.layer}"

    @legibly
    def __repr__(self) -> str:
        sizes = f"{self.d_in} -> {self.n_features:,} features -> {self.d_out}"
        tied = f"; {len(self.concepts)} features tied to a concept" if self.concepts else ""
        return f"Dictionary({self.call}: {self._place()}, {sizes}; trained for {self.trained_for}{tied})"

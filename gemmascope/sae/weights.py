"""DictionaryWeights: the arrays of a dictionary, the site and layer that they are of, and the model that they fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from gemmascope.arguments import short_repr
from gemmascope.config import PRESETS
from gemmascope.errors import DictionaryError
from gemmascope.legible import legible_line, prints_legibly
from gemmascope.model.digests import join_digests
from gemmascope.model.maths import rms_scale
from gemmascope.model.model import Model
from gemmascope.sae.arrays import DictionaryArrays
from gemmascope.sae.catalogue import TRANSCODER
from gemmascope.sites import find_site

# What a transcoder may read, beside the stream divided by its root mean square, and what it may write.
INPUT_SITES, OUTPUT_SITES = ("resid_mid", "mlp_in"), ("mlp_out", "mlp_raw")
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

    @classmethod
    def of_name(cls, name: str | None) -> TrainedFor:
        """The model that a library calls by a name such as "gemma-2-2b" or "google/gemma-2-9b-it"."""
        known = re.fullmatch(r"(?:google/)?(gemma-2-(2b|9b|27b)(?:-it)?)", name or "")
        return cls(f"google/{known[1]}", known[2]) if known else cls(name)

    @prints_legibly
    def __str__(self) -> str:
        name = legible_line(self.model or "a model that its files do not name")
        if self.size is None:
            return name
        return f"{name} ({PRESETS[self.size].n_layers} layers, d_model {PRESETS[self.size].d_model})"


@dataclass(frozen=True, eq=False, repr=False)
class DictionaryWeights(DictionaryArrays):
    """The arrays of a dictionary of features, what they compute, and what they were trained for."""

    site: str
    layer: int | None
    call: str = "sae"
    trained_for: TrainedFor = field(default_factory=TrainedFor)
    concepts: Mapping[int, Tie] = field(default_factory=dict)
    any_model: bool = False
    input_site: str | None = field(default=None, kw_only=True)
    output_site: str = field(default="mlp_out", kw_only=True)

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
            if self.W_skip is not None:
                raise DictionaryError("W_skip is of transcoders: say site='transcoder'")
            if self.input_site is not None or self.output_site != "mlp_out":
                raise DictionaryError(f"input_site and output_site are of transcoders; this one is of '{self.site}'")
        elif self.input_site not in (None, *INPUT_SITES) or self.output_site not in OUTPUT_SITES:
            raise DictionaryError(
                f"a transcoder reads one of {', '.join(map(repr, INPUT_SITES))} (or None: the stream before the MLP divided "
                f"by its root mean square) and writes one of {', '.join(map(repr, OUTPUT_SITES))}; given "
                f"{short_repr(self.input_site)} and {short_repr(self.output_site)}"
            )

    @property
    def is_transcoder(self) -> bool:
        """Whether it reads the MLP's input and writes its output."""
        return self.site == TRANSCODER

    @property
    def read_from(self) -> str:
        """The site whose rows input_of takes: for a transcoder its input_site, or resid_mid."""
        return (self.input_site or "resid_mid") if self.is_transcoder else self.site

    @property
    def writes(self) -> str:
        """The site that the reconstruction stands for: for a transcoder its output_site."""
        return self.output_site if self.is_transcoder else self.site

    @property
    def reads_normed(self) -> bool:
        """Whether it reads the stream divided by its root mean square, without a norm's gain."""
        return self.is_transcoder and self.input_site is None

    def input_of(self, rows: Float[Tensor, "pos ..."]) -> Float[Tensor, "pos d_in"]:
        """What the dictionary reads, float32.

        Args:
            rows: Rows of the site read_from.
        """
        x = rearrange(rows, "pos ... -> pos (...)").to(self.device, torch.float32)
        return x * rms_scale(x, NORM_EPS) if self.reads_normed else x

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
        if self.reads_normed and config.norm_eps != NORM_EPS:
            raise DictionaryError(f"{expected}: norms with an epsilon of {NORM_EPS}; {actual}, with {config.norm_eps}")

    @property
    def fingerprint(self) -> str:
        """A hash of the site, the layer and every number of the arrays, as they are now."""
        place: tuple[object, ...] = (self.site, self.layer)
        if self.input_site is not None or self.output_site != "mlp_out":
            place += (self.input_site, self.output_site)
        return join_digests((repr(place), *self._digests))[:16]

    @property
    def _place(self) -> str:
        """The site and layer, as text."""
        site = "the MLP (a transcoder)" if self.is_transcoder else f"'{self.site}'"
        return site if self.layer is None else f"{site} of layer {self.layer}"

    @property
    def _described(self) -> str:
        return f"the dictionary {self.call}, trained for {self.trained_for}, {self._place}"

    @property
    def _short_name(self) -> str:
        return self.call

    @prints_legibly
    def __repr__(self) -> str:
        sizes = f"{self.d_in} -> {self.n_features:,} features -> {self.d_out}"
        tied = f"; {len(self.concepts)} features tied to a concept" if self.concepts else ""
        return f"Dictionary({self.call}: {self._place}, {sizes}; trained for {self.trained_for}{tied})"

"""Which models a dictionary fits: what it was trained for, and the shapes that it reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gemmascope.config import PRESETS
from gemmascope.errors import DictionaryError
from gemmascope.legible import legibly, spelled
from gemmascope.model.model import Model
from gemmascope.sites import find_site

if TYPE_CHECKING:
    from gemmascope.sae.dictionary import Dictionary

# The epsilon of Gemma 2's norms, which a transcoder's input goes through.
NORM_EPS = 1e-6


@dataclass(frozen=True)
class TrainedFor:
    """The model that a dictionary was trained for; None for what is not known.

    size: the preset of the model, such as "2b". fingerprint: the model's network_fingerprint.
    """

    model: str | None = None
    size: str | None = None
    fingerprint: str | None = None

    @legibly
    def __str__(self) -> str:
        name = spelled(self.model or "a model that its files do not name")
        if self.size is None:
            return name
        return f"{name} ({PRESETS[self.size].n_layers} layers, d_model {PRESETS[self.size].d_model})"


def require_fit(dictionary: Dictionary, place: str, model: Model) -> None:
    """DictionaryError, which names both, if the dictionary was not trained for the model or the shapes do not fit.

    place: its site and layer, as text.
    """
    config, trained = model.config, dictionary.trained_for
    wants = f"the dictionary {dictionary.call} was trained for {trained}, {place}"
    given = f"given {model.name!r} ({config.n_layers} layers, d_model {config.d_model})"
    hint = "gs.load_sae(..., any_model=True) lets it be used with others of its shape"
    if not dictionary.any_model:
        preset = PRESETS[trained.size] if trained.size else config
        if (preset.n_layers, preset.d_model) != (config.n_layers, config.d_model):
            raise DictionaryError(f"{wants}; {given}. {hint}")
        if trained.fingerprint is not None and trained.fingerprint != (fingerprint := model.network_fingerprint):
            raise DictionaryError(
                f"{wants} (its about.json has fingerprint {trained.fingerprint}); {given}, whose weights or dtype "
                f"differ (fingerprint {fingerprint}). {hint}"
            )
    if dictionary.layer is not None and dictionary.layer >= config.n_layers:
        raise DictionaryError(f"{wants}; {given}: there is no layer {dictionary.layer}")
    sides = (("reads", dictionary.d_in, dictionary.read_from), ("writes", dictionary.d_out, dictionary.writes))
    for verb, width, site in sides:
        site_width = 1
        for axis in find_site(site).axes[1:]:
            site_width *= config.size_of(axis, 0)
        if site_width != width:
            raise DictionaryError(f"{wants}, and {verb} {width} numbers; {given}, whose '{site}' has {site_width}")
    if dictionary.is_transcoder and config.norm_eps != NORM_EPS:
        raise DictionaryError(f"{wants}: norms with an epsilon of {NORM_EPS}; {given}, with {config.norm_eps}")

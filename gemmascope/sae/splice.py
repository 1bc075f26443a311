"""gs.splice: features of a dictionary set to values in a run, with the dictionary's error kept.

    x' = x + decode(acts') - decode(acts)

Only the features that change are computed, so a feature that keeps its value leaves x as it is, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gemmascope.arguments import finite_number, is_number, is_whole, shown, true_or_false
from gemmascope.edits.bound import BoundEdit
from gemmascope.edits.call_text import plain
from gemmascope.edits.edit import Edit
from gemmascope.edits.places import Pos
from gemmascope.errors import DictionaryError, EditError
from gemmascope.legible import legibly
from gemmascope.model.model import Model
from gemmascope.sae.dictionary import Dictionary

# Values are written in float32, where a larger one would be infinity.
LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class Splice(Edit):
    dictionary: Dictionary
    features: Mapping[int, float]
    keep_error: bool = True
    records = True  # the arrays of a dictionary can be written to

    @property
    def reads(self) -> str | None:
        return self.dictionary.read_from if self.dictionary.is_transcoder else None

    @property
    def extra_hash(self) -> Any:
        return self.dictionary.fingerprint

    def bind(self, model: Model, ids: Tensor) -> BoundEdit:
        """This edit, on a run of these ids. DictionaryError for a model that the dictionary was not trained for."""
        _require_fit(self.dictionary, model)
        if self.pos is not None:
            return super().bind(model, ids)
        after = list(range(int(ids[0] == model.config.bos_id), len(ids)))
        if not after:
            raise EditError(f"{self!r} leaves <bos> alone, and the run has nothing else: name pos=0 to splice there")
        return replace(replace(self, pos=after).bind(model, ids), edit=self)

    def write(self, old: Tensor, values: Tensor | None) -> Tensor:
        if self.keep_error and not self.features:
            return old
        d = self.dictionary
        x = d.input_of(old if values is None else values)
        changed = torch.tensor(list(self.features), dtype=torch.long, device=d.device)
        wanted = torch.tensor(list(self.features.values()), dtype=torch.float32, device=d.device)
        if self.keep_error:
            change = (wanted - d.activations(x, changed)) @ d.W_dec[changed]
            return old.float() + change.to(old.device).reshape(old.shape)
        acts = d.activations(x).index_copy(1, changed, wanted.expand(len(x), -1))
        return d.decode(acts).to(old.device).reshape(old.shape)

    @legibly
    def __repr__(self) -> str:
        said = [self.dictionary.call]
        said += [f"features={dict(self.features)!r}"] if self.features else []
        said += [f"{name}={plain(value)!r}" for name, value in (("pos", self.pos), ("head", self.head)) if value is not None]
        return f"gs.splice({', '.join(said)}{'' if self.keep_error else ', keep_error=False'})"


# For each dictionary the models that it was found to fit, and how their weights looked: a sweep binds it in every cell.
_FITS: WeakKeyDictionary[Dictionary, WeakKeyDictionary[Model, object]] = WeakKeyDictionary()


def _require_fit(sae: Dictionary, model: Model) -> None:
    known, looks = _FITS.setdefault(sae, WeakKeyDictionary()), model.weights.looks()
    if known.get(model) != looks:
        sae.require_fit(model)
        known[model] = looks


def splice(
    sae: Dictionary, features: Mapping[int, float] | None = None, *, pos: Pos = None, keep_error: bool = True
) -> Splice:
    """Set features of a dictionary to values in a run, at the dictionary's site and layer.

    features: {feature: activation}; 0.0 takes a feature out. pos: as in gs.patch, but None means every position except
    a <bos> in front, on which dictionaries are not trained: name pos=0 for that one. keep_error: what the dictionary does
    not explain stays as it was, so that no change of features changes nothing; False writes the plain reconstruction, of
    the changed features and all others. A transcoder's features are read from its layer's MLP input and change mlp_out.
    Raises DictionaryError for a feature that is not there or a value that is no number; for a model that the dictionary
    was not trained for, when the edit meets a run.
    """
    if not isinstance(sae, Dictionary):
        raise DictionaryError(f"a dictionary is what gs.load_sae returns; given {type(sae).__name__}")
    if features is not None and not isinstance(features, Mapping):
        raise DictionaryError(f"features is a mapping of numbers, such as {{17: 0.0}}; given {shown(features)}")
    keep_error = true_or_false(keep_error, "keep_error", error=DictionaryError)
    found = {feature_number(sae, key): _value(value) for key, value in (features or {}).items()}
    return Splice(site=sae.writes, layer=sae.layer, pos=pos, dictionary=sae, features=found, keep_error=keep_error)


def feature_number(sae: Dictionary, given: Any) -> int:
    """A feature's number. DictionaryError for one that is not there."""
    if not is_whole(given) or not 0 <= int(given) < sae.n_features:
        raise DictionaryError(
            f"there is no feature {shown(given)}: the features of {sae.call} go from 0 to {sae.n_features - 1}"
        )
    return int(given)


def _value(given: Any) -> float:
    if not is_number(given):
        raise DictionaryError(f"a feature's value is a number; given {shown(given)}")
    value = finite_number(given, "a feature's value", error=DictionaryError)
    if abs(value) > LARGEST:
        raise DictionaryError(f"a feature's value is at most {LARGEST:.3g}, the largest float32; given {shown(given)}")
    return value

"""gs.splice: set features of a dictionary to values in a run, and keep the dictionary's error.

    x' = x + decode(acts') - decode(acts)

Only the features that change are computed, so a feature that keeps its value leaves x as it is, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gemmascope.arguments import finite_number, is_number, short_repr, true_or_false
from gemmascope.edits.call_text import plain
from gemmascope.edits.edit import BoundEdit, Edit
from gemmascope.edits.places import Pos
from gemmascope.errors import DictionaryError, EditError
from gemmascope.legible import prints_legibly
from gemmascope.model.model import Model
from gemmascope.sae.cross_layer import CrossLayerTranscoder
from gemmascope.sae.features import feature_number, first_after_bos
from gemmascope.sae.weights import DictionaryWeights

# Values are written in float32, in which a larger one would be infinity.
LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class Splice(Edit):
    """An edit that sets features of a dictionary. Made by gs.splice."""

    dictionary: DictionaryWeights
    features: Mapping[int, float]
    keep_error: bool = True
    records = True  # the arrays of a dictionary can be written to

    @property
    def reads(self) -> str | None:
        return self.dictionary.read_from if self.dictionary.is_transcoder else None

    @property
    def basis(self) -> object:
        return self.dictionary

    @property
    def extra_hash(self) -> str:
        return self.dictionary.fingerprint

    def bind(self, model: Model, ids: Tensor) -> BoundEdit:
        """This edit on a run of these ids. DictionaryError for a model that the dictionary was not trained for."""
        _require_fit(self.dictionary, model)
        if self.pos is not None:
            return super().bind(model, ids)
        positions = list(range(first_after_bos(ids, model), len(ids)))
        if not positions:
            raise EditError(f"{self!r} leaves <bos> alone, and the run has nothing else: name pos=0 to splice there")
        return replace(replace(self, pos=positions).bind(model, ids), edit=self)

    def write(self, old: Tensor, values: Tensor | None) -> Tensor:
        if self.keep_error and not self.features:
            return old
        d = self.dictionary
        x = d.input_of(old if values is None else values)
        features = torch.tensor(list(self.features), dtype=torch.long, device=d.device)
        new = torch.tensor(list(self.features.values()), dtype=torch.float32, device=d.device)
        if self.keep_error:
            change = (new - d.activations(x, features)) @ d.W_dec[features]
            if d.normalization is not None:
                change = change * d.normalization.scale(x)
            return old.float() + change.to(old.device).reshape(old.shape)
        acts = d.activations(x).index_copy(1, features, new.expand(len(x), -1))
        return d.decode(acts, x).to(old.device).reshape(old.shape)

    @prints_legibly
    def __repr__(self) -> str:
        arguments = [self.dictionary.call]
        arguments += [f"features={dict(self.features)!r}"] if self.features else []
        places = (("pos", self.pos), ("head", self.head))
        arguments += [f"{name}={plain(value)!r}" for name, value in places if value is not None]
        return f"gs.splice({', '.join(arguments)}{'' if self.keep_error else ', keep_error=False'})"


# For each dictionary, the models that it was found to fit and how their weights looked: a sweep binds it in every cell.
_FITS: WeakKeyDictionary[DictionaryWeights, WeakKeyDictionary[Model, object]] = WeakKeyDictionary()


def _require_fit(dictionary: DictionaryWeights, model: Model) -> None:
    """Dictionary.require_fit, once for each state of a model's weights."""
    fits, looks = _FITS.setdefault(dictionary, WeakKeyDictionary()), model.weights.looks()
    if fits.get(model) != looks:
        dictionary.require_fit(model)
        fits[model] = looks


def splice(
    sae: DictionaryWeights, features: Mapping[int, float] | None = None, *, pos: Pos = None, keep_error: bool = True
) -> Splice:
    """The edit that sets features of a dictionary to values, at the dictionary's site and layer.

    A transcoder's features are read from its layer's MLP input, and change its output: mlp_out, after the post-norm.

    Args:
        sae: A dictionary from gs.load_sae.
        features: {feature: activation}, where 0.0 removes a feature. None changes none.
        pos: The positions to edit, as in gs.patch. None means every position but a `<bos>` at the start, on which
            dictionaries are not trained; name pos=0 for that one.
        keep_error: Whether to keep what the dictionary does not explain, so that changing no feature changes nothing. False
            writes the plain reconstruction, from the changed features and all others.

    Returns:
        An edit for gs.trace and every other call that takes edits. It raises DictionaryError when it meets a run of a model
        that the dictionary was not trained for, and EditError beside a splice of another dictionary in the same rows.

    Raises:
        DictionaryError: For a feature that is not there, or a value that is no number.

    Examples:
        >>> edit = gs.splice(gs.load_sae(), {887: 0.0})
        >>> trace = gs.trace("When Mary and John went to the store, John gave a drink to", edits=[edit])
        >>> trace.top(1)[0][0]
        ' Mary'
    """
    if isinstance(sae, CrossLayerTranscoder):
        raise DictionaryError(
            f"{sae.call} cannot be spliced: its features write to several layers, and an edit is of one. "
            "gs.add(sae.output_site, vector, layer=...) writes what a feature decodes to"
        )
    if not isinstance(sae, DictionaryWeights):
        raise DictionaryError(f"a dictionary is what gs.load_sae returns; given {type(sae).__name__}")
    if features is not None and not isinstance(features, Mapping):
        raise DictionaryError(f"features is a mapping of numbers, such as {{17: 0.0}}; given {short_repr(features)}")
    keep_error = true_or_false(keep_error, "keep_error", error=DictionaryError)
    values = {feature_number(sae, feature): _activation(value) for feature, value in (features or {}).items()}
    return Splice(site=sae.writes, layer=sae.layer, pos=pos, dictionary=sae, features=values, keep_error=keep_error)


def _activation(value: object) -> float:
    """The value of a feature. DictionaryError for what is no number, or too large for float32."""
    if not is_number(value):
        raise DictionaryError(f"a feature's value is a number; given {short_repr(value)}")
    number = finite_number(value, "a feature's value", error=DictionaryError)
    if abs(number) > LARGEST:
        raise DictionaryError(f"a feature's value is at most {LARGEST:.3g}, the largest float32; given {short_repr(value)}")
    return number

"""gs.feature_on: the condition of an edit that a dictionary's feature is on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gemmascope.arguments import finite_number, short_repr, whole_number
from gemmascope.edits.target import Target
from gemmascope.errors import DictionaryError, EditError
from gemmascope.model.digests import join_digests
from gemmascope.sae.dictionary import Dictionary


@dataclass(frozen=True, eq=False)
class FeatureOn:
    """Where a feature's activation exceeds a value. Made by gs.feature_on."""

    sae: Dictionary
    feature: int
    above: float

    def __call__(self, rows: Tensor) -> Tensor:
        with torch.no_grad():
            acts = self.sae.activations(self.sae.input_of(rows.detach().to(self.sae.device)), [self.feature])
        return acts.reshape(len(rows)) > self.above

    def digest(self) -> str:
        return join_digests([self.sae.fingerprint, repr(self.feature), repr(self.above)])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FeatureOn) and self.digest() == other.digest()

    def __hash__(self) -> int:
        return hash((self.feature, self.above))

    def __repr__(self) -> str:
        return f"gs.feature_on(sae, {self.feature}, above={self.above!r})"

    def require_fit(self, target: Target) -> None:
        """EditError for another place than the one that the dictionary reads, DictionaryError for another model."""
        self.sae.require_fit(target.model)
        reads = self.sae.read_from
        if target.address.key != (reads, self.sae.layer):
            raise EditError(
                f"the feature is read at '{reads}' of layer {self.sae.layer}, and the edit writes '{target.address}': a "
                "condition reads the rows that the edit changes. Steer there, or take a probe of those rows"
            )


def feature_on(sae: Dictionary, feature: int, above: float = 0.0) -> FeatureOn:
    """The condition that a dictionary's feature is on, for an edit's when=.

    Args:
        sae: What gs.load_sae returns; the edit is at the site and layer that it reads.
        feature: The feature's number.
        above: The activation to exceed. Default 0.0.

    Returns:
        The condition, for when= of gs.add, gs.patch, gs.ablate, gs.ablate_direction and gs.scale.

    Raises:
        DictionaryError: sae is no dictionary, needs rows that a condition does not see, or has no such feature.

    Examples:
        >>> sae = gs.load_sae(layer=3)
        >>> t = gs.trace("When Mary and John went to the store, John gave a drink to")
        >>> acts = sae.activations(t[sae.read_from, sae.layer])
        >>> feature = int(acts.max(0).values.argmax())
        >>> steer = gs.scale(sae.read_from, 0.5, layer=sae.layer, when=gs.feature_on(sae, feature))
        >>> moved = gs.trace(t.ids, edits=[steer])
        >>> changed = (moved[sae.read_from, sae.layer] != t[sae.read_from, sae.layer]).any(1)
        >>> bool((changed == (acts[:, feature] > 0)).all())
        True
    """
    if not isinstance(sae, Dictionary):
        raise DictionaryError(f"a feature is one of a dictionary, what gs.load_sae returns; given {short_repr(sae)}")
    number = whole_number(feature, "feature", least=0, most=sae.n_features - 1, error=DictionaryError)
    return FeatureOn(sae, number, finite_number(above, "above", error=DictionaryError))

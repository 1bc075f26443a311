"""Pictures of features: their activations by position, and what changing them does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gemmascope.arguments import whole_number
from gemmascope.errors import DictionaryError
from gemmascope.figures.labelled import labelled_figure

if TYPE_CHECKING:
    import xarray

    from gemmascope.sae.feature_sweep import FeatureSweep
    from gemmascope.sae.features import Features


def features_figure(found: Features, features: Sequence[int]) -> Any:
    """A heat map of activations, features down and positions along. <bos> is left out of the colours' range, and hatched."""
    acts = found.acts
    if not features:
        raise DictionaryError("no feature is active here: there is nothing to draw")
    drawn = acts.reindex(feature=list(features), fill_value=0).transpose("feature", "pos")
    if "concept" in drawn.coords:
        ties = [found.dictionary.concepts.get(f) for f in features]
        drawn = drawn.assign_coords(concept=("feature", [tie.concept if tie else "" for tie in ties]))
    drawn = drawn.astype(float).isel(feature=slice(None, None, -1))  # the first one on top
    drawn[:, : found.first] = np.nan
    title = f"features of {found.dictionary.call}"
    return _named(labelled_figure(_labelled(drawn), title=title, unit="activation", diverging=False))


def sweep_figure(found: FeatureSweep, most: int) -> Any:
    """Bars of the largest effects, or a heat map of features by position."""
    most = whole_number(most, "most", least=1, error=DictionaryError)
    sizes = np.abs(found.effect.values).reshape(found.effect.sizes["feature"], -1).max(1)
    order = np.argsort(-sizes, kind="stable")[:most]
    drawn = found.effect.isel(feature=order if found.effect.ndim == 1 else order[::-1])
    title = f"features of {found.sae.call} set to {found.value:g}, {found.model}"
    return _named(labelled_figure(_labelled(drawn), title=title, unit=f"change of {found.metric}", diverging=True))


def _labelled(array: xarray.DataArray) -> xarray.DataArray:
    """Features by name: their numbers are no places on an axis."""
    concepts = array["concept"].values if "concept" in array.coords else [""] * array.sizes["feature"]
    names = [f"{f} {c}".strip() for f, c in zip(array["feature"].values, concepts, strict=True)]
    return array.drop_vars("concept", errors="ignore").assign_coords(feature=names)


def _named(figure: Any) -> Any:
    figure.update_layout(margin={"l": 10, "t": 70})
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    return figure

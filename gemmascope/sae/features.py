"""Features: what a dictionary finds in a run, as sparse activations, with what it leaves unexplained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gemmascope.arguments import as_list, whole_number
from gemmascope.arguments import shown as quoted
from gemmascope.edits.places import find_positions
from gemmascope.edits.sources import is_trace, not_a_trace
from gemmascope.errors import DictionaryError
from gemmascope.legible import legibly, spelled
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.sae.dictionary import Dictionary
from gemmascope.tokens.tokenizer import shown
from gemmascope.values import in_float64

if TYPE_CHECKING:
    import pandas
    import xarray
    from plotly.graph_objects import Figure

    from gemmascope.run.trace import Trace

# A table of positions by active features is made up to so many cells: 1 GB.
MOST_CELLS = 2**28
SHOWN_POSITIONS, SHOWN_FEATURES = 24, 3


@dataclass(frozen=True, eq=False, repr=False)
class Features:
    """The active features of a run at every position. Made by Dictionary.encode.

    pos, feature, value: of each activation above zero, position by position. target: what the reconstruction stands for,
    [pos, d_out] in float32, the heads of z side by side; None for a transcoder's rows that came without. tokens: as text;
    of rows that came without, their numbers. first: the first position that <bos> does not take.
    """

    dictionary: Dictionary
    pos: Int[Tensor, " active"]
    feature: Int[Tensor, " active"]
    value: Float[Tensor, " active"]
    target: Float[Tensor, "pos d_out"] | None
    tokens: tuple[str, ...]
    first: int = 0
    model: Model | None = None
    ids: Tensor | None = None

    @classmethod
    def of_trace(cls, dictionary: Dictionary, trace: Trace | Any) -> Features:
        """The features of a run. DictionaryError for what is no trace, or a trace of another model."""
        if not is_trace(trace):
            raise DictionaryError(f"encode takes a trace, or rows [pos, {dictionary.d_in}]; given {not_a_trace(trace)}")
        dictionary.require_fit(trace.model)
        read, target = (
            trace[site if dictionary.layer is None else (site, dictionary.layer)]
            for site in (dictionary.read_from, dictionary.writes)
        )
        first = int(trace.ids[0] == trace.model.config.bos_id)
        rows = target.flatten(1).to(dictionary.device, torch.float32)
        active = dictionary.sparse(dictionary.input_of(read))
        return cls(dictionary, *active, rows, tuple(trace.tokens), first, trace.model, trace.ids)

    @classmethod
    def of_rows(cls, dictionary: Dictionary, x: Tensor) -> Features:
        """The features of rows [pos, d_in]."""
        target = None if dictionary.is_transcoder else x
        return cls(dictionary, *dictionary.sparse(x), target, tuple(map(str, range(len(x)))))

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def active(self) -> list[int]:
        """The features that are active anywhere, in order."""
        return sorted(set(self.feature.tolist()))

    @property
    @computes
    def l0(self) -> xarray.DataArray:
        """How many features are active at each position, [pos]."""
        import xarray

        counts = torch.bincount(self.pos, minlength=len(self)).cpu().numpy()
        return xarray.DataArray(counts, dims="pos", coords=self._pos_coords(), name="active features")

    @property
    @computes
    def acts(self) -> xarray.DataArray:
        """The activations of the features that are active anywhere, [pos, feature]: zero where one is not active.

        DictionaryError where that is too large a table: encode fewer positions, or read pos, feature and value.
        """
        import xarray

        n_cells = len(self) * len(self.active)
        if n_cells > MOST_CELLS:
            raise DictionaryError(
                f"{len(self)} positions by {len(self.active)} active features are {n_cells:,} cells: encode fewer rows at a "
                "time, or read .pos, .feature and .value, which hold the active ones alone"
            )
        columns = torch.searchsorted(torch.tensor(self.active, device=self.feature.device), self.feature)
        table = self.value.new_zeros(len(self), len(self.active))
        table[self.pos, columns] = self.value
        coords = {**self._pos_coords(), **feature_coords(self.dictionary, self.active)}
        return xarray.DataArray(table.cpu().numpy(), dims=("pos", "feature"), coords=coords, name="activation")

    @computes
    def top(self, k: int = 5, pos: int | str = -1) -> list[tuple[int, float, str | None]]:
        """The k strongest features at a position: (feature, activation, concept or None), the strongest first.

        A concept is named where the activation is above what the feature's tie to it asks for.
        pos: a number, or a token that occurs once. SiteError for a position that is not there.
        """
        k = whole_number(k, "k", least=1, error=DictionaryError)
        here = self.pos == self._position(pos)
        strongest = self.value[here].sort(descending=True)
        features = self.feature[here][strongest.indices][:k].tolist()
        return [(f, v, self._concept(f, v)) for f, v in zip(features, strongest.values.tolist(), strict=False)]

    @cached_property
    @computes
    def reconstruction(self) -> Float[Tensor, "pos d_out"]:
        """What the dictionary makes of the active features. Float32."""
        return self.dictionary.summed(self.pos, self.feature, self.value, len(self))

    @property
    @computes
    def error(self) -> Float[Tensor, "pos d_out"]:
        """What the reconstruction leaves out: the site's value less the reconstruction."""
        return self._target() - self.reconstruction

    @property
    @computes
    def explained(self) -> float:
        """The share of variance explained: 1 - sum |x - reconstruction|^2 / sum |x - mean|^2, all positions but <bos>.

        The sums run over positions and dimensions, the mean over positions; NaN where fewer than two positions are left.
        """
        x, error = in_float64(self._target()[self.first :]), in_float64(self.error[self.first :])
        total = (x - x.mean(0)).square().sum()
        return float(1 - error.square().sum() / total) if len(x) > 1 else float("nan")

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each activation: pos, token, feature, activation, and the concept as in top."""
        import pandas

        pos, feature = self.pos.tolist(), self.feature.tolist()
        return pandas.DataFrame(
            {
                "pos": pos,
                "token": [self.tokens[p] for p in pos],
                "feature": feature,
                "activation": self.value.tolist(),
                "concept": [self._concept(f, v) for f, v in zip(feature, self.value.tolist(), strict=True)],
            }
        )

    def plot(self, features: Sequence[int] | None = None, *, most: int = 20) -> Figure:
        """A plotly heat map of features by position: those named, or the `most` strongest away from <bos>. Needs plotly."""
        from gemmascope.figures.features import features_figure
        from gemmascope.sae.splice import feature_number

        if features is None:
            chosen = self.strongest(most)
        else:
            chosen = [feature_number(self.dictionary, f) for f in as_list(features, "features", error=DictionaryError)]
        if not chosen:
            raise DictionaryError("no feature is active here: there is nothing to draw")
        acts = self.acts.reindex(feature=chosen, fill_value=0).transpose("feature", "pos").astype(float)
        if "concept" in acts.coords:
            ties = [self.dictionary.concepts.get(f) for f in chosen]
            acts = acts.assign_coords(concept=("feature", [tie.concept if tie else "" for tie in ties]))
        acts[:, : self.first] = float("nan")  # <bos> would take up the whole range of the colours
        return features_figure(acts, title=f"features of {self.dictionary.call}", unit="activation", diverging=False)

    def strongest(self, n: int) -> list[int]:
        """The n features with the largest activations, <bos> left out, the largest first."""
        n = whole_number(n, "how many features to take", least=1, error=DictionaryError)
        there = self.pos >= self.first
        order = self.value[there].argsort(descending=True)
        return list(dict.fromkeys(self.feature[there][order].tolist()))[:n]

    @legibly
    def __repr__(self) -> str:
        d, n = self.dictionary, len(self)
        active = len(set(self.feature[self.pos >= self.first].tolist()))
        head = f"Features of {n} position{'s' * (n != 1)} in {d.call}: {active} of {d.n_features:,} are active, "
        l0 = torch.bincount(self.pos, minlength=n)[self.first :].float().mean()
        told = "" if self.target is None else f"; explained {self.explained:.1%} of the variance"
        lines = [head + f"{l0:.1f} a position{told}{' (<bos> left out)' if self.first else ''}"]
        for pos in range(self.first, min(n, self.first + SHOWN_POSITIONS)):
            top = ", ".join(_said(*found) for found in self.top(SHOWN_FEATURES, pos))
            lines.append(f"  {pos:>3} {shown(self.tokens[pos])}  {top}")
        more = n - self.first - SHOWN_POSITIONS
        return "\n".join([*lines, *[f"  … {more} more positions"] * (more > 0)])

    def _position(self, pos: Any) -> int:
        if self.model is not None and self.ids is not None:
            found = find_positions(pos, self.model, self.ids)
        else:
            most = len(self) - 1
            found = [whole_number(pos, "a position", least=-len(self), most=most, error=DictionaryError) % len(self)]
        if len(found) != 1:
            raise DictionaryError(f"one position is read at a time; given {quoted(pos)}")
        return found[0]

    def _target(self) -> Tensor:
        if self.target is None:
            raise DictionaryError("a transcoder's rows say nothing of the output they stand for: encode a trace instead")
        return self.target

    def _concept(self, feature: int, value: float) -> str | None:
        """The concept of an activation: its feature's, where it is as large as the tie to that asks for."""
        tie = self.dictionary.concepts.get(feature)
        return tie.concept if tie and value > tie.above else None

    def _pos_coords(self) -> dict[str, Any]:
        return {"pos": range(len(self)), "token": ("pos", list(self.tokens))}


def feature_coords(dictionary: Dictionary, features: Sequence[int]) -> dict[str, Any]:
    """xarray coordinates of a feature axis: the numbers, and their concepts where any feature has one."""
    coords: dict[str, Any] = {"feature": list(features)}
    if dictionary.concepts:
        ties = [dictionary.concepts.get(feature) for feature in features]
        coords["concept"] = ("feature", [tie.concept if tie else "" for tie in ties])
    return coords


def _said(feature: int, value: float, concept: str | None) -> str:
    return f"{feature}{f' ({spelled(concept)})' if concept else ''} {value:.3g}"

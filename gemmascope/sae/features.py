"""Features: a dictionary's sparse activations in a run, and what its reconstruction leaves unexplained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gemmascope.arguments import as_list, is_whole, short_repr, whole_number
from gemmascope.edits.places import find_positions
from gemmascope.edits.sources import is_trace, not_a_trace
from gemmascope.errors import DictionaryError
from gemmascope.legible import legible_line, prints_legibly
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.sae.weights import DictionaryWeights
from gemmascope.sweeps.metadata import prompts_line, words_of
from gemmascope.tokens.tokenizer import visible_text
from gemmascope.values import in_float64, labelled

if TYPE_CHECKING:
    import pandas
    import xarray
    from plotly.graph_objects import Figure


# The largest table of positions by active features, in cells: 1 GB.
MOST_CELLS = 2**28
SHOWN_POSITIONS, SHOWN_FEATURES = 24, 3


@dataclass(frozen=True, eq=False, repr=False)
class Features:
    """The active features of a run at every position. Made by Dictionary.encode.

    Attributes:
        dictionary: The dictionary that encoded the run.
        pos: The position of each activation above zero, [active], in rising order.
        feature: Its feature, [active].
        value: Its value, [active].
        target: What the reconstruction stands for, [pos, d_out] in float32, with the heads of z side by side. None for rows
            that were encoded by a transcoder, whose output is not known.
        tokens: The tokens as text; for rows without a run, their numbers.
        first: The first position after `<bos>`; 0 without a `<bos>` at the start.
        model: The model of the run; None for rows.
        ids: The token ids of the run; None for rows.
        rows: The rows that were encoded, [pos, d_in], if the reconstruction depends on them; else None.

    Examples:
        >>> features = gs.load_sae().encode(gs.trace("When Mary and John went to the store, John gave a drink to"))
        >>> features.top(1, pos=2)
        [(987, 6.9..., "a person's name")]
        >>> round(features.explained, 2)
        0.89
    """

    dictionary: DictionaryWeights
    pos: Int[Tensor, " active"]
    feature: Int[Tensor, " active"]
    value: Float[Tensor, " active"]
    target: Float[Tensor, "pos d_out"] | None
    tokens: tuple[str, ...]
    first: int = 0
    model: Model | None = None
    ids: Tensor | None = None
    rows: Float[Tensor, "pos d_in"] | None = None

    @classmethod
    def of_trace(cls, dictionary: DictionaryWeights, trace: object) -> Features:
        """The features of a run. DictionaryError for something that is not a trace, or a trace of another model.

        Args:
            dictionary: The dictionary.
            trace: What gs.trace returns.
        """
        if not is_trace(trace):
            raise DictionaryError(f"encode takes a trace, or rows [pos, {dictionary.d_in}]; given {not_a_trace(trace)}")
        dictionary.require_fit(trace.model)
        read, target = (
            trace[site if dictionary.layer is None else (site, dictionary.layer)]
            for site in (dictionary.read_from, dictionary.writes)
        )
        first = first_after_bos(trace.ids, trace.model)
        rows = target.flatten(1).to(dictionary.device, torch.float32)
        x = dictionary.input_of(read)
        kept = x if dictionary.needs_rows else None
        return cls(dictionary, *dictionary.sparse(x), rows, tuple(trace.tokens), first, trace.model, trace.ids, kept)

    @classmethod
    def of_rows(cls, dictionary: DictionaryWeights, x: Tensor) -> Features:
        """The features of rows without a run.

        Args:
            dictionary: The dictionary.
            x: Rows [pos, d_in], float32.
        """
        target = None if dictionary.is_transcoder else x
        kept = x if dictionary.needs_rows else None
        return cls(dictionary, *dictionary.sparse(x), target, tuple(map(str, range(len(x)))), rows=kept)

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def active(self) -> list[int]:
        """The features that are active at any position, in rising order."""
        return sorted(set(self.feature.tolist()))

    @property
    @computes
    def l0(self) -> xarray.DataArray:
        """The number of active features at each position, [pos]."""
        counts = torch.bincount(self.pos, minlength=len(self))
        return labelled(counts, self._pos_coords(), ("pos",), "active features")

    @property
    @computes
    def acts(self) -> xarray.DataArray:
        """Activations of the features that are active at any position, [pos, feature]; zero where one is not active.

        DictionaryError if the table would be too large: encode fewer positions, or read pos, feature and value.
        """
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
        return labelled(table, coords, ("pos", "feature"), "activation")

    @computes
    def top(self, k: int = 5, pos: int | str = -1) -> list[tuple[int, float, str | None]]:
        """The strongest features at a position: (feature, activation, concept or None), the strongest first.

        A concept is given if the activation is above the threshold of the feature's tie to it.

        Args:
            k: The number of features.
            pos: A position, or a token that occurs once.
        """
        k = whole_number(k, "k", least=1, error=DictionaryError)
        at_position = self.pos == self._position(pos)
        strongest = self.value[at_position].sort(descending=True)
        features = self.feature[at_position][strongest.indices][:k].tolist()
        return [(f, v, self._concept(f, v)) for f, v in zip(features, strongest.values.tolist(), strict=False)]

    @cached_property
    @computes
    def reconstruction(self) -> Float[Tensor, "pos d_out"]:
        """The reconstruction from the active features, [pos, d_out], float32."""
        return self.dictionary.summed(self.pos, self.feature, self.value, len(self), self.rows)

    @property
    @computes
    def error(self) -> Float[Tensor, "pos d_out"]:
        """What the reconstruction leaves out: the site's value less the reconstruction, [pos, d_out]."""
        return self._require_target() - self.reconstruction

    @property
    @computes
    def explained(self) -> float:
        """The share of variance explained, 1 - sum |x - reconstruction|^2 / sum |x - mean|^2, over positions after `<bos>`.

        Sums are over positions and dimensions, the mean is over positions. NaN if fewer than two positions are left.
        """
        x, error = in_float64(self._require_target()[self.first :]), in_float64(self.error[self.first :])
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

    def plot(self, features: Iterable[int] | None = None, *, most: int = 20) -> Figure:
        """A plotly heat map of features by position.

        Args:
            features: The features to show. None means the strongest at any position but `<bos>`.
            most: How many of the strongest to show.
        """
        from gemmascope.figures.features import features_figure

        if features is None:
            chosen = self.strongest(most)
        else:
            chosen = [feature_number(self.dictionary, f) for f in as_list(features, "features", error=DictionaryError)]
        if not chosen:
            raise DictionaryError("no feature is active here: there is nothing to draw")
        acts = self.acts.reindex(feature=chosen, fill_value=0).transpose("feature", "pos").astype(float)
        acts = acts.assign_coords(feature_coords(self.dictionary, chosen))
        acts[:, : self.first] = float("nan")  # <bos> would take up the whole range of the colours
        title, prompt = f"features of {self.dictionary.call}", ""
        if self.model is not None and self.ids is not None:
            title, prompt = f"{title}, {self.model.name}", prompts_line([words_of(self.model, self.ids)])
        return features_figure(acts, title=title, unit="activation", diverging=False, subtitle=prompt)

    def strongest(self, n: int) -> list[int]:
        """The features with the largest activations at any position but `<bos>`, the largest first.

        Args:
            n: The number of features.
        """
        n = whole_number(n, "how many features to take", least=1, error=DictionaryError)
        after_bos = self.pos >= self.first
        order = self.value[after_bos].argsort(descending=True)
        return list(dict.fromkeys(self.feature[after_bos][order].tolist()))[:n]

    @prints_legibly
    def __repr__(self) -> str:
        d, n = self.dictionary, len(self)
        active = len(set(self.feature[self.pos >= self.first].tolist()))
        head = f"Features of {n} position{'s' * (n != 1)} in {d.call}: {active} of {d.n_features:,} are active, "
        l0 = torch.bincount(self.pos, minlength=n)[self.first :].float().mean()
        explained = "" if self.target is None else f"; explained {self.explained:.1%} of the variance"
        lines = [head + f"{l0:.1f} a position{explained}{' (<bos> left out)' if self.first else ''}"]
        for pos in range(self.first, min(n, self.first + SHOWN_POSITIONS)):
            top = ", ".join(_feature_text(*each) for each in self.top(SHOWN_FEATURES, pos))
            lines.append(f"  {pos:>3} {visible_text(self.tokens[pos])}  {top}")
        more = n - self.first - SHOWN_POSITIONS
        return "\n".join([*lines, *[f"  … {more} more positions"] * (more > 0)])

    def _position(self, pos: int | str) -> int:
        if self.model is not None and self.ids is not None:
            positions = find_positions(pos, self.model, self.ids)
        else:
            most = len(self) - 1
            positions = [whole_number(pos, "a position", least=-len(self), most=most, error=DictionaryError) % len(self)]
        if len(positions) != 1:
            raise DictionaryError(f"one position is read at a time; given {short_repr(pos)}")
        return positions[0]

    def _require_target(self) -> Tensor:
        if self.target is None:
            raise DictionaryError("a transcoder's rows say nothing of the output they stand for: encode a trace instead")
        return self.target

    def _concept(self, feature: int, value: float) -> str | None:
        """The concept of an activation, if it is above the threshold of the feature's tie to it."""
        tie = self.dictionary.concepts.get(feature)
        return tie.concept if tie and value > tie.above else None

    def _pos_coords(self) -> dict[str, object]:
        return {"pos": range(len(self)), "token": ("pos", list(self.tokens))}


def feature_coords(dictionary: DictionaryWeights, features: Sequence[int]) -> dict[str, object]:
    """xarray coordinates of a feature axis: the numbers, and their concepts if the dictionary has any."""
    coords: dict[str, object] = {"feature": list(features)}
    if dictionary.concepts:
        ties = [dictionary.concepts.get(feature) for feature in features]
        coords["concept"] = ("feature", [tie.concept if tie else "" for tie in ties])
    return coords


def feature_number(dictionary: DictionaryWeights, feature: object) -> int:
    """A feature's number. DictionaryError for one that is not there."""
    if not is_whole(feature) or not 0 <= int(feature) < dictionary.n_features:
        last = dictionary.n_features - 1
        raise DictionaryError(
            f"there is no feature {short_repr(feature)}: the features of {dictionary.call} go from 0 to {last}"
        )
    return int(feature)


def first_after_bos(ids: Tensor, model: Model) -> int:
    """The first position after `<bos>`; 0 without a `<bos>` at the start."""
    return int(ids[0] == model.config.bos_id)


def _feature_text(feature: int, value: float, concept: str | None) -> str:
    return f"{feature}{f' ({legible_line(concept)})' if concept else ''} {value:.3g}"

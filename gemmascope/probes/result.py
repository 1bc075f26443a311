"""ProbeScores, the result of gs.probe, and FittedProbe, one of its probes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from gemmascope.arguments import short_repr
from gemmascope.edits.edit import Edit
from gemmascope.edits.make import add
from gemmascope.edits.places import Pos
from gemmascope.errors import ProbeError
from gemmascope.legible import legible_line, prints_legibly
from gemmascope.sites import SiteKey
from gemmascope.steering.conditions import ProbeAbove

if TYPE_CHECKING:
    import pandas
    import xarray
    from plotly.graph_objects import Figure


@dataclass(frozen=True, repr=False, eq=False)
class FittedProbe:
    """A probe of all rows, as a classifier and as an edit. Made by ProbeScores.at.

    Examples:
        >>> store = gs.harvest(None, ["Mary met John", "John ran", "Mary sat"], "resid_post", layers=2, out="acts")
        >>> scores = gs.probe(store, [token.strip() == "Mary" for token in store.tokens], folds=2, progress=False)
        >>> one = scores.at("resid_post", 2)
        >>> one.classes, one.vector.shape
        ((False, True), torch.Size([128]))
        >>> t = gs.trace("Mary ran", edits=[one.add(-4.0)])

    Attributes:
        site: The site that it reads.
        layer: Its layer; None outside the layers.
        classes: The classes, by number.
        weight: [d, class], float64: scores of classes are x @ weight + bias.
        bias: [class].
        features: The columns that it reads, of a sparse probe; None for all. Others have weights of 0.
        reads_features: Whether it reads a dictionary's features, and not rows of the site.
    """

    site: str
    layer: int | None
    classes: tuple[Hashable, ...]
    weight: Float[Tensor, "d class"]
    bias: Float[Tensor, " class"]
    features: tuple[int, ...] | None = None
    reads_features: bool = False

    @property
    def vector(self) -> Float[Tensor, " d"]:
        """The weights of the second class less those of the first, float32. ProbeError for more than two classes."""
        if len(self.classes) != 2:
            raise ProbeError(f"a probe of {len(self.classes)} classes has a column of weights for each, and no one vector")
        return (self.weight[:, 1] - self.weight[:, 0]).float()

    def when(self, above: float = 0.0) -> ProbeAbove:
        """The condition that a row is of the second class, for an edit's when=.

        Args:
            above: What the second class's score less the first one's must exceed.
        """
        self._require_rows()
        return ProbeAbove(self.vector, float(self.bias[1] - self.bias[0]), float(above))

    def add(self, scale: float = 1.0, pos: Pos = None) -> Edit:
        """The edit that adds scale x the unit vector of the probe at its site: towards the second class. See gs.add.

        Args:
            scale: The length of what is added; negative towards the first class.
            pos: The positions to edit, as in gs.patch; None means all.
        """
        self._require_rows()
        if self.layer is None:
            raise ProbeError(f"gs.add adds at sites of layers; this probe reads {self.site!r}")
        return add(self.site, self.vector / self.vector.norm(), layer=self.layer, pos=pos, scale=scale)

    def _require_rows(self) -> None:
        if self.reads_features:
            raise ProbeError(
                f"this probe reads features of a dictionary, {short_repr(self.features)}, and not rows of {self.site!r}: "
                "gs.feature_on and gs.splice take a feature"
            )

    @prints_legibly
    def __repr__(self) -> str:
        layer = "" if self.layer is None else f" of layer {self.layer}"
        names = ", ".join(legible_line(short_repr(one)) for one in self.classes[:4])
        more = "" if len(self.classes) <= 4 else f" and {len(self.classes) - 4} more"
        return f"FittedProbe of {self.site!r}{layer}: {names}{more}"


@dataclass(frozen=True, repr=False, eq=False)
class ProbeScores:
    """Probes at every stored site and layer, on texts that were held out. Made by gs.probe.

    Attributes:
        scores: An xarray.Dataset over the arrays of the store (array, with site and layer): accuracy, low and high (95%, by
            resampling texts); control (the accuracy of the control task) and selectivity (accuracy less control) with
            selectivity_low and selectivity_high; NaN where all rows have one token.
        majority: The accuracy of the commonest class.
        by_token: The accuracy of the class that each token has most often.
        classes: The classes.
        n_rows: How many rows.
        n_texts: How many groups of texts, which were held out whole.
        n_folds: Over how many folds.
        method: How probes are fitted.
        model: The model's name.
        probes: The probe of all rows, for each (site, layer).

    Examples:
        >>> pairs = gs.prompts.ioi(60)
        >>> store = gs.harvest(None, [pair.clean for pair in pairs], "resid_post", out="acts", progress=False)
        >>> scores = gs.probe(store, [token == " to" for token in store.tokens], progress=False)
        >>> scores.scores["accuracy"].dims, scores.majority < 0.99
        (('array',), True)
    """

    scores: xarray.Dataset
    majority: float
    by_token: float
    classes: tuple[Hashable, ...]
    n_rows: int
    n_texts: int
    n_folds: int
    method: str
    model: str
    probes: Mapping[SiteKey, FittedProbe]

    def at(self, site: str, layer: int | None = None) -> FittedProbe:
        """The probe at a site and layer, fitted to all rows.

        Args:
            site: The site.
            layer: Its layer; None outside the layers.

        Raises:
            ProbeError: There is no probe there.
        """
        if (site, layer) not in self.probes:
            names = ", ".join(self.scores["array"].values.tolist())
            raise ProbeError(f"there is no probe at {short_repr(site)}, layer {short_repr(layer)}; there are {names}")
        return self.probes[site, layer]

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each array of the store."""
        return self.scores.to_dataframe().reset_index()

    def plot(self) -> Figure:
        """A plotly figure: accuracy by layer, a line for each site with its intervals, and the baselines."""
        from gemmascope.figures.probes import probes_figure

        return probes_figure(
            self.scores,
            {"commonest class": self.majority, "token alone": self.by_token},
            title=f"{self.method} probes of {legible_line(self.model)}, {len(self.classes)} classes",
            subtitle=f"{self.n_rows:,} rows of {self.n_texts:,} texts, held out by text; bars: 95%; dotted: control task",
        )

    @prints_legibly
    def __repr__(self) -> str:
        best = self.scores.isel(array=int(self.scores["accuracy"].values.argmax()))
        low, high, selectivity = (float(best[name]) for name in ("low", "high", "selectivity"))
        control = "all of one token, no control task" if isnan(selectivity) else f"selectivity {selectivity:.3f}"
        return (
            f"ProbeScores: {self.method}, {len(self.classes)} classes, {self.n_rows:,} rows of {self.n_texts:,} texts, "
            f"{self.n_folds} folds; best at {best['array'].item()}: accuracy {float(best['accuracy']):.3f} "
            f"[{low:.3f}, {high:.3f}], {control}; commonest class {self.majority:.3f}, "
            f"token alone {self.by_token:.3f}"
        )

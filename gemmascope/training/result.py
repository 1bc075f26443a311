"""TrainedSAE, the result of gs.train_sae: the dictionary, what it was measured to do, and how it came there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gemmascope.legible import legible_line, prints_legibly
from gemmascope.sae.dictionary import Dictionary
from gemmascope.training.measures import DictionaryMeasures
from gemmascope.training.recipe import Recipe

if TYPE_CHECKING:
    import pandas
    import xarray
    from plotly.graph_objects import Figure


@dataclass(frozen=True, repr=False, eq=False)
class TrainedSAE:
    """A dictionary that gs.train_sae trained.

    Attributes:
        dictionary: The dictionary, as gs.load_sae(path) reads it.
        path: The folder that holds its params.npz.
        measures: What it does on rows that were held out: L0, explained variance, dead features, loss recovered.
        history: Measures of the batches of some steps, (step, measure): loss (on scaled rows), explained (the share of
            variance), l0 (active features at a position) and dead (how many features were not active for long).
        recipe: What was asked.

    Examples:
        >>> texts = [pair.clean for pair in gs.prompts.ioi(60)]
        >>> store = gs.harvest(None, texts, "resid_post", layers=3, out="acts", progress=False)
        >>> trained = gs.train_sae(store, out="sae", features=256, l0=8, steps=50, batch_size=128, progress=False)
        >>> trained.measures.loss.n_tokens > 0, trained.history.dims
        (True, ('step', 'measure'))
    """

    dictionary: Dictionary
    path: Path
    measures: DictionaryMeasures
    history: xarray.DataArray
    recipe: Recipe

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each step of the history, with a column for each measure."""
        import pandas

        columns = {str(name): self.history.sel(measure=name).values for name in self.history["measure"].values}
        return pandas.DataFrame({"step": self.history["step"].values, **columns})

    def plot(self) -> Figure:
        """A plotly figure of the training: the share of variance explained, L0 and dead features by step."""
        from gemmascope.figures.training import training_figure

        return training_figure(
            self.history,
            title=f"Training of {legible_line(self._what)}",
            subtitle=f"at the end, held out: {self.measures.l0:.1f} active, {self.measures.explained:.1%} explained",
        )

    @property
    def _what(self) -> str:
        recipe = self.recipe
        skip = " with a skip connection" if recipe.skip else ""
        kind = f"a transcoder{skip}" if recipe.is_transcoder else f"an autoencoder of {recipe.site!r}"
        layer = "" if recipe.layer is None else f" of layer {recipe.layer}"
        return f"{kind}{layer}, {recipe.architecture}, {recipe.features:,} features"

    @prints_legibly
    def __repr__(self) -> str:
        steps = f"{self.recipe.steps:,} steps of {self.recipe.batch_size:,} rows"
        return f"TrainedSAE: {self._what}; {steps}; {self.measures!r}"

"""StrengthSweep, the result of gs.strength_sweep: measures by strength."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gemmascope.legible import legible_line, prints_legibly
from gemmascope.sweeps.metadata import prompts_line
from gemmascope.values import labelled

if TYPE_CHECKING:
    import pandas
    import xarray
    from plotly.graph_objects import Figure


@dataclass(frozen=True, repr=False)
class StrengthSweep:
    """A metric, perplexity and KL divergence at every strength of a steering vector. Made by gs.strength_sweep.

    Attributes:
        metric: The metric, mean over prompts, [strength], in the order of the call.
        perplexity: Over n_predicted tokens, [strength]; NaN if no predicted token comes after a steered position.
        kl: KL(unsteered || steered) of the next token in nats, mean over prompts, [strength].
        per_prompt: The metric of each prompt, (prompt, strength).
        unsteered_metric: The metric without steering, mean over prompts.
        unsteered_perplexity: The perplexity without steering.
        n_predicted: How many tokens are predicted at each strength.
        model: The model's name.
        question: The metric, as text.
        edit: The edit at strength 1, as text.

    Examples:
        >>> direction = gs.direction(["Mary gave", "Mary went"], ["John gave", "John went"], layer=2)
        >>> metric = gs.logit_diff(" Mary", " John")
        >>> result = gs.strength_sweep("Mary and John went to the store.", direction, metric, strengths=[-1, 0, 1])
        >>> result.per_prompt.dims
        ('prompt', 'strength')
        >>> result.to_dataframe().shape
        (3, 4)
    """

    metric: xarray.DataArray
    perplexity: xarray.DataArray
    kl: xarray.DataArray
    per_prompt: xarray.DataArray
    unsteered_metric: float
    unsteered_perplexity: float
    n_predicted: int
    model: str
    question: str
    edit: str

    @classmethod
    def of(
        cls,
        *,
        strengths: Sequence[float],
        levels: Sequence[float],
        metric: Float[Tensor, "prompt level"],
        kl: Float[Tensor, "prompt level"],
        nll: Float[Tensor, "text level"],
        n_predicted: int,
        reaches: bool,
        named: tuple[str, str, str],
        texts: Sequence[Sequence[str]],
    ) -> StrengthSweep:
        """The result, from what was measured at each level of strength.

        Args:
            strengths: The strengths, in the order of the call.
            levels: The strengths that were measured; the first is 0, the unsteered run.
            metric: The metric of each prompt at each level.
            kl: KL(unsteered || steered) of each prompt's next token, in nats.
            nll: The negative log-likelihood of each text, summed over its predicted tokens, in nats.
            n_predicted: How many tokens are predicted at each level.
            reaches: Whether any predicted token comes after a steered position.
            named: The model's name, the metric as text, and the edit as text.
            texts: The tokens of each prompt.
        """
        columns = [levels.index(strength) for strength in strengths]
        perplexity = (nll.sum(0) / n_predicted).exp() if n_predicted else torch.full((len(levels),), nan)
        model, question, edit = named
        coords = {"strength": list(strengths)}

        def by_strength(values: Tensor, name: str, unit: str) -> xarray.DataArray:
            return labelled(values[columns], coords, ("strength",), name, unit)

        # Objects, because numpy's own strings lose a NUL at the end, and a token may be one.
        joined = np.array(["".join(tokens) for tokens in texts], dtype=object)
        prompts = {**coords, "prompt": range(len(texts)), "text": ("prompt", joined)}
        return cls(
            metric=by_strength(metric.mean(0), "metric", question),
            perplexity=by_strength(perplexity if reaches else torch.full_like(perplexity, nan), "perplexity", "perplexity"),
            kl=by_strength(kl.mean(0), "kl", "KL(unsteered || steered) of the next token, nats"),
            per_prompt=labelled(metric[:, columns], prompts, ("prompt", "strength"), "metric", question),
            unsteered_metric=float(metric[:, 0].mean()),
            unsteered_perplexity=float(perplexity[0]),
            n_predicted=n_predicted,
            model=model,
            question=question,
            edit=edit,
        )

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each strength: metric, perplexity and kl."""
        import pandas

        columns = {array.name: array.values for array in (self.metric, self.perplexity, self.kl)}
        return pandas.DataFrame({"strength": self.metric["strength"].values, **columns})

    def plot(self) -> Figure:
        """A plotly figure: the metric by strength, and below it the perplexity on a logarithmic axis."""
        from gemmascope.figures.steering import shortened, strengths_figure

        prompts = [text.removeprefix("<bos>") for text in self.per_prompt["text"].values]
        return strengths_figure(
            self.metric,
            self.perplexity,
            unsteered=(self.unsteered_metric, self.unsteered_perplexity),
            title=f"Steering {self.model} with {shortened(self.edit, 90)}",
            unit=self.question,
            subtitle=f"{prompts_line(prompts)}\nMeasured: {self.question}; dotted: unsteered",
        )

    @prints_legibly
    def __repr__(self) -> str:
        strengths = self.metric["strength"].values
        n_prompts = self.per_prompt.sizes["prompt"]
        over = f", mean of {n_prompts} prompts" if n_prompts > 1 else ""
        return (
            f"{len(strengths)} strengths from {strengths.min():g} to {strengths.max():g} of {self.edit} "
            f"in {legible_line(self.model)}\n"
            f"{self.question}{over}: {self._range(self.metric)}; unsteered {self.unsteered_metric:.4g}\n"
            f"{self._perplexity_text()}\n"
            f"KL from the unsteered next token: up to {float(self.kl.max()):.4g} nats"
        )

    def _perplexity_text(self) -> str:
        if not self.n_predicted:
            return "perplexity: none, the texts have no token to predict after their first; give longer texts="
        if np.isnan(self.perplexity.values).all():
            return "perplexity: not measured, no predicted token comes after a steered position: steer earlier ones"
        perplexity = self._range(self.perplexity)
        return f"perplexity over {self.n_predicted} tokens: {perplexity}; unsteered {self.unsteered_perplexity:.4g}"

    def _range(self, values: xarray.DataArray) -> str:
        """The least and the greatest value, each with its strength."""
        extremes = [values.isel(strength=int(find(values.values))) for find in (np.nanargmin, np.nanargmax)]
        return " to ".join(f"{float(value):.4g} (at {float(value['strength']):g})" for value in extremes)

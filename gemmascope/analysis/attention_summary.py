"""Attention of a run, head by head: how spread out it is, how far back it looks, how much of it rests on `<bos>`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gemmascope.analysis.patterns import PatternRows, patterns
from gemmascope.arguments import one_of
from gemmascope.edits.sources import not_a_trace
from gemmascope.errors import SiteError
from gemmascope.legible import legible_line, prints_legibly
from gemmascope.model.attention import attend_of
from gemmascope.model.modes import computes
from gemmascope.run.replay import edited_layers, replay
from gemmascope.run.trace import Trace
from gemmascope.sites import EDGE_SITES
from gemmascope.sweeps.metadata import prompts_line
from gemmascope.tokens.characters import text_of

if TYPE_CHECKING:
    import pandas
    import xarray
    from plotly.graph_objects import Figure

MEASURES = {
    "entropy": "entropy of attention (nats)",
    "distance": "mean distance (positions)",
    "on_bos": "share on the first position",
    "beyond_window": "share beyond the window",
}


@dataclass(frozen=True, repr=False, eq=False)
class AttentionSummary:
    """Measures of every head's attention. Made by gs.attention_summary.

    Attributes:
        by_query: An xarray.Dataset with entropy (nats), distance (positions), on_bos and beyond_window (shares of
            attention), each (layer, head, q_pos).
        model: The model's name.
        window: The window of its local layers, in positions.

    Examples:
        >>> summary = gs.attention_summary(gs.trace("The key of Anna is seven."))
        >>> summary.mean["entropy"].dims
        ('layer', 'head')
        >>> bool((summary.mean["on_bos"] <= 1).all())
        True
    """

    by_query: xarray.Dataset
    model: str
    window: int

    @property
    def mean(self) -> xarray.Dataset:
        """Means over the queries, (layer, head). The first query is left out: it can attend only to itself."""
        later = self.by_query.isel(q_pos=slice(1, None)) if self.by_query.sizes["q_pos"] > 1 else self.by_query
        return later.mean("q_pos")

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each head, with its means."""
        return self.mean.to_dataframe().reset_index()

    def plot(self, measure: str = "entropy") -> Figure:
        """A plotly heat map of one measure, layer by head.

        Args:
            measure: "entropy", "distance", "on_bos" or "beyond_window".

        Raises:
            SiteError: For another measure.
        """
        from gemmascope.figures.labelled import labelled_figure

        one_of(measure, "measure", MEASURES, error=SiteError)
        bound = 1.0 if measure in ("on_bos", "beyond_window") else None
        title = f"attention, {self.model}, mean over queries without the first"
        subtitle = prompts_line([text_of([str(token) for token in self.by_query["q_token"].values])])
        array, unit = self.mean[measure], MEASURES[measure]
        return labelled_figure(array, title=title, unit=unit, diverging=False, bound=bound, subtitle=subtitle)

    @prints_legibly
    def __repr__(self) -> str:
        mean, n_pos = self.mean, self.by_query.sizes["q_pos"]
        cuts = "cuts nothing off here" if n_pos <= self.window else "is shorter than the prompt"
        lines = [f"attention in {legible_line(self.model)}, {n_pos} positions; the window of {self.window} {cuts}"]
        for layer in range(mean.sizes["layer"]):
            row = {name: mean[name].isel(layer=layer) for name in MEASURES}
            values = ", ".join(f"{name} {float(v.min()):.2f} to {float(v.max()):.2f}" for name, v in row.items())
            lines.append(f"  layer {layer} {mean['kind'].values[layer]:6} {values}")
        return "\n".join(lines)


@computes
def attention_summary(trace: Trace) -> AttentionSummary:
    """Entropy, mean distance, share on `<bos>` and share beyond the window, of every head's attention.

    Runs the layers once more. Patterns are computed a few query rows at a time, except in layers whose scores or pattern
    an edit of the run wrote.

    Args:
        trace: What gs.trace returns, edits included.

    Returns:
        Four measures, each (layer, head, q_pos): entropy, in nats; distance, the mean distance to the key, in positions;
        on_bos, the share of attention on the first position, whatever token stands there; beyond_window, the share on
        keys that a local layer would not see, 0 in local layers.

    Raises:
        SiteError: For something that is not a trace.

    Examples:
        >>> prompt = "When Mary and John went to the store, John gave a drink to"
        >>> summary = gs.attention_summary(gs.trace(prompt))
        >>> round(float(summary.mean["on_bos"].max()), 2)
        0.85
    """
    if not isinstance(trace, Trace):
        raise SiteError(f"a summary is of a trace: gs.attention_summary(gs.trace(prompt)); given {not_a_trace(trace)}")
    window = trace.model.config.window
    edited = [("pattern", layer) for layer in edited_layers(trace, *EDGE_SITES)]
    layers = []
    for layer, values in replay(trace, ["q_rot", "k_rot", *edited]):
        parts = [_measures(pattern, rows, window) for rows, pattern in _patterns(trace, layer.index, values)]
        layers.append(torch.cat(parts, -1))
    return AttentionSummary(_labelled(trace, torch.stack(layers, 1)), trace.model.name, window)


def _patterns(trace: Trace, layer: int, values: Mapping[str, Tensor]) -> Iterable[PatternRows]:
    """A layer's pattern, a few query rows at a time."""
    if "pattern" in values:
        return [(torch.arange(len(trace), device=values["pattern"].device), values["pattern"].float())]
    return patterns(attend_of(trace.model.config, layer), values["q_rot"], values["k_rot"])


def _measures(
    pattern: Float[Tensor, "head q_pos k_pos"], rows: Int[Tensor, " q_pos"], window: int
) -> Float[Tensor, "measure head q_pos"]:
    """MEASURES of some query rows, on the CPU."""
    distance = (rows[:, None] - torch.arange(pattern.shape[-1], device=pattern.device)).clamp(min=0)
    entropy = -torch.special.xlogy(pattern, pattern).sum(-1)
    beyond = (pattern * (distance >= window)).sum(-1)
    return torch.stack([entropy, (pattern * distance).sum(-1), pattern[..., 0], beyond]).cpu()


def _labelled(trace: Trace, values: Tensor) -> xarray.Dataset:
    import xarray

    coords: dict[str, object] = {
        "layer": range(trace.model.n_layers),
        "kind": ("layer", list(trace.model.config.kinds)),
        "head": range(trace.model.config.n_heads),
        "q_pos": range(len(trace)),
        "q_token": ("q_pos", trace.tokens),
    }
    dims = ("layer", "head", "q_pos")
    measures = {
        name: (dims, value.numpy(), {"long_name": MEASURES[name]}) for name, value in zip(MEASURES, values, strict=True)
    }
    return xarray.Dataset(measures, coords=coords)

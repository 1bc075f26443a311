"""gs.feature_sweep: what changing each feature of a dictionary does to a metric."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from gemmascope.arguments import as_list, as_words, finite_number, short_repr, whole_number
from gemmascope.edits.call_text import metric_text
from gemmascope.edits.edit import Edit, listed_edits
from gemmascope.edits.of_run import all_edits
from gemmascope.edits.places import Pos, find_positions
from gemmascope.errors import DictionaryError, SweepError
from gemmascope.legible import legible_line, prints_legibly, signed
from gemmascope.loading.default import model_or_nano
from gemmascope.memory.limits import rows_within
from gemmascope.model.model import Model, Prompt
from gemmascope.model.modes import computes
from gemmascope.model.prompts import as_prompts, is_prompt_list
from gemmascope.run.bound_metric import bind_to_prompt, read_positions, try_metric
from gemmascope.run.tracing import traces
from gemmascope.sae.dictionary import Dictionary
from gemmascope.sae.features import Features, feature_coords, feature_number, first_after_bos
from gemmascope.sae.splice import splice
from gemmascope.sweeps.cells import chunked
from gemmascope.sweeps.final_logits import measure_rows
from gemmascope.sweeps.metadata import prompts_line
from gemmascope.sweeps.remarks import metric_remarks, prompt_remarks, raise_or_warn
from gemmascope.sweeps.variants import BaseRun, Variant, final_residuals
from gemmascope.tokens.characters import text_of
from gemmascope.tokens.tokenizer import visible_text
from gemmascope.values import labelled

if TYPE_CHECKING:
    import pandas
    import xarray
    from plotly.graph_objects import Figure

BY = (("feature",), ("feature", "pos"))


@dataclass(frozen=True, eq=False, repr=False)
class FeatureSweep:
    """What changing each feature does to a metric. Made by gs.feature_sweep.

    Attributes:
        effect: The metric of the run with the feature changed, less that of the unchanged run: [feature], or [feature, pos].
            0 where the feature had that value already.
        base: The metric of the unchanged run.
        value: What features are set to.
        metric: The metric, as text.
        sae: The dictionary.
        model: The model's name.

    Examples:
        >>> metric = gs.logit_diff(" Mary", " John")
        >>> prompt = "When Mary and John went to the store, John gave a drink to"
        >>> result = gs.feature_sweep(gs.load_sae(), prompt, metric, pos=-1)
        >>> result.effect.dims
        ('feature',)
        >>> len(result.top(3))
        3
    """

    effect: xarray.DataArray
    base: float
    value: float
    metric: str
    sae: Dictionary
    model: str

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each cell: its feature, concept, position and token, and the effect."""
        return self.effect.to_dataframe(name="effect").reset_index()

    def top(self, k: int = 10) -> list[tuple[dict[str, object], float]]:
        """The cells with the largest effects of either sign: ({feature, ...}, effect), the largest first.

        Args:
            k: The number of cells.
        """
        k = whole_number(k, "k", least=1, error=DictionaryError)
        frame = self.to_dataframe()
        order = frame["effect"].abs().sort_values(ascending=False).index[:k]
        names = [name for name in frame.columns if name != "effect"]
        rows = frame.loc[order].to_dict("records")
        return [({name: row[name] for name in names}, float(row["effect"])) for row in rows]

    def plot(self, *, most: int = 20) -> Figure:
        """A plotly figure of the features with the largest effects.

        Args:
            most: How many features to show.
        """
        from gemmascope.figures.features import features_figure

        most = whole_number(most, "most", least=1, error=DictionaryError)
        largest = np.abs(self.effect.values).reshape(self.effect.sizes["feature"], -1).max(1)
        effect = self.effect.isel(feature=np.argsort(-largest, kind="stable")[:most])
        prompt = self.effect.attrs.get("prompt")  # a result of an older version has none
        said = [] if prompt is None else [prompts_line([prompt])]
        subtitle = "\n".join([*said, f"Measured: {self.metric}"])
        title = f"features of {self.sae.call} set to {self.value:g}, {self.model}"
        return features_figure(effect, title=title, unit=f"change of {self.metric}", diverging=True, subtitle=subtitle)

    @prints_legibly
    def __repr__(self) -> str:
        largest = float(np.abs(self.effect.values).max(initial=0.0))
        sizes = " x ".join(f"{n} {axis}" for axis, n in self.effect.sizes.items())
        head = (
            f"feature sweep of {self.sae.call} in {legible_line(self.model)}: {sizes}, set to {self.value:g}, {self.metric}"
        )
        return "\n".join([head, f"as it is {self.base:.4g}", *(_line(*cell, largest) for cell in self.top(5))])


@dataclass(frozen=True)
class _Cell:
    """One run: the index of its effect in the result, the feature and positions that it changes, and its rows in a pass."""

    index: tuple[int, ...]
    feature: int
    positions: tuple[int, ...]
    n_rows: int


@computes
def feature_sweep(
    sae: Dictionary,
    prompt: Prompt,
    metric: object,
    *,
    features: Iterable[int] | None = None,
    value: float = 0.0,
    by: Sequence[str] | str = "feature",
    pos: Pos = None,
    edits: Sequence[Edit] = (),
    model: Model | None = None,
    memory: int | str | None = None,
) -> FeatureSweep:
    """Set each feature to a value, in a run of its own, and measure what that changes.

    As many runs as fit share a pass. The dictionary's error is kept, as in gs.splice.

    Args:
        sae: A dictionary from gs.load_sae.
        prompt: The prompt, as in gs.trace.
        metric: A metric, as in gs.sweep.
        features: The features to change. None means all that are active at the positions.
        value: What each feature is set to; 0.0 removes it.
        by: "feature" changes a feature at all positions together; ("feature", "pos") at each position alone.
        pos: The positions, as in gs.patch. None means every position but a `<bos>` at the start.
        edits: Edits of the unchanged run, and of all others.
        model: The model; None means nano.
        memory: How much memory the runs of one pass may take, such as "2GiB". None means what the model was loaded to leave
            for them, or a quarter of what is free.

    Returns:
        The effects [feature], or [feature, pos], with the features' concepts and the tokens as coordinates.

    Raises:
        DictionaryError, PromptError, SiteError, EditError, MetricError, SweepError: For arguments that do not fit.

    Examples:
        >>> prompt = "When Mary and John went to the store, John gave a drink to"
        >>> result = gs.feature_sweep(gs.load_sae(), prompt, gs.logit_diff(" Mary", " John"), features=[804, 265], pos=-1)
        >>> result.effect.values.round(2)
        array([-0.8 , -0.54])

    References:
        Marks et al., "Sparse Feature Circuits" (arXiv 2403.19647).
    """
    model, edits = model_or_nano(model), listed_edits(edits)
    prompt = as_prompts(prompt)
    _check_arguments(by, sae, prompt)
    value = finite_number(value, "value", error=DictionaryError)
    sae.require_fit(model)
    ids = model.ids(prompt)
    bound, max_rows = bind_to_prompt(metric, model, ids), rows_within(memory, model)
    base = BaseRun(ids, tuple(edit.bind(model, ids) for edit in all_edits(model, edits)), read_positions([bound]))
    if late := [edit.edit for edit in base.edits if edit.address.is_after_layers]:
        raise SweepError(f"a feature sweep reads the logits as the last layer leaves them, and {late[0]!r} comes after it")
    positions = find_positions(slice(first_after_bos(ids, model), None) if pos is None else pos, model, ids)
    try_metric(bound, model, ids)
    raise_or_warn([*prompt_remarks("prompt", ids, model), *metric_remarks(metric, ids, model)], SweepError)
    encoded = sae.encode(traces(model, [ids], edits)[0])
    numbers = _numbers(sae, encoded, features, positions)
    axes = (numbers, positions) if tuple(as_words(by) or ()) == BY[1] else (numbers,)
    effect = np.zeros([len(axis) for axis in axes])
    base_metric = torch.tensor(float("nan"))
    for chunk in chunked(_cells(encoded, axes, positions, value), lambda: max_rows):
        bound_edits = [splice(sae, {cell.feature: value}, pos=list(cell.positions)).bind(model, ids) for cell in chunk]
        residuals = final_residuals(model, [base], [Variant(0, (edit,)) for edit in bound_edits])
        base_metric = measure_rows([bound], model, base, residuals.bases[0][None])[0, 0]
        indices = tuple(zip(*(cell.index for cell in chunk), strict=True))
        effect[indices] = measure_rows([bound], model, base, residuals.of(range(len(chunk))))[0] - base_metric
    if not base_metric.isfinite():  # no cell was run
        base_metric = measure_rows([bound], model, base, final_residuals(model, [base], []).bases[0][None])[0, 0]
    coords = feature_coords(sae, numbers)
    if len(axes) == 2:
        coords |= {"pos": positions, "token": ("pos", [encoded.tokens[p] for p in positions])}
    metric_name = metric_text(metric)
    effects = labelled(effect, coords, BY[len(axes) - 1], "effect", f"change of {metric_name}")
    effects.attrs["prompt"] = text_of(encoded.tokens)
    return FeatureSweep(effects, float(base_metric), value, metric_name, sae, model.name)


def _check_arguments(by: object, dictionary: object, prompt: object) -> None:
    if not isinstance(dictionary, Dictionary):
        raise DictionaryError(f"a dictionary is what gs.load_sae returns; given {type(dictionary).__name__}")
    if tuple(as_words(by) or ()) not in BY:
        raise SweepError(f"by is 'feature' or ('feature', 'pos'); given {short_repr(by)}")
    if is_prompt_list(prompt):
        raise SweepError("a feature sweep is of one prompt: call it for each")


def _numbers(
    dictionary: Dictionary, encoded: Features, features: Iterable[int] | None, positions: Sequence[int]
) -> list[int]:
    """The user's features, or all that are active at the positions. DictionaryError for none, or for one named twice."""
    if features is not None:
        listed = as_list(features, "features", error=DictionaryError)
        numbers = [feature_number(dictionary, feature) for feature in listed]
        if not numbers or len(set(numbers)) < len(numbers):
            raise DictionaryError(f"features names each feature once, and one at least; given {short_repr(numbers)}")
        return numbers
    at_positions = torch.isin(encoded.pos, torch.tensor(positions, device=encoded.pos.device))
    active = sorted(set(encoded.feature[at_positions].tolist()))
    if not active:
        raise DictionaryError("no feature is active at these positions: name the features to change")
    return active


def _cells(encoded: Features, axes: Sequence[Sequence[int]], positions: Sequence[int], value: float) -> Iterator[_Cell]:
    """The cells that change anything. A feature that has the value already has no effect."""
    active = set(zip(encoded.feature.tolist(), encoded.pos.tolist(), strict=True))
    for i, feature in enumerate(axes[0]):
        changing = [pos for pos in positions if value != 0 or (feature, pos) in active]
        if len(axes) == 2:
            yield from (_Cell((i, positions.index(pos)), feature, (pos,), len(encoded) - pos) for pos in changing)
        elif changing:
            yield _Cell((i,), feature, tuple(changing), len(encoded) - min(changing))


def _line(cell: Mapping[str, object], effect: float, largest: float) -> str:
    concept = f" ({legible_line(str(cell['concept']))})" if cell.get("concept") else ""
    at = f", pos {cell['pos']} ({visible_text(str(cell['token']))})" if "pos" in cell else ""
    return f"  {signed(effect, largest)}  feature {cell['feature']}{concept}{at}"

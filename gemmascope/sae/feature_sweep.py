"""gs.feature_sweep: what changing each feature of a dictionary does to a metric, all of them in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gemmascope.arguments import as_list, as_words, finite_number, whole_number
from gemmascope.arguments import shown as quoted
from gemmascope.edits.call_text import metric_text
from gemmascope.edits.edit import Edit, listed_edits
from gemmascope.edits.places import Pos, find_positions
from gemmascope.errors import DictionaryError, SweepError
from gemmascope.legible import legibly, spelled
from gemmascope.loading.default import model_or_nano
from gemmascope.memory.limits import rows_within
from gemmascope.model.model import Model, Prompt
from gemmascope.model.modes import computes
from gemmascope.model.prompts import as_prompts, is_prompt_list
from gemmascope.run.metric import Metric, bind_metric, measure, try_metric
from gemmascope.run.tracing import traces
from gemmascope.sae.dictionary import Dictionary
from gemmascope.sae.features import Features, feature_coords
from gemmascope.sae.splice import feature_number, splice
from gemmascope.sweeps.remarks import metric_remarks, prompt_remarks, raise_or_warn
from gemmascope.sweeps.variants import BaseRun, Variant, final_residuals
from gemmascope.tokens.tokenizer import shown

if TYPE_CHECKING:
    import pandas
    import xarray
    from plotly.graph_objects import Figure

# Logits held at once, in elements: 64 MB.
LOGIT_ELEMENTS = 2**24
BY = (("feature",), ("feature", "pos"))


@dataclass(frozen=True, eq=False, repr=False)
class FeatureSweep:
    """What changing each feature does to a metric. Made by gs.feature_sweep.

    effect: the metric of the run with the feature changed less that of the run as it is, [feature] or [feature, pos], with
    the features' concepts and the tokens as coordinates; 0 where the feature had that value anyway. base: the metric of the
    run as it is. value: what features are set to.
    """

    effect: xarray.DataArray
    base: float
    value: float
    metric: str
    sae: Dictionary
    model: str

    def to_dataframe(self) -> pandas.DataFrame:
        """One row a cell: its feature, concept, position and token, and the effect."""
        return self.effect.to_dataframe(name="effect").reset_index()

    def top(self, k: int = 10) -> list[tuple[dict[str, Any], float]]:
        """The k cells with the largest effects, either way: (where, effect), the largest first."""
        k = whole_number(k, "k", least=1, error=DictionaryError)
        frame = self.to_dataframe()
        order = frame["effect"].abs().sort_values(ascending=False).index[:k]
        names = [name for name in frame.columns if name != "effect"]
        rows = frame.loc[order].to_dict("records")
        return [({name: row[name] for name in names}, float(row["effect"])) for row in rows]

    def plot(self, *, most: int = 20) -> Figure:
        """A plotly figure of the features with the largest effects, at most so many. Needs plotly."""
        from gemmascope.figures.features import features_figure

        most = whole_number(most, "most", least=1, error=DictionaryError)
        largest = np.abs(self.effect.values).reshape(self.effect.sizes["feature"], -1).max(1)
        effect = self.effect.isel(feature=np.argsort(-largest, kind="stable")[:most])
        title = f"features of {self.sae.call} set to {self.value:g}, {self.model}"
        return features_figure(effect, title=title, unit=f"change of {self.metric}", diverging=True)

    @legibly
    def __repr__(self) -> str:
        sizes = " x ".join(f"{n} {axis}" for axis, n in self.effect.sizes.items())
        head = f"feature sweep of {self.sae.call} in {spelled(self.model)}: {sizes}, set to {self.value:g}, {self.metric}"
        return "\n".join([head, f"as it is {self.base:.4g}", *(_line(*cell) for cell in self.top(5))])


@dataclass(frozen=True)
class _Cell:
    """Where an effect is kept, and the feature and positions that are changed for it."""

    place: tuple[int, ...]
    feature: int
    positions: tuple[int, ...]


@computes
def feature_sweep(
    sae: Dictionary,
    prompt: Prompt,
    metric: Any,
    *,
    features: Iterable[int] | None = None,
    value: float = 0.0,
    by: Sequence[str] | str = "feature",
    pos: Pos = None,
    edits: Sequence[Edit] = (),
    model: Model | None = None,
    memory: int | str | None = None,
) -> FeatureSweep:
    """Set each feature to a value, in a run of its own, and measure what that changes: all runs in one pass.

    The dictionary's error is kept, as in gs.splice. metric: of the last position, as in gs.sweep. features: their numbers;
    None for all that are active in the run at these positions. value: what they are set to; 0.0 takes them out. by:
    "feature" changes a feature at all the positions together, ("feature", "pos") at each alone. pos: as in gs.patch; None
    means every position except a <bos> in front. edits: made to the run and to all its variants. memory: how much the
    variants may take.
    Raises DictionaryError, PromptError, SiteError, EditError, MetricError or SweepError for what does not fit.
    """
    model, edits = model_or_nano(model), listed_edits(edits)
    prompt = as_prompts(prompt)
    _refuse(by, sae, prompt)
    value = finite_number(value, "value", error=DictionaryError)
    sae.require_fit(model)
    ids = model.ids(prompt)
    base = BaseRun(ids, tuple(edit.bind(model, ids) for edit in edits), len(ids) - 1)
    if late := [edit.edit for edit in base.edits if edit.address.layer is None and edit.address.site.name != "embed"]:
        raise SweepError(f"a feature sweep reads the logits as the last layer leaves them, and {late[0]!r} comes after it")
    positions = find_positions(_after_bos(ids, model) if pos is None else pos, model, ids)
    bound, max_rows = bind_metric(metric, model), rows_within(memory, model)
    try_metric(bound, model, ids)
    raise_or_warn([*prompt_remarks("prompt", ids, model), *metric_remarks(metric, ids, model)], SweepError)
    found = sae.encode(traces(model, [ids], edits)[0])
    numbers = _numbers(sae, found, features, positions)
    axes = (numbers, positions) if tuple(as_words(by) or ()) == BY[1] else (numbers,)
    effect = np.zeros([len(axis) for axis in axes])
    there = torch.tensor(float("nan"))
    for chunk in _chunks(_cells(found, axes, positions, float(value)), len(ids), max_rows):
        edited = [splice(sae, {cell.feature: value}, pos=list(cell.positions)).bind(model, ids) for cell in chunk]
        ends = final_residuals(model, [base], [Variant(0, (edit,)) for edit in edited])
        there = _measured(bound, model, ends.bases)[0]
        effect[tuple(zip(*(cell.place for cell in chunk), strict=True))] = _measured(bound, model, ends.variants) - there
    if not there.isfinite():
        there = _measured(bound, model, final_residuals(model, [base], []).bases)[0]
    coords = {**feature_coords(sae, numbers)}
    if len(axes) == 2:
        coords |= {"pos": positions, "token": ("pos", [found.tokens[p] for p in positions])}
    said = metric_text(metric)
    return FeatureSweep(_labelled(effect, coords, said), float(there), float(value), said, sae, model.name)


def _labelled(effect: np.ndarray[Any, Any], coords: dict[str, Any], metric: str) -> xarray.DataArray:
    import xarray

    dims, unit = ("feature", "pos")[: effect.ndim], {"long_name": f"change of {metric}"}
    return xarray.DataArray(effect, dims=dims, coords=coords, name="effect", attrs=unit)


def _refuse(by: Any, sae: Any, prompt: Any) -> None:
    if not isinstance(sae, Dictionary):
        raise DictionaryError(f"a dictionary is what gs.load_sae returns; given {type(sae).__name__}")
    if tuple(as_words(by) or ()) not in BY:
        raise SweepError(f"by is 'feature' or ('feature', 'pos'); given {quoted(by)}")
    if is_prompt_list(prompt):
        raise SweepError("a feature sweep is of one prompt: call it for each")


def _after_bos(ids: Tensor, model: Model) -> slice:
    return slice(int(ids[0] == model.config.bos_id), None)


def _numbers(sae: Dictionary, found: Features, features: Iterable[int] | None, positions: Sequence[int]) -> list[int]:
    """The features that are asked for, or all that are active at the positions. DictionaryError where there is none."""
    if features is not None:
        numbers = [feature_number(sae, given) for given in as_list(features, "features", error=DictionaryError)]
        if not numbers or len(set(numbers)) < len(numbers):
            raise DictionaryError(f"features names each feature once, and one at least; given {quoted(numbers)}")
        return numbers
    here = torch.isin(found.pos, torch.tensor(positions, device=found.pos.device))
    active = sorted(set(found.feature[here].tolist()))
    if not active:
        raise DictionaryError("no feature is active at these positions: name the features to change")
    return active


def _cells(found: Features, axes: Sequence[Sequence[int]], positions: Sequence[int], value: float) -> Iterator[_Cell]:
    """The cells that change anything; those where the feature has the value already have no effect."""
    active = set(zip(found.feature.tolist(), found.pos.tolist(), strict=True))
    for i, feature in enumerate(axes[0]):
        changing = [pos for pos in positions if value != 0 or (feature, pos) in active]
        if len(axes) == 2:
            yield from (_Cell((i, positions.index(pos)), feature, (pos,)) for pos in changing)
        elif changing:
            yield _Cell((i,), feature, tuple(changing))


def _chunks(cells: Iterable[_Cell], n_pos: int, max_rows: int) -> Iterator[list[_Cell]]:
    chunk: list[_Cell] = []
    n_rows = 0
    for cell in cells:
        rows = n_pos - min(cell.positions)
        if chunk and n_rows + rows > max_rows:
            yield chunk
            chunk, n_rows = [], 0
        chunk.append(cell)
        n_rows += rows
    if chunk:
        yield chunk


def _measured(metric: Metric, model: Model, rows: Tensor) -> Tensor:
    """The metric of runs whose stream ends in these rows, float64 [run]."""
    step = max(1, LOGIT_ELEMENTS // model.config.vocab_size)
    with torch.no_grad():
        return torch.cat([measure(metric, model.network.unembed(part)).cpu() for part in torch.split(rows, step)])


def _line(where: dict[str, Any], effect: float) -> str:
    concept = f" ({spelled(where['concept'])})" if where.get("concept") else ""
    at = f", pos {where['pos']} ({shown(where['token'])})" if "pos" in where else ""
    return f"  {effect:+.4g}  feature {where['feature']}{concept}{at}"

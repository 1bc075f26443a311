"""gs.attribute: attribution patching, a gradient estimate of the grid that gs.sweep computes exactly.

effect of a cell ~ (what would be written - what is there) . gradient of the metric there.
Source: Nanda, "Attribution patching" (2023); Syed et al., arXiv 2310.10348; with several steps, integrated gradients
(Sundararajan et al., arXiv 1703.01365) along the straight line between the two activations of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gemmascope.arguments import one_of, whole_number
from gemmascope.edits.call_text import call_text
from gemmascope.edits.edit import Edit
from gemmascope.edits.kinds import Patch
from gemmascope.edits.places import Head, Pos
from gemmascope.errors import SweepError
from gemmascope.loading.default import model_or_nano
from gemmascope.model.model import Model, Prompt
from gemmascope.model.modes import computes
from gemmascope.run.backward.carried import GRADIENT, RULES
from gemmascope.run.backward.gradients import gradients
from gemmascope.run.bound_metric import BoundMetric, measure_trace
from gemmascope.run.trace import Trace
from gemmascope.run.tracing import run_traced
from gemmascope.sweeps.metrics import MetricLike
from gemmascope.sweeps.pairs import Pair, listed_pairs, pairs_of, sweep_remarks
from gemmascope.sweeps.remarks import raise_or_warn
from gemmascope.sweeps.result import SweepResult
from gemmascope.sweeps.sets.filling import Filling, empty_result, try_metrics
from gemmascope.sweeps.sets.result import SweepSet
from gemmascope.sweeps.spec import Layers, SweepSpec
from gemmascope.values import in_float64

# Each is a backward pass of every layer: more would take forever.
MAX_STEPS = 10_000


@computes
def attribute(
    clean: Prompt | Sequence[Prompt],
    corrupt: Prompt | Sequence[Prompt] | None,
    metric: MetricLike | Sequence[MetricLike] | Mapping[str, MetricLike | Sequence[MetricLike]],
    *,
    site: str | Sequence[str],
    by: Sequence[str] = ("layer", "pos"),
    steps: int = 1,
    method: str = "gradient",
    into: str = "corrupt",
    ablate: float | str | None = None,
    reference: Sequence[Trace] = (),
    layer: Layers = None,
    pos: Pos = None,
    head: Head = None,
    q_pos: Pos = None,
    k_pos: Pos = None,
    edits: Sequence[Edit] = (),
    model: Model | None = None,
) -> SweepResult | SweepSet:
    """Estimate what gs.sweep finds with the same arguments, from gradients: one backward pass for all cells.

    Attribution patching. The effect of a cell is estimated as (what would be written - what is there) . gradient of the
    metric there. It finds places and is often wrong about sizes, where the metric is far from linear: check with
    gs.sweep.

    Args:
        clean: The prompt that has the answer: text (`<bos>` is put in front), token ids (taken as they are) or chat
            messages; or a list of prompts, for several pairs.
        corrupt: The prompt to compare with, of as many tokens; or a list of as many prompts. None for an ablation.
        metric: What to measure, with a gradient: gs.logit_diff(...) or another metric of gs but gs.rank, or a function
            of the soft-capped logits of the last position, [run, vocab] -> [run]. For several pairs one for all, or a
            list with one for each. Several: a mapping of names to such, or for one pair a list.
        site: What to patch, by its name here or in TransformerLens, which may say the layer as well; or a list.
        by: The axes of the grid, of those that the site has: "layer", "pos" and "head"; at attention edges "q_pos" and
            "k_pos" in place of "pos". Along the axes that are left out a cell patches all places together.
        steps: How many gradients to average. 1: the gradient at the run that is patched. More: the mean along the
            straight line from that run's values to what would be written, a layer at a time (integrated gradients, at
            the midpoints of as many equal parts). It costs n_layers x steps backward passes, and then the cells of a
            layer add up to the effect of patching all of them at once, the better the more steps.
        method: "gradient", or "relp": RelP's rules in place of the gradient, which often agree better with gs.sweep at MLPs
            and in the stream: norms keep their scale, GELU its ratio, and a product gives half to each factor. With
            steps=1.
        into: The run that is patched: "corrupt" with values of the clean run, or "clean" with values of the corrupted
            run.
        ablate: What to write in place of another run's values, for an ablation of the clean run: a number, or "mean" or
            "mean_by_pos" over reference. None: patch.
        reference: Traces to take the mean over, as in gs.ablate.
        layer: The layers to cover: a number or a list; negative ones count from the end. None: all.
        pos: The positions: a number, a slice, a list, or a token that occurs once in the prompt; negative ones count
            from the end. None: all.
        head: The heads: a number or a list; kv heads at k, k_raw, k_rot and v. None: all.
        q_pos: At attention edges, the query positions, written like pos. None: all.
        k_pos: At attention edges, the key positions, written like pos. None: all.
        edits: Edits of the run that is patched, but not of the run that the values come from.
        model: The model. None: nano.

    Returns:
        A SweepResult, as from gs.sweep; .question.estimate says how the numbers came about. For several sites or metrics
        a SweepSet; each metric takes its own backward passes.

    Raises:
        PromptError: A prompt or an answer cannot be read, or is longer than the model's context.
        SiteError: A site, layer, position or head does not exist.
        EditError: An edit or the reference does not fit.
        MetricError: The metric does not give one number for each run, mixes runs, or has no gradient.
        SweepError: The arguments do not fit together, such as prompts of different lengths.

    Examples:
        >>> clean = "When Mary and John went to the store, John gave a drink to"
        >>> corrupt = "When Mary and John went to the store, Mary gave a drink to"
        >>> metric = gs.logit_diff(" Mary", " John")
        >>> estimate = gs.attribute(clean, corrupt, metric, site="z", by=("layer", "head"), layer=2)
        >>> better = gs.attribute(clean, corrupt, metric, site="z", by=("layer", "head"), layer=2, steps=8)
        >>> exact = gs.sweep(clean, corrupt, metric, site="z", by=("layer", "head"), layer=2, progress=False)
        >>> [round(result.effect.sel(layer=2, head=3).item(), 1) for result in (estimate, better, exact)]
        [3.9, 23.8, 23.8]

    References:
        Nanda, "Attribution patching: activation patching at industrial scale" (2023).
        Syed et al., "Attribution patching outperforms automated circuit discovery", arXiv 2310.10348.
        Jafari et al., "Faithful and efficient circuit discovery via relevance patching" (RelP), arXiv 2508.21258.
        Sundararajan et al., "Axiomatic attribution for deep networks" (integrated gradients), arXiv 1703.01365.
    """
    spec = SweepSpec(site, by, into, ablate, reference, layer, pos, head, q_pos, k_pos, edits=edits)
    model = model_or_nano(model)
    pairs, result = _prepare(clean, corrupt, metric, spec, model, steps, method)
    raise_or_warn(sweep_remarks(pairs, metric, model), SweepError)
    return _estimate(pairs, result, model, steps, method)


def estimate(clean: object, corrupt: object, metric: object, spec: SweepSpec, model: Model) -> SweepResult:
    """gs.attribute of one site and metric, without its warnings: a lab shows the remarks on a sweep in its own way."""
    result = _estimate(*_prepare(clean, corrupt, metric, spec, model, 1), model, 1)
    assert isinstance(result, SweepResult)
    return result


def _prepare(
    clean: object, corrupt: object, metric: object, spec: SweepSpec, model: Model, steps: int, method: str = GRADIENT
) -> tuple[list[Pair], SweepResult | SweepSet]:
    """The pairs of an estimate, checked, and its result without values."""
    steps = whole_number(steps, "steps", least=1, most=MAX_STEPS, error=SweepError)
    one_of(method, "method", RULES, error=SweepError)
    if method != GRADIENT and steps != 1:
        raise SweepError(f"method={method!r} takes one backward pass; leave steps={steps} out, or the method")
    clean, corrupt = listed_pairs(clean, corrupt)
    pairs = pairs_of(clean, corrupt, metric, spec, model, trace_sources=True)
    for pair in pairs:
        try_metrics(pair, model)
    how = method if steps == 1 else f"integrated gradients, {steps} steps"
    code = call_text("attribute", model, (clean, corrupt, metric), spec.as_arguments(steps=steps, method=method))
    return pairs, empty_result(pairs, metric, spec, code, model, estimate=how)


def _estimate(
    pairs: Sequence[Pair], result: SweepResult | SweepSet, model: Model, steps: int, method: str = GRADIENT
) -> SweepResult | SweepSet:
    filling = Filling(pairs, result)
    bases: dict[int, Trace] = {}
    for number, pair in enumerate(pairs):
        if id(pair.base) not in bases:  # the grids of a pair stand side by side, and share its run
            bases = {id(pair.base): run_traced(model, [pair.base.ids], [pair.base.edits])[0]}
        base = bases[id(pair.base)]
        row, grids = filling.of(number)
        for which, (metric, grid) in enumerate(zip(pair.metrics, grids, strict=True)):
            grid.base_metric[row] = measure_trace(metric, base)
            grid.source_metric[row] = pair.source_metric(which)
            effects = _effects(pair, metric, base, steps, method)
            for place, cell in enumerate(pair.grid.cells()):
                layers = pair.grid.layers_of(cell)
                if layers:  # a cell whose edges the mask hides stays NaN, as in a sweep
                    change = sum(float(effects[layer][pair.index_of(cell)].sum()) for layer in layers)
                    grid.values[row].flat[place] = grid.base_metric[row] + change
    return result


def _effects(pair: Pair, metric: BoundMetric, base: Trace, steps: int, rules: str) -> dict[int, Tensor]:
    """For every layer of the grid, the estimated effect of each of its places: float64, the d axes summed over."""
    site = pair.grid.site
    layers = pair.grid.numbers["layer"]
    at_base = gradients(base, metric, {(site.name, layer) for layer in layers}, rules) if steps == 1 else {}
    effects = {}
    for layer in layers:
        value = base[site.name, layer]
        change = pair.values_at(layer).to(value.dtype) - value
        gradient = at_base[site.name, layer] if steps == 1 else _mean_gradient(pair, metric, base, layer, change, steps)
        d_axes = [i for i, axis in enumerate(site.axes) if axis.startswith("d_")]
        product = in_float64(change) * in_float64(gradient)
        effects[layer] = product.sum(d_axes) if d_axes else product
    return effects


def _mean_gradient(pair: Pair, metric: BoundMetric, base: Trace, layer: int, change: Tensor, steps: int) -> Tensor:
    """The mean gradient on the line from the base's values of a layer to the source's, at the places of the grid."""
    site, model = pair.grid.site.name, base.model
    covered = torch.zeros_like(change)
    covered[pair.index_of(pair.grid.numbers)] = 1.0
    total = torch.zeros_like(change)
    for step in range(steps):
        value = base[site, layer] + change * covered * ((step + 0.5) / steps)
        edits = (*base.bound_edits, Patch(site=site, source=value, layer=layer).bind(model, base.ids))
        moved = run_traced(model, [base.ids], [edits])[0]
        total += gradients(moved, metric, {(site, layer)})[site, layer]
    return total / steps

"""Attribution patching: a gradient estimate of the grid that gs.sweep computes exactly.

effect of a cell ~ (what would be written - what is there) . gradient of the metric there.
Source: Nanda, "Attribution patching" (2023); Syed et al., arXiv 2310.10348; with several steps, integrated gradients
(Sundararajan et al., arXiv 1703.01365) along the straight line between the two activations of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gemmascope.arguments import whole_number
from gemmascope.edits.call_text import call_text
from gemmascope.edits.edit import Edit, Patch, listed_edits
from gemmascope.edits.sources import listed_reference
from gemmascope.errors import SweepError
from gemmascope.loading.default import model_or_nano
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.run.gradients import gradients
from gemmascope.run.metric import measure, try_metric
from gemmascope.run.trace import Trace, run_traced
from gemmascope.sweeps.grid import Grid, Places
from gemmascope.sweeps.pairs import Ablation, Plan, pairs_of, prompts_of, question_of
from gemmascope.sweeps.remarks import raise_or_warn, sweep_remarks
from gemmascope.sweeps.result import SweepResult
from gemmascope.sweeps.sweep import SweepSpec
from gemmascope.values import in_float64

# Each is a backward pass of every layer: more would never come back.
MOST_STEPS = 10_000


@computes
def attribute(
    clean: Any,
    corrupt: Any,
    metric: Any,
    *,
    site: str,
    by: Sequence[str] = ("layer", "pos"),
    steps: int = 1,
    into: str = "corrupt",
    ablate: float | str | None = None,
    reference: Sequence[Trace] = (),
    layer: Any = None,
    pos: Any = None,
    head: Any = None,
    q_pos: Any = None,
    k_pos: Any = None,
    edits: Sequence[Edit] = (),
    model: Model | None = None,
) -> SweepResult:
    """Estimate what gs.sweep with the same arguments would find, from gradients: one backward pass for all cells.

    steps: 1 takes the gradient at the run that is patched. More take its mean along the line from there to the source,
    a layer at a time (integrated gradients, at the midpoints of as many equal parts): n_layers x steps backward passes,
    and then the cells of a layer add up to the effect of patching them all at once, the better the more steps.
    The other arguments, the result and the errors are those of gs.sweep.
    """
    asked = SweepSpec(site, by, into, ablate, listed_reference(reference), Places(layer, pos, head, q_pos, k_pos))
    model, edits, steps = model_or_nano(model), listed_edits(edits), _n_steps(steps)
    plans, result = _prepared(clean, corrupt, metric, asked, steps, edits, model)
    raise_or_warn(sweep_remarks(plans, metric, model), SweepError)
    return _filled(result, plans, model, steps)


def estimate(clean: Any, corrupt: Any, metric: Any, asked: SweepSpec, model: Model) -> SweepResult:
    """gs.attribute for a lab, which tells in its own way what may not be meant: it gives no warning of that."""
    plans, result = _prepared(clean, corrupt, metric, asked, 1, (), model)
    return _filled(result, plans, model, 1)


def _n_steps(given: Any) -> int:
    return whole_number(given, "steps", least=1, most=MOST_STEPS, error=SweepError)


def _prepared(
    clean: Any, corrupt: Any, metric: Any, asked: SweepSpec, steps: int, edits: Sequence[Edit], model: Model
) -> tuple[list[Plan], SweepResult]:
    """The plans of an estimate that has been checked, and its result, which is still empty."""
    clean, corrupt = prompts_of(clean, corrupt)
    pairs = pairs_of(clean, corrupt, metric, asked.into, Ablation.of(asked.ablate, asked.reference), model)
    grids = [Grid.over(asked.site, asked.by, asked.places, 1, model, pair.base) for pair in pairs]
    plans = [Plan.of(pair, grid, model, edits, traced=True) for pair, grid in zip(pairs, grids, strict=True)]
    for plan in plans:
        try_metric(plan.pair.metric, model, plan.base.ids)
    said = {**asked.as_arguments(), "steps": steps, "edits": list(edits)}
    how = "gradient" if steps == 1 else f"integrated gradients, {steps} steps"
    code = call_text("attribute", model, (clean, corrupt, metric), said)
    n_cells = sum(plan.n_cells for plan in plans)
    return plans, SweepResult.empty(question_of(plans, metric, asked.into, code, model, n_cells, how), len(plans))


def _filled(result: SweepResult, plans: Sequence[Plan], model: Model, steps: int) -> SweepResult:
    for i, plan in enumerate(plans):
        _fill(result, i, plan, model, steps)
    return result


def _fill(result: SweepResult, i: int, plan: Plan, model: Model, steps: int) -> None:
    base = run_traced(model, [plan.base.ids], [plan.base.edits])[0]
    result.base_metric[i] = measure(plan.pair.metric, base.next_logits[None])[0].item()
    result.source_metric[i] = plan.traced_metric()
    estimates = _estimates(plan, base, steps)
    for number, cell in enumerate(plan.grid.cells()):
        seen = [layer for layer in cell["layer"] if plan.edits.any_seen(layer, cell)]
        if seen:  # a cell of edges that the mask hides stays NaN, as in a sweep
            change = sum(float(estimates[layer][plan.edits.index_of(cell)].sum()) for layer in seen)
            result.values[i].flat[number] = result.base_metric[i] + change


def _estimates(plan: Plan, base: Trace, steps: int) -> dict[int, Tensor]:
    """For every layer of the grid, the estimated effect of each of its places: float64, the d axes summed over."""
    site = plan.grid.site
    layers = plan.grid.axes.get("layer", plan.grid.rest.get("layer", []))
    at_base = gradients(base, plan.pair.metric, {(site.name, layer) for layer in layers}) if steps == 1 else {}
    found = {}
    for layer in layers:
        there = base[site.name, layer]
        change = plan.edits.whole(layer).to(there.dtype) - there
        grad = at_base[site.name, layer] if steps == 1 else _mean_gradient(plan, base, layer, change, steps)
        d_axes = [i for i, axis in enumerate(site.axes) if axis.startswith("d_")]
        product = in_float64(change) * in_float64(grad)
        found[layer] = product.sum(d_axes) if d_axes else product
    return found


def _mean_gradient(plan: Plan, base: Trace, layer: int, change: Tensor, steps: int) -> Tensor:
    """The mean gradient on the way from the base's values of a layer to the source's, at the places of the grid."""
    name, model = plan.grid.site.name, base.model
    covered = torch.zeros_like(change)
    covered[plan.edits.index_of({**plan.grid.rest, **plan.grid.axes})] = 1.0
    total = torch.zeros_like(change)
    for step in range(steps):
        value = base[name, layer] + change * covered * ((step + 0.5) / steps)
        edits = (*base.bound_edits, Patch(site=name, source=value, layer=layer).bind(model, base.ids))
        moved = run_traced(model, [base.ids], [edits])[0]
        total += gradients(moved, plan.pair.metric, {(name, layer)})[name, layer]
    return total / steps

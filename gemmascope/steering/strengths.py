"""gs.strength_sweep: what a steering vector does to a metric at each strength, and what it costs in fluency."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from gemmascope.arguments import as_list, finite_number, short_repr
from gemmascope.edits.call_text import metric_text
from gemmascope.edits.kinds import Add
from gemmascope.edits.make import add
from gemmascope.edits.places import Head, Pos
from gemmascope.errors import EditError, SiteError, SweepError
from gemmascope.loading.default import model_or_nano
from gemmascope.memory.limits import rows_within
from gemmascope.model.model import Model, Prompt
from gemmascope.model.modes import computes
from gemmascope.run.bound_metric import BoundMetric, bind_to_prompt, try_metric
from gemmascope.steering.direction import Direction
from gemmascope.steering.directions import ids_of_prompts
from gemmascope.steering.steered_runs import measure_strengths
from gemmascope.steering.strength_result import StrengthSweep
from gemmascope.sweeps.remarks import prompts_remarks, raise_or_warn
from gemmascope.values import is_array, real_tensor


@computes
def strength_sweep(
    prompts: Prompt | Iterable[Prompt],
    vector: Tensor | Direction,
    metric: object,
    *,
    strengths: Iterable[float],
    site: str | None = None,
    layer: int | None = None,
    pos: Pos = None,
    head: Head = None,
    texts: Prompt | Iterable[Prompt] | None = None,
    model: Model | None = None,
    memory: int | str | None = None,
    progress: bool = True,
) -> StrengthSweep:
    """Steer with strength x vector for every strength, and measure a metric and the model's perplexity.

    As many runs as fit share a pass; below the steered layer each text runs once. Perplexity is exp of the mean negative
    log-likelihood of the predicted tokens.

    Args:
        prompts: A prompt or several, as in gs.trace.
        vector: The steering vector, as in gs.add, or a direction from gs.direction, which knows its site, layer and head.
        metric: A metric of each prompt, as in gs.sweep, or a list with one for each prompt.
        strengths: What the vector is multiplied by, each number once. The unsteered run is always measured.
        site: A site with rows in the layers. None means the direction's.
        layer: Its layer. None means the direction's.
        pos: The positions to steer, in prompts and texts alike; None means all.
        head: The heads to steer, at sites with heads only. None means the direction's head, or all heads for a tensor.
        texts: Texts whose perplexity is measured under the same steering: each of their tokens but the first is predicted
            from those before it. None means the prompts.
        model: The model; None means nano.
        memory: How much memory the runs of one pass may take, such as "2GiB". None means what the model was loaded to leave
            for them, or a quarter of what is free.
        progress: Whether to show a progress bar.

    Returns:
        The metric and KL(unsteered || steered) of the next token, means over prompts, and the perplexity, by strength.

    Raises:
        PromptError, SiteError, EditError, MetricError, BudgetError, SweepError: For arguments that do not fit, before
            anything runs.

    Examples:
        >>> direction = gs.direction(["Mary gave", "Mary went"], ["John gave", "John went"], layer=2)
        >>> prompt = "When Mary and John went to the store, John gave a drink to"
        >>> result = gs.strength_sweep(prompt, direction, gs.logit_diff(" Mary", " John"), strengths=[-2, 0, 2])
        >>> result.metric.values.round(1)
        array([ 12.7,  11.9, -14.5])

    References:
        Turner et al., "Activation Addition" (arXiv 2308.10248).
    """
    model = model_or_nano(model)
    numbers = _listed_strengths(strengths)
    steering = steering_edit(vector, site, layer, head, pos)
    ids = ids_of_prompts(prompts, "prompt", "give at least one", model)
    metrics = _metrics(metric, ids, model)
    text_ids = [] if texts is None else ids_of_prompts(texts, "text", "give at least one", model)
    raise_or_warn(prompts_remarks(ids, metric, model), SweepError)
    return measure_strengths(
        model, ids, text_ids, steering, numbers, metrics, metric_text(metric), rows_within(memory, model), progress
    )


def _listed_strengths(strengths: object) -> list[float]:
    """The strengths as numbers. SweepError for an empty list, a number twice, or something that is no finite number."""
    if is_array(strengths):
        strengths = real_tensor(strengths, "strengths, a list of numbers,", SweepError).tolist()
    listed = as_list(strengths, "strengths, such as [-4, -2, 0, 2, 4],", error=SweepError)
    if not listed:
        raise SweepError("strengths is an empty list: give at least one number, such as [-4, -2, 0, 2, 4]")
    numbers = [finite_number(strength, "a strength", error=SweepError) for strength in listed]
    if len(set(numbers)) < len(numbers):
        raise SweepError(f"strengths name a number twice: {short_repr(listed)}")
    return numbers


def steering_edit(vector: Tensor | Direction, site: str | None, layer: int | None, head: Head, pos: Pos) -> Add:
    """The edit at strength 1. A direction gives its own site, layer and head where the call gives none."""
    if isinstance(vector, Direction):
        head = vector.head if head is None and site in (None, vector.site) else head
        site, layer = site or vector.site, vector.layer if layer is None else layer
        vector = vector.vector
    if site is None:
        raise SiteError("say the site and layer to steer at: a tensor does not know them, as what gs.direction returns does")
    if is_array(vector) and (values := real_tensor(vector, "the vector", EditError)).numel() and not bool(values.any()):
        raise EditError("the vector holds zeros alone, which steer nowhere")
    return add(site, vector, layer=layer, pos=pos, head=head)  # type: ignore[return-value]  # without when= it is an Add


def _metrics(metric: object, ids: Sequence[Tensor], model: Model) -> list[BoundMetric]:
    """A metric for each prompt, bound to it and tried."""
    metrics = list(metric) if isinstance(metric, (list, tuple)) else [metric] * len(ids)
    if len(metrics) != len(ids):
        raise SweepError(f"there are {len(ids)} prompts and {len(metrics)} metrics: give one for all, or one for each")
    bound = [bind_to_prompt(each, model, prompt) for each, prompt in zip(metrics, ids, strict=True)]
    for each, prompt in zip(bound, ids, strict=True):
        try_metric(each, model, prompt)
    return bound

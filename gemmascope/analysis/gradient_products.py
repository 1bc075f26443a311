"""Products of values and gradients: attention times gradient, and paths from head to head."""

from __future__ import annotations

from contextlib import closing

import torch
import xarray
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from gemmascope.arguments import one_of
from gemmascope.edits.places import first_difference
from gemmascope.edits.sources import not_a_trace
from gemmascope.errors import SiteError, SweepError
from gemmascope.loading.default import model_or_nano
from gemmascope.model.gemma2 import Layer
from gemmascope.model.model import Model, Prompt
from gemmascope.model.modes import computes
from gemmascope.run.backward.norms import through_norm
from gemmascope.run.replay import replay
from gemmascope.run.trace import Trace
from gemmascope.run.tracing import trace as run_trace
from gemmascope.sweeps.metrics import MetricLike
from gemmascope.sweeps.pairs import INTO
from gemmascope.values import labelled, moved

# What a head reads the stream through, and the site whose gradient says what it does there: before Gemma 3's norms.
INPUTS = {"q": "q_raw", "k": "k_raw", "v": "v"}


@computes
def attention_attribution(trace: Trace, metric: MetricLike) -> xarray.DataArray:
    """Each attention weight times the gradient of a metric with respect to it: which edges the metric leans on.

    To first order, the product is what the metric loses if that weight becomes 0 while the others stay as they are.

    Args:
        trace: What gs.trace returns.
        metric: As in t.grad: gs.logit_diff(...), or a function of the next token's soft-capped logits.

    Returns:
        (layer, head, q_pos, k_pos), in the metric's unit, with the kinds of layers and the tokens as labels.

    Raises:
        SiteError: For what is no trace.
        MetricError: The metric has no gradient.

    Examples:
        >>> t = gs.trace("When Mary and John went to the store, John gave a drink to")
        >>> edges = gs.attention_attribution(t, gs.logit_diff(" Mary", " John"))
        >>> edges.dims
        ('layer', 'head', 'q_pos', 'k_pos')

    References:
        Hao et al., "Self-Attention Attribution" (arXiv 2004.11207), which averages the gradient over scaled weights.
        Nanda, "Attribution patching: activation patching at industrial scale" (2023).
    """
    if not isinstance(trace, Trace):
        raise SiteError(f"attention is attributed in a trace, gs.trace(prompt); given {not_a_trace(trace)}")
    n_layers = trace.model.n_layers
    gradients = trace.grad(metric, [("pattern", layer) for layer in range(n_layers)])
    assert isinstance(gradients, dict)
    products = torch.stack(
        [
            moved(values["pattern"].float(), trace.model.device) * gradients["pattern", layer.index].float()
            for layer, values in replay(trace, ["pattern"])
        ]
    )
    _, n_heads, n_pos, _ = products.shape
    coords: dict[str, object] = {
        "layer": range(n_layers),
        "kind": ("layer", list(trace.model.config.kinds)),
        "head": range(n_heads),
    }
    for axis in ("q", "k"):
        coords |= {f"{axis}_pos": range(n_pos), f"{axis}_token": (f"{axis}_pos", trace.tokens)}
    return labelled(products, coords, ("layer", "head", "q_pos", "k_pos"), "attention x gradient", "metric")


@computes
def head_paths(
    clean: Prompt, corrupt: Prompt, metric: MetricLike, *, into: str = "corrupt", model: Model | None = None
) -> xarray.Dataset:
    """Estimate what every head sends to every later head, by way of its queries, keys and values.

    Path attribution: (what the sending head adds to the stream in one run - in the other) . the gradient of the metric with
    respect to what the receiving head reads of the stream, summed over positions. What a head adds is `head_out`, through
    the post-norm with its scale in each run; what it reads goes through the derivative of the input norm. So the estimates
    for all receivers of a layer add up to the gradient's part that goes through its attention. One backward pass.

    Args:
        clean: The prompt that has the answer.
        corrupt: The prompt to compare with, of as many tokens.
        metric: As in gs.attribute.
        into: The run whose gradient is taken, and into which the other's values would go: "corrupt" or "clean".
        model: The model; None means nano.

    Returns:
        "q" (sender_layer, sender, layer, head), "k" and "v" (sender_layer, sender, layer, kv_head): the estimated change of
        the metric. NaN where the sender does not come before the receiver.

    Raises:
        SweepError: The prompts have different lengths.
        PromptError, MetricError: As in gs.attribute.

    Examples:
        >>> clean = "When Mary and John went to the store, John gave a drink to"
        >>> corrupt = "When Mary and John went to the store, Mary gave a drink to"
        >>> paths = gs.head_paths(clean, corrupt, gs.logit_diff(" Mary", " John"))
        >>> paths["q"].dims
        ('sender_layer', 'sender', 'layer', 'head')

    References:
        Nanda, "Attribution patching: activation patching at industrial scale" (2023).
        Syed et al., "Attribution patching outperforms automated circuit discovery" (arXiv 2310.10348).
    """
    one_of(into, "into, the run whose gradient is taken,", INTO, error=SweepError)
    model = model_or_nano(model)
    ids = [model.ids(prompt) for prompt in (clean, corrupt)]
    if len(ids[0]) != len(ids[1]):
        raise SweepError(f"the positions of the two prompts must match: {first_difference(model, *ids)}")
    runs = run_trace(ids, model=model)
    base, source = reversed(runs) if into == "corrupt" else runs
    config, n_layers = model.config, model.n_layers
    gradients = base.grad(metric, [(site, layer) for site in INPUTS.values() for layer in range(n_layers)])
    changes = [
        moved((one - other).float(), model.device) for one, other in zip(_head_outs(source), _head_outs(base), strict=True)
    ]
    sizes = {"q": config.n_heads, "k": config.n_kv_heads, "v": config.n_kv_heads}
    found = {site: torch.full((n_layers, config.n_heads, n_layers, n), torch.nan) for site, n in sizes.items()}
    with torch.no_grad(), closing(model.layers()) as layers:
        for layer in layers:
            for site in INPUTS if layer.index else ():
                gradient = gradients[INPUTS[site], layer.index]
                read = moved(_through_input(layer, site, gradient, base.residuals[layer.index]), model.device)
                sent = torch.stack(changes[: layer.index])
                found[site][: layer.index, :, layer.index] = einsum(
                    sent, read, "layer pos sender d, pos head d -> layer sender head"
                ).cpu()
    arrays = {}
    for site, values in found.items():
        axis = "head" if site == "q" else "kv_head"
        dims = ("sender_layer", "sender", "layer", axis)
        coords = {dim: range(size) for dim, size in zip(dims, values.shape, strict=True)}
        arrays[site] = labelled(values, coords, dims, site, "estimated change of the metric")
    return xarray.Dataset(arrays)


def _head_outs(run: Trace) -> list[Tensor]:
    """What each head adds to the stream, of every layer: [pos, head, d_model]."""
    return [values["head_out"] for _, values in replay(run, ["head_out"])]


def _through_input(
    layer: Layer, site: str, gradient: Float[Tensor, "pos head d_head"], stream: Float[Tensor, "pos d_model"]
) -> Float[Tensor, "pos head d_model"]:
    """The gradient at a head's queries, keys or values as one at what it reads of the stream, through the input norm."""
    norm, weight = layer.input_layernorm, {"q": layer.W_Q, "k": layer.W_K, "v": layer.W_V}[site].float()
    gradient, stream = (moved(value.float(), weight.device) for value in (gradient, stream))
    at_normed = einsum(gradient, weight, "pos head d, head d_model d -> pos head d_model")
    return through_norm(norm, at_normed, stream[:, None])

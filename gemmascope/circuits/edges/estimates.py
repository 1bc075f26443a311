"""Edge scores from gradients: EAP, EAP-IG and RelP, for all edges of a pair from one backward pass.

score(u -> v) = (u in the other run - u in this one) . gradient of the metric at the input of v, summed over positions. u is
a head's or an MLP's output as it joins the stream, through the post-norm; the input of v is the stream before its norm.

Sources: Syed et al., "Attribution patching outperforms automated circuit discovery" (arXiv 2310.10348); Hanna et al., "Have
faith in faithfulness" (EAP-IG, arXiv 2403.17806); Jafari et al., RelP (arXiv 2508.21258).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import einsum
from torch import Tensor

from gemmascope.circuits.edges.nodes import Nodes
from gemmascope.circuits.edges.pairs import EdgePair
from gemmascope.edits.kinds import Patch
from gemmascope.model.gemma2 import Layer
from gemmascope.run.backward.carried import GRADIENT, RELP, AtLayer, CarriedGradients
from gemmascope.run.backward.norms import through_norm
from gemmascope.run.trace import Trace
from gemmascope.run.tracing import run_traced
from gemmascope.values import moved

_SITES = ("q_raw", "k_raw", "v", "resid_mid", "mlp_in")


def estimated(pair: EdgePair, steps: int = 1, rules: str = GRADIENT) -> Tensor:
    """The scores of a pair's edges, float64 [sender, receiver, span]; NaN where there is no edge.

    steps: how many gradients to average along the line between the two embeddings; 1 for the gradient at the base run.
    """
    nodes, model, change = Nodes.of(pair.model.config), pair.model, pair.change
    shape = (len(nodes.senders), len(nodes.receivers), len(pair.members))
    scores = torch.full(shape, torch.nan, dtype=torch.float64)
    points = [pair.base] if steps == 1 else _between(pair, steps)
    carried = CarriedGradients(points, [pair.metric] * len(points), rules)

    def put(kind: str, layer: int, read: Tensor) -> None:
        """Score a layer's receivers of one kind by the gradient at what they read, [pos, receiver, d_model]."""
        n = nodes.n_before(kind, layer)
        read = moved(read, model.device)
        scores[:n, nodes.reading(kind, layer)] = _products(change[:n], read, pair.members).double().cpu()

    at_end = torch.stack([grad.float() for grad in carried.stream]).mean(0)
    put("logits", model.n_layers - 1, at_end[:, None])
    requested = [(site, layer) for layer in range(model.n_layers) for site in _SITES]
    with torch.no_grad():
        for layer, found in carried.layers(requested):
            for kind, read in _reads(layer, found, points, keep_scale=rules == RELP).items():
                put(kind, layer.index, read)
    return scores


def _between(pair: EdgePair, steps: int) -> list[Trace]:
    """Runs from embeddings on the line between both, at the midpoints of as many equal parts; one pass."""
    embed, to = pair.base.residuals[0].float(), pair.of_source.written[0]
    edits = []
    for step in range(steps):
        value = embed + (to - embed) * ((step + 0.5) / steps)
        edits.append([Patch(site="embed", source=value).bind(pair.model, pair.ids)])
    return run_traced(pair.model, [pair.ids] * steps, edits)


def _reads(layer: Layer, found: Sequence[AtLayer], points: Sequence[Trace], *, keep_scale: bool) -> dict[str, Tensor]:
    """By the kind of receivers, the mean gradient at what they read of the stream, [pos, receiver, d_model]."""
    weights = {"q": ("q_raw", layer.W_Q), "k": ("k_raw", layer.W_K), "v": ("v", layer.W_V)}
    reads: dict[str, list[Tensor]] = {kind: [] for kind in (*weights, "mlp")}
    for at, point in zip(found, points, strict=True):
        stream = moved(point.residuals[layer.index], layer.device)[:, None]
        for kind, (site, weight) in weights.items():
            gradient = at.gradients[site, layer.index].float()
            normed = einsum(gradient, weight.float(), "pos head d, head d_model d -> pos head d_model")
            reads[kind].append(through_norm(layer.input_layernorm, normed, stream, keep_scale=keep_scale))
        middle, gradient = at.values["resid_mid", layer.index], at.gradients["mlp_in", layer.index]
        read = through_norm(layer.pre_feedforward_layernorm, gradient, middle, keep_scale=keep_scale)
        reads["mlp"].append(read[:, None])
    return {kind: torch.stack(each).mean(0) for kind, each in reads.items()}


def _products(change: Tensor, read: Tensor, members: Tensor) -> Tensor:
    """change [sender, pos, d_model] . read [pos, receiver, d_model], summed over each span: [sender, receiver, span]."""
    if len(members) == 1:
        read = read * members[0, :, None, None]
        return (change.flatten(1) @ read.transpose(0, 1).flatten(1).T)[..., None]
    at_pos = change.transpose(0, 1) @ read.transpose(1, 2)  # [pos, sender, receiver]
    return einsum(at_pos, members.float(), "pos sender receiver, span pos -> sender receiver span")

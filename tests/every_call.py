"""Every call of the package that computes, on nano: what a test compares between devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import gemmascope as gs
from gemmascope.model.model import Model

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = CLEAN.replace("John gave", "Mary gave")
LONG = "Mary went to the store. " * 9
DIFF = gs.logit_diff(" Mary", " John")
GRIDS: dict[str, dict[str, Any]] = {
    "resid_pre": {"by": ("layer", "pos")}, "attn_out": {"by": ("layer", "pos")}, "mlp_act": {"by": ("layer",)},
    "z": {"by": ("layer", "head")}, "k": {"by": ("layer", "head")}, "pattern": {"by": ("layer", "head")},
}  # fmt: skip


def sites(model: Model) -> list[Tensor]:
    trace = gs.trace(CLEAN, model=model)
    return [trace[site.name, 2] if site.in_layer else trace[site.name] for site in gs.SITES.values()]


def sweep(site: str) -> Callable[[Model], Any]:
    few = {"layer": [0, 4]}
    return lambda model: gs.sweep(CLEAN, CORRUPT, DIFF, site=site, model=model, progress=False, **GRIDS[site], **few).values


def sampled(model: Model) -> Any:
    return gs.generate(CLEAN, model=model, max_new_tokens=4, temperature=0.9, top_p=0.9, seed=3).logprobs


def graph(model: Model, **asked: Any) -> list[Any]:
    """A graph, what heads carried of its strongest edge, why one attended, and what a check finds."""
    made = gs.attribution_graph(CLEAN, model=model, targets=DIFF, progress=False, **asked)
    edge = next(pair for pair in zip(made.edges["target"], made.edges["source"], strict=True) if pair[1] != "bias")
    checked = made.check(3).effects
    carried = np.nan_to_num(made.loadings(edge)["carried"].values)
    logit = made.rows.targets == made.keys.logits[0]
    of_logit = [made.rows.total[logit], made.rows.bias[logit], made.rows.rest[logit]]
    return [*of_logit, carried, made.qk((2, 1), 12, 5).sum(), checked.held.abs().sum(1), checked.true]


CALLS: dict[str, Callable[[Model], Any]] = {
    "sites": sites,
    "a long prompt": lambda model: gs.trace(LONG, model=model).logits,
    "edits": lambda model: gs.trace(
        CLEAN, model=model, edits=[gs.knockout(layer=2, q_pos=-1, k_pos=3), gs.add("resid_post", torch.ones(128), layer=1)]
    ).logits,
    "several prompts": lambda model: [one.logits for one in gs.trace([CLEAN, LONG], model=model)],
    **{f"sweep {site}": sweep(site) for site in GRIDS},
    "mean ablation": lambda model: gs.sweep(
        CLEAN, None, DIFF, site="z", ablate="mean", reference=[gs.trace(CORRUPT, model=model)], layer=[1, 4],
        by=("layer", "head"), model=model, progress=False,
    ).values,
    "path_sweep": lambda model: gs.path_sweep(CLEAN, CORRUPT, DIFF, layer=[3], model=model, progress=False).values,
    "path_sweep into a head": lambda model: gs.path_sweep(
        CLEAN, CORRUPT, DIFF, layer=[1], receiver=("q", 3, 0), mlps="frozen", model=model, progress=False
    ).values,
    "attribute": lambda model: gs.attribute(
        CLEAN, CORRUPT, DIFF, site="z", by=("layer", "head"), layer=[2, 5], model=model
    ).values,
    "integrated": lambda model: gs.attribute(CLEAN, CORRUPT, DIFF, site="z", layer=5, steps=2, model=model).values,
    "edge_scores": lambda model: gs.edge_scores(CLEAN, CORRUPT, DIFF, method="eap-ig", steps=2, model=model).values,
    "edge_scores by runs": lambda model: gs.edge_scores(
        CLEAN, CORRUPT, DIFF, method="exact", positions=[10], model=model, progress=False
    ).values,
    "graph of transcoders": lambda model: graph(model, max_nodes=100),
    "graph of neurons": lambda model: graph(model, basis="neuron", max_nodes=20),
    "faithfulness": lambda model: gs.faithfulness(
        ["embed->m0", "embed->a1.h0<q>", "m0->logits"], CLEAN, CORRUPT, DIFF, model=model
    ).values,
    "grad": lambda model: list(gs.trace(CLEAN, model=model).grad(DIFF, [("pattern", 3), ("z", 1), "embed"]).values()),
    "lens of a trace": lambda model: gs.trace(CLEAN, model=model).lens(),
    "lens": lambda model: gs.lens(gs.trace(CLEAN, model=model)).entropy,
    "direct_logits": lambda model: gs.direct_logits(gs.trace(CLEAN, model=model), " Mary", against=" John", by="head").parts,
    "head_scores": lambda model: [
        one.scores for one in gs.head_scores(model, ["induction", "copying", "sink"], n=2).values()
    ],
    "attention_summary": lambda model: gs.attention_summary(gs.trace(CLEAN, model=model)).mean["entropy"],
    "composition": lambda model: gs.composition(model, "k", senders=[0, 1], receivers=[2]).scores,
    "generate": lambda model: gs.generate(CLEAN, model=model, max_new_tokens=6, edits=[gs.ablate("z", layer=1)]).logprobs,
    "generate several": lambda model: [
        one.logprobs for one in gs.generate([CLEAN, "Mary went"], model=model, max_new_tokens=3)
    ],
    "sampled": sampled,
    "direction": lambda model: gs.direction([CLEAN, LONG], [CORRUPT, "Anna was"], layer=2, model=model).vector,
    "strength_sweep": lambda model: gs.strength_sweep(
        [CLEAN], torch.linspace(-1, 1, 128), DIFF, strengths=[0.0, 1.0], site="resid_post", layer=2, model=model,
        progress=False,
    ).perplexity,
    "compare": lambda model: gs.compare(model, model, [CLEAN]).kl_all,
    "encode": lambda model: gs.load_sae().encode(gs.trace(CLEAN, model=model)).explained,
    "splice": lambda model: gs.trace(CLEAN, model=model, edits=[gs.splice(gs.load_sae(), {987: 0.0})]).logits,
    "feature_sweep": lambda model: gs.feature_sweep(
        gs.load_sae(), CLEAN, DIFF, features=[987, 3], pos=-1, model=model
    ).effect,
    "a layer's matrices": lambda model: [model.layer(1).ov(2).matrix(), model.layer(1).qk(0, distance=2).matrix()],
}  # fmt: skip


def numbers(value: Any) -> np.ndarray[Any, Any]:
    if isinstance(value, Tensor):
        return value.detach().cpu().double().numpy().ravel()
    if isinstance(value, (list, tuple)):
        return np.concatenate([numbers(one) for one in value])
    return np.asarray(value, dtype=float).ravel()

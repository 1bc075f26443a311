"""Rows that a lens reads, entry by entry, and what is kept of their logits.

Rows are unembedded a few at a time, and of each only what is asked for is kept: the logits of all entries of a long prompt
would not fit in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from gemmascope.model.maths import soft_cap
from gemmascope.run.replay import replay
from gemmascope.run.trace import Trace

STREAM = ("resid_pre", "resid_mid", "resid_post")
PARTS = ("attn_out", "mlp_out", "head_out")
EVERY = "stream"

# Logits held at once, in elements: 64 MB.
LOGIT_ELEMENTS = 2**24


def entries_of(trace: Trace, site: str, head: int | None) -> Iterator[tuple[tuple[str, int | None], Tensor]]:
    """What is read, in the order of the pass: ((site, layer), rows [pos, d_model])."""
    if site == "resid_post":
        for layer in range(trace.model.n_layers):
            yield (site, layer), trace.residuals[layer + 1]
        return
    if site == EVERY:
        yield ("embed", None), trace.residuals[0]
    if head is not None:
        yield from _of_one_head(trace, head)
        return
    sites = ("resid_mid", "resid_post") if site == EVERY else (site,)
    for at, found in replay(trace, sites):
        for one in sites:
            yield (one, at.index), found[one]


def _of_one_head(trace: Trace, head: int) -> Iterator[tuple[tuple[str, int | None], Tensor]]:
    """What one head wrote in every layer. The others' is not made, unless an edit needs it."""
    edited = {e.address.layer for e in trace.bound_edits if e.address.site.name == "head_out"}
    for layer, found in replay(trace, ["z", "attn_raw", *(("head_out", at) for at in edited if at is not None)]):
        if "head_out" in found:
            rows = found["head_out"][:, head]
        else:
            d_head = trace.model.config.d_head
            w_o = layer.self_attn.o_proj.weight[:, head * d_head : (head + 1) * d_head]
            raw = found["attn_raw"]
            rows = ((found["z"][:, head] @ w_o.T).float() * layer.post_attention_layernorm.gain(raw)).to(raw.dtype)
        yield ("head_out", layer.index), rows


def read_rows(
    trace: Trace, site: str, rows: Tensor, positions: Sequence[int], top: int, answer: int | None
) -> tuple[Tensor, ...]:
    """Ids, logits and probabilities of the top tokens, the entropy; the answer's logit, probability and rank."""
    step = max(1, LOGIT_ELEMENTS // trace.model.config.vocab_size)
    parts = []
    for start in range(0, len(positions), step):
        at = positions[start : start + step]
        logits = logits_of(trace, site, rows[at], at)
        logprobs = logits.log_softmax(-1)
        best = logits.topk(top)
        found = [best.indices, best.values, logprobs.gather(-1, best.indices).exp(), -(logprobs.exp() * logprobs).sum(-1)]
        if answer is not None:
            of_answer = logits[:, answer]
            found += [of_answer, logprobs[:, answer].exp(), (logits > of_answer[:, None]).sum(-1)]
        parts.append(found)
    return tuple(torch.cat(values) for values in zip(*parts, strict=True))


def logits_of(trace: Trace, site: str, rows: Tensor, positions: Sequence[int]) -> Float[Tensor, "row vocab"]:
    """The soft-capped logits of rows of a site, which stand at these positions."""
    network = trace.model.network
    trace.require_weights(None)
    with torch.no_grad():
        if site not in PARTS:
            return network.unembed(rows)
        gain = network.model.norm.gain(trace.residuals[-1][list(positions)])
        raw = network.model.embed_tokens.logits((rows.float() * gain).to(rows.dtype)).float()
        return soft_cap(raw, trace.model.config.final_cap)

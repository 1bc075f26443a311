"""Comparing two models of one shape: what other weights (int8, instruction-tuned) do to the interpretation, not only to the
loss: to the answers, to the stream between the layers, and to which heads matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gemmascope.analysis.comparison import Comparison
from gemmascope.analysis.shared_prompts import Case, reader, shared_cases, shared_ids
from gemmascope.arguments import whole_number
from gemmascope.errors import MetricError, SweepError
from gemmascope.loading.default import model_or_nano
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.run.trace import Trace, trace
from gemmascope.sweeps.metrics import answer_logprob
from gemmascope.sweeps.remarks import raise_or_warn, sweep_remarks
from gemmascope.sweeps.result import SweepResult
from gemmascope.sweeps.sweep import SweepSpec, prepare, run_cells
from gemmascope.values import in_float64

# Logits compared at once, in elements: 32 MB in float64, which is held a few times over.
LOGIT_ELEMENTS = 2**22
SHAPE = ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "vocab_size")


@computes
def compare(model_a: Model | None, model_b: Model | None, prompts: Any, *, pairs: Any = None, top: int = 10) -> Comparison:
    """What the weights of model_b change beside those of model_a: answers, stream by layer, and the heads that matter.

    model_a, model_b: two models with the same numbers of layers, heads and tokens and the same d_model; None means nano.
    prompts: a prompt or a list of them, as in gs.trace, of two tokens or more. Where they are text model_a reads them, and
    both models run the same token ids, in one pass each. The stream's first position, <bos>, is left out: it is the same
    in every prompt, and would count once for each.
    pairs: whose heads to compare, by patching z in a sweep with each model: a list of (clean, corrupt, metric), or prompts
    of a family, gs.prompts.ioi(8), measured by gs.logit_diff. Without them every head's z is set to 0 in each prompt, and
    the metric is the log-probability of model_a's own top answer. top: how many of the strongest heads are to be shared.
    Raises MetricError for models of other shapes or a top that is none, PromptError for prompts and SweepError for pairs
    that do not fit.
    """
    a, b = model_or_nano(model_a), model_or_nano(model_b)
    _refuse_other_shapes(a, b)
    top = whole_number(top, "top is how many of the strongest heads to compare, which", least=1, error=MetricError)
    cases = [] if pairs is None else shared_cases(pairs, a, b)
    ids = shared_ids(prompts, a, b)
    answers, near = _runs(ids, a, b)
    if pairs is None:
        cases = [(prompt, None, answer_logprob(answer.top_a)) for prompt, answer in zip(ids, answers, strict=True)]
    return Comparison(
        model_a=_named(a),
        model_b=_named(b),
        **_by_prompt(ids, answers, a, b),
        **_by_layer(near),
        effect_a=_heads(cases, a).per_pair,
        effect_b=_heads(cases, b).per_pair,
        patched=pairs is not None,
        top=min(top, a.n_layers * a.config.n_heads),
    )


class _Answers(NamedTuple):
    """How the answers to a prompt differ. kl: KL(a || b) in nats, [pos]. top: the likeliest next token's id.

    change: of the log-probability of a's top answer, b's less a's, in nats.
    """

    kl: Tensor
    top_a: int
    top_b: int
    change: float


def _runs(ids: Sequence[Tensor], a: Model, b: Model) -> tuple[list[_Answers], Float[Tensor, "2 layer"]]:
    """Run the prompts through both models, and keep of it the answers and the nearness of the streams alone."""
    of_a, of_b = trace(ids, model=a), trace(ids, model=b)
    both = list(zip(of_a, of_b, strict=True))
    n_rows = sum(len(prompt) - 1 for prompt in ids)
    return [_answers(x, y) for x, y in both], torch.stack([_nearness(x, y) for x, y in both]).sum(0) / n_rows


def _answers(x: Trace, y: Trace) -> _Answers:
    """Compare next tokens at every position, a few positions at a time: a vocabulary is wide."""
    parts, step = [], max(1, LOGIT_ELEMENTS // x.model.config.vocab_size)
    for first in range(0, len(x), step):
        p = _log_probs(x, slice(first, first + step))
        q = _log_probs(y, slice(first, first + step)).to(p.device)
        parts.append((p.exp() * (p - q)).sum(-1))
    p, q = p[-1], q[-1]  # of the last position: the next token
    top_a, top_b = int(p.argmax()), int(q.argmax())
    kl = torch.cat(parts).clamp(min=0.0)  # never negative but for rounding
    return _Answers(kl, top_a, top_b, float(q[top_a] - p[top_a]))


def _log_probs(t: Trace, rows: slice) -> Float[Tensor, "pos vocab"]:
    """Log-probabilities of the soft-capped logits of some positions, float64."""
    t.require_weights(None)
    with torch.no_grad():
        return in_float64(t.model.network.unembed(t.residuals[-1][rows])).log_softmax(-1)


def _nearness(x: Trace, y: Trace) -> Float[Tensor, "2 layer"]:
    """Cosine and relative error |a - b| / |a| at each entry of the stream, summed over all positions but the first."""
    entries = zip(x.residuals, y.residuals, strict=True)
    return torch.stack([_alike(in_float64(a[1:]), in_float64(b[1:].to(a.device))) for a, b in entries], 1)


def _alike(a: Float[Tensor, "pos d_model"], b: Float[Tensor, "pos d_model"]) -> Float[Tensor, " 2"]:
    least = torch.finfo(a.dtype).tiny
    size_a, size_b = a.norm(dim=-1), b.norm(dim=-1)
    cosine = (a * b).sum(-1) / (size_a * size_b).clamp(min=least)
    cosine[(a == b).all(-1)] = 1.0  # of rows of zeros as well, which have no direction
    error = (a - b).norm(dim=-1) / size_a.clamp(min=least)
    return torch.stack([cosine.sum(), error.sum()])


def _named(model: Model) -> str:
    """A model's name, with what tells two sets of weights of one name apart."""
    return f"{model.name!r} ({str(model.dtype)[6:]}, {model.fingerprint[:8]})"


def _by_prompt(ids: Sequence[Tensor], answers: Sequence[_Answers], a: Model, b: Model) -> dict[str, Any]:
    """The fields of a comparison that have a number for each prompt."""
    import xarray

    words = reader(a, b)
    space, tops = "" if words.has_tokenizer else " ", torch.tensor([[of.top_a, of.top_b] for of in answers])
    texts = {
        "text": [space.join(words.texts(prompt)) for prompt in ids],
        "answer_a": words.texts(tops[:, 0]),
        "answer_b": words.texts(tops[:, 1]),
    }
    coords: dict[str, Any] = {"prompt": range(len(ids)), "n_pos": ("prompt", [len(prompt) for prompt in ids])}
    # As objects: numpy's own texts lose a NUL at the end, which is a token like any other.
    coords |= {name: ("prompt", np.array(values, dtype=object)) for name, values in texts.items()}
    values = {
        "kl": ([float(answer.kl[-1]) for answer in answers], "KL(a || b) of the next token, nats"),
        "kl_all": ([float(answer.kl.mean()) for answer in answers], "KL(a || b), mean over positions, nats"),
        "agrees": ([answer.top_a == answer.top_b for answer in answers], "both have the same top answer"),
        "logprob_change": ([answer.change for answer in answers], "change of the log-probability of a's top answer, nats"),
    }
    return {
        name: xarray.DataArray(found, coords, ("prompt",), name, {"long_name": meaning})
        for name, (found, meaning) in values.items()
    }


def _by_layer(near: Float[Tensor, "2 layer"]) -> dict[str, Any]:
    """Those that have a number for each entry of the stream."""
    import xarray

    last = near.shape[1] - 1
    coords = {"layer": range(last + 1), "site": ("layer", ["embed", *(f"resid_post {layer}" for layer in range(last))])}
    left_out = "mean over the positions of all prompts, the first of each (<bos>) left out"
    names = {"cosine": "cosine of the stream", "relative_error": "relative error of the stream, |a - b| / |a|"}
    return {
        name: xarray.DataArray(row.cpu().numpy(), coords, ("layer",), name, {"long_name": meaning, "over": left_out})
        for (name, meaning), row in zip(names.items(), near, strict=True)
    }


def _heads(cases: Sequence[Case], model: Model) -> SweepResult:
    """The effect of every head: of z patched from the clean run, or set to 0 where the cases have no corrupted one."""
    cleans, corrupts, metrics = map(list, zip(*cases, strict=True))
    ablated = corrupts[0] is None
    asked = SweepSpec("z", ("layer", "head"), ablate=0.0 if ablated else None)
    sweeping = prepare(cleans, None if ablated else corrupts, metrics, asked, model=model)
    if not ablated:
        raise_or_warn(sweep_remarks(sweeping.plans, metrics, model), SweepError)
    run_cells(sweeping, progress=True)  # an interrupt passes through: half of the heads would rank the others wrongly
    return sweeping.result


def _refuse_other_shapes(a: Model, b: Model) -> None:
    differ = [(n, x, y) for n in SHAPE if (x := getattr(a.config, n)) != (y := getattr(b.config, n))]
    if differ:
        numbers = ", ".join(f"{name} {of_a} and {of_b}" for name, of_a, of_b in differ)
        raise MetricError(
            f"the models {a.name!r} and {b.name!r} differ in shape: {numbers}. "
            "Compare two sets of weights of one shape, such as a model and its int8 or its instruction-tuned form"
        )

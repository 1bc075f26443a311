"""gs.compare: what other weights of one shape (int8, instruction-tuned) change beyond the loss: the answers, the stream
between the layers, and which heads matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gemmascope.analysis.comparison import Comparison
from gemmascope.analysis.shared_prompts import Case, PairLike, shared_cases, shared_ids, tokenizing_model
from gemmascope.arguments import whole_number
from gemmascope.errors import MetricError, SweepError
from gemmascope.loading.default import model_or_nano
from gemmascope.model.maths import kl_divergence
from gemmascope.model.model import Model, Prompt
from gemmascope.model.modes import computes
from gemmascope.run.logits import rows_to_unembed
from gemmascope.run.trace import Trace
from gemmascope.run.tracing import trace
from gemmascope.sweeps.metrics import answer_logprob
from gemmascope.sweeps.pairs import sweep_remarks
from gemmascope.sweeps.remarks import raise_or_warn
from gemmascope.sweeps.result import SweepResult
from gemmascope.sweeps.running.runner import run_cells
from gemmascope.sweeps.spec import SweepSpec
from gemmascope.sweeps.sweep import prepare
from gemmascope.values import chunks, in_float64, labelled, moved

if TYPE_CHECKING:
    import xarray

SHAPE = ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "vocab_size")


@computes
def compare(
    model_a: Model | None,
    model_b: Model | None,
    prompts: Prompt | Iterable[Prompt],
    *,
    pairs: Sequence[PairLike] | None = None,
    top: int = 10,
) -> Comparison:
    """Compare two models of one shape: their answers, their streams layer by layer, and the heads that matter.

    Both models run the same token ids, in one pass each. model_a's tokenizer reads prompts given as text. The first position
    of the stream, `<bos>`, is left out: it is the same in every prompt, and would count once for each.

    Args:
        model_a: A model; None means nano.
        model_b: A model with the same numbers of layers, heads and tokens and the same d_model; None means nano.
        prompts: A prompt or several, as in gs.trace, each of two tokens or more.
        pairs: How to measure which heads matter: a list of (clean, corrupt, metric), or prompts of a family such as
            gs.prompts.ioi(8), measured by gs.logit_diff. Each head's z is patched from the clean run. None means that each
            head's z is set to 0 in every prompt, measured by the log-probability of model_a's top answer.
        top: How many of the strongest heads to compare.

    Returns:
        KL divergence and top answers by prompt, cosine and relative error of the stream by layer, and the effects of all
        heads in both models (pair, layer, head).

    Raises:
        MetricError: For models of different shapes, or a top that is not a number of heads.
        PromptError: For prompts that are too short, or that the two tokenizers read differently.
        SweepError: For pairs that do not fit.

    Examples:
        >>> result = gs.compare(gs.load(), gs.load(dtype="bfloat16"), "Mary went to the store.", top=3)
        >>> bool(result.agrees[0])
        True
        >>> float(result.cosine.min()) > 0.999
        True
    """
    a, b = model_or_nano(model_a), model_or_nano(model_b)
    _refuse_other_shapes(a, b)
    top = whole_number(top, "top is how many of the strongest heads to compare, which", least=1, error=MetricError)
    cases = [] if pairs is None else shared_cases(pairs, a, b)
    ids = shared_ids(prompts, a, b)
    answers, nearness = _run_both(ids, a, b)
    if pairs is None:
        cases = [Case(prompt, None, answer_logprob(answer.top_a)) for prompt, answer in zip(ids, answers, strict=True)]
    return Comparison(
        model_a=_name_and_weights(a),
        model_b=_name_and_weights(b),
        **_by_prompt(ids, answers, a, b),
        **_by_layer(nearness),
        effect_a=_head_effects(cases, a).per_pair,
        effect_b=_head_effects(cases, b).per_pair,
        patched=pairs is not None,
        top=min(top, a.n_layers * a.config.n_heads),
    )


class _Answers(NamedTuple):
    """How the answers to a prompt differ.

    kl: KL(a || b) in nats, [pos]. top_a, top_b: ids of the likeliest next tokens. change: of the log-probability of a's top
    answer, b's less a's, in nats.
    """

    kl: Tensor
    top_a: int
    top_b: int
    change: float


def _run_both(ids: Sequence[Tensor], a: Model, b: Model) -> tuple[list[_Answers], Float[Tensor, "2 layer"]]:
    """Run the prompts through both models: the difference of answers, and the mean nearness of the streams."""
    trace_pairs = list(zip(trace(ids, model=a), trace(ids, model=b), strict=True))
    n_rows = sum(len(prompt) - 1 for prompt in ids)
    nearness = torch.stack([_nearness(x, y) for x, y in trace_pairs]).sum(0) / n_rows
    return [_answers(x, y) for x, y in trace_pairs], nearness


def _answers(x: Trace, y: Trace) -> _Answers:
    """Compare next tokens at every position, a few positions at a time, because logits of all would be large."""
    parts, step = [], rows_to_unembed(x.model, bytes_per_logit=16)
    for rows in chunks(len(x), step):
        p = _log_probs(x, rows)
        q = _log_probs(y, rows).to(p.device)
        parts.append(kl_divergence(p, q))
    p, q = p[-1], q[-1]  # of the last position
    top_a, top_b = int(p.argmax()), int(q.argmax())
    kl = torch.cat(parts).clamp(min=0.0)  # negative only by rounding
    return _Answers(kl, top_a, top_b, float(q[top_a] - p[top_a]))


def _log_probs(t: Trace, rows: slice) -> Float[Tensor, "pos vocab"]:
    """Log-probabilities of the soft-capped logits of some positions, float64."""
    t.require_weights(None)
    with torch.no_grad():
        return in_float64(t.model.network.unembed(t.residuals[-1][rows])).log_softmax(-1)


def _nearness(x: Trace, y: Trace) -> Float[Tensor, "2 layer"]:
    """Cosine and relative error |a - b| / |a| at each entry of the stream, summed over all positions but the first."""
    entries = zip(x.residuals, y.residuals, strict=True)
    each = [_cosine_and_error(in_float64(a[1:]), in_float64(b[1:].to(a.device))) for a, b in entries]
    return torch.stack([moved(sums, x.model.device) for sums in each], 1)


def _cosine_and_error(a: Float[Tensor, "pos d_model"], b: Float[Tensor, "pos d_model"]) -> Float[Tensor, " 2"]:
    """Sums over positions of the cosine and of the relative error."""
    tiny = torch.finfo(a.dtype).tiny
    norm_a, norm_b = a.norm(dim=-1), b.norm(dim=-1)
    cosine = (a * b).sum(-1) / (norm_a * norm_b).clamp(min=tiny)
    cosine[(a == b).all(-1)] = 1.0  # equal rows of zeros, too, which have no direction
    error = (a - b).norm(dim=-1) / norm_a.clamp(min=tiny)
    return torch.stack([cosine.sum(), error.sum()])


def _name_and_weights(model: Model) -> str:
    """A model's name, with the dtype and fingerprint that distinguish two sets of weights of one name."""
    return f"{model.name!r} ({str(model.dtype)[6:]}, {model.fingerprint[:8]})"


def _by_prompt(ids: Sequence[Tensor], answers: Sequence[_Answers], a: Model, b: Model) -> dict[str, xarray.DataArray]:
    """The fields of a comparison with a number for each prompt."""
    model = tokenizing_model(a, b)
    separator = "" if model.has_tokenizer else " "
    tops = torch.tensor([[answer.top_a, answer.top_b] for answer in answers])
    texts = {
        "text": [separator.join(model.texts(prompt)) for prompt in ids],
        "answer_a": model.texts(tops[:, 0]),
        "answer_b": model.texts(tops[:, 1]),
    }
    coords: dict[str, object] = {"prompt": range(len(ids)), "n_pos": ("prompt", [len(prompt) for prompt in ids])}
    # Objects, because numpy's own strings lose a NUL at the end, and a token may be one.
    coords |= {name: ("prompt", np.array(values, dtype=object)) for name, values in texts.items()}
    fields: dict[str, tuple[Sequence[float], str]] = {
        "kl": ([float(answer.kl[-1]) for answer in answers], "KL(a || b) of the next token, nats"),
        "kl_all": ([float(answer.kl.mean()) for answer in answers], "KL(a || b), mean over positions, nats"),
        "agrees": ([answer.top_a == answer.top_b for answer in answers], "both have the same top answer"),
        "logprob_change": ([answer.change for answer in answers], "change of the log-probability of a's top answer, nats"),
    }
    return {name: labelled(values, coords, ("prompt",), name, meaning) for name, (values, meaning) in fields.items()}


def _by_layer(nearness: Float[Tensor, "2 layer"]) -> dict[str, xarray.DataArray]:
    """The fields of a comparison with a number for each entry of the stream."""
    last = nearness.shape[1] - 1
    coords = {"layer": range(last + 1), "site": ("layer", ["embed", *(f"resid_post {layer}" for layer in range(last))])}
    left_out = "mean over the positions of all prompts, the first of each (<bos>) left out"
    names = {"cosine": "cosine of the stream", "relative_error": "relative error of the stream, |a - b| / |a|"}
    return {
        name: labelled(row, coords, ("layer",), name, meaning).assign_attrs(over=left_out)
        for (name, meaning), row in zip(names.items(), nearness, strict=True)
    }


def _head_effects(cases: Sequence[Case], model: Model) -> SweepResult:
    """The effect of every head: z patched from the clean run, or set to 0 in cases without a corrupted run."""
    cleans, corrupts, metrics = map(list, zip(*cases, strict=True))
    ablated = corrupts[0] is None
    spec = SweepSpec("z", ("layer", "head"), ablate=0.0 if ablated else None)
    runner = prepare(cleans, None if ablated else corrupts, metrics, spec, model=model)
    if not ablated:
        raise_or_warn(sweep_remarks(runner.pairs, metrics, model), SweepError)
    run_cells(runner, progress=True)  # an interrupt is raised: a ranking of half of the heads would be wrong
    return runner.single


def _refuse_other_shapes(a: Model, b: Model) -> None:
    differ = [(n, x, y) for n in SHAPE if (x := getattr(a.config, n)) != (y := getattr(b.config, n))]
    if differ:
        numbers = ", ".join(f"{name} {of_a} and {of_b}" for name, of_a, of_b in differ)
        raise MetricError(
            f"the models {a.name!r} and {b.name!r} differ in shape: {numbers}. "
            "Compare two sets of weights of one shape, such as a model and its int8 or its instruction-tuned form"
        )

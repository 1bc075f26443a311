"""What a graph explains: logits of tokens, their differences, or directions, before the soft cap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gemmascope.arguments import as_list, is_whole, short_repr
from gemmascope.edits.places import find_position
from gemmascope.errors import GraphError, PromptError
from gemmascope.model.model import Model
from gemmascope.run.finite import require_logits
from gemmascope.run.metric import answer_ids
from gemmascope.run.trace import Trace
from gemmascope.sweeps.measures.kinds import AnswerMetric
from gemmascope.values import is_array, moved, real_tensor

# The tokens that a graph explains by itself: the likeliest that hold SHARE of the probability, at most MOST.
SHARE, MOST = 0.95, 10


@dataclass(frozen=True)
class Output:
    """One logit or direction.

    Attributes:
        label: What to show: " Mary", or "' Mary' - ' John'".
        token: The token's id; None for a difference or a direction.
        weight: How much it counts for influence: a token's probability, 1 for a difference or a direction.
    """

    label: str
    token: int | None
    weight: float


@dataclass(frozen=True)
class Logits:
    """Directions that are read from the last stream. vectors: [logit, d_model]; pos: the position; inputs: their values."""

    vectors: Float[Tensor, "logit d_model"]
    pos: int
    inputs: Float[Tensor, " logit"]


@torch.no_grad()
def read_outputs(trace: Trace, targets: object, pos: object) -> tuple[list[Output], Logits]:
    """What a graph is to explain, as outputs and as directions in the last stream.

    A token's direction is its row of the unembedding less the vocabulary's mean; a direction that a user gives is one of
    `final`, the stream after the last norm. Errors are those of gs.attribution_graph.
    """
    model = trace.model
    asked = _listed(targets)
    at = _position(trace, asked, pos)
    probabilities = _probabilities(trace, at)
    if asked is None:
        asked = _likeliest(probabilities)
    mean = mean_unembedding(model)
    made = [_output(model, one, probabilities, mean) for one in asked]
    outputs, rows = [one for one, _ in made], torch.stack([row for _, row in made])
    vectors = rows * model.network.model.norm.gain(moved(trace.residuals[-1][at], model.device))
    inputs = vectors.double() @ moved(trace.residuals[-1][at], model.device).double()
    return outputs, Logits(vectors, at, inputs.float())


def mean_unembedding(model: Model) -> Float[Tensor, " d_model"]:
    """The mean of all rows of the unembedding, float32."""
    table = model.network.model.embed_tokens
    total = torch.zeros(model.config.d_model, dtype=torch.float64)
    for _, rows in table.parts():
        total += rows.sum(0, dtype=torch.float64 if rows.device.type != "mps" else torch.float32).cpu()
    return (total / model.config.vocab_size).float().to(model.device)


def _listed(targets: object) -> list[object] | None:
    if targets is None:
        return None
    if isinstance(targets, (str, AnswerMetric)) or is_whole(targets):
        return [targets]
    if isinstance(targets, dict):
        return list(targets.items())
    if isinstance(targets, tuple) and len(targets) == 2 and isinstance(targets[0], str) and is_array(targets[1]):
        return [targets]
    listed = as_list(targets, "targets", error=GraphError)
    if not listed:
        raise GraphError("targets is empty: name a token, or leave it out for the likeliest")
    return listed


def _position(trace: Trace, asked: Sequence[object] | None, pos: object) -> int:
    """The position that is read. SiteError if there is none, GraphError if a metric reads another, or position 0."""
    of_metrics = [one.pos for one in asked or () if isinstance(one, AnswerMetric) and one.pos is not None]
    wanted = {find_position(one, trace.model, trace.ids, "a graph explains one position") for one in of_metrics}
    if pos is not None or not wanted:
        wanted.add(find_position(-1 if pos is None else pos, trace.model, trace.ids, "a graph explains one position"))
    if len(wanted) > 1:
        raise GraphError(f"a graph explains one position; targets and pos name {sorted(wanted)}")
    (at,) = wanted
    if at == 0:
        raise GraphError(
            "position 0 has no graph: nothing comes before it, and transcoders are not trained there. Give a prompt of two "
            "tokens or more, and a later position"
        )
    return at


def _probabilities(trace: Trace, at: int) -> Float[Tensor, " vocab"]:
    with torch.no_grad():
        row = trace.residuals[-1][at]
        logits = trace.model.network.unembed(row[None])[0]
        require_logits(trace.model, trace.ids, logits, row, at, trace.bound_edits)
        return logits.softmax(-1)


def _likeliest(probabilities: Float[Tensor, " vocab"]) -> list[object]:
    top, ids = probabilities.topk(min(MOST, len(probabilities)))
    n = int(torch.searchsorted(top.cumsum(0), SHARE)) + 1
    return list(ids[:n].tolist())


def _output(model: Model, asked: object, probabilities: Tensor, mean: Tensor) -> tuple[Output, Tensor]:
    """One output, and its direction in `final`."""
    if isinstance(asked, AnswerMetric):
        if asked.name != "logit_diff":
            raise GraphError(
                f"a graph explains what is linear in the logits before the cap: tokens, gs.logit_diff(...) or directions; "
                f"given {asked!r}"
            )
        answer, against = (answer_ids(one, model) for one in asked.answers)
        label = " - ".join("/".join(repr(text) for text in _texts(model, ids)) for ids in (answer, against))
        return Output(label, None, 1.0), _rows(model, answer).mean(0) - _rows(model, against).mean(0)
    if isinstance(asked, tuple) and len(asked) == 2 and isinstance(asked[0], str):
        vector = real_tensor(asked[1], f"the direction {asked[0]!r}", GraphError).detach().float().to(model.device)
        if vector.shape != (model.config.d_model,) or not bool(vector.isfinite().all()) or not bool(vector.any()):
            raise GraphError(
                f"a direction is {model.config.d_model} finite numbers, not all 0, that 'final' is multiplied by; given "
                f"{asked[0]!r} of shape {tuple(vector.shape)}"
            )
        return Output(asked[0], None, 1.0), vector
    if not isinstance(asked, str) and not is_whole(asked):
        raise GraphError(
            f"a target is a token (' Mary' or its id), gs.logit_diff(...), or ('label', vector); given {short_repr(asked)}"
        )
    try:
        (token,) = answer_ids(int(asked) if not isinstance(asked, str) else asked, model)
    except PromptError as error:
        raise GraphError(f"there is no target {short_repr(asked)}: {error}") from error
    (text,) = _texts(model, [token])
    return Output(text, token, float(probabilities[token])), _rows(model, [token])[0] - mean


def _texts(model: Model, ids: Sequence[int]) -> list[str]:
    return model.texts(torch.tensor(list(ids)))


def _rows(model: Model, ids: Sequence[int]) -> Float[Tensor, "token d_model"]:
    with torch.no_grad():
        rows: Tensor = model.network.model.embed_tokens(torch.tensor(list(ids), device=model.device))
        return rows.float()

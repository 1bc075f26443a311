"""gs.edge_scores: what every edge between heads, MLPs, embedding and logits does for a metric, estimated or exact."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gemmascope.arguments import one_of, short_repr, true_or_false, whole_number
from gemmascope.circuits.edges.estimates import estimated
from gemmascope.circuits.edges.exact import ExactScores
from gemmascope.circuits.edges.nodes import Nodes
from gemmascope.circuits.edges.pairs import EdgePair, EdgeQuestion
from gemmascope.circuits.edges.result import EdgesAsked, EdgeScores
from gemmascope.circuits.edges.spans import Positions
from gemmascope.edits.call_text import call_text, metric_text, traces_verbatim
from gemmascope.edits.sources import listed_reference
from gemmascope.errors import SweepError, warn
from gemmascope.loading.default import model_or_nano
from gemmascope.memory.limits import rows_within
from gemmascope.model.model import Model, Prompt
from gemmascope.model.modes import computes
from gemmascope.run.backward.carried import GRADIENT, RELP
from gemmascope.run.trace import Trace
from gemmascope.sweeps.metrics import MetricLike
from gemmascope.sweeps.sources import Ablation
from gemmascope.values import Array

METHODS = ("eap", "eap-ig", "relp", "exact")
DEFAULT_STEPS = 10
MAX_STEPS = 10_000


@computes
def edge_scores(
    clean: Prompt | Sequence[Prompt],
    corrupt: Prompt | Sequence[Prompt] | None,
    metric: MetricLike | Sequence[MetricLike],
    *,
    method: str = "eap",
    steps: int | None = None,
    positions: Positions = None,
    into: str = "clean",
    ablate: float | str | None = None,
    reference: Sequence[Trace] = (),
    model: Model | None = None,
    memory: int | str | None = None,
    progress: bool = True,
) -> EdgeScores:
    """Score every edge between heads, MLPs, embedding and logits: what patching that edge alone does to the metric.

    An edge leads from what a sender adds to the stream (the embedding; a head or an MLP, through its post-norm) to what a
    receiver reads of it (the queries of a head, the keys or values of a kv head, an MLP, the logits). To patch it, the
    receiver reads the sender's output of the other run in place of this one's, and everything else of the stream as it is.

    Args:
        clean: The prompt that has the answer: text, token ids or chat messages; or a list of prompts, for several pairs.
        corrupt: The prompt to compare with, of as many tokens; or a list of as many prompts. None for an ablation.
        metric: As in gs.attribute: gs.logit_diff(...), or a function of the soft-capped logits of the last position,
            [run, vocab] -> [run]. For several pairs one for all, or a list with one for each.
        method: How to score. "exact": each edge in a run of its own, all in one pass. The others estimate all edges from one
            backward pass: "eap", change x gradient; "eap-ig", the gradient averaged along the line between the two
            embeddings; "relp", with RelP's rules in place of the gradient. EdgeScores.agreement says which to trust.
        steps: For "eap-ig", how many gradients to average, at the midpoints of as many equal parts. None: 10.
        positions: What an edge covers. None: all positions together. "each": every position is an edge of its own (PEAP); a
            number, a slice, a list or a token chooses such positions. A mapping of names to positions: each span.
        into: The run that is patched: "clean" with values of the corrupted run, or "corrupt" with values of the clean run.
        ablate: What to write in place of another run's values: a number, or "mean" or "mean_by_pos" over reference.
        reference: Traces to take the mean over, as in gs.ablate.
        model: The model, without lasting edits. None: nano.
        memory: How much the runs of one pass may take ("exact"), in bytes or as text. None: as in gs.sweep.
        progress: Show a progress bar when the scores take more than a second.

    Returns:
        An EdgeScores: .effect by name, .top(), .circuit(size) for gs.faithfulness, .agreement(...), .plot().

    Raises:
        PromptError: A prompt or an answer cannot be read.
        SiteError: A position does not exist.
        MetricError: The metric does not give one number for each run, or has no gradient.
        SweepError: The arguments do not fit together, such as prompts of different lengths.

    Examples:
        >>> clean = "When Mary and John went to the store, John gave a drink to"
        >>> corrupt = "When Mary and John went to the store, Mary gave a drink to"
        >>> metric = gs.logit_diff(" Mary", " John")
        >>> eap, ig = (gs.edge_scores(clean, corrupt, metric, method=method) for method in ("eap", "eap-ig"))
        >>> exact = gs.edge_scores(clean, corrupt, metric, method="exact", progress=False)
        >>> [round(scores.effect.sel(sender="embed", receiver="a2.kv1<v>").item(), 1) for scores in (eap, ig, exact)]
        [-3.9, -22.3, -23.1]

    References:
        Syed et al., "Attribution patching outperforms automated circuit discovery" (EAP, arXiv 2310.10348).
        Hanna et al., "Have faith in faithfulness" (EAP-IG, arXiv 2403.17806); Jafari et al. (RelP, arXiv 2508.21258).
        Haklay et al., "Position-aware automatic circuit discovery" (PEAP, arXiv 2502.04577).
    """
    one_of(method, "method", METHODS, error=SweepError)
    n_steps = _steps(steps, method)
    true_or_false(progress, "progress", error=SweepError)
    model = model_or_nano(model)
    max_rows = rows_within(memory, model)
    references = listed_reference(reference)
    ablation = Ablation.of(ablate, references)
    question = EdgeQuestion.of((clean, corrupt), metric, into, ablation, positions, model)
    named = {"method": method, "steps": steps, "positions": positions, "into": into, "ablate": ablate}
    named |= {"reference": traces_verbatim(references)}
    code = call_text("edge_scores", model, (question.clean, question.corrupt, metric), named)
    pairs = question.pairs()
    result = _empty(pairs, question, method if method != "eap-ig" else f"eap-ig, {n_steps} steps", code)
    if method == "exact":
        _run_exact(pairs, result, max_rows, progress)
        return result
    rules = RELP if method == "relp" else GRADIENT
    for number, pair in enumerate(pairs):
        result.values[number] = estimated(pair, n_steps, rules).numpy()
        _baselines(result, number, pair)
        pair.release()
    return result


def _steps(steps: object, method: str) -> int:
    if steps is None:
        return DEFAULT_STEPS if method == "eap-ig" else 1
    if method != "eap-ig":
        raise SweepError(f"steps= is for method='eap-ig', which averages gradients; given steps={short_repr(steps)}")
    return whole_number(steps, "steps", least=1, most=MAX_STEPS, error=SweepError)


def _empty(pairs: Sequence[EdgePair], question: EdgeQuestion, method: str, code: str) -> EdgeScores:
    model, first = question.model, pairs[0]
    nodes, spans = Nodes.of(model.config), first.spans
    asked = EdgesAsked(
        model=model.name,
        fingerprint=model.fingerprint,
        nodes=nodes,
        method=method,
        metric=metric_text(question.metric),
        into=question.into if first.source_ids is not None else "clean",
        has_source=first.source_ids is not None,
        axis=spans.axis,
        names=spans.names,
        tokens=tuple(model.texts(first.ids)),
        code=code,
        spans=spans.positions,
    )
    shape = (len(pairs), len(nodes.senders), len(nodes.receivers), len(spans.names))
    return EdgeScores(asked, np.full(shape, np.nan), *(np.full(len(pairs), np.nan) for _ in range(2)))


def _baselines(result: EdgeScores, number: int, pair: EdgePair) -> None:
    result.base_metric[number], result.source_metric[number] = pair.base_metric(), pair.source_metric()


def _run_exact(pairs: Sequence[EdgePair], result: EdgeScores, max_rows: int, progress: bool) -> None:
    """Score the edges by runs. An interrupt ends it with a warning; the edges that are left stay NaN."""
    from tqdm.auto import tqdm

    total = result.n_edges * len(pairs)
    done = 0
    with tqdm(total=total, desc="edges", unit="edge", delay=1.0, leave=False, disable=not progress) as bar:
        try:
            for number, pair in enumerate(pairs):
                _baselines(result, number, pair)
                exact = ExactScores(pair, max_rows)
                scores: Array = exact.scores
                for n in exact.chunks():
                    result.values[number] = scores
                    done += n
                    bar.update(n)
                pair.release()
        except KeyboardInterrupt:
            warn(f"interrupted: {done} of {total} edges have a score; the others are NaN")

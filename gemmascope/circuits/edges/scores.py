"""gs.edge_scores: what every edge between heads, MLPs, embedding and logits does for a metric, estimated or exact."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gemmascope.arguments import one_of, short_repr, true_or_false, whole_number
from gemmascope.circuits.edges.estimates import estimated
from gemmascope.circuits.edges.exact import ExactScores
from gemmascope.circuits.edges.journal import JournalStopped, ScoresFile, question_of
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
    out: str | os.PathLike[str] | None = None,
) -> EdgeScores:
    """Score every edge between heads, MLPs, embedding and logits: what patching that edge alone does to the metric.

    An edge leads from what a sender adds to the stream (the embedding; a head or an MLP, through its post-norm) to what a
    receiver reads of it (the queries of a head, the keys or values of a kv head, an MLP, the logits). To patch it, the
    receiver reads the sender's output of the other run in place of this one's, and everything else of the stream as it is.

    Interrupting (Ctrl-C) gives a warning and returns the scores that are finished; the others are NaN.

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
        out: A file for the finished scores, written a pair at a time ("exact": a pass at a time). A second call with the
            same file goes on where the first one stopped, to the same numbers; memory= and progress= may differ, and another
            memory= changes their rounding. The file of another question is refused, never overwritten. None: no file.

    Returns:
        An EdgeScores: .effect by name, .top(), .circuit(size) for gs.faithfulness, .agreement(...), .plot().

    Raises:
        PromptError: A prompt or an answer cannot be read.
        SiteError: A position does not exist.
        MetricError: The metric does not give one number for each run, or has no gradient.
        SweepError: The arguments do not fit together, such as prompts of different lengths, or out= is another call's file.

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
    file = ScoresFile()
    try:
        if out is not None:
            asked = {name: getattr(result.asked, name) for name in ("method", "metric", "axis", "names")}
            parts, begun_with = file.begin_or_go_on(out, question_of(question, pairs, asked), max_rows)
            file.fill(result.values, result.base_metric, result.source_metric, parts)
            max_rows = begun_with if memory is None else max_rows
        _run_all(_Scoring(pairs, result, method, n_steps, max_rows, file), progress)
    finally:
        file.close()
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


@dataclass(frozen=True)
class _Scoring:
    """Scores that are to be computed, pair by pair into a result, those that it has left out."""

    pairs: Sequence[EdgePair]
    result: EdgeScores
    method: str
    n_steps: int
    max_rows: int
    file: ScoresFile

    def parts(self) -> Iterator[int]:
        """Compute and save the scores; each step gives how many. The caller may stop after any step."""
        for number, pair in enumerate(self.pairs):
            if self.n_done(number) == self.result.n_edges:
                continue
            self.result.base_metric[number], self.result.source_metric[number] = pair.base_metric(), pair.source_metric()
            for edges in self._of_pair(number, pair):
                baselines = float(self.result.base_metric[number]), float(self.result.source_metric[number])
                self.file.write(number, edges, self.result.values[number].flat[edges], baselines)
                yield len(edges)
            pair.release()

    def n_done(self, number: int) -> int:
        """How many edges of a pair have a score."""
        return int((~np.isnan(self.result.values[number])).sum())

    def _of_pair(self, number: int, pair: EdgePair) -> Iterator[Array]:
        """The scores of a pair, into the result; each step gives the numbers of their edges in the flat array."""
        scores = self.result.values[number]
        if self.method == "exact":
            yield from ExactScores(pair, self.max_rows, scores).chunks()
            return
        scores[:] = estimated(pair, self.n_steps, RELP if self.method == "relp" else GRADIENT).numpy()
        yield np.flatnonzero(~np.isnan(scores))


def _run_all(scoring: _Scoring, progress: bool) -> None:
    """Compute the scores. An interrupt, or a file that takes no more, ends it with a warning; the scores left stay NaN."""
    from tqdm.auto import tqdm

    n_pairs = len(scoring.pairs)
    total, done = scoring.result.n_edges * n_pairs, sum(map(scoring.n_done, range(n_pairs)))
    bar = tqdm(total=total, initial=done, desc="edges", unit="edge", delay=1.0, leave=False, disable=not progress)
    with bar:
        try:
            for n in scoring.parts():
                done += n
                bar.update(n)
        except KeyboardInterrupt:
            warn(f"interrupted: {done} of {total} edges have a score; the others are NaN")
        except JournalStopped as stopped:
            warn(
                f"{scoring.file.path} takes no more scores: {stopped}. The scoring ended there, with {done} of {total} "
                "edges in the file. A second call with the same file goes on"
            )

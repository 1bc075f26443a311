"""gs.faithfulness: how much of what the model does a circuit does by itself, over circuits of several sizes.

f(C) = (m(C) - m(none)) / (m(all) - m(none)), m(C) the metric of a run in which all edges outside C are patched. The sizes
and the two areas are those of MIB (Mueller et al., "MIB: a mechanistic interpretability benchmark", arXiv 2504.13151).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch

from gemmascope.arguments import as_list, finite_number, short_repr, true_or_false
from gemmascope.circuits.edges.circuit import EdgeCircuit
from gemmascope.circuits.edges.faithfulness_result import Faithfulness
from gemmascope.circuits.edges.journal import JournalStopped, RunsFile, question_of
from gemmascope.circuits.edges.nodes import Nodes
from gemmascope.circuits.edges.pairs import EdgePair, EdgeQuestion
from gemmascope.circuits.edges.result import EdgeScores
from gemmascope.circuits.edges.runs import CircuitRun, measure_circuits
from gemmascope.edits.call_text import metric_text
from gemmascope.edits.sources import listed_reference
from gemmascope.errors import SweepError, warn
from gemmascope.files.resumed_file import Json
from gemmascope.loading.default import model_or_nano
from gemmascope.memory.limits import rows_within
from gemmascope.memory.placement import MICROBATCH_ROWS
from gemmascope.model.model import Model, Prompt
from gemmascope.model.modes import computes
from gemmascope.run.trace import Trace
from gemmascope.sweeps.metadata import words_of
from gemmascope.sweeps.metrics import MetricLike
from gemmascope.sweeps.sources import Ablation
from gemmascope.values import Array

# The sizes of MIB, as shares of the edges.
SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@computes
def faithfulness(
    circuit: EdgeScores | EdgeCircuit | Sequence[str],
    clean: Prompt | Sequence[Prompt],
    corrupt: Prompt | Sequence[Prompt] | None,
    metric: MetricLike | Sequence[MetricLike],
    *,
    sizes: Sequence[float] = SIZES,
    magnitude: bool = True,
    into: str = "clean",
    ablate: float | str | None = None,
    reference: Sequence[Trace] = (),
    model: Model | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Faithfulness:
    """Run circuits by themselves: every edge outside is patched, and each receiver reads its own mixture.

    The runs are exact: a sender inside the circuit goes on with what it computes there, not with what it wrote in the clean
    run. The circuits of all sizes go through the layers side by side.

    Args:
        circuit: Scores, of which circuits of every size are taken; a circuit; or a list of edges, "a2.h3->a3.h1<q>".
        clean: The prompt that has the answer, or a list of prompts for several pairs.
        corrupt: The prompt that edges outside are patched from, of as many tokens; or a list. None for an ablation.
        metric: As in gs.edge_scores.
        sizes: For scores, shares of the edges, ascending: those of MIB, 0.1% to 100%.
        magnitude: For scores: take the largest whatever their sign (True), or those that lower the metric most (False).
        into: The run that is patched: "clean" or "corrupt".
        ablate: What to write outside in place of another run's values: a number, or "mean" or "mean_by_pos" over reference.
        reference: Traces to take the mean over.
        model: The model, without lasting edits. None: nano.
        out: A file for the finished runs, written a pass at a time. After a kill or an interrupt, a second call with the
            same file goes on where the first one stopped, to the same numbers. The file of another question, or of other
            circuits, is refused, never overwritten. None: no file.

    Returns:
        A Faithfulness: .curve by size, .cpr and .cmd, the areas under it and under its distance from 1, and .plot().

    Raises:
        SweepError: The circuit is of another model, an edge does not exist, a size is none, the metric is the same with all
            edges and with none, or out= is another call's file.
        PromptError, SiteError, MetricError: As in gs.edge_scores.

    Examples:
        >>> clean = "When Mary and John went to the store, John gave a drink to"
        >>> corrupt = "When Mary and John went to the store, Mary gave a drink to"
        >>> metric = gs.logit_diff(" Mary", " John")
        >>> scores = gs.edge_scores(clean, corrupt, metric, method="eap-ig")
        >>> result = gs.faithfulness(scores, clean, corrupt, metric)
        >>> result.curve.sel(size=1.0).item()
        1.0
    """
    model = model_or_nano(model)
    circuits, shares = _circuits(circuit, sizes, true_or_false(magnitude, "magnitude", error=SweepError), model)
    ablation = Ablation.of(ablate, listed_reference(reference))
    question = EdgeQuestion.of((clean, corrupt), metric, into, ablation, _positions(circuits[0]), model)
    pairs = question.pairs()
    for pair in pairs:
        if pair.spans.names != circuits[0].names:
            raise SweepError("the circuit is of other positions than the prompts have: score edges of prompts as long")
    has_edge = np.broadcast_to(Nodes.of(model.config).has_edge[..., None], circuits[0].edges.shape)
    # Without any edge, with each circuit, and with all edges, which is the base run.
    kept = np.stack([np.zeros_like(has_edge), *(one.edges for one in circuits)])
    asked = {"metric": metric_text(metric), "sizes": shares}
    values, full = _measured(pairs, has_edge & ~kept, model, out, question_of(question, pairs, asked, kept))
    empty, at_sizes = values[:, 0], values[:, 1:]
    at_sizes[:, [len(one) == has_edge.sum() for one in circuits]] = full[:, None]
    gap = float(full.mean() - empty.mean())
    if abs(gap) <= 1e-6 * max(1.0, abs(float(full.mean()))):
        raise SweepError("the metric is the same with all edges and with none: there is nothing for a circuit to explain")
    of_scores = circuit.method if isinstance(circuit, EdgeScores) else "given edges"
    n_edges = [len(one) for one in circuits]
    prompts = _first_prompts(pairs[0], into)
    return Faithfulness(shares, n_edges, at_sizes, full, empty, model.name, of_scores, metric_text(metric), prompts)


def _first_prompts(pair: EdgePair, into: str) -> tuple[str, ...]:
    """The clean and the corrupted prompt of a pair as text; of an ablation the only one."""
    if pair.source_ids is None:
        return (words_of(pair.model, pair.ids),)
    in_order = (pair.ids, pair.source_ids) if into == "clean" else (pair.source_ids, pair.ids)
    return tuple(words_of(pair.model, ids) for ids in in_order)


def _circuits(circuit: object, sizes: object, magnitude: bool, model: Model) -> tuple[list[EdgeCircuit], list[float]]:
    """The circuits to run, and their sizes as shares of the edges. SweepError for what is no circuit of the model."""
    nodes = Nodes.of(model.config)
    if isinstance(circuit, EdgeScores):
        _require_nodes(circuit.asked.nodes, nodes, model)
        shares = [finite_number(one, "a size", error=SweepError) for one in as_list(sizes, "sizes", error=SweepError)]
        if not shares or shares != sorted(set(shares)):
            raise SweepError(f"sizes are shares of the edges, ascending; given {short_repr(sizes)}")
        return [circuit.circuit(share, magnitude=magnitude) for share in shares], shares
    if isinstance(circuit, EdgeCircuit):
        _require_nodes(circuit.nodes, nodes, model)
        return [circuit], [circuit.share]
    if isinstance(circuit, (list, tuple, set)):
        chosen = EdgeCircuit(nodes, nodes.find_edges(circuit)[..., None])
        return [chosen], [chosen.share]
    raise SweepError(
        f"a circuit is what gs.edge_scores or its .circuit(size) returns, or a list of edges; given {short_repr(circuit)}"
    )


def _require_nodes(has: Nodes, of_model: Nodes, model: Model) -> None:
    if has != of_model:
        raise SweepError(f"the circuit is of another model than {model.name!r}: its layers or heads are others")


def _positions(circuit: EdgeCircuit) -> object:
    """What positions= was for the scores of a circuit."""
    if circuit.axis == "span":
        return dict(zip(circuit.names, map(list, circuit.spans), strict=True))
    return list(circuit.names) if circuit.axis == "pos" else None


def _measured(
    pairs: list[EdgePair], outside: Array, model: Model, out: str | os.PathLike[str] | None, question: Json
) -> tuple[Array, Array]:
    """The metric of each pair's run with each set of edges outside, [pair, set], and with all edges, [pair].

    As many runs go through a pass as the memory takes. out: a file for them; what it has is not run again.
    """
    values, full = np.full((len(pairs), len(outside)), np.nan), np.full(len(pairs), np.nan)
    file, rows = RunsFile(), _rows(model)
    try:
        if out is not None:
            lines, rows = file.begin_or_go_on(out, question, rows)
            for line in lines:
                at = slice(line["first"], line["first"] + len(line["values"]))
                values[line["pair"], at], full[line["pair"]] = line["values"], line["full"]
        for number, pair in enumerate(pairs):
            at_once = max(1, rows // len(pair.ids))
            missing = np.flatnonzero(np.isnan(values[number])).tolist()
            for first in missing[::at_once]:
                runs = [CircuitRun(pair, torch.from_numpy(one)) for one in outside[first : first + at_once]]
                values[number, first : first + at_once] = measured = measure_circuits(model, runs)
                full[number] = pair.base_metric()
                _save(file, number, first, measured, float(full[number]))
            pair.release()
    finally:
        file.close()
    return values, full


def _rows(model: Model) -> int:
    """How many rows go through a pass. A row holds what every sender changes of it, beside what a row of any pass holds."""
    per_row = 1 + len(Nodes.of(model.config).senders) // 32
    return max(MICROBATCH_ROWS, rows_within(None, model) // per_row)


def _save(file: RunsFile, number: int, first: int, values: list[float], full: float) -> None:
    """Write runs to the file, if it is open. One that takes no more is closed with a warning, and the curve goes on."""
    try:
        file.write(number, first, values, full)
    except JournalStopped as stopped:
        warn(f"{file.path} takes no more runs: {stopped}. The curve goes on without it")
        file.close()

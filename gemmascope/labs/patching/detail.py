"""One cell of a patching lab in detail: what its patch does to the answers, and to where the last token looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from gemmascope.labs.before_after import TokenChange, changes_as_data, token_changes, token_text
from gemmascope.labs.patching.experiment import Experiment
from gemmascope.run.metric import answer_ids
from gemmascope.run.metric_names import METRICS
from gemmascope.run.trace import Trace
from gemmascope.sites import SITES
from gemmascope.values import Array

# Attention of less than this is not sent to the page.
LEAST_ATTENTION = 0.002
# A patch that moves no head's attention by more than this share does not move where the last token looks.
MOVED = 0.02


@dataclass(frozen=True)
class LastQuery:
    """Where the last token looks in one head. weights: its attention [k_pos] in the "clean", "corrupt" and "patched" run.

    is_own: whether the cell is about this head; else it is the one whose attention the patch moves most.
    """

    layer: int
    head: int
    is_own: bool
    weights: Mapping[str, Array]

    def as_data(self) -> dict[str, object]:
        """As JSON: of each run, [position, weight] where there is any."""
        of_runs = {
            name: [[k, round(float(weight), 4)] for k, weight in enumerate(row) if weight >= LEAST_ATTENTION]
            for name, row in self.weights.items()
        }
        return {"layer": self.layer, "head": self.head, "own": self.is_own, "weights": of_runs}


@dataclass(frozen=True)
class Detail:
    """place: the cell in words. top: the likeliest next tokens without and with the patch. answers: those of the lab.

    patterns: the attention probabilities [q_pos, k_pos] of one head in the "clean", "corrupt" and "patched" run; empty
    where a cell is not about one head. pattern_of: the layer and head in words. tokens: those of each run in patterns.
    """

    row: int
    column: int
    place: str
    top: list[TokenChange]
    answers: list[TokenChange]
    patterns: dict[str, Array]
    pattern_of: str
    tokens: dict[str, list[str]]
    last: LastQuery | None

    def as_data(self) -> dict[str, object]:
        """As JSON, without the patterns' numbers."""
        return {
            "row": self.row,
            "column": self.column,
            "place": self.place,
            "top": changes_as_data(self.top),
            "answers": changes_as_data(self.answers),
            "pattern_of": self.pattern_of,
            "patterns": list(self.patterns),
            "last": None if self.last is None else self.last.as_data(),
        }


def detail_of(experiment: Experiment, row: int, column: int, patched: Trace) -> Detail:
    """The detail of a cell, given its patched run."""
    cell = experiment.cells[row * experiment.shape[1] + column]
    layer_head = _one_head(experiment, cell)
    runs = {**experiment.traces, "patched": patched}
    patterns: dict[str, Array] = {}
    pattern_of = ""
    if layer_head is not None:
        layer, head = layer_head
        patterns = {name: run.edges("pattern", layer, head=head).float().cpu().numpy() for name, run in runs.items()}
        pattern_of = f"layer {layer} ({experiment.model.config.kinds[layer]}), head {head}"
    return Detail(
        row,
        column,
        place_of(experiment, row, column),
        token_changes(experiment.base, patched),
        _answer_changes(experiment, patched),
        patterns,
        pattern_of,
        {name: run.tokens for name, run in runs.items()} if patterns else {},
        _last_query(experiment, runs, layer_head, min(cell["layer"], default=0)),
    )


def place_of(experiment: Experiment, row: int, column: int) -> str:
    """A cell in words: 'layer 2 (local), position 4 " Mary"'."""
    parts = []
    question = experiment.result.question
    for (axis, numbers), index in zip(question.axes.items(), (row, column), strict=True):
        number = numbers[index]
        if axis == "layer":
            parts.append(f"layer {number} ({question.kinds[number]})")
        elif axis.endswith("pos"):
            name = {"pos": "position", "q_pos": "query position", "k_pos": "key position"}[axis]
            parts.append(f'{name} {number} "{question.tokens[number]}"')
        else:
            parts.append(f"{axis.replace('_', ' ')} {number}")
    return ", ".join(parts)


def _answer_changes(experiment: Experiment, patched: Trace) -> list[TokenChange]:
    """The lab's answers with their probability without and with the patch."""
    settings, model = experiment.settings, experiment.model
    answers = (settings.answer, settings.against)[: METRICS[settings.metric].n_answers]
    ids = list(dict.fromkeys(i for answer in answers for i in answer_ids(answer, model)))
    before, after = (run.next_logits.softmax(-1) for run in (experiment.base, patched))
    return [(token_text(model, i), float(before[i]), float(after[i])) for i in ids]


def _last_query(
    experiment: Experiment, runs: Mapping[str, Trace], own: tuple[int, int] | None, first_layer: int
) -> LastQuery | None:
    """The attention of the last token in the cell's own head, else in the head where the patch moves it most, if any."""
    found = own or _most_moved(experiment.last_attention, runs["patched"], first_layer)
    if found is None:
        return None
    layer, head = found
    weights = {name: run.edges("pattern", layer, head=head, q_pos=-1).float().cpu().numpy() for name, run in runs.items()}
    return LastQuery(layer, head, own is not None, weights)


def _most_moved(base: Sequence[torch.Tensor], patched: Trace, first_layer: int) -> tuple[int, int] | None:
    """The layer and head in which the patch moves the largest share of the last token's attention; None below MOVED.

    base: the last token's attention in every layer of the run that is patched, [head, k_pos].
    """
    most: tuple[float, tuple[int, int] | None] = (MOVED, None)
    for layer in range(first_layer, len(base)):
        now = patched.edges("pattern", layer, q_pos=-1).float()
        share, head = (now - base[layer]).abs().sum(-1).div(2).max(0)
        most = max(most, (float(share), (layer, int(head))), key=lambda found: found[0])
    return most[1]


def _one_head(experiment: Experiment, cell: dict[str, list[int]]) -> tuple[int, int] | None:
    """The layer and head whose pattern a cell is about, if it names one: of a kv head, the first head that reads it."""
    heads = SITES[experiment.settings.site].heads
    if heads is None or len(cell["layer"]) != 1 or len(cell[heads]) != 1:
        return None
    heads_per_unit = experiment.model.config.heads_per_kv if heads == "kv_head" else 1
    return cell["layer"][0], cell[heads][0] * heads_per_unit

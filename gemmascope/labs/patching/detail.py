"""What one cell of a patching lab does, in detail: a head's pattern in three runs, and the likeliest answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from gemmascope.edits.make import patch
from gemmascope.labs.patching.experiment import Experiment
from gemmascope.model.model import Model
from gemmascope.run.trace import Trace
from gemmascope.run.tracing import trace
from gemmascope.sites import SITES
from gemmascope.sweeps.result import Array

N_TOP = 5


@dataclass(frozen=True)
class Detail:
    """place: the cell in words. top: (token, probability before, after) of what is likeliest before or after the patch.

    patterns: the attention probabilities [q_pos, k_pos] of one head in the "clean", "corrupt" and "patched" run; empty
    where a cell is not about one head. pattern_of: which head that is. tokens: of each of these runs.
    """

    row: int
    column: int
    place: str
    top: list[tuple[str, float, float]]
    patterns: dict[str, Array]
    pattern_of: str
    tokens: dict[str, list[str]]

    def as_data(self) -> dict[str, Any]:
        """As JSON holds it, but for the patterns."""
        top = [{"token": token, "before": before, "after": after} for token, before, after in self.top]
        return {
            "row": self.row,
            "column": self.column,
            "place": self.place,
            "top": top,
            "pattern_of": self.pattern_of,
            "patterns": list(self.patterns),
        }


def detail_of(experiment: Experiment, row: int, column: int) -> Detail:
    """Run a cell's patch once more, as a trace, and look into it. The baselines must have been run."""
    cell = experiment.cells[row * experiment.shape[1] + column]
    settings, model = experiment.settings, experiment.model
    base = experiment.traces[settings.into]
    source = experiment.traces["clean" if settings.into == "corrupt" else "corrupt"]
    words = {"head" if name == "kv_head" else name: numbers for name, numbers in cell.items() if name != "layer"}
    grid = experiment.sweeping.pairs[0].grid
    edits = [patch(settings.site, source, layer=layer, **words) for layer in grid.layers_of(cell)]
    patched = trace(base.ids, model=model, edits=edits)
    at = _one_head(experiment, cell)
    runs = {**experiment.traces, "patched": patched} if at else {}
    patterns = {name: run.edges("pattern", at[0], head=at[1]).float().cpu().numpy() for name, run in runs.items() if at}
    said = f"layer {at[0]} ({model.config.kinds[at[0]]}), head {at[1]}" if at else ""
    tokens = {name: run.tokens for name, run in runs.items()}
    return Detail(row, column, place_of(experiment, row, column), likeliest(base, patched), patterns, said, tokens)


def place_of(experiment: Experiment, row: int, column: int) -> str:
    """A cell in words: 'layer 2 (local), position 4 " Mary"'."""
    parts = []
    question = experiment.result.question
    for (axis, numbers), at in zip(question.axes.items(), (row, column), strict=True):
        number = numbers[at]
        if axis == "layer":
            parts.append(f"layer {number} ({question.kinds[number]})")
        elif axis.endswith("pos"):
            name = {"pos": "position", "q_pos": "query position", "k_pos": "key position"}[axis]
            parts.append(f'{name} {number} "{question.tokens[number]}"')
        else:
            parts.append(f"{axis.replace('_', ' ')} {number}")
    return ", ".join(parts)


def _one_head(experiment: Experiment, cell: dict[str, list[int]]) -> tuple[int, int] | None:
    """The layer and head whose pattern a cell is about, if it names one: of a kv head, the first head that reads it."""
    heads = SITES[experiment.settings.site].heads
    if heads is None or len(cell["layer"]) != 1 or len(cell[heads]) != 1:
        return None
    shared = experiment.model.config.heads_per_kv if heads == "kv_head" else 1
    return cell["layer"][0], cell[heads][0] * shared


def likeliest(base: Trace, patched: Trace) -> list[tuple[str, float, float]]:
    """The N_TOP likeliest next tokens of either run: (token, probability in the first, in the second)."""
    before, after = (run.next_logits.softmax(-1) for run in (base, patched))
    n_top = min(N_TOP, len(before))
    ids = dict.fromkeys([*after.topk(n_top).indices.tolist(), *before.topk(n_top).indices.tolist()])
    return [(token_text(base.model, i), float(before[i]), float(after[i])) for i in ids]


def token_text(model: Model, token_id: int) -> str:
    """A token as text; without a tokenizer, its id."""
    return model.texts(torch.tensor([token_id]))[0]

"""One cell of a patching lab in detail: a head's pattern in three runs, and the likeliest answers."""

from __future__ import annotations

from dataclasses import dataclass

from gemmascope.labs.before_after import TokenChange, changes_as_data, token_changes
from gemmascope.labs.patching.experiment import Experiment
from gemmascope.run.trace import Trace
from gemmascope.sites import SITES
from gemmascope.values import Array


@dataclass(frozen=True)
class Detail:
    """place: the cell in words. top: the likeliest next tokens without and with the patch.

    patterns: the attention probabilities [q_pos, k_pos] of one head in the "clean", "corrupt" and "patched" run; empty
    where a cell is not about one head. pattern_of: the layer and head in words. tokens: those of each run in patterns.
    """

    row: int
    column: int
    place: str
    top: list[TokenChange]
    patterns: dict[str, Array]
    pattern_of: str
    tokens: dict[str, list[str]]

    def as_data(self) -> dict[str, object]:
        """As JSON, without the patterns' numbers."""
        return {
            "row": self.row,
            "column": self.column,
            "place": self.place,
            "top": changes_as_data(self.top),
            "pattern_of": self.pattern_of,
            "patterns": list(self.patterns),
        }


def detail_of(experiment: Experiment, row: int, column: int, patched: Trace) -> Detail:
    """The detail of a cell, given its patched run."""
    layer_head = _one_head(experiment, experiment.cells[row * experiment.shape[1] + column])
    top = token_changes(experiment.base, patched)
    place = place_of(experiment, row, column)
    if layer_head is None:
        return Detail(row, column, place, top, {}, "", {})
    layer, head = layer_head
    runs = {**experiment.traces, "patched": patched}
    patterns = {name: run.edges("pattern", layer, head=head).float().cpu().numpy() for name, run in runs.items()}
    pattern_of = f"layer {layer} ({experiment.model.config.kinds[layer]}), head {head}"
    return Detail(row, column, place, top, patterns, pattern_of, {name: run.tokens for name, run in runs.items()})


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


def _one_head(experiment: Experiment, cell: dict[str, list[int]]) -> tuple[int, int] | None:
    """The layer and head whose pattern a cell is about, if it names one: of a kv head, the first head that reads it."""
    heads = SITES[experiment.settings.site].heads
    if heads is None or len(cell["layer"]) != 1 or len(cell[heads]) != 1:
        return None
    heads_per_unit = experiment.model.config.heads_per_kv if heads == "kv_head" else 1
    return cell["layer"][0], cell[heads][0] * heads_per_unit

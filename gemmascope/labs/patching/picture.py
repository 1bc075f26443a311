"""The grid of an experiment as the canvas module draws it: its labels, its scale, and the static view."""

from __future__ import annotations

import numpy as np

from gemmascope.labs.patching.cell_grid import MARKS, CellGrid
from gemmascope.labs.patching.detail import place_of
from gemmascope.labs.patching.experiment import Experiment
from gemmascope.tokens.tokenizer import visible_text
from gemmascope.views.labels import Label, sweep_labels
from gemmascope.views.packing import pack
from gemmascope.views.page import View
from gemmascope.views.sweep import grid_spec

N_STRONGEST = 5


def spec_of(experiment: Experiment, cell_grid: CellGrid, bound: float | None = None) -> dict[str, object]:
    """The labels and the scale of a grid, as JSON. bound: of the scale; None means this grid's own."""
    bound = bound_of(experiment, cell_grid) if bound is None else bound
    labels = [_labels(experiment, axis) for axis in experiment.axes]
    return grid_spec(experiment.result.question, _note(experiment), bound, labels)


def bound_of(experiment: Experiment, cell_grid: CellGrid) -> float:
    """The largest number of a grid's scale: the gap between the baselines, or an effect beyond it."""
    baselines = experiment.baselines
    gap = abs(baselines["clean"] - baselines["corrupt"]) if baselines else 0.0
    effects = np.abs(cell_grid.values[~np.isnan(cell_grid.values)])
    return max(gap, float(effects.max(initial=0.0))) or 1.0


def view_of(experiment: Experiment, bound: float | None = None) -> View:
    """An experiment's grid as a static view, its estimates marked. bound: as in spec_of, to compare it with another's."""
    cell_grid = experiment.cell_grid.copy()
    arrays = {"values": pack(cell_grid.values.astype(np.float32)), "marks": pack(cell_grid.marks)}
    b = experiment.baselines
    baselines = "not run yet" if b is None else f"clean {b['clean']:.4g}, corrupt {b['corrupt']:.4g}"
    summary = f"{label_of(experiment)}. {baselines}"
    return View(spec_of(experiment, cell_grid, bound), arrays, summary, _strongest(experiment, cell_grid))


def compared_views(one: Experiment, other: Experiment) -> tuple[View, View]:
    """Two experiments on one scale."""
    bound = max(bound_of(each, each.cell_grid) for each in (one, other))
    return view_of(one, bound), view_of(other, bound)


def label_of(experiment: Experiment) -> str:
    """An experiment in one line."""
    settings = experiment.settings
    n_exact = int(experiment.result.finished.sum())
    layers = "" if settings.layers == "all" else f", {settings.layers} layers"
    grid = f"{settings.site} by {' and '.join(settings.by)} into {settings.into}{layers}"
    answers = f"{answer_text(settings.answer)} less {answer_text(settings.against)}"
    return f"{grid}: {answers}, {f'{n_exact} exact' if n_exact else 'estimate'}"


def answer_text(answer: object) -> str:
    return answer if isinstance(answer, str) else repr(answer)


def _note(experiment: Experiment) -> str:
    """What a colour means, in a sentence."""
    baselines = experiment.baselines
    if baselines is None:
        return "The two prompts are still to be run."
    into = experiment.settings.into
    base, source = baselines[into], baselines["clean" if into == "corrupt" else "corrupt"]
    return (
        f"The {into} run gives {base:.3f}, the other {source:.3f}: an effect of {source - base:+.3f} is all of the gap. "
        "Blue raises the metric, red lowers it."
    )


def _labels(experiment: Experiment, axis: str) -> list[Label]:
    labels = sweep_labels(experiment.result.question, axis)
    if axis.endswith("pos") and experiment.model.has_tokenizer:
        ids = experiment.base_ids
        for label, number in zip(labels, experiment.axes[axis], strict=True):
            label["special"] = experiment.model.tokenizer.is_special(ids[number])
    return labels


def _strongest(experiment: Experiment, cell_grid: CellGrid) -> list[list[str]]:
    """The strongest cells in words, shown where scripts do not run."""
    values, marks = cell_grid.values, cell_grid.marks
    rows = []
    for number in np.argsort(-np.abs(np.nan_to_num(values)), axis=None)[:N_STRONGEST].tolist():
        row, column = divmod(number, experiment.shape[1])
        if not np.isnan(values[row, column]):
            place = visible_text(place_of(experiment, row, column)).replace("·", " ")
            rows.append([place, f"{values[row, column]:+.4g}", MARKS[marks[row, column]]])
    return rows

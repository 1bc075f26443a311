"""The grid of an experiment as the canvas module draws it: its labels, its scale, and the static view."""

from __future__ import annotations

import numpy as np
import torch

from gemmascope.edits.call_text import plain
from gemmascope.labs.patching.cell_grid import MARKS, CellGrid
from gemmascope.labs.patching.detail import place_of
from gemmascope.labs.patching.experiment import Experiment
from gemmascope.labs.patching.settings import Settings
from gemmascope.tokens.characters import text_of
from gemmascope.tokens.tokenizer import visible_text
from gemmascope.values import Array
from gemmascope.views.labels import Label, sweep_labels
from gemmascope.views.packing import pack
from gemmascope.views.page import View
from gemmascope.views.sweep import grid_spec

N_STRONGEST = 5
# How many tokens of a prompt a page says, and the label of a run.
LONG_PROMPT, SHORT_PROMPT = 60, 6
# The size of a run's small picture.
MOST_ROWS, MOST_COLUMNS = 26, 48


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
    summary = f"{label_of(experiment)}. {about_text(experiment)}"
    note = f"{about_text(experiment)} {_note(experiment)}"
    spec = {**spec_of(experiment, cell_grid, bound), "note": note, "alike": _n_foldable(experiment)}
    return View(spec, arrays, summary, _strongest(experiment, cell_grid))


def compared_views(one: Experiment, other: Experiment) -> tuple[View, View]:
    """Two experiments on one scale."""
    bound = max(bound_of(each, each.cell_grid) for each in (one, other))
    return view_of(one, bound), view_of(other, bound)


def about_text(experiment: Experiment) -> str:
    """What was asked: the two prompts and what is measured. For pictures and pages that stand by themselves."""
    clean, corrupt = prompt_texts(experiment)
    return f"Clean: {clean}. Corrupted: {corrupt}. Measured: {measure_text(experiment.settings)}."


def measure_text(settings: Settings) -> str:
    """The metric in words: 'the logit of " Mary" less that of " John"'."""
    answer, against = (repr(answer_text(each)) for each in (settings.answer, settings.against))
    words = {
        "logit_diff": f"the logit of {answer} less that of {against}",
        "answer_prob": f"the probability of {answer}",
        "answer_logprob": f"the log probability of {answer}",
    }
    return words.get(settings.metric, f"{settings.metric} of {answer}")


def prompt_texts(experiment: Experiment, around: int = LONG_PROMPT) -> tuple[str, str]:
    """The clean and the corrupted prompt, quoted; of long ones the stretch around their first difference."""
    ids = {experiment.settings.into: experiment.base_ids, experiment.source_name: experiment.source_ids}
    same = zip(ids["clean"], ids["corrupt"], strict=True)
    first = next((i for i, (a, b) in enumerate(same) if a != b), 0)
    return _stretch(experiment, ids["clean"], first, around), _stretch(experiment, ids["corrupt"], first, around)


def _stretch(experiment: Experiment, ids: list[int], first: int, around: int) -> str:
    """So many tokens of a prompt around a position, quoted, with ... for what is left out."""
    texts = experiment.model.texts(torch.tensor(ids))
    begin = 0 if len(ids) <= around else max(0, min(first - around // 3, len(ids) - around))
    end = min(len(ids), begin + around)
    start = "..." if begin else ""
    if not begin and experiment.model.has_tokenizer and experiment.model.tokenizer.is_special(ids[0]):
        begin = 1
    joined = text_of(texts[begin:end]) if experiment.model.has_tokenizer else " ".join(texts[begin:end])
    return f'"{start}{joined}{"..." if end < len(ids) else ""}"'


def thumbnail_of(experiment: Experiment) -> Array:
    """The grid small, uint8 [row, column]: 0 for no number, else 128 for none of the scale, up to 1 and 255 for all of it.

    A long grid is pooled: of neighbouring cells the strongest stands for all. Columns that are 0 without a run are left out.
    """
    values = experiment.cell_grid.values[:, experiment.n_alike if experiment.n_alike < experiment.shape[1] else 0 :]
    values = _pooled(_pooled(values, MOST_ROWS, 0), MOST_COLUMNS, 1)
    codes = 128 + np.round(127 * np.nan_to_num(values) / bound_of(experiment, experiment.cell_grid))
    return np.where(np.isnan(values), 0, np.clip(codes, 1, 255)).astype(np.uint8)


def _pooled(values: Array, most: int, axis: int) -> Array:
    """Values with at most so many places along an axis: of each group of neighbours the strongest."""
    size = values.shape[axis]
    each = -(-size // most)
    if each == 1:
        return values
    width = [(0, 0), (0, 0)]
    width[axis] = (0, -size % each)
    padded = np.moveaxis(np.pad(values, width, constant_values=np.nan), axis, 0)
    groups = padded.reshape(-1, each, padded.shape[1])
    strongest = np.argmax(np.abs(np.nan_to_num(groups)) + ~np.isnan(groups) * 1e-30, axis=1)
    pooled: Array = np.moveaxis(np.take_along_axis(groups, strongest[:, None], axis=1)[:, 0], 0, axis)
    return pooled


def label_of(experiment: Experiment) -> str:
    """An experiment in one line, which tells it from others: site, grid, prompts, answers, and how far it is."""
    settings = experiment.settings
    layers = "" if settings.layers == "all" else f", {settings.layers} layers"
    grid = f"{settings.site} by {' and '.join(settings.by)} into {settings.into}{layers}"
    return f"{grid}: {difference_text(experiment)}; {measure_text(settings)}, {progress_text(experiment)}"


def difference_text(experiment: Experiment) -> str:
    """The prompts in a few words: where they first differ."""
    clean, corrupt = prompt_texts(experiment, SHORT_PROMPT)
    return f"{clean} against {corrupt}"


def progress_text(experiment: Experiment) -> str:
    """How many cells are exact; "estimate" if none is."""
    to_run = experiment.runnable & ~experiment.is_unchanged
    n_exact = int((experiment.result.finished[0] & to_run).sum())
    if n_exact == int(to_run.sum()):
        return f"all {int(experiment.result.finished.sum())} exact"
    return f"{n_exact} exact" if n_exact else "estimate"


def answer_text(answer: object) -> str:
    return answer if isinstance(answer, str) else repr(plain(answer))


def _note(experiment: Experiment) -> str:
    """What a colour means, in a sentence."""
    baselines = experiment.baselines
    if baselines is None:
        return "The two prompts are still to be run."
    into = experiment.settings.into
    base, source = baselines[into], baselines[experiment.source_name]
    return (
        f"The {into} run gives {base:.3f}, the other {source:.3f}: an effect of {source - base:+.3f} is all of the gap. "
        "Blue raises the metric, red lowers it."
    )


def _n_foldable(experiment: Experiment) -> int:
    """How many columns from the first on a page may fold: of positions, those that are 0 without a run."""
    return experiment.n_alike if experiment.settings.by[1] == "pos" else 0


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

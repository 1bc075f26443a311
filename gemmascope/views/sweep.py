"""gs.sweep_view: a sweep as a grid that needs no kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gemmascope.arguments import short_repr
from gemmascope.errors import SweepError
from gemmascope.sweeps.metadata import SweepMetadata, asked_text, picture_title
from gemmascope.sweeps.result import SweepResult
from gemmascope.sweeps.sets.result import SweepSet
from gemmascope.views.labels import AXIS_TITLES, Label, sweep_labels
from gemmascope.views.packing import pack
from gemmascope.views.page import View

# What a cell's number is. matrix.js has the same codes.
NOT_RUN, ESTIMATED, EXACT, UNDER_WAY = range(4)


def sweep_view(result: SweepResult) -> View:
    """A sweep over two axes as a grid to explore.

    Colours are the effect, centred on 0. Cells that were not run are hatched, estimates are marked. The note says the
    prompts and the metric. The columns of a long prompt fold up to the first token that differs; a button shows them.

    Args:
        result: What `gs.sweep`, `gs.path_sweep` or `gs.attribute` returned, over two axes.

    Returns:
        The picture, self-contained.

    Raises:
        SweepError: `result` is something else, or has another number of axes.

    Examples:
        >>> clean = "When Mary and John went to the store, John gave a drink to"
        >>> corrupt = "When Mary and John went to the store, Mary gave a drink to"
        >>> metric = gs.logit_diff(" Mary", " John")
        >>> result = gs.sweep(clean, corrupt, metric, site="resid_pre", by=("layer", "pos"), progress=False)
        >>> view = gs.sweep_view(result)
        >>> view.title
        'resid_pre patched into the corrupt run, nano'
        >>> view.save("sweep.html")
    """
    given: object = result
    if isinstance(given, SweepSet):
        key = next(iter(given))
        raise SweepError(
            f"sweep_view shows one grid, and this sweep has {len(given)}: gs.sweep_view(result[{key!r}]), or result.plot() "
            "for all of them as one figure"
        )
    if not isinstance(result, SweepResult):
        raise SweepError(f"sweep_view takes what gs.sweep or gs.attribute returns; given {short_repr(result)}")
    axes = list(result.question.axes)
    if len(axes) != 2:
        raise SweepError(f"a grid has two axes; this sweep has {len(axes)} ({', '.join(axes)})")
    values = result.effect.values.astype(np.float32)
    bound = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    finished = ESTIMATED if result.question.estimate else EXACT
    marks = np.where(np.isnan(values), NOT_RUN, finished).astype(np.uint8)
    summary = repr(result)
    note = f"{asked_text(result.question)} {summary.splitlines()[1]}"
    spec = grid_spec(result.question, note, bound, [sweep_labels(result.question, axis) for axis in axes])
    return View({**spec, "alike": _n_alike(result)}, {"values": pack(values), "marks": pack(marks)}, summary)


def _n_alike(result: SweepResult) -> int:
    """How many columns from the first on are 0, because no token of the two prompts differs up to there."""
    if not result.question.has_source or list(result.question.axes)[1] != "pos":
        return 0
    changed = np.flatnonzero((result.effect.values != 0).any(axis=0))
    return int(changed[0]) if len(changed) else 0


def grid_spec(sweep: SweepMetadata, note: str, bound: float, labels: Sequence[list[Label]]) -> dict[str, object]:
    """What is drawn of a sweep over two axes, but for its numbers. labels: those of the rows, and of the columns."""
    row_axis, column_axis = sweep.axes
    rows, columns = labels
    return {
        "view": "grid",
        "title": picture_title(sweep),
        "note": note,
        "rows": rows,
        "columns": columns,
        "row_axis": AXIS_TITLES.get(row_axis, row_axis),
        "column_axis": AXIS_TITLES.get(column_axis, column_axis),
        "up": row_axis == "layer",
        "unit": "",
        "scale": {"kind": "diverging", "low": -bound, "high": bound},
    }

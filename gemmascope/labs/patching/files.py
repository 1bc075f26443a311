"""Files of a patching lab: its script, its table, and its grid as a page that needs no kernel."""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np

from gemmascope.errors import SweepError
from gemmascope.files.csv_tables import csv_text
from gemmascope.files.paths import user_path
from gemmascope.files.writing import require_writable, write_file
from gemmascope.labs.patching.experiment import Experiment
from gemmascope.labs.patching.session import LabSession
from gemmascope.labs.patching.state import grid_spec, label_of
from gemmascope.packages import requires_package
from gemmascope.views.packing import packed
from gemmascope.views.page import View, page

KINDS = (".html", ".csv", ".py", ".png")


def view_of(experiment: Experiment, bound: float | None = None) -> View:
    """An experiment's grid as a static view, its estimates marked. bound: of the scale, to compare it with another's."""
    board = experiment.board.copy()
    spec: dict[str, Any] = grid_spec(experiment, board)
    if bound is not None:
        spec["scale"] = {**spec["scale"], "low": -bound, "high": bound}
    arrays = {"values": packed(board.values.astype(np.float32)), "marks": packed(board.marks)}
    ends = experiment.baselines
    said = "not run yet" if ends is None else f"clean {ends['clean']:.4g}, corrupt {ends['corrupt']:.4g}"
    return View(spec, arrays, f"{label_of(experiment)}. {said}", _strongest(experiment))


def compared(one: Experiment, other: Experiment) -> tuple[View, View]:
    """Two experiments on one scale."""
    bound = max(grid_spec(x, x.board)["scale"]["high"] for x in (one, other))
    return view_of(one, bound), view_of(other, bound)


def file_of(lab: LabSession, what: str) -> tuple[str, str]:
    """The name and the text of a file: "py", "csv" or "html". SweepError for another, or while there is no experiment."""
    code = lab.code()
    found = lab.experiments()[-1] if lab.experiment is None else lab.experiment
    if what == "py":
        return "patching_lab.py", code
    if what == "csv":
        return "patching_lab.csv", csv_text(found.to_dataframe())
    if what == "html":
        return "patching_lab.html", page([view_of(found)])
    raise SweepError(f"a lab is saved as .py, .csv or .html; given {what!r}")


def save(lab: LabSession, path: str | os.PathLike[str]) -> None:
    """Write a lab to a file: .html (a page), .csv (a table), .py (a script), .png (a picture, with plotly's kaleido)."""
    kind = user_path(path, error=SweepError, what="a lab").suffix
    if kind not in KINDS:
        raise SweepError(f"a lab is saved as one of {', '.join(KINDS)}; given {str(path)!r}")
    require_writable(path, error=SweepError)
    write_file(path, _picture(lab) if kind == ".png" else file_of(lab, kind[1:])[1], error=SweepError, allow_pipe=True)


def _picture(lab: LabSession) -> bytes:
    lab.code()
    assert lab.result is not None
    with requires_package("a PNG", "kaleido", install="kaleido"):
        importlib.import_module("kaleido")
    try:
        return bytes(lab.result.plot().to_image("png"))
    except (ValueError, RuntimeError, OSError) as error:  # kaleido has no browser, or does not go with this plotly
        raise SweepError(f"plotly's kaleido could not draw the picture: {error}. Save it as .html instead") from error


def _strongest(experiment: Experiment, most: int = 5) -> list[list[str]]:
    """The strongest cells in words, for where no picture is."""
    from gemmascope.labs.patching.cell_grid import MARKS
    from gemmascope.labs.patching.detail import place_of
    from gemmascope.tokens.tokenizer import shown

    values, marks = experiment.board.values, experiment.board.marks
    order = np.argsort(-np.abs(np.nan_to_num(values)), axis=None)[:most]
    rows = []
    for number in order.tolist():
        at = divmod(number, experiment.shape[1])
        if not np.isnan(values[at]):
            rows.append([shown(place_of(experiment, *at)).replace("·", " "), f"{values[at]:+.4g}", MARKS[marks[at]]])
    return rows

"""Files of a patching lab: its script, its table, its grid as a page or a picture, and all its runs to go on with."""

from __future__ import annotations

import importlib
import os

from gemmascope.errors import SweepError
from gemmascope.figures.theme import escape_label
from gemmascope.files.csv_tables import csv_text
from gemmascope.files.paths import user_path
from gemmascope.files.writing import require_writable, write_file
from gemmascope.labs.patching.picture import about_text, view_of
from gemmascope.labs.patching.saved import session_text
from gemmascope.labs.patching.session import LabSession
from gemmascope.packages import requires_package
from gemmascope.views.page import page

SUFFIXES = (".html", ".csv", ".py", ".png", ".json")


def file_of(lab: LabSession, kind: str) -> tuple[str, str]:
    """The name and the text of a file: "json", "py", "csv" or "html". SweepError for another, or while there is no
    experiment to write.
    """
    if kind == "json":
        return "patching_lab.json", session_text(lab)
    code = lab.code()
    experiment = lab.experiments()[-1] if lab.experiment is None else lab.experiment
    if kind == "py":
        return "patching_lab.py", code
    if kind == "csv":
        return "patching_lab.csv", csv_text(experiment.to_dataframe())
    if kind == "html":
        return "patching_lab.html", page([view_of(experiment)])
    raise SweepError(f"a lab is saved as .py, .csv, .html or .json; given {kind!r}")


def save(lab: LabSession, path: str | os.PathLike[str]) -> None:
    """Write a lab to a file: .html (a page), .csv (a table), .py (a script), .png (a picture, with plotly's kaleido), .json
    (all its runs, to go on with).
    """
    suffix = user_path(path, error=SweepError, what="a lab").suffix
    if suffix not in SUFFIXES:
        raise SweepError(f"a lab is saved as one of {', '.join(SUFFIXES)}; given {str(path)!r}")
    require_writable(path, error=SweepError)
    write_file(path, _png(lab) if suffix == ".png" else file_of(lab, suffix[1:])[1], error=SweepError, allow_pipe=True)


def _png(lab: LabSession) -> bytes:
    lab.code()
    experiment = lab.experiment
    assert experiment is not None
    assert lab.result is not None
    with requires_package("a PNG", "kaleido", install="kaleido"):
        importlib.import_module("kaleido")
    try:
        figure = lab.result.plot()
        figure.update_layout(title_subtitle={"text": escape_label(about_text(experiment)), "font_size": 10})
        return bytes(figure.to_image("png"))
    except (ValueError, RuntimeError, OSError) as error:  # kaleido has no browser, or does not fit this plotly
        raise SweepError(f"plotly's kaleido could not draw the picture: {error}. Save it as .html instead") from error

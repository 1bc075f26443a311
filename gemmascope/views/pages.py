"""Pages that the command line writes: a trace and what there is to look into, a sweep."""

from __future__ import annotations

from html import escape
from pathlib import Path

from gemmascope.errors import GemmascopeError
from gemmascope.files.writing import write_file
from gemmascope.run.show import as_html
from gemmascope.run.trace import Trace
from gemmascope.sweeps.result import SweepResult
from gemmascope.views.attention import attention_view
from gemmascope.views.grids import sweep_view
from gemmascope.views.lens import lens_view
from gemmascope.views.page import View, page
from gemmascope.views.stream import stream_view


def write_trace(path: Path, trace: Trace) -> None:
    """Write a trace's summary, its attention, lens and stream as a page. A view that has no room is named, with why."""
    views: list[View] = []
    said = [as_html(trace)]
    for make in (attention_view, lens_view, stream_view):
        try:
            views.append(make(trace))
        except GemmascopeError as error:  # noqa: PERF203
            said.append(f"<p>{escape(f'gs.{make.__name__} is not on this page: {error}')}</p>")
    write_file(path, page(views, "\n".join(said), title=f"Trace of {trace.model.name}"), allow_pipe=True)


def write_sweep(path: Path, result: SweepResult) -> None:
    """Write a sweep's grid as a page."""
    write_file(path, page([sweep_view(result)]), allow_pipe=True)

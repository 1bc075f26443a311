"""What the jobs of a patching lab do, step by step. What was computed for an older question is not told.

Each is a generator that a worker takes one step at a time; an error that one raises becomes the lab's to show.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from gemmascope.labs.patching.cell_grid import cells_of
from gemmascope.labs.patching.detail import detail_of
from gemmascope.labs.patching.experiment import Experiment

if TYPE_CHECKING:
    from gemmascope.labs.patching.session import LabSession

Steps = Generator[None]


def preparing(session: LabSession, seq: int) -> Steps:
    """Make the experiment of the settings, then run its two prompts."""
    try:
        made = Experiment(session.settings, session.model)
    except Exception as error:
        session.refuse(seq, error)
        raise
    if not session.install(seq, made):
        return
    session.tell("prepared", seq)
    yield
    made.run_baselines()
    session.tell("baselines", seq)


def running(session: LabSession, seq: int, what: str, row: Any, column: Any) -> Steps:
    """Exact numbers of some cells, chunk by chunk."""
    found = session.current(seq)
    if found is None:
        return
    cells = cells_of(found.shape, what, row, column)
    total, _ = found.expected(cells)
    with session.guard:
        found.board.under_way |= cells & found.can_run
    try:
        _progress(session, seq, found, what, cells, total)
        for numbers in found.chunks(cells):
            with session.guard:
                found.board.exact.flat[numbers] = found.effects(numbers)
                found.board.under_way.flat[numbers] = False
            _progress(session, seq, found, what, cells, total)
            yield
    finally:
        with session.guard:
            found.board.under_way[cells] = False


def _progress(session: LabSession, seq: int, found: Experiment, what: str, cells: Any, total: int) -> None:
    left, seconds = found.expected(cells)
    if what != "cell":
        session.note(seq, {"what": what, "done": total - left, "total": total, "seconds": seconds})
    session.tell("cells", seq)


def estimating(session: LabSession, seq: int) -> Steps:
    """The gradient estimate of all cells: one step."""
    found = session.current(seq)
    if found is None:
        return
    session.note(seq, {"what": "estimate", "done": 0, "total": 1, "seconds": None})
    session.tell("progress", seq)
    estimated = found.estimate()
    with session.guard:
        found.estimated, found.board.estimate = estimated, estimated.effect.values
    session.tell("cells", seq)
    yield


def looking(session: LabSession, seq: int, row: int, column: int) -> Steps:
    """One cell's patterns and answers: one step."""
    found = session.current(seq)
    if found is None:
        return
    cells_of(found.shape, "cell", row, column)
    found.run_baselines()
    looked = detail_of(found, row, column)
    with session.guard:
        if seq == session.seq:
            session.detail = looked
    session.tell("detail", seq)
    yield

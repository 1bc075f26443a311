"""gs.open_sweep: a sweep from its file."""

from __future__ import annotations

import os
from typing import Any

from gemmascope.errors import SweepError, warn
from gemmascope.files.paths import user_path
from gemmascope.sweeps.journal import fill_from, read_file
from gemmascope.sweeps.journal_lines import Head
from gemmascope.sweeps.metadata import SweepMetadata
from gemmascope.sweeps.result import SweepResult
from gemmascope.sweeps.sets.numbers import SetQuestion
from gemmascope.sweeps.sets.result import SweepSet


def open_sweep(path: str | os.PathLike[str]) -> SweepResult | SweepSet:
    """Read a result from a file that SweepResult.save or gs.sweep(out=...) wrote.

    A last line that was cut off is left out, with a GemmascopeWarning: its cells are NaN.

    Args:
        path: The file; "~" is the home folder.

    Returns:
        The result, with the cells that the file holds; a SweepSet from a sweep of several sites or metrics.

    Raises:
        SweepError: The file is not a sweep, or is damaged; the error names the line.

    Examples:
        >>> result = gs.sweep([2, 5, 7], [2, 5, 9], gs.logit_diff(7, 9), site="mlp_out", progress=False)
        >>> result.save("sweep.json")
        >>> gs.open_sweep("sweep.json").effect.equals(result.effect)
        True
    """
    path = user_path(path, error=SweepError, what="a sweep")
    head, content = read_file(path)
    try:
        result = _empty(head)
    except (TypeError, ValueError, AttributeError, KeyError, MemoryError) as error:
        raise SweepError(f"{path} is not a sweep that can be read: {error}") from error
    numbers = result.numbers if isinstance(result, SweepSet) else result
    size, _ = fill_from(content, path, numbers)
    if size < len(content) or int(numbers.finished.sum()) < (head.saved or 0):
        warn(f"the end of {path} is missing: it was cut off, or is being written. {result.progress_text()}")
    return result


def _empty(head: Head) -> SweepResult | SweepSet:
    """The result of a file's first line, without values."""
    question: dict[str, Any] = head.question
    if "grids" not in question:
        return SweepResult.empty(SweepMetadata(**question), head.n_pairs)
    grids = [SweepMetadata(**grid) for grid in question["grids"]]
    return SweepSet(SetQuestion(question["sites"], question["metrics"], grids), head.n_pairs // len(grids))

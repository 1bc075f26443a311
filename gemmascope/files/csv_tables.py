"""Tables as CSV, in which a spreadsheet shows every text as text.

A spreadsheet runs a cell as a formula if it begins with = + - @, a tab or a line end, and a token can begin with any of
them. Such a text gets an apostrophe in front, which spreadsheets hide. A text that has apostrophes before such a character
gets one more, so that plain_text can undo it. Numbers stay numbers.
"""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas

# Spreadsheets also accept the full-width forms that Japanese and Chinese keyboards type.
_FORMULA = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")


def csv_text(frame: pandas.DataFrame) -> str:
    """A table as CSV text: a header line, and fields quoted where they hold a comma, a quote or a line end.

    A missing number is an empty field. A text that a spreadsheet could run as a formula gets an apostrophe in front, which
    plain_text removes.
    """
    lines = _Lines()
    # With both characters as the terminator, a field with either is quoted: a token can be a bare carriage return.
    writer = csv.writer(lines, lineterminator="\r\n")
    writer.writerow([_cell(name) for name in frame.columns])
    writer.writerows(zip(*([_cell(value) for value in frame[name]] for name in frame.columns), strict=True))
    return "".join(lines)


def safe_text(text: str) -> str:
    """A text as a cell that no spreadsheet runs as a formula."""
    return f"'{text}" if _FORMULA.match(text) else text


def plain_text(cell: str) -> str:
    """The original text of a cell that csv_text wrote.

    Examples:
        >>> plain_text(safe_text("=1+1"))
        '=1+1'
    """
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


class _Lines(list[str]):
    """The lines that the csv module writes, with its line ends replaced by plain newlines."""

    def write(self, row: str) -> None:
        self.append(row.removesuffix("\r\n") + "\n")


def _cell(value: object) -> str:
    if isinstance(value, str):
        return safe_text(value)
    if value is None or value != value:
        return ""
    return str(value.item() if isinstance(value, (np.float64, np.integer)) else value)

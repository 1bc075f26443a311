"""Tables as CSV: one writer for all of them, whose rows stay rows and whose texts stay texts in a spreadsheet.

A spreadsheet takes a cell that begins with = + - @, a tab or a line's end for a formula, or runs what follows. Tokens begin
with anything, so a text of that kind gets an apostrophe in front, which spreadsheets do not show; so does one of that kind
behind apostrophes, so that plain_text can take it away again. Numbers stay numbers.
"""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas

# The wide forms are what Japanese and Chinese keyboards type; spreadsheets there read them alike.
_FORMULA = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")


def csv_text(frame: pandas.DataFrame) -> str:
    """A table as CSV: UTF-8 text with a line of names, fields quoted where they hold a comma, a quote or a line's end.

    A missing number is an empty field. A text that a spreadsheet could take for a formula has an apostrophe in front:
    plain_text takes it away.
    """
    lines = _Lines()
    # Both line ends, so that a field with either is quoted: a token can be a bare carriage return.
    writer = csv.writer(lines, lineterminator="\r\n")
    writer.writerow([_cell(name) for name in frame.columns])
    writer.writerows(zip(*([_cell(value) for value in frame[name]] for name in frame.columns), strict=True))
    return "".join(lines)


def safe_text(text: str) -> str:
    """A text as a cell that no spreadsheet takes for a formula."""
    return f"'{text}" if _FORMULA.match(text) else text


def plain_text(cell: str) -> str:
    """The text of a cell that csv_text wrote.

    Example:
        >>> plain_text(safe_text("=1+1"))
        '=1+1'
    """
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


class _Lines(list[str]):
    """What the csv module writes to, a row at a time; each ends in a newline, as everywhere else."""

    def write(self, row: str) -> None:
        self.append(row.removesuffix("\r\n") + "\n")


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return safe_text(value)
    if value is None or value != value:
        return ""
    return str(value.item() if isinstance(value, (np.float64, np.integer)) else value)

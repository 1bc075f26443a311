"""ModelTable, what gs.models returns: the models that are at hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING

from gemmascope.checkpoints.at_hand.entry import LeftOut, ModelAtHand
from gemmascope.legible import legible, legible_line, prints_legibly

if TYPE_CHECKING:
    import pandas

_HEAD = ("name", "model", "weights", "where", "GB", "gs.load")
_GB = _HEAD.index("GB")


@dataclass(frozen=True, repr=False)
class ModelTable:
    """The models that are at hand, a sequence of those that gs.load takes. Made by gs.models.

    Attributes:
        rows: The models that can be loaded, nano first.
        broken: Models that gs.load would refuse, each with its problem.
        left_out: Models of other architectures, which this package does not run.
        notes: What could not be looked at, and why.

    Examples:
        >>> table = gs.models()
        >>> table[0].name, table[0].family, table[0].load
        ('nano', 'Gemma 2', 'nano')
    """

    rows: tuple[ModelAtHand, ...]
    broken: tuple[ModelAtHand, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[ModelAtHand]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> ModelAtHand:
        return self.rows[index]

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each model, those with a problem last: the attributes of a row, with path as text."""
        import pandas

        rows = [{**asdict(row), "path": str(row.path)} for row in (*self.rows, *self.broken)]
        return pandas.DataFrame(rows)

    def to_dict(self) -> dict[str, object]:
        """The table as JSON."""
        rows = [[{**asdict(row), "path": str(row.path)} for row in group] for group in (self.rows, self.broken)]
        return {"models": rows[0], "broken": rows[1], "left_out": self._others(), "notes": list(self.notes)}

    def remarks(self) -> list[str]:
        """A line for each problem and note, and one for the models of other architectures."""
        others = ", ".join(f"{name} ({n})" if n > 1 else name for name, n in self._others().items())
        lines = [f"{row.name} ({row.where}) cannot be loaded: {row.problem}" for row in self.broken]
        return [*lines, *self.notes, *([f"left out, of other architectures: {others}"] if others else ())]

    def _others(self) -> dict[str, int]:
        return dict(sorted(Counter(one.architecture for one in self.left_out).items()))

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (row.name, f"{row.family} {row.size}", row.weights, row.where, f"{row.n_bytes / 1e9:.2f}", row.load)
            for row in self.rows
        ]

    @prints_legibly
    def __repr__(self) -> str:
        cells = [_HEAD, *([legible_line(cell) for cell in row] for row in self._cells())]
        widths = [max(len(row[column]) for row in cells) for column in range(len(_HEAD))]
        lines = []
        for row in cells:
            padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            padded[_GB] = row[_GB].rjust(widths[_GB])
            lines.append("  ".join(padded).rstrip())
        return "\n".join([*lines, *self.remarks()])

    def _repr_html_(self) -> str:
        left = "style='text-align:left'"
        head = "".join(f"<th {left}>{name}</th>" for name in _HEAD)
        rows = ("".join(f"<td {left}>{escape(legible_line(cell))}</td>" for cell in row) for row in self._cells())
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        remarks = "".join(f"<li>{escape(legible(line))}</li>" for line in self.remarks())
        return f"<table><tr>{head}</tr>{body}</table>" + (f"<ul>{remarks}</ul>" if remarks else "")

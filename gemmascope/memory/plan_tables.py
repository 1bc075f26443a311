"""The tables of a plan: memory by quantisation and context, and rows as aligned text and as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TypedDict


class TableRow(TypedDict):
    """A row of Plan.table: the memory of one kind of weights at one context, in bytes. card_bytes: of the smallest common
    GPU that holds it; None if there is none.
    """

    weights: str
    context: int
    weight_bytes: int
    kv_bytes: int
    activation_bytes: int
    total: int
    card_bytes: int | None


def table_text(rows: Sequence[TableRow]) -> str:
    """The rows of Plan.table as text, with a column for each context."""
    head, *body = table_cells(rows)
    return "\n".join(aligned([head, *body], right=range(1, len(head))))


def table_cells(rows: Sequence[TableRow]) -> list[list[str]]:
    """The rows of Plan.table as a table of texts, its head first, with a column for each context."""
    contexts = sorted({row["context"] for row in rows})
    cell = {(row["weights"], row["context"]): f"{gigabytes(row['total'])} {_card_text(row)}" for row in rows}
    body = [[kind, *(cell[kind, n] for n in contexts)] for kind in dict.fromkeys(row["weights"] for row in rows)]
    return [["generating, on the smallest GPU", *(f"{n:,} positions" for n in contexts)], *body]


def _card_text(row: TableRow) -> str:
    return "on none" if row["card_bytes"] is None else f"on {row['card_bytes'] // 10**9} GB"


def gigabytes(n_bytes: int) -> str:
    """Bytes as text in GB (10^9), MB or kB."""
    unit, name = next(((u, n) for u, n in ((10**9, "GB"), (10**6, "MB")) if n_bytes >= u / 10), (10**3, "kB"))
    return f"{n_bytes / unit:.2f} {name}"


def aligned(rows: list[list[str]], right: range = range(1, 2)) -> list[str]:
    """Rows as lines of aligned columns; the columns in `right` are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = right if len(widths) > 2 else range(0)
    lines = (
        "  ".join(
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return [f"  {line}".rstrip() for line in lines]


STYLE = """<style>
.gs-plan{font:14px/1.5 system-ui,sans-serif;max-width:62em}
.gs-plan table{border-collapse:collapse;margin:.5em 0}
.gs-plan th,.gs-plan td{padding:1px 16px 1px 0;text-align:left;border:0;background:none}
.gs-plan td:nth-child(2){white-space:nowrap;font-variant-numeric:tabular-nums}
</style>"""


def html_table(rows: list[list[str]], head: tuple[str, ...]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"

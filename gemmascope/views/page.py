"""View: a picture as a self-contained part of a page, with its module and its numbers, which needs no kernel or network."""

from __future__ import annotations

import hashlib
import html
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gemmascope.files.writing import write_file
from gemmascope.legible import legible, legible_line, prints_legibly
from gemmascope.views.module import static_module
from gemmascope.views.packing import PackedArray

# The policy keeps the page from loading anything from any address.
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>body{{margin:16px;background:#fff;color:#1a1a1a;font-family:system-ui,sans-serif}}
@media (prefers-color-scheme:dark){{body{{background:#111316;color:#ececec}}}}</style></head>
<body>
{body}
</body></html>
"""


@dataclass(frozen=True, repr=False)
class View:
    """A picture that shows itself as the last expression of a cell.

    `gs.attention_view`, `gs.lens_view` and their kin return it. The HTML is self-contained; where scripts do not run, as in
    a notebook that is not trusted, the summary and the table are seen instead of the picture.

    Attributes:
        spec: What is drawn, as JSON.
        arrays: The numbers that are drawn, packed, by name.
        summary: The picture in words.
        rows: A small table, its header first; empty for none.

    Examples:
        >>> view = gs.stream_view(gs.trace("Mary and John went to the store"))
        >>> view.title
        'The stream in nano'
        >>> view.save("stream.html")
    """

    spec: Mapping[str, Any]
    arrays: Mapping[str, PackedArray]
    summary: str
    rows: Sequence[Sequence[str]] = field(default_factory=tuple)

    @property
    def title(self) -> str:
        """The title above the picture."""
        return str(self.spec.get("title", "gemmascope"))

    def to_html(self) -> str:
        """The view as a part of a page: self-contained, the same every time, and usable more than once on a page."""
        arguments = f"{in_script(self.spec)}, {in_script(self.arrays)}"
        name = f"gs-{hashlib.sha256(arguments.encode()).hexdigest()[:12]}"
        for_each = f'for (const el of document.querySelectorAll("[data-gs={name}]:not([data-gs-drawn])"))'
        module = static_module(str(self.spec["view"]))
        return (
            f'<div data-gs="{name}">{self._without_script()}</div>\n<script type="module">\n{module}\n'
            f'{for_each} {{ el.dataset.gsDrawn = "1"; mount(el, {arguments}); }}\n</script>'
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the view as a page. An existing file is replaced once the new one is complete.

        Args:
            path: The file; "~" is the home folder. A link is followed; a pipe or a device is written to.

        Raises:
            FileError: The file cannot be written.
        """
        write_file(path, page([self]), allow_pipe=True)

    def _without_script(self) -> str:
        rows = "".join("<tr>" + "".join(f"<td>{_escaped(cell)}</td>" for cell in row) + "</tr>" for row in self.rows)
        table = f"<table>{rows}</table>" if rows else ""
        summary = html.escape(legible(self.summary))
        return f'<b>{_escaped(self.title)}</b><p style="white-space:pre-wrap">{summary}</p>{table}'

    def _repr_html_(self) -> str:
        return self.to_html()

    @prints_legibly
    def __repr__(self) -> str:
        return f"{legible_line(self.title)}\n{self.summary}"


def page(views: Sequence[View], before: str = "", title: str | None = None) -> str:
    """A page with these views, one below the other. before: HTML above them. title: None for the first view's."""
    body = "\n".join([before, *(view.to_html() for view in views)])
    return _PAGE.format(title=_escaped(title or views[0].title), body=body)


def _escaped(text: str) -> str:
    """One line of text as HTML, with control characters spelled out."""
    return html.escape(legible(legible_line(text)))


def in_script(value: object) -> str:
    """A value as JSON for a script element: nothing in it can end the element or open another."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")

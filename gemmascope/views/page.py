"""View: a picture that is a whole page part by itself, with its module and its numbers, and needs no kernel and no network.

Where scripts do not run - in a notebook that is not trusted, on a site that shows notebooks - the words and the small table
that stand in its place are seen.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gemmascope.files.writing import write_file
from gemmascope.legible import legible, legibly, spelled
from gemmascope.views.module import static_module
from gemmascope.views.packing import PackedLayer

# A page may ask nothing of any address: the browser is told so, too.
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
    """A picture in a notebook or a page: its last expression in a cell shows it, save(path) writes it.

    spec: what is drawn, as JSON holds it. arrays: its numbers, packed. summary: the same in words, for where no picture is;
    rows: a small table for there.
    """

    spec: Mapping[str, Any]
    arrays: Mapping[str, PackedLayer]
    summary: str
    rows: Sequence[Sequence[str]] = field(default_factory=tuple)

    @property
    def title(self) -> str:
        return str(self.spec.get("title", "gemmascope"))

    def to_html(self) -> str:
        """The view as a part of a page: self-contained, as often on one page as one likes, and the same every time."""
        given = f"{in_script(self.spec)}, {in_script(self.arrays)}"
        name = f"gs-{hashlib.sha256(given.encode()).hexdigest()[:12]}"
        each = f'for (const el of document.querySelectorAll("[data-gs={name}]:not([data-gs-drawn])"))'
        return (
            f'<div data-gs="{name}">{self._plain()}</div>\n<script type="module">\n{static_module()}\n'
            f'{each} {{ el.dataset.gsDrawn = "1"; mount(el, {given}); }}\n</script>'
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the view as a page of its own; an existing file is replaced, once the new one is whole.

        Args:
            path: The file, "~" being the home folder. A link is followed; a pipe or a device is written to.

        Raises:
            FileError: It cannot be written.
        """
        write_file(path, page([self]), allow_pipe=True)

    def _plain(self) -> str:
        rows = "".join("<tr>" + "".join(f"<td>{_text(spelled(cell))}</td>" for cell in row) + "</tr>" for row in self.rows)
        table = f"<table>{rows}</table>" if rows else ""
        return f'<b>{_text(spelled(self.title))}</b><p style="white-space:pre-wrap">{_text(self.summary)}</p>{table}'

    def _repr_html_(self) -> str:
        return self.to_html()

    @legibly
    def __repr__(self) -> str:
        return f"{spelled(self.title)}\n{self.summary}"


def page(views: Sequence[View], before: str = "", title: str | None = None) -> str:
    """A page of its own with these views, one under the other. before: HTML that comes first."""
    body = "\n".join([before, *(view.to_html() for view in views)])
    return _PAGE.format(title=_text(spelled(title or views[0].title)), body=body)


def _text(given: str) -> str:
    """Text as HTML, with nothing in it that turns what is beside it round."""
    return html.escape(legible(given))


def in_script(value: Any) -> str:
    """A value as JSON that may stand in a script element: nothing in it can end the element, or open another."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")

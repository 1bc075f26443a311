"""What mkdocs does beside rendering: pictures of the notebooks, tables made from the code, and a look at what was built."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gemmascope"

# A page asks for a generated part with a comment of its own line.
MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)

# In the repository a page shows drawings and pictures from where they lie. On the site a drawing stands in the page itself,
# where it takes the colours of its theme, and pictures are in images/.
DRAWING = re.compile(r"^!\[[^]]*\]\((?:\.\./)+drawings/(\w+)\.svg\)$", re.MULTILINE)
PICTURE = re.compile(r"(?<=\()((?:\.\./)*)\.\./pictures/")

# An address in another place, in an element or a style sheet that a browser loads without being asked.
LOADED = re.compile(
    r"<(?:script|img|iframe|source|video|audio)\b[^>]*\ssrc=\"?(?:https?:)?//[^\">\s]*"
    r"|<link\b(?![^>]*\srel=\"?canonical)[^>]*\shref=\"?(?:https?:)?//[^\">\s]*"
    r"|(?:@import\s+|url\()[\"']?(?:https?:)?//[^\"')\s]*"
)


def on_files(files: Files, config: Any) -> Files:
    """The pictures, under images/: they stand once in the repository."""
    for path in sorted((ROOT / "docs" / "pictures").glob("*.png")):
        files.append(File.generated(config, f"images/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in what a page asks for by name."""
    markdown = MARK.sub(lambda found: GENERATED[found[1]](), markdown)
    markdown = DRAWING.sub(lambda found: drawing(found[1]), markdown)
    return PICTURE.sub(r"\1images/", markdown)


def on_post_build(config: Any) -> None:
    """Readers may be offline: nothing that a page loads by itself may come from elsewhere."""
    site = Path(config["site_dir"])
    for path in sorted([*site.rglob("*.html"), *site.rglob("*.css")]):
        if found := LOADED.search(path.read_text(encoding="utf-8")):
            raise PluginError(f"{path.relative_to(site)} loads something from elsewhere: {found[0]}")


def drawing(name: str) -> str:
    """A drawing as a part of a page."""
    text = (ROOT / "docs" / "drawings" / f"{name}.svg").read_text(encoding="utf-8")
    return f'<figure class="drawing">{"".join(line.strip() for line in text.splitlines())}</figure>'


def sites() -> str:
    """The table of sites, from the table that the package is driven by."""
    from gemmascope.sites import SITES

    lines = ["| site | axes | meaning | in TransformerLens |", "|---|---|---|---|"]
    for site in SITES.values():
        hook = f"`{site.hook}`" if site.hook else ""
        lines.append(f"| `{site.name}` | {' '.join(site.axes)} | {site.meaning} | {hook} |")
    return "\n".join(lines)


def rooms() -> str:
    """A section for every folder of the package: what its __init__ says, and the first line of every module."""
    parts = []
    folders = [PACKAGE, *sorted(path for path in PACKAGE.rglob("*") if path.is_dir() and list(path.glob("*.py")))]
    for folder in folders:
        name = folder.relative_to(ROOT).as_posix()
        about = "" if folder == PACKAGE else _docstring(folder / "__init__.py").strip()
        rows = [
            f"| `{path.name}` | {_docstring(path).split(chr(10))[0].replace('|', chr(92) + '|')} |"
            for path in sorted(folder.glob("*.py"))
            if path.name != "__init__.py" or folder == PACKAGE
        ]
        table = "\n".join(["| file | what it is |", "|---|---|", *rows]) if rows else ""
        parts.append("\n\n".join(part for part in (f"### `{name}/`", about, table) if part))
    return "\n\n".join(parts)


def _docstring(path: Path) -> str:
    if not path.exists():
        return ""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


GENERATED = {"sites": sites, "rooms": rooms}

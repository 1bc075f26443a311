"""The pages of docs/ agree with the code: every public name is documented, and the files that they name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gemmascope as gs

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "pages"
EVERY = sorted(PAGES.rglob("*.md"))


def read(name: str) -> str:
    return (PAGES / name).read_text(encoding="utf-8")


def test_the_api_pages_name_every_public_name_once() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in sorted((PAGES / "api").glob("*.md")))
    named = re.findall(r"^::: gemmascope\.(\w+)$", text, re.MULTILINE)
    assert sorted(named) == sorted(gs.__all__), "each on one page of docs/pages/api, as a line ::: gemmascope.NAME"


@pytest.mark.parametrize("page", EVERY, ids=lambda page: page.relative_to(PAGES).as_posix())
def test_files_named_on_a_page_exist(page: Path) -> None:
    for path in re.findall(r"`((?:tests|gemmascope|notebooks|docs)/[\w./]*)`", page.read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), f"{page.name} speaks of {path}"


def test_files_named_in_the_measurements_exist() -> None:
    scripts = re.findall(r"`python (tests/[\w/.]+)", read("measurements.md"))
    assert scripts
    for script in scripts:
        assert (ROOT / script).exists(), script


def test_every_site_of_the_drawing_is_in_the_table() -> None:
    drawing = (ROOT / "docs" / "drawings" / "layer.svg").read_text(encoding="utf-8")
    drawn = set(re.findall(r"\b[a-z_]+\b", " ".join(re.findall(r'class="d-code">([^<]*)<', drawing)))) - {"by", "head"}
    assert drawn == {name for name, site in gs.SITES.items() if site.in_layer}


def test_the_changelog_has_this_version() -> None:
    assert re.search(rf"^## {re.escape(gs.__version__)}\b", read("changelog.md"), re.MULTILINE)


@pytest.mark.parametrize("page", EVERY, ids=lambda page: page.relative_to(PAGES).as_posix())
def test_the_pictures_of_a_page_lie_where_it_says(page: Path) -> None:
    """The site's build checks its own copies; this is for readers of the repository."""
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / path).resolve().is_file(), f"{page.name} shows {path}"

"""The Python and the commands on the pages of docs/ run on nano, page by page."""

from __future__ import annotations

import doctest
import io
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

import gemmascope as gs
from gemmascope.__main__ import main

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "pages"
BLOCK = re.compile(
    r"(?:^<!-- not run: ([^\n]+) -->\n)?^```(python|sh)\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL
)
# "..." stands for any text; runs of spaces are not compared.
LENIENT = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Example:
    """A fenced block of a page.

    why_not: why it is not run, in the comment above it; None for one that is. prints: the block of text right below it.
    """

    page: Path
    line: int
    language: str
    text: str
    why_not: str | None
    prints: str | None

    def compiled(self) -> object:
        return compile("\n" * self.line + self.text, str(self.page), "exec")


def examples(page: Path) -> Iterator[Example]:
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        yield Example(page, text[: match.start(3)].count("\n"), match[2], match[3], match[1], match[4])


def commands(example: Example) -> Iterator[list[str]]:
    """The command lines of the package, as their arguments."""
    for line in example.text.replace("\\\n", " ").splitlines():
        if line.startswith("gemmascope "):
            yield shlex.split(line)[1:]


def pages(language: str) -> list[str]:
    """The pages with a block of a language that is run."""
    with_blocks = [
        page.relative_to(PAGES).as_posix()
        for page in sorted(PAGES.rglob("*.md"))
        if any(example.language == language and not example.why_not for example in examples(page))
    ]
    assert with_blocks, f"no page under {PAGES} has a block of {language}"
    return with_blocks


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that an example writes, and caches, stay in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMMASCOPE_CACHE", str(tmp_path / "cache"))


@pytest.mark.nano
@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("page", pages("python"))
def test_the_python_of_a_page_runs_from_top_to_bottom(page: str) -> None:
    names: dict[str, object] = {"__name__": "__main__"}
    for example in examples(PAGES / page):
        if example.language == "python" and not example.why_not:
            with redirect_stdout(io.StringIO()) as printed:
                exec(example.compiled(), names)  # type: ignore[arg-type]
            if example.prints:
                same = doctest.OutputChecker().check_output(example.prints, printed.getvalue(), LENIENT)
                assert same, f"{page}, line {example.line}: it prints\n{printed.getvalue()}"


@pytest.mark.nano
@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("page", pages("sh"))
def test_the_commands_of_a_page_run(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    for example in examples(PAGES / page):
        if example.language == "sh" and not example.why_not:
            for arguments in commands(example):
                assert main(arguments) == 0, f"{page}: gemmascope {shlex.join(arguments)}\n{capsys.readouterr().err}"


def test_examples_that_are_not_run_compile_and_name_public_names() -> None:
    skipped = [e for page in sorted(PAGES.rglob("*.md")) for e in examples(page) if e.why_not and e.language == "python"]
    assert skipped
    for example in skipped:
        example.compiled()
        for name in re.findall(r"\bgs\.(\w+)", example.text):
            assert name in gs.__all__, f"{example.page.name}: there is no gs.{name}"

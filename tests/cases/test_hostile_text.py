"""Text from files and the internet is escaped for display: no escape code, no direction character, no forged line."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile
import pytest
from hostile import NAME, SHOWN, UNFIT

import gemmascope as gs
from gemmascope import errors
from gemmascope.__main__ import main

everything = pytest.mark.parametrize("make", SHOWN.values(), ids=SHOWN)
ERRORS = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, Exception)]


def require_legible(text: str) -> None:
    match = UNFIT.search(text)
    assert match is None, repr(text[max(0, match.start() - 40) : match.end() + 10])
    assert not any(line.startswith("forged") for line in text.splitlines()), "a name began a line of its own"


def test_the_pattern_of_unfit_characters_matches_them_and_no_others() -> None:
    assert len(UNFIT.findall(NAME)) > 8
    assert UNFIT.search("·Mary ⏎ ◆ 中 é\n\tok") is None


@everything
def test_printed_results_hold_no_escape_codes(make: Callable[[], Any]) -> None:
    result = make()
    require_legible(repr(result))
    require_legible(str(result))


@everything
def test_the_html_shown_in_a_notebook_is_legible(make: Callable[[], Any]) -> None:
    to_html = getattr(make(), "_repr_html_", None) or getattr(make(), "_fallback_html", None)
    if to_html is None:
        pytest.skip("it has no HTML of its own")
    written = to_html()
    require_legible(re.sub(r"<script.*?</script>", "", written, flags=re.DOTALL))
    assert "<img" not in written
    for arguments in re.findall(r"mount\(el, (.*?)\); \}", written, flags=re.DOTALL):
        require_legible(arguments)  # as JSON, with every such character spelled out


def test_a_view_saved_as_a_page_has_a_clean_title(tmp_path: Path) -> None:
    gs.attention_view(hostile.run()).save(tmp_path / "a.html")
    require_legible((tmp_path / "a.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_errors_and_warnings_quote_arguments_legibly(kind: type[Exception]) -> None:
    require_legible(str(kind(f"there is no {NAME.replace(chr(10), '')}")))
    assert str(kind("two\nlines")) == "two\nlines"


def test_printed_warnings_are_legible() -> None:
    with pytest.warns(gs.GemmascopeWarning) as caught:
        errors.warn("beware of \x1b[31m\u202e")
    printed = warnings.formatwarning(caught[0].message, caught[0].category, caught[0].filename, caught[0].lineno)
    require_legible(printed)
    assert r"\x1b[31m\u202e" in printed


PATH = "no\x1b[31m\u202e\x9b\r/x"
COMMANDS = [
    ["trace", "x", "--model", PATH],
    ["trace", "x", "--html", PATH],
    ["patch", "a", "b", "--answer", PATH, "--against", "\x1b]0;x\x07"],
    ["patch", "a", "b", "--answer", "x", "--against", "y", "--csv", PATH],
    ["patch", "a", "b", "--answer", "x", "--metric", PATH],
    ["patch", "a", "b", "--answer", "x", "--against", "y", "--site", PATH],
    ["patch", "a", "b", "--answer", "x", "--against", "y", "--by", PATH],
    ["generate", "x", "--model", PATH],
    ["generate", "x", "--seed", PATH],
    ["quantize", PATH, PATH],
    ["plan", PATH],
    ["plan", "2b", "--memory", PATH],
    ["graph", "x", "--model", PATH],
    ["graph", "Mary went", "--html", PATH],
    ["lab", PATH],
    ["lab", "--", PATH],
    [PATH],
    ["trace", "x", PATH],
    ["trace", "x", f"--{PATH}"],
]


@pytest.mark.parametrize("argv", COMMANDS, ids=lambda argv: " ".join(ascii(one) for one in argv[:3]))
def test_the_command_line_prints_no_escapes(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(argv)
    except SystemExit as end:  # argparse
        status = int(end.code or 0)
    output = capsys.readouterr()
    assert status == 2
    assert output.err
    require_legible(output.out + output.err)


def test_the_command_line_names_a_written_file_legibly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a\x1b[31m\u202e.html"
    assert main(["trace", "Mary \x1b[2J\u202e\x9b went", "--html", str(path)]) == 0
    output = capsys.readouterr()
    require_legible(output.out + output.err)
    assert path.is_file()


def test_json_output_is_legible_and_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "a\u202eb\x7f", "--json"]) == 0
    output = capsys.readouterr().out
    require_legible(output)
    assert len(json.loads(output)["tokens"]) > 3


def test_a_generation_that_is_printed_as_it_comes_is_legible(capsys: pytest.CaptureFixture[str]) -> None:
    gs.generate(hostile.IDS, model=hostile.model(), max_new_tokens=8, temperature=5.0, show=True)
    output = capsys.readouterr().out
    assert len(output) > 8
    require_legible(output)

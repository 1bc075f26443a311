"""Public docstrings: Google style, with every argument, the result, the errors, and examples that run."""

from __future__ import annotations

import doctest
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_public_names import members

import gemmascope as gs

SECTIONS = ("Args", "Returns", "Yields", "Raises", "Attributes", "Examples", "Note", "References")


def public() -> Iterator[tuple[str, Any]]:
    """Every public function and class, and every public method of a public class that this package defines."""
    for name in gs.__all__:
        member = getattr(gs, name)
        if not callable(member):
            continue
        yield name, member
        if inspect.isclass(member):
            for method, value in members(member).items():
                function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
                if not method.startswith("_") and inspect.isfunction(function):
                    yield f"{name}.{method}", function


PUBLIC = dict(public())
EXCEPTIONS = {name for name, member in PUBLIC.items() if inspect.isclass(member) and issubclass(member, Exception | Warning)}
CALLS = [name for name, member in PUBLIC.items() if not inspect.isclass(member)]
EXAMPLES = [name for name in PUBLIC if "." not in name and name not in EXCEPTIONS]


def sections(docstring: str) -> dict[str, str]:
    """The text under each heading of a Google style docstring, dedented."""
    parts = re.split(rf"^({'|'.join(SECTIONS)}):\n", docstring, flags=re.MULTILINE)
    return {heading: inspect.cleandoc("\n" + text) for heading, text in zip(parts[1::2], parts[2::2], strict=True)}


def described(args: str) -> set[str]:
    """The arguments that an Args section describes."""
    return {
        name for line in re.findall(r"^\*{0,2}(\w[\w, *]*):", args, flags=re.MULTILINE) for name in re.split(r"[, *]+", line)
    }


def parameters(call: Callable[..., Any]) -> set[str]:
    return {name for name in inspect.signature(call).parameters if name not in ("self", "cls") and not name.startswith("_")}


@pytest.mark.parametrize("name", CALLS)
def test_a_docstring_documents_every_argument_and_the_result(name: str) -> None:
    call = PUBLIC[name]
    docstring = inspect.getdoc(call) or ""
    first, _, body = docstring.partition("\n")
    assert re.match(r"[A-Z`].*[.:]$", first), f"one line that ends in a full stop, not {first!r}"
    assert not body or body.startswith("\n"), "an empty line below the first"
    by_heading = sections(docstring)
    assert described(by_heading.get("Args", "")) == parameters(call)
    if "." not in name and call.__annotations__.get("return") not in (None, "None"):
        assert "Returns" in by_heading or "Yields" in by_heading


@pytest.mark.parametrize("name", PUBLIC)
def test_text_that_looks_like_markup_is_quoted_as_code(name: str) -> None:
    text = re.sub(r"(?s)\n *>>> .*?(\n\n|$)", "\n\n", inspect.getdoc(PUBLIC[name]) or "")
    assert not re.findall(r"<\w+>", re.sub(r"`[^`]*`|\"[^\"\n]*\"", "", text)), "the site would swallow it: write `<bos>`"


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_public_name_has_an_example(name: str) -> None:
    assert ">>> " in sections(inspect.getdoc(PUBLIC[name]) or "").get("Examples", "")


@pytest.mark.nano
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", [name for name, thing in PUBLIC.items() if ">>> " in (inspect.getdoc(thing) or "")])
def test_an_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(PUBLIC[name]) or "", {"gs": gs}, name, None, None)
    output: list[str] = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert not doctest.DocTestRunner(optionflags=flags).run(example, out=output.append).failed, "".join(output)

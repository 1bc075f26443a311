"""Limits that keep the package readable: lengths, signatures, `Any`, and public docstrings.

`python tests/test_house.py` prints where each room stands; with a room's name, what in it is over a limit.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grimp
import networkx
import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "gemmascope"

# The whole top level; beside these lie only what begins with a dot and what .gitignore names.
TOP_LEVEL = {"gemmascope", "notebooks", "tests", "docs", "pyproject.toml", "README.md", "LICENSE", "CITATION.cff"}
MADE = {"build", "dist", "__pycache__", "gemmascope.egg-info", "lowest.txt"}

FILE_LINES = 300
FUNCTION_LINES = 60
PARAMETERS = 10
FOLDER_FILES = 16  # beside its __init__
ANY = 60

# Calls that a user types with keywords: each keyword is one independent choice.
WIDE = {"sweep", "path_sweep", "generate", "attribute", "load", "plan", "trace", "patching_lab", "head_lab", "steer_lab"}
WIDE |= {"graph_lab"}  # what attribution_graph takes, how much of it is shown, and a graph to begin with
WIDE |= {"strength_sweep", "attribution_graph"}  # the places of gs.add, the texts for perplexity, and what every sweep takes
WIDE |= {"evaluate"}  # the tasks and where they are, the edits, and the few options of the harness that change a result
WIDE |= {"harvest"}  # the texts and what of them is kept, how it is stored, and what a pass may take
WIDE |= {"probe"}  # the rows and their classes, how probes are fitted and held out
WIDE |= {"train_sae"}  # the form of a dictionary, how sparse it is, the steps, and what every long run takes
WIDE |= {"top_examples"}  # the texts and how they are run, the units, and what is kept of each
WIDE |= {"edge_scores", "faithfulness"}  # the runs, the method and its steps, the positions, and what an ablation takes
# Programs of a card, whose tensors come as an address and their strides.
WIDE |= {"_attend_runs", "_attend_cache", "_add_keys"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> Iterator[tuple[Path, ast.Module]]:
    """Every file of the package, parsed."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def functions(tree: ast.Module) -> Iterator[Function]:
    """Every function and method, nested ones too."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def parameters(function: Function) -> list[ast.arg]:
    """All parameters but self and cls."""
    arguments = function.args
    each = [*arguments.posonlyargs, *arguments.args, arguments.vararg, *arguments.kwonlyargs, arguments.kwarg]
    return [arg for arg in each if arg is not None and arg.arg not in ("self", "cls")]


def anys(function: Function) -> int:
    """How often a signature says Any."""
    hints = [*(arg.annotation for arg in parameters(function)), function.returns]
    names = (node for hint in hints if hint is not None for node in ast.walk(hint) if isinstance(node, ast.Name))
    return sum(node.id == "Any" for node in names)


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else "(top)"


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def long_files() -> list[str]:
    return [
        f"{name_of(path)}: {n} lines"
        for path, _ in sources()
        if (n := len(path.read_text("utf-8").splitlines())) > FILE_LINES
    ]


def long_functions() -> list[str]:
    return [
        f"{name_of(path)}:{f.lineno} {f.name}: {n} lines"
        for path, tree in sources()
        for f in functions(tree)
        if (n := body_lines(f)) > FUNCTION_LINES
    ]


def body_lines(function: Function) -> int:
    """Lines of a function's body, without its signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def wide_signatures() -> list[str]:
    return [
        f"{name_of(path)}:{f.lineno} {f.name}: {n} parameters"
        for path, tree in sources()
        for f in functions(tree)
        if (n := len(parameters(f))) > PARAMETERS and f.name not in WIDE
    ]


def test_nothing_lies_at_the_top_that_does_not_belong_there() -> None:
    names = {path.name for path in PACKAGE.parent.iterdir() if not path.name.startswith(".")}
    assert TOP_LEVEL <= names <= TOP_LEVEL | MADE


def full_folders() -> list[str]:
    folders = [PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir())]
    counts = {folder: len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) for folder in folders}
    return [f"{name_of(folder)}: {n} files" for folder, n in counts.items() if n > FOLDER_FILES]


def test_no_file_is_long() -> None:
    assert not long_files()


def test_no_function_is_long() -> None:
    assert not long_functions()


def test_no_signature_is_wide() -> None:
    assert not wide_signatures()


def test_no_folder_is_full() -> None:
    assert not full_folders()


def test_signatures_say_what_they_take() -> None:
    counts = {
        f"{name_of(path)}:{f.lineno} {f.name}": n for path, tree in sources() for f in functions(tree) if (n := anys(f))
    }
    assert sum(counts.values()) < ANY, counts


@pytest.mark.parametrize("for_types", [False, True], ids=["as they run", "with those for types"])
def test_no_circle_of_imports(for_types: bool) -> None:
    graph = grimp.build_graph("gemmascope", exclude_type_checking_imports=not for_types, cache_dir=None)
    imports = networkx.DiGraph(
        (module, imported) for module in graph.modules for imported in graph.find_modules_directly_imported_by(module)
    )
    assert imports.number_of_edges() > 1000
    assert [sorted(circle) for circle in networkx.strongly_connected_components(imports) if len(circle) > 1] == []


def report(only: str | None) -> None:
    count: Counter[str] = Counter()
    lines: Counter[str] = Counter()
    for path, tree in sources():
        lines[room(path)] += len(path.read_text("utf-8").splitlines())
        for f in functions(tree):
            count[room(path)] += anys(f)
            if only == room(path) and anys(f):
                print(f"{name_of(path)}:{f.lineno} {f.name}: {anys(f)} Any")
    if only is None:
        for each, n in lines.items():
            print(f"{each:12} {n:6} lines {count[each]:4} Any")
        print(f"{'together':12} {lines.total():6} lines {count.total():4} Any")
    for line in (*long_files(), *long_functions(), *wide_signatures(), *full_folders()):
        if only is None or line.startswith(f"{only}/"):
            print(line)


if __name__ == "__main__":
    report(sys.argv[1] if len(sys.argv) > 1 else None)

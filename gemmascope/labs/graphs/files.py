"""What a graph lab gives away: the graph with its groups, its page, and Python that gives the same numbers."""

from __future__ import annotations

import base64
import os
import tempfile
from pathlib import Path

from gemmascope.arguments import is_whole as is_whole_number
from gemmascope.circuits.graph.result import AttributionGraph
from gemmascope.edits.call_text import plain, prompt_text, script_text
from gemmascope.errors import GraphError
from gemmascope.files.paths import user_path
from gemmascope.labs.graphs.building import Recipe
from gemmascope.labs.graphs.settings import EVERYTHING, GraphSettings
from gemmascope.model.model import Model
from gemmascope.sae.dictionary import Dictionary
from gemmascope.views.page import View, page

SUFFIXES = (".graph", ".html", ".py")
# The most bytes that are sent to a page as one file.
MOST_BYTES = 2**26


def suffix_of(path: str | os.PathLike[str]) -> str:
    """The ending of a file that a lab is saved as. GraphError for another."""
    suffix = user_path(path, error=GraphError, what="a graph lab").suffix
    if suffix not in SUFFIXES:
        raise GraphError(f"a graph lab is saved as one of {', '.join(SUFFIXES)}; given {str(path)!r}")
    return suffix


def file_of(graph: AttributionGraph, view: View, kind: str) -> dict[str, object]:
    """A file as a message to the page: "graph" or "html", in base64."""
    if kind == "html":
        content = page([view]).encode()
    elif kind == "graph":
        with tempfile.TemporaryDirectory() as folder:
            graph.save(path := Path(folder) / "lab.graph")
            content = path.read_bytes()
    else:
        raise GraphError(f"a graph lab is saved as graph or html; given {kind!r}")
    if len(content) > MOST_BYTES:
        raise GraphError(
            f"the file has {len(content):,} bytes, too many for a page: lab.save({f'lab.{kind}'!r}) in Python writes it"
        )
    return {"type": "file", "name": f"graph_lab.{kind}", "base64": base64.b64encode(content).decode()}


def code_of(model: Model, settings: GraphSettings, recipe: Recipe, *, is_whole: bool) -> str:
    """Python that builds the graph, names its groups, and makes the changes. is_whole: whether the lab's graph is."""
    before, dictionaries = _dictionaries(recipe.dictionaries)
    before += "" if is_whole else "# The lab's graph was stopped before all of its rows were there; this one is whole.\n"
    targets, before = _targets(settings.targets, before)
    named = {"basis": repr(settings.basis), "dictionaries": dictionaries, "targets": targets}
    named |= {"pos": None if recipe.pos is None else repr(recipe.pos)}
    named |= {"max_nodes": repr(recipe.max_nodes), "keep": repr(recipe.keep)}
    given = "".join(f"    {name}={value},\n" for name, value in named.items() if value is not None)
    lines = f"{before}prompt = {prompt_text(settings.prompt)}\n"
    lines += f"graph = gs.attribution_graph(\n    prompt,\n    model=model,\n{given})\n"
    lines += "".join(f"graph.group({name!r}, {list(ids)!r})\n" for name, ids in settings.groups)
    lines += "".join(f"graph.label({node!r}, {text!r})\n" for node, text in settings.labels)
    if settings.changes:
        hold = "" if settings.hold in ("nothing", EVERYTHING) else f", hold={settings.hold!r}"
        lines += f"changes = {dict(settings.changes)!r}\ncheck = graph.intervene(changes{hold})\n"
        if settings.hold == EVERYTHING:
            lines += "# With everything held: the columns edges and held of check.nodes.\n"
        lines += "trace = gs.trace(prompt, model=model, edits=graph.edits(changes))\n"
    return script_text(model, lines)


def _targets(targets: object, before: str) -> tuple[str | None, str]:
    """Targets as Python, and the lines before them."""
    if targets is None or isinstance(targets, str) or is_whole_number(targets):
        return (None if targets is None else repr(plain(targets))), before
    text = repr(targets)
    if text.startswith("gs."):
        return text, before
    return "targets", f"{before}# targets: what the lab was given: give them that name\n"


def _dictionaries(given: object) -> tuple[str, str | None]:
    """Lines before, and dictionaries as Python; None where the default is meant."""
    if given is None:
        return "", None
    if isinstance(given, (str, os.PathLike)):
        return "", repr(os.fspath(given))
    listed = [given] if isinstance(given, Dictionary) else given
    if isinstance(listed, (list, tuple)) and all(isinstance(one, Dictionary) for one in listed):
        calls = [one.call for one in listed]
        if all(call.startswith("gs.load_sae(") for call in calls):
            return "", f"[{', '.join(calls)}]"
    return "# dictionaries: what the lab was given: give them that name\n", "dictionaries"

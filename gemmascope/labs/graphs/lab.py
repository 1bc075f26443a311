"""gs.graph_lab: an attribution graph that is built while one looks, and whose nodes are switched off and turned up."""

from __future__ import annotations

import os
from html import escape
from typing import TYPE_CHECKING

from gemmascope.arguments import one_of, whole_number
from gemmascope.circuits.graph.attribution import Dictionaries
from gemmascope.circuits.graph.bases.sources import BASES
from gemmascope.circuits.graph.result import AttributionGraph
from gemmascope.circuits.graph.truth.checking import GraphCheck
from gemmascope.edits.edit import Edit
from gemmascope.edits.places import Pos
from gemmascope.errors import GraphError
from gemmascope.files.writing import write_file
from gemmascope.labs.graphs.building import Recipe
from gemmascope.labs.graphs.files import code_of, file_of, suffix_of
from gemmascope.labs.graphs.session import GraphLabSession
from gemmascope.labs.graphs.settings import EVERYTHING, GraphSettings, settings_of
from gemmascope.labs.graphs.shown import result_of, still_of
from gemmascope.labs.graphs.state import state_of
from gemmascope.labs.graphs.truth import output_moves
from gemmascope.legible import legible, legible_line, prints_legibly
from gemmascope.loading.default import model_or_nano
from gemmascope.model.model import Model, Prompt
from gemmascope.views.page import View, page

if TYPE_CHECKING:
    from gemmascope.labs.widget import Handlers


class GraphLab(GraphLabSession):
    """An attribution graph whose nodes can be changed, as `gs.graph_lab` returns it. The last expression of a cell shows it.

    Everything that it shows can be had in Python: `graph`, with the groups; `result`, what the changes do to outputs and to
    every later node, predicted and true; `trace` with the changes and `base` without, `text` and `base_text`; `edits` and
    `code()`. `wait()` waits for them, `close()` frees the lab.

    Attributes:
        prompt: The prompt, as it was set last.
        targets: What the graph explains; None for the likeliest tokens.
        basis: What the nodes are: "transcoder", "neuron" or "sae".
        hold: What the run with changed nodes holds: "nothing", "patterns" or "everything".
        changes: What nodes and groups are multiplied by, by id or name.

    Examples:
        >>> with gs.graph_lab("Mary and John went to the", basis="neuron", max_nodes=40) as lab:
        ...     strongest = lab.graph.nodes.query("kind == 'feature'").nlargest(2, "influence")["id"]
        ...     lab.group("strongest", list(strongest))
        ...     lab.scale("strongest", 0.0)
        ...     len(lab.result.nodes) > 10, lab.changes
        (True, {'strongest': 0.0})
    """

    MODULE = "graph_lab.js"
    _last_view: View | None = None  # of a closed lab, whose graph has no model any more

    @property
    def targets(self) -> object:
        """What the graph explains, as it was set last; None for the likeliest tokens."""
        return self._now.targets

    @property
    def basis(self) -> str:
        """What the nodes are: "transcoder", "neuron" or "sae"."""
        return self._now.basis

    @property
    def hold(self) -> str:
        """What the run with changed nodes holds: "nothing", "patterns" or "everything"."""
        return self._now.hold

    @property
    def changes(self) -> dict[str, float]:
        """What nodes and groups are multiplied by, by id or name."""
        return dict(self._now.changes)

    @property
    def graph(self) -> AttributionGraph:
        """The graph with its groups; waits for it. lab.group and lab.scale change what the lab shows."""
        self.wait()
        return self._graph_now()

    @property
    def result(self) -> GraphCheck | None:
        """What the changes do, as graph.intervene returns it, with every later node; None without changes. Waits for it."""
        graph, settings = self.graph, self._now
        if not settings.changes:
            return None
        return graph.intervene(self.changes, hold="nothing" if settings.hold == EVERYTHING else settings.hold)

    @property
    def edits(self) -> list[Edit]:
        """The changes as edits, for gs.trace or gs.generate."""
        graph = self._graph_now()
        return graph.edits(self.changes) if self.changes else []

    @property
    def is_whole(self) -> bool:
        """Whether all rows of the graph are there; False while it is built, and where it was stopped."""
        graph = self._kept[self._now.key].graph
        return graph is not None and graph.about.is_finished

    def view(self) -> View:
        """The graph as it is now, with what the changes do, as a picture that needs no kernel.

        Raises:
            LabError: The graph is not there yet.
        """
        if self._last_view is not None:
            return self._last_view
        with self.guard:
            kept, settings = self._kept[self._now.key], self._now
        graph = self._graph_built()
        found = None if kept.truth is None else result_of(graph, kept.truth, settings, self.most)
        return still_of(graph, self.most, found)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the lab to a file; waits for the graph.

        Args:
            path: .graph, the graph with its groups and labels, for gs.open_graph; .html, the page without a kernel; or .py,
                the Python.

        Raises:
            GraphError: The file has another ending, or cannot be written.
        """
        self.wait()
        suffix = suffix_of(path)
        if suffix == ".graph":
            self.graph.save(path)
        else:
            write_file(path, self.code() if suffix == ".py" else page([self.view()]), error=GraphError, allow_pipe=True)

    def code(self) -> str:
        """The Python that gives the same graph and the same numbers.

        Returns:
            A script that makes `graph` and, where nodes are changed, `check` and `trace`.
        """
        return code_of(self.model, self._now, self.recipe, is_whole=self.is_whole)

    # -- showing --

    def _end(self) -> None:
        if self._kept[self._now.key].graph is not None:
            self._last_view = self.view()
        super()._end()

    def _state(self) -> dict[str, object]:
        return {**state_of(self), "code": self.code()}

    def _pictures(self) -> dict[str, object]:
        with self.guard:
            return self._kept[self._now.key].picture

    def _handlers(self) -> Handlers:
        return {
            **super()._handlers(),
            "set": lambda m: self._typed(m["name"], lambda: self._read_set(m["name"], m["text"])),
            "factor": lambda m: self.scale(m["name"], m["by"]),
            "names": lambda m: self._set_names(m["groups"], m["labels"], m["factors"]),
            "look": lambda m: self.look(m["node"]),
            "stop": lambda _: self.stop(),
            "resume": lambda _: self.resume() if self.is_stopped else None,
            "reset": lambda _: self.reset(),
            "reopen": lambda m: self.reopen(m["index"] or 0),
            "next": lambda m: self.next_prompt(m.get("family")),
            "file": lambda m: file_of(self._graph_now(), self.view(), m["what"]),
        }

    def _read_set(self, name: str, text: str) -> object:
        return text if name in ("basis", "hold") else self._read_typed(name, text)

    def _fallback_html(self) -> str:
        """The still page, or before there is a graph what the lab is about, with every character escaped."""
        if self._kept[self._now.key].graph is None:
            return f"<pre style='white-space:pre-wrap'>{escape(legible(repr(self)))}</pre>"
        return self.view().to_html()

    @prints_legibly
    def __repr__(self) -> str:
        kept = self._kept[self._now.key]
        lines = [f"GraphLab of {legible_line(self.model.name)}: {self.prompt!r}{self._closed_text}"]
        if kept.graph is None:
            return "\n".join([*lines, "  the graph is not built yet; lab.wait() waits for it"])
        lines += [f"  {kept.graph!r}"] + [f"  {legible_line(name)} x {by:g}" for name, by in self._now.changes]
        if kept.truth is not None:
            for one, a, b in zip(kept.graph.outputs, *output_moves(kept.graph, kept.truth), strict=True):
                lines.append(f"  {legible_line(one.label)!r}: predicted {a:+.4g}, true {b:+.4g}")
        return "\n".join(lines)


def graph_lab(
    prompt: Prompt | None = None,
    *,
    model: Model | None = None,
    basis: str = "transcoder",
    dictionaries: Dictionaries | None = None,
    targets: object = None,
    pos: Pos = None,
    graph: AttributionGraph | None = None,
    max_nodes: int = 1024,
    keep: int = 1024,
    most: int = 300,
    max_new_tokens: int = 12,
) -> GraphLab:
    """Open a live lab on an attribution graph: switch nodes off, and see what the graph predicts beside what is true.

    The graph is built while the page can be used, row by row; building can be stopped, and resumed. Nodes and named groups
    are switched off, halved or doubled: the outputs, every later node and the next tokens then stand beside what the graph
    says, from one pass. Prompt and targets are typed; graphs that were built are kept and can be reopened. In a notebook the
    last expression of a cell shows the lab.

    Args:
        prompt: Text (`<bos>` is put in front), token ids or chat messages; None where a graph is given.
        model: The model to run; None means nano, or that of the graph.
        basis: What the nodes are, as in gs.attribution_graph: "transcoder", "neuron" or "sae".
        dictionaries: The transcoders or autoencoders, as in gs.attribution_graph; None for neurons, and for nano's own.
        targets: What to explain, as in gs.attribution_graph; None for the likeliest next tokens.
        pos: The position that is read, written as in gs.patch; None for the last.
        graph: A graph with its model, to begin with; its groups and labels are the lab's.
        max_nodes: The most features whose own inputs are found, as in gs.attribution_graph.
        keep: The most edges of a node that are listed.
        most: The most nodes that the page shows.
        max_new_tokens: How many tokens the model writes after the prompt, greedily.

    Returns:
        The lab: what it shows can be read and changed in Python, too.

    Raises:
        PromptError: The prompt cannot be read.
        GenerationError: max_new_tokens is below 1, or the prompt leaves no room to generate.
        GraphError: Neither a prompt nor a graph is given, or both, or the graph has no model (see gs.open_graph). What
            gs.attribution_graph raises for the other arguments is shown in the lab, and raised by lab.wait().

    Examples:
        >>> prompt = "When Mary and John went to the store, John gave a drink to"
        >>> lab = gs.graph_lab(prompt, targets=gs.logit_diff(" Mary", " John"))
        >>> lab.group("first", list(lab.graph.nodes.query("kind == 'feature'").nlargest(3, "influence")["id"]))
        >>> lab.scale("first", 0.0)
        >>> check = lab.result
        >>> check.to_dataframe().columns.tolist()
        ['changed', 'output', 'predicted', 'true']
        >>> lab.close()
    """
    recipe = Recipe(
        dictionaries,
        pos,
        whole_number(max_nodes, "max_nodes", least=1, error=GraphError),
        whole_number(keep, "keep", least=1, error=GraphError),
    )
    most = whole_number(most, "most, how many nodes to show,", least=1, most=5000, error=GraphError)
    basis = one_of(basis, "basis", BASES, error=GraphError)
    if graph is not None:
        return _of_graph(graph, prompt, model, recipe, targets, most, max_new_tokens)
    if prompt is None:
        raise GraphError("a graph lab is about a prompt, or a graph: give one of them")
    settings = GraphSettings(prompt, targets, basis)
    return GraphLab(settings, recipe, most, max_new_tokens, model_or_nano(model))


def _of_graph(
    graph: AttributionGraph, prompt: object, model: Model | None, recipe: Recipe, targets: object, most: int, n_tokens: int
) -> GraphLab:
    """A lab on a graph that is there, with its groups and labels."""
    if not isinstance(graph, AttributionGraph):
        raise GraphError(f"graph= is what gs.attribution_graph returns; given {type(graph).__name__}")
    if prompt is not None:
        raise GraphError("the prompt is the graph's: leave prompt out, or graph")
    own = graph._live()[0].trace.model
    if not isinstance(own, Model) or model not in (None, own):
        raise GraphError(f"the graph is of {graph.about.model!r}, and another model was given: leave model= out")
    settings = settings_of(graph, targets)
    return GraphLab(settings, recipe, most, n_tokens, own, graph)

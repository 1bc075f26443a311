"""The settings and the computations of a graph lab, which its page and Python change."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gemmascope.arguments import one_of
from gemmascope.circuits.graph.bases.sources import has_own_dictionaries
from gemmascope.circuits.graph.result import AttributionGraph
from gemmascope.circuits.graph.truth.changes import change_of
from gemmascope.errors import GraphError
from gemmascope.labs.before_after import BeforeAfter
from gemmascope.labs.graphs.building import GraphRun, Recipe, building, give_names
from gemmascope.labs.graphs.kept import KeptGraphs
from gemmascope.labs.graphs.settings import GraphSettings, with_group
from gemmascope.labs.graphs.shown import details_of, picture_of
from gemmascope.labs.graphs.truth import truth_of
from gemmascope.labs.patching.settings import FAMILIES, pair_of_family
from gemmascope.labs.session import CLICK
from gemmascope.model.model import Model
from gemmascope.sweeps.remarks import Remark, prompt_remarks, raise_first_error


class GraphLabSession(KeptGraphs):
    """A graph lab without its page: its settings, the graphs that it built, and what changes of their nodes do."""

    TYPED = ("prompt", "answer", "against")
    OPTIONAL = ("answer", "against")

    def __init__(
        self, settings: GraphSettings, recipe: Recipe, most: int, max_new_tokens: int, model: Model,
        graph: AttributionGraph | None = None,
    ) -> None:  # fmt: skip
        super().__init__(model, max_new_tokens)
        self.recipe, self.most = recipe, most
        self.progress: tuple[float, int] | None = None
        self.family = "ioi"
        self._drawn: dict[str, int] = {}
        self._looked: str | None = None
        if graph is not None:
            run = BeforeAfter.of(settings.prompt, model, max_new_tokens)
            self._kept[settings.key] = GraphRun(settings, run, graph)
        self._apply(settings, model)

    # -- settings --

    def set(self, **changes: Any) -> None:
        """Change the settings and compute again. Another prompt or basis has a graph of its own, without groups.

        Args:
            **changes: `prompt`, `targets`, `basis` or `hold`, as in `gs.graph_lab`; or `answer` and `against`: the token to
                explain, and the one that it is held against. What is left out stays as it is.

        Raises:
            PromptError: The prompt or an answer cannot be read.
            GenerationError: The prompt leaves no room to generate.
            GraphError: There is no such setting, or it has no such value. Nothing is changed then.
        """
        self._worker.require_open()
        self._apply(self._now.changed(changes, self.model), self.model)

    def scale(self, name: str, by: float = 0.0) -> None:
        """Multiply what a group or a node writes: 0 switches it off, 1 leaves it as it was.

        Args:
            name: The name of a group, or a node's id or label.
            by: The factor.

        Raises:
            GraphError: There is no such group or feature, it is changed in another group too, or by is no finite number.
            LabError: The graph is not there yet.
        """
        graph = self._graph_now()
        name = name if isinstance(name, str) and name in graph.supernodes else graph.ids[graph.index(name)]
        settings = self._now.scaled(name, by)
        if settings.changes:
            change_of(graph, dict(settings.changes), None, None)
        self._change(settings, self.model)

    def reset(self) -> None:
        """Leave every node as it was."""
        self._worker.require_open()
        self._change(replace(self._now, changes=()), self.model)

    def group(self, name: str, nodes: Sequence[str]) -> None:
        """Group nodes, as graph.group does.

        Args:
            name: What to call the group. One of that name is replaced.
            nodes: Ids of features; [] takes the group away.

        Raises:
            GraphError: A node is no feature, or the name is a node's id.
            LabError: The graph is not there yet.
        """
        graph = self._graph_now()
        self._set_names(with_group(self._now.groups, name, nodes, graph), dict(self._now.labels))

    def label(self, node: str, text: str) -> None:
        """Name a node, as graph.label does.

        Args:
            node: Its id or label.
            text: The name; "" takes it away.

        Raises:
            GraphError: There is no such node.
            LabError: The graph is not there yet.
        """
        graph = self._graph_now()
        self._set_names(dict(self._now.groups), {**dict(self._now.labels), graph.ids[graph.index(node)]: text})

    def next_prompt(self, family: str | None = None) -> None:
        """Go on with the next prompt of a family, and its answers.

        Args:
            family: A function of gs.prompts by name, such as "ioi"; None for the one that was taken last.

        Raises:
            GraphError: There is no such family, or it has no further prompt for this tokenizer.
        """
        self._worker.require_open()
        family = self.family if family is None else one_of(family, "family", tuple(FAMILIES), error=GraphError)
        n_drawn = self._drawn.get(family, 0)
        pair = pair_of_family(family, n_drawn, self.model)
        if pair is None:
            raise GraphError(
                f"no further prompt of {family!r} fits the tokenizer of {self.model.name!r}: take another family"
            )
        self.family, self._drawn[family] = family, n_drawn + 1
        self.set(prompt=pair.clean, answer=pair.answer, against=pair.against)

    def look(self, node: str) -> None:
        """Find what a page says of a node: the heads that carried its strongest edges, and the tokens that it raises.

        Args:
            node: Its id or label.

        Raises:
            GraphError: There is no such node.
            LabError: The graph is not there yet.
        """
        graph = self._graph_now()
        self._looked = graph.ids[graph.index(node)]
        self._submit("the node", CLICK, self._look(self._looked))

    # -- computing --

    def _apply(self, settings: GraphSettings, model: Model) -> None:
        remarks = list(prompt_remarks("prompt", model.ids(settings.prompt), model))
        raise_first_error(remarks, GraphError)
        self._change(settings, model)
        self._warn(remarks)

    def _take_model(self, model: Model, changes: Mapping[str, object]) -> None:
        """Graphs of the old model go. Dictionaries are of one model: without its own the nodes are neurons."""
        settings = replace(self._now.changed(changes, model), changes=(), groups=(), labels=())
        model.ids(settings.prompt)
        is_neurons = settings.basis == "neuron" or has_own_dictionaries(model)
        before = self._kept, self.recipe
        self._kept, self.recipe = {}, replace(self.recipe, dictionaries=None)
        try:
            self._apply(settings if is_neurons else replace(settings, basis="neuron"), model)
        except Exception:
            self._kept, self.recipe = before
            raise
        if not is_neurons:
            self._warn(
                [Remark("warning", "basis", f"{model.name!r} has no dictionaries in the package: nodes are neurons now")]
            )

    def _token_settings(self) -> Mapping[str, object]:
        return self._typed_settings()

    def _typed_settings(self) -> Mapping[str, object]:
        answer, against = self._now.pair
        return {"prompt": self._now.prompt, "answer": answer, "against": against}

    def _set_names(
        self, groups: Mapping[str, Sequence[str]], labels: Mapping[str, str], changes: Mapping[str, object] | None = None
    ) -> None:
        """Other groups and labels, and with them other changes."""
        graph = self._graph_now()
        settings = self._now if changes is None else replace(self._now, changes=())
        for name, by in (changes or {}).items():
            settings = settings.scaled(name, by)
        settings = settings.named(groups, labels, graph)
        if settings != self._now:
            self._change(settings, self.model)

    def _steps(self) -> Generator[None]:
        with self.guard:
            settings, seq = self._now, self.seq
            kept = self._kept[settings.key]
            self.progress = None
        if kept.graph is None or (kept.builder is not None and not kept.is_stopped):
            must_stop = self._must_stop(kept, seq)
            try:
                yield from building(kept, self.recipe, must_stop, lambda done, total: self._tell(done, total, seq))
            finally:
                self.progress = None
        graph = kept.graph
        if graph is None or seq != self.seq:
            return  # other settings came, which go on with it
        give_names(graph, settings)
        if kept.pictured is not graph:
            kept.picture, kept.pictured = picture_of(graph, self.most, self.number), graph
            yield
        kept.truth = None
        kept.truth = truth_of(graph, settings)
        yield
        edits = graph.edits(dict(settings.changes)) if settings.changes else []
        yield from kept.run.run(edits)
        yield from kept.run.write(edits)

    def _recompute(self) -> None:
        """The graph that is there has its new names at once, so that the next call finds them."""
        with self.guard:
            kept = self._kept[self._now.key]
            if kept.graph is None:
                kept.is_stopped = False
            else:
                give_names(kept.graph, self._now)
        super()._recompute()

    def _must_stop(self, kept: GraphRun, seq: int) -> Callable[[], bool]:
        def must_stop() -> bool:
            with self.guard:
                is_now = seq == self.seq
                if is_now and any(job.cancelled for job in self._worker.jobs):
                    kept.is_stopped = True
                return kept.is_stopped or not is_now

        return must_stop

    def _tell(self, done: float, total: int, seq: int) -> None:
        self.progress = (done, total)
        self.notify("step", seq)

    def _look(self, node: str) -> Generator[None]:
        with self.guard:
            kept = self._kept[self._now.key]
        if kept.graph is not None and node not in kept.details:
            kept.details[node] = details_of(kept.graph, node, self.most)
        self.notify("detail", self.seq)
        yield

    def _end(self) -> None:
        super()._end()
        with self.guard:
            kept = self._kept[self._now.key]
            for one in self._kept.values():
                one.run.forget_runs()
            self._kept = {self._now.key: kept}
            kept.builder = None
            if kept.graph is not None:  # a copy: the one that lab.graph gave away still computes
                is_pictured = kept.pictured is kept.graph
                kept.graph = replace(kept.graph, run=None, basis_nodes=None)
                kept.pictured = kept.graph if is_pictured else None

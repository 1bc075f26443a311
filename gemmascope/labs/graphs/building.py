"""Building a graph for a lab: step by step, so that it can be watched, and stopped with the rows that are done."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from gemmascope.circuits.graph.attribution import prepare
from gemmascope.circuits.graph.build import Builder
from gemmascope.circuits.graph.result import AttributionGraph, result_of
from gemmascope.errors import GraphError
from gemmascope.labs.before_after import BeforeAfter
from gemmascope.labs.graphs.settings import GraphSettings
from gemmascope.labs.graphs.truth import Truth
from gemmascope.model.modes import default_modes
from gemmascope.run.tracing import trace


@dataclass
class GraphRun:
    """A prompt with its graph, as a lab keeps it.

    Attributes:
        settings: The settings as they were when it was last shown.
        run: The prompt without and with the changes.
        graph: None until it is built. One that was stopped has the rows that are finished.
        builder: What builds it, with its finished rows; None before it is begun, and once the graph is whole.
        is_stopped: Whether building was stopped, and waits to be resumed.
        truth: What the changes do; None without changes.
        picture: The graph as its page draws it; {} until then.
        pictured: The graph that the picture is of.
        details: What is said of single nodes, by id.
    """

    settings: GraphSettings
    run: BeforeAfter
    graph: AttributionGraph | None = None
    builder: Builder | None = None
    is_stopped: bool = False
    truth: Truth | None = None
    picture: dict[str, object] = field(default_factory=dict)
    pictured: AttributionGraph | None = None
    details: dict[str, dict[str, object]] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """What all graphs of a lab are built with, as in gs.attribution_graph."""

    dictionaries: object
    pos: object
    max_nodes: int
    keep: int


class _StoppedError(Exception):
    pass


def building(
    kept: GraphRun, recipe: Recipe, must_stop: Callable[[], bool], tell: Callable[[float, int], None]
) -> Generator[None]:
    """Steps that build the graph of a run, from the rows that are finished on. tell: called with how many rows are done, and
    how many there will be at most.

    must_stop may end it after a layer. If building was stopped, the graph of the finished rows is kept, and GraphError
    raised where there is none; if other settings came, only the rows are kept.
    """
    if kept.builder is None:
        yield from _begin(kept, recipe)
    builder = kept.builder
    assert builder is not None
    total = builder.n_targets()
    tell(builder.n_done, total)
    yield
    is_finished = True
    try:
        yield from _chunks(builder, must_stop, lambda done: tell(done, total))
    except _StoppedError:
        is_finished = False
        if not kept.is_stopped:
            return
        if not builder.parts:
            raise GraphError("stopped before a row was finished: resume it") from None
    kept.graph = result_of(builder.data(is_finished=is_finished), builder.run, builder.basis)
    kept.truth, kept.details = None, {}
    if is_finished:
        kept.builder, kept.is_stopped = None, False
    yield


def _begin(kept: GraphRun, recipe: Recipe) -> Generator[None]:
    settings, run = kept.settings, kept.run
    if run.before is None:
        with default_modes():
            run.before = trace(run.prompt, model=run.model)
        yield
    sizes = recipe.max_nodes, recipe.keep
    with default_modes():
        kept.builder = prepare(
            run.before, None, settings.basis, recipe.dictionaries, settings.targets, recipe.pos, sizes, None
        )


def _chunks(builder: Builder, must_stop: Callable[[], bool], tell: Callable[[float], None]) -> Generator[None]:
    n_layers = builder.about.n_layers
    for targets in builder.chunks():
        before, passed = builder.n_done, 0

        def of_layer(before: int = before, n: int = len(targets)) -> None:
            nonlocal passed
            if must_stop():
                raise _StoppedError
            passed += 1
            tell(before + n * passed / n_layers)

        with default_modes():
            builder.run_chunk(targets, of_layer)
        yield


def give_names(graph: AttributionGraph, settings: GraphSettings) -> None:
    """Give a graph the groups and labels of settings."""
    graph.supernodes = {name: list(ids) for name, ids in settings.groups}
    graph.labels = dict(settings.labels)

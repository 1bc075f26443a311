"""The graphs of a lab: those that are kept, to be reopened, and the one that is built, which is stopped and resumed."""

from __future__ import annotations

from gemmascope.arguments import short_repr, whole_number
from gemmascope.circuits.graph.result import AttributionGraph
from gemmascope.errors import GraphError, LabError
from gemmascope.labs.before_after import BeforeAfter
from gemmascope.labs.graphs.building import GraphRun
from gemmascope.labs.graphs.settings import GraphSettings
from gemmascope.labs.recompute import RecomputingLab
from gemmascope.model.model import Model

# How many graphs are kept, to be reopened; the oldest is let go of.
MOST_RUNS = 12


class KeptGraphs(RecomputingLab[GraphSettings]):
    """What a graph lab does with its graphs: see GraphLabSession."""

    def __init__(self, model: Model, max_new_tokens: int) -> None:
        super().__init__(model, max_new_tokens)
        self._kept: dict[tuple[object, ...], GraphRun] = {}

    def runs(self) -> list[GraphSettings]:
        """The settings of the graphs that are kept, the oldest first, as each was shown last."""
        with self.guard:
            return [self._now if kept.settings.key == self._now.key else kept.settings for kept in self._kept.values()]

    def reopen(self, index: int) -> None:
        """Go back to a graph that is kept, with its groups and changes. Nothing is built again.

        Args:
            index: Its number in lab.runs(); negative ones count from the last.

        Raises:
            GraphError: There is no such graph.
        """
        self._worker.require_open()
        runs, index = self.runs(), whole_number(index, "a graph's number", error=GraphError)
        if not -len(runs) <= index < len(runs):
            raise GraphError(f"there are {len(runs)} graphs, counted from 0; given {short_repr(index)}")
        self._change(runs[index], self.model)

    def stop(self) -> None:
        """Stop building. The graph of the rows that are finished is shown; lab.resume() goes on from there."""
        with self.guard:
            kept = self._kept[self._now.key]
            kept.is_stopped = kept.graph is None or kept.builder is not None

    def resume(self) -> None:
        """Go on building a graph that was stopped, from the rows that are finished, to the graph that it would have been.

        Raises:
            LabError: Building was not stopped.
        """
        self._worker.require_open()
        with self.guard:
            kept = self._kept[self._now.key]
            if not kept.is_stopped:
                raise LabError("building was not stopped: the graph is whole, or under way")
            kept.is_stopped = False
            self._recompute()

    @property
    def is_stopped(self) -> bool:
        """Whether building was stopped; lab.resume() goes on with it."""
        return self._kept[self._now.key].is_stopped

    def _begun(self, settings: GraphSettings, model: Model) -> BeforeAfter:
        with self.guard:
            if hasattr(self, "_now") and self._now.key in self._kept:
                self._kept[self._now.key].settings = self._now
            kept = self._kept.get(settings.key)
            if kept is None:
                kept = GraphRun(settings, BeforeAfter.of(settings.prompt, model, self.max_new_tokens))
                for key in list(self._kept)[: max(0, len(self._kept) - MOST_RUNS + 1)]:
                    del self._kept[key]
                self._kept[settings.key] = kept
            return kept.run

    def _graph_now(self) -> AttributionGraph:
        self._worker.require_open()
        return self._graph_built()

    def _graph_built(self) -> AttributionGraph:
        graph = self._kept[self._now.key].graph
        if graph is None:
            raise LabError("the graph is not built yet: lab.wait() waits for it")
        return graph

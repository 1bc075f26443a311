"""GraphCheck: what graph.check and graph.intervene return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gemmascope.circuits.graph.data import GraphData
from gemmascope.circuits.graph.nodes import KINDS, LOGIT
from gemmascope.circuits.graph.truth.effects import Effects
from gemmascope.circuits.graph.truth.opened import NodeEffects
from gemmascope.figures.predicted import predicted_figure
from gemmascope.legible import legible_line, prints_legibly
from gemmascope.sweeps.metadata import prompts_line
from gemmascope.tokens.characters import text_of

if TYPE_CHECKING:
    import pandas
    from plotly.graph_objects import Figure

# How many changes the line below a figure's title names.
MOST_NAMED = 4
_HELD_WORDS = {"nothing": "nothing held", "patterns": "patterns and scales held"}


@dataclass(frozen=True, eq=False, repr=False)
class GraphCheck:
    """Changes of nodes: what a graph says beside what the model does. Made by graph.check and graph.intervene.

    Each change is a run of its own. Of it the graph says two things: by how much its edges alone move what other nodes read,
    and by how much all paths together do. The first is compared with the model with patterns, norms' scales and MLPs held,
    and must agree to rounding; the second with the model with nothing held, and is as good as the graph.

    Attributes:
        changed: What was changed in each run: an id, a name, or the name of a group.
        outputs: What the graph explains.
        effects: By how much inputs and outputs move, as tensors [run, target] and [run, output].
        node_effects: By how much the inputs of all nodes move along all paths, [run, target].
        node_ids: Their ids, [target].
        node_kinds: Their kinds, [target].
        hold: What the runs held: "nothing", or "patterns", with the norms' scales.
        prompt: The prompt as text.
        model: The model's name.

    Examples:
        >>> graph = gs.attribution_graph("Mary and John went to the", basis="neuron", max_nodes=50, progress=False)
        >>> check = graph.check(3)
        >>> check.held_error < 1e-3, len(check.changed)
        (True, 3)
        >>> check.nodes.columns.tolist()
        ['changed', 'node', 'kind', 'predicted', 'true', 'edges', 'held']
    """

    changed: tuple[str, ...]
    outputs: tuple[str, ...]
    effects: Effects
    node_effects: NodeEffects
    node_ids: tuple[str, ...]
    node_kinds: tuple[str, ...]
    hold: str = "nothing"
    prompt: str = ""
    model: str = ""

    @property
    def held_error(self) -> float:
        """How far the model, with all held that the graph holds, is from the graph's edges.

        The largest difference over all inputs, as a share of the largest move in that run: rounding, if the graph is right.
        NaN where the graph lists too few edges to compare any input, as with a small keep=.
        """
        e = self.effects
        if not bool(e.is_whole.any()):
            return float("nan")
        off = (torch.where(e.is_whole, e.held.double() - e.direct, 0.0)).abs().amax(1)
        return float((off / e.direct.abs().amax(1).clamp(min=1e-12)).max())

    @property
    def correlation(self) -> float:
        """The correlation of predicted and true effects on the outputs, over all runs; NaN for fewer than two numbers."""
        return _correlation(self._predicted, self._true)

    @property
    def node_correlation(self) -> float:
        """The correlation of predicted and true effects on what later nodes read, outputs left out, over all runs."""
        n = self.node_effects
        shown = n.is_later & ~self._are_outputs
        return _correlation(n.predicted[shown], n.true[shown])

    @property
    def nodes(self) -> pandas.DataFrame:
        """One row for each run and later node: changed, node, kind, predicted, true, edges, held.

        All four say by how much the node's input moves: a feature's pre-activation, a neuron's activation, or a logit before
        the soft cap. predicted: along all paths of the graph; true: in the model; edges: by the edges from the changed nodes
        alone; held: in the model with all held that the graph holds, NaN where the graph does not list all of those edges.
        """
        import pandas

        n, e = self.node_effects, self.effects
        runs, targets = n.is_later.nonzero(as_tuple=True)
        held = torch.where(e.is_whole, e.held.double(), torch.nan)
        columns = {"predicted": n.predicted, "true": n.true, "edges": e.direct, "held": held}
        return pandas.DataFrame(
            {
                "changed": [self.changed[run] for run in runs.tolist()],
                "node": [self.node_ids[target] for target in targets.tolist()],
                "kind": [self.node_kinds[target] for target in targets.tolist()],
                **{name: values[runs, targets].tolist() for name, values in columns.items()},
            }
        )

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each run and output: changed, output, predicted (along all paths), true (in the model)."""
        import pandas

        n = len(self.outputs)
        return pandas.DataFrame(
            {
                "changed": [name for name in self.changed for _ in range(n)],
                "output": list(self.outputs) * len(self.changed),
                "predicted": self._predicted.flatten().tolist(),
                "true": self._true.flatten().tolist(),
            }
        )

    def plot(self) -> Figure:
        """Predicted beside true for every later node, and for every output, as scatter plots.

        On the line both are equal, and the graph is right.
        """
        nodes, outputs = self.nodes, self.to_dataframe()
        nodes = nodes[nodes["kind"] != KINDS[LOGIT]].rename(columns={"node": "name"})
        panels = {
            f"what {len(nodes):,} later nodes read, correlation {self.node_correlation:.2f}": nodes,
            f"outputs before the cap, correlation {self.correlation:.2f}": outputs.rename(columns={"output": "name"}),
        }
        n = len(self.changed)
        effects = f"Predicted and true effects of {n} change{'s' if n != 1 else ''}"
        title = f"{effects} in {self.model}, with {_HELD_WORDS[self.hold]}"
        n_more = len(self.changed) - MOST_NAMED
        more = f" and {n_more} more" if n_more > 0 else ""
        changed = f"Changed: {', '.join(map(legible_line, self.changed[:MOST_NAMED]))}{more}."
        subtitle = f"{prompts_line([self.prompt])}\n{changed}"
        return predicted_figure({name: table for name, table in panels.items() if len(table)}, title, subtitle)

    @property
    def _are_outputs(self) -> Tensor:
        return torch.tensor([kind == KINDS[LOGIT] for kind in self.node_kinds])

    @property
    def _predicted(self) -> Tensor:
        return self.effects.predicted

    @property
    def _true(self) -> Tensor:
        """By how much each output moves in the model, [run, output]."""
        return self.effects.true if self.hold == "nothing" else self.node_effects.true[:, self._are_outputs]

    @prints_legibly
    def __repr__(self) -> str:
        n, predicted, true = len(self.changed), self._predicted.flatten(), self._true.flatten()
        said = f"the correlation of predicted and true is {self.correlation:.2f}"
        if len(true) == 1:  # which has no correlation
            said = f"predicted {float(predicted[0]):+.4g} and true {float(true[0]):+.4g}"
        return (
            f"GraphCheck of {n} change{'s' if n != 1 else ''}: held {self.held_error:.1e} from the edges; with "
            f"{_HELD_WORDS[self.hold]} {said}, and a correlation of {self.node_correlation:.2f} over what later nodes read"
        )


def check_of(graph: GraphData, changed: Sequence[str], effects: Effects, nodes: NodeEffects, hold: str) -> GraphCheck:
    """A check with the labels of nodes in place of ids."""
    names = tuple(graph.labels.get(name, name) for name in changed)
    targets, kinds = nodes.targets.tolist(), graph.decoded[0].tolist()
    ids = tuple(graph.ids[i] for i in targets)
    outputs = tuple(one.label for one in graph.outputs)
    target_kinds = tuple(KINDS[kinds[i]] for i in targets)
    prompt = text_of(graph.about.tokens)
    return GraphCheck(names, outputs, effects, nodes, ids, target_kinds, hold, prompt, graph.about.model)


def _correlation(predicted: Tensor, true: Tensor) -> float:
    one, other = predicted.flatten().numpy(), true.flatten().numpy()
    return float(np.corrcoef(one, other)[0, 1]) if len(other) > 1 and one.std() and other.std() else float("nan")

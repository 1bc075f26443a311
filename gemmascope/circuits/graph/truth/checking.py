"""GraphCheck: what graph.check and graph.intervene return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from gemmascope.circuits.graph.data import GraphData
from gemmascope.circuits.graph.truth.effects import Effects
from gemmascope.figures.predicted import predicted_figure
from gemmascope.legible import prints_legibly

if TYPE_CHECKING:
    import pandas
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False, repr=False)
class GraphCheck:
    """Changes of nodes: what the graph says beside what the model does.

    Attributes:
        changed: What was changed in each run: an id, or the name of a group.
        outputs: What the graph explains.
        effects: The effects.
    """

    changed: tuple[str, ...]
    outputs: tuple[str, ...]
    effects: Effects

    @property
    def held_error(self) -> float:
        """How far the model, with all held that the graph holds, is from the graph's edges: the largest difference over all
        inputs, as a share of the largest move in that run. Rounding, if the graph is right. NaN where the graph lists
        too few edges to compare any input, as with a small keep=.
        """
        e = self.effects
        if not bool(e.is_whole.any()):
            return float("nan")
        off = (torch.where(e.is_whole, e.held.double() - e.direct, 0.0)).abs().amax(1)
        return float((off / e.direct.abs().amax(1).clamp(min=1e-12)).max())

    @property
    def correlation(self) -> float:
        """The correlation of predicted and true effects on the outputs, over all runs; NaN for fewer than two numbers."""
        predicted, true = self.effects.predicted.flatten().numpy(), self.effects.true.flatten().numpy()
        return (
            float(np.corrcoef(predicted, true)[0, 1]) if len(true) > 1 and predicted.std() and true.std() else float("nan")
        )

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each run and output: changed, output, predicted (along all paths), true (with nothing held)."""
        import pandas

        e, n = self.effects, len(self.outputs)
        return pandas.DataFrame(
            {
                "changed": [name for name in self.changed for _ in range(n)],
                "output": list(self.outputs) * len(self.changed),
                "predicted": e.predicted.flatten().tolist(),
                "true": e.true.flatten().tolist(),
            }
        )

    def plot(self) -> Figure:
        """Predicted beside true effects as a scatter plot; on the dashed line the graph is right."""
        title = f"Predicted and true effects, correlation {self.correlation:.2f}"
        return predicted_figure(self.to_dataframe(), title, "change of the output before the cap")

    @prints_legibly
    def __repr__(self) -> str:
        return (
            f"GraphCheck of {len(self.changed)} changes: held {self.held_error:.1e} from the edges; with nothing held the "
            f"correlation of predicted and true is {self.correlation:.2f}"
        )


def check_of(graph: GraphData, changed: Sequence[str], effects: Effects) -> GraphCheck:
    """A check with the labels of nodes in place of ids."""
    names = tuple(graph.labels.get(name, name) for name in changed)
    return GraphCheck(names, tuple(one.label for one in graph.outputs), effects)

"""What gs.evaluate returns: the metrics of every task, and each sample's answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gemmascope.errors import EvaluationError
from gemmascope.legible import legible_line, prints_legibly
from gemmascope.sites import did_you_mean

if TYPE_CHECKING:
    import pandas
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class Measure:
    """A metric of a task or group. n: how many questions. stderr: None where lm_eval gives none."""

    task: str
    metric: str
    value: float
    stderr: float | None
    n: int


@dataclass(frozen=True)
class Sample:
    """What a model did with one question.

    filter: what the task took from the answers, by lm_eval's name; "none" for the answers as they are. answers:
    (log-likelihood, greedy) of each continuation, or texts.
    """

    number: int
    filter: str
    target: str
    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    answers: tuple[object, ...]
    metrics: Mapping[str, float]


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Tasks of lm-evaluation-harness, run on a model. Made by gs.evaluate.

    Attributes:
        model: The model's name.
        edits: The edits of every run, as their calls.
        measures: The metrics of every task.
        versions: The versions of lm_eval and of each task.

    Examples:
        >>> result = gs.evaluate(None, gs.prompts.ioi(8), progress=False)  # doctest: +SKIP
        >>> result.to_dataframe().columns.tolist()  # doctest: +SKIP
        ['task', 'metric', 'value', 'stderr', 'n']
    """

    model: str
    edits: tuple[str, ...]
    measures: tuple[Measure, ...]
    versions: Mapping[str, str]
    _samples: Mapping[str, Sequence[Sample]] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        """The tasks, in their order."""
        return list(dict.fromkeys(one.task for one in self.measures))

    @property
    def sampled(self) -> list[str]:
        """The tasks that have samples: a group's are those of its tasks."""
        return list(self._samples)

    def value(self, task: str, metric: str) -> float:
        """A metric of a task.

        Args:
            task: The name of the task.
            metric: The name of the metric, such as "acc".

        Returns:
            Its value over all questions.

        Raises:
            EvaluationError: There is no such metric or task.
        """
        found = [one.value for one in self.measures if (one.task, one.metric) == (task, metric)]
        if not found:
            known = ", ".join(f"{one.task}: {one.metric}" for one in self.measures)
            raise EvaluationError(f"there is no metric {metric!r} of a task {task!r}; there are {known}")
        return found[0]

    def to_dataframe(self) -> pandas.DataFrame:
        """A row for each metric: task, metric, value, stderr, n."""
        import pandas

        return pandas.DataFrame([vars(one) for one in self.measures])

    def samples(self, task: str) -> pandas.DataFrame:
        """A row for each question of a task, and for each filter of answers that the task has, such as "strict-match".

        Args:
            task: The name of the task.

        Returns:
            A table: number, filter, target, contexts, continuations, the model's answers, and the metrics.

        Raises:
            EvaluationError: There is no such task.
        """
        import pandas

        if task not in self._samples:
            hint = did_you_mean(task, list(self._samples)) if isinstance(task, str) else ""
            raise EvaluationError(f"there is no task {task!r}.{hint} There are {', '.join(self._samples)}")
        return pandas.DataFrame(
            [
                {
                    "number": one.number, "filter": one.filter, "target": one.target, "contexts": list(one.contexts),
                    "continuations": list(one.continuations), "answers": list(one.answers), **one.metrics,
                }
                for one in self._samples[task]
            ]
        )  # fmt: skip

    def plot(self, *others: Evaluation, metric: str = "acc") -> Figure:
        """A plotly bar chart of one metric of every task, with its standard error, and of others beside it. Needs plotly.

        Args:
            others: Evaluations of the same tasks, such as with edits.
            metric: The metric. Default "acc".

        Returns:
            The figure.

        Raises:
            EvaluationError: None of the tasks has the metric.
        """
        from gemmascope.evaluation.figure import bars_figure

        bars: dict[str, dict[str, tuple[float, float | None]]] = {}
        for one in (self, *others):
            values = {m.task: (m.value, m.stderr) for m in one.measures if m.metric == metric}
            name, number = one._name, 2
            while name in bars:
                name, number = f"{one._name} ({number})", number + 1
            bars[name] = values
        if not any(bars.values()):
            known = ", ".join(dict.fromkeys(one.metric for one in self.measures))
            raise EvaluationError(f"no task has the metric {metric!r}; there are {known}")
        return bars_figure(bars, metric)

    def to_dict(self) -> dict[str, object]:
        """All but the samples, as plain values for JSON."""
        return {
            "model": self.model, "edits": list(self.edits), "results": [dict(vars(one)) for one in self.measures],
            "versions": dict(self.versions),
        }  # fmt: skip

    @property
    def _name(self) -> str:
        edits = f"{self.edits[0]}{' ...' if len(self.edits) > 1 else ''}" if self.edits else "no edits"
        return f"{self.model}, {edits if len(edits) <= 60 else f'{len(self.edits)} edits'}"

    @prints_legibly
    def __repr__(self) -> str:
        edits = f"{len(self.edits)} edit{'s' if len(self.edits) > 1 else ''}" if self.edits else "no edits"
        lines = [f"evaluation of {legible_line(self.model)} with {edits}"]
        width = max((len(legible_line(one.task)) for one in self.measures), default=0)
        for one in self.measures:
            error = "" if one.stderr is None else f" ± {one.stderr:.4f}"
            lines.append(
                f"  {legible_line(one.task):{width}}  {legible_line(one.metric)} {one.value:.4f}{error}  (n = {one.n})"
            )
        return "\n".join(lines)

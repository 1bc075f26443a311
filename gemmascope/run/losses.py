"""The loss of a text: the negative log-likelihood of its tokens, each after those before it, in nats."""

from __future__ import annotations

from typing import Literal, overload

from jaxtyping import Float
from torch import Tensor

from gemmascope.arguments import true_or_false
from gemmascope.edits.places import Pos, first_difference
from gemmascope.errors import MetricError
from gemmascope.model.model import Model, Prompt
from gemmascope.model.modes import computes
from gemmascope.run.bound_metric import RowMetric, measure_trace, rows_of_trace
from gemmascope.run.metric import find_read_positions, listed_positions
from gemmascope.run.recorded import RecordedRun


def loss_metric(model: Model, ids: Tensor, text: Prompt | None, pos: Pos) -> RowMetric:
    """The mean loss of a run of these ids at some positions; each predicts the text's token after it.

    text: whose tokens are predicted; None for the run's own. pos: None or "all" for all positions but the last.
    MetricError for a text of another length, and for positions without a next token.
    """
    targets = ids if text is None else model.ids(text)
    if len(targets) != len(ids):
        raise MetricError(f"the text of a loss has as many tokens as the run: {first_difference(model, ids, targets)}")
    n_predicted = len(ids) - 1
    if not n_predicted:
        raise MetricError("a run of one token has no loss: no token comes after it")
    positions = find_read_positions("all" if pos is None else pos, model, ids)
    if pos is None or (isinstance(pos, (str, slice)) and len(positions) > 1):
        positions = tuple(at for at in positions if at < n_predicted)
    if n_predicted in positions:
        raise MetricError(
            f"position {n_predicted} is the last of the run, and its next token is not known: a loss has positions 0 to "
            f"{n_predicted - 1}"
        )
    next_ids = targets[[at + 1 for at in positions]]

    def rule(logits: Tensor, at: Tensor) -> Tensor:
        target = next_ids.to(logits.device)[at.to(logits.device)]
        return logits.logsumexp(-1) - logits.gather(1, target[:, None])[:, 0]

    return RowMetric(positions, rule)


class TraceLoss:
    """The loss of a run, for Trace."""

    @overload
    def loss(self, pos: Pos = None, *, mean: Literal[True] = True) -> float: ...
    @overload
    def loss(self, pos: Pos = None, *, mean: bool) -> float | Float[Tensor, " pos"]: ...
    @computes
    def loss(self, pos: Pos = None, *, mean: bool = True) -> float | Float[Tensor, " pos"]:
        """The negative log-likelihood of the run's own tokens, each after those before it, in nats.

        Args:
            pos: The positions whose next token is predicted: a number, a slice, a list, or a token that occurs once; None
                for all but the last.
            mean: Whether to take the mean over positions. False gives one number for each.

        Returns:
            The mean, or float64 [pos].

        Raises:
            SiteError: There is no such position.
            MetricError: A position has no next token.

        Examples:
            >>> t = gs.trace("When Mary and John went to the store, John gave a drink to Mary")
            >>> round(t.loss(pos=-2), 2)  # of " Mary" after " to"
            0.0
            >>> t.loss(mean=False).shape
            torch.Size([15])
        """
        run: RecordedRun = self  # type: ignore[assignment]
        metric = loss_metric(run.model, run.ids, None, listed_positions(pos))
        if true_or_false(mean, "mean", error=MetricError):
            return measure_trace(metric, run)
        return rows_of_trace(metric, run)

"""Followed: what the head lab and the steering lab follow of a prompt's answer, and the remarks on prompt and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gemmascope.arguments import short_repr
from gemmascope.errors import SweepError
from gemmascope.labs.before_after import BeforeAfter, token_text
from gemmascope.model.model import Model, Prompt
from gemmascope.run.metric import Answer, answer_ids, bind_metric
from gemmascope.sweeps.metrics import AnswerMetric, answer_prob, logit_diff
from gemmascope.sweeps.remarks import Remark, answer_remarks, prompt_remarks


@dataclass(frozen=True)
class Followed:
    """What a lab follows of a prompt's answer, as a metric, in words, and as the token ids for and against."""

    metric: AnswerMetric
    name: str
    answer: Sequence[int]
    against: Sequence[int]

    @classmethod
    def of(cls, run: BeforeAfter, answer: Answer | None, against: Answer | None) -> Followed:
        """Without an answer the likeliest token of the unchanged run, which has been run."""
        model = run.model
        if answer is None:
            assert run.before is not None
            token = int(run.before.next_logits.argmax())
            return cls(answer_prob(token), f"probability of {token_text(model, token)!r}", [token], [])
        if against is None:
            return cls(answer_prob(answer), f"probability of {answer!r}", answer_ids(answer, model), [])
        ids = answer_ids(answer, model), answer_ids(against, model)
        return cls(logit_diff(answer, against), f"logit of {answer!r} less {against!r}", *ids)

    def before_and_after(self, run: BeforeAfter) -> tuple[float, float]:
        """The metric without and with the change, both of which have been run."""
        bound = bind_metric(self.metric, run.model)
        before, after = (float(bound(one.next_logits[None])[0]) for one in (run.before, run.after) if one is not None)
        return before, after


def remarks_on(prompt: Prompt, answer: Answer | None, against: Answer | None, model: Model) -> list[Remark]:
    """Errors and warnings about a prompt and its answers. SweepError if the answer is missing."""
    if against is not None and answer is None:
        raise SweepError(f"against={short_repr(against)} is what an answer is held against: give the answer, too")
    ids = model.ids(prompt)
    answers = {name: value for name, value in (("answer", answer), ("against", against)) if value is not None}
    return [*prompt_remarks("prompt", ids, model), *answer_remarks(answers, ids, model)]

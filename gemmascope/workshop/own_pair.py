"""measure_pair(): the first look at a pair of prompts that somebody thought of."""

from __future__ import annotations

from gemmascope.errors import GemmascopeError
from gemmascope.loading.default import model_or_nano
from gemmascope.model.model import Model
from gemmascope.prompts.pairs import Pair
from gemmascope.run.tracing import trace
from gemmascope.sweeps.measures.kinds import AnswerMetric
from gemmascope.sweeps.metrics import logit_diff


def measure_pair(pair: Pair, model: Model | None = None) -> AnswerMetric:
    """Print how far the answer leads after both prompts of a pair, and whether the model can do what the pair asks.

    Args:
        pair: Two prompts of as many tokens, and the token that each should be answered with.
        model: The model; None means nano.

    Returns:
        The metric: the logit of the pair's answer less that of the other, as gs.logit_diff gives it.

    Raises:
        GemmascopeError: The two prompts differ in length, and cannot be patched into each other.
        PromptError: A prompt is empty, or an answer is not one token.

    Examples:
        >>> pair = gs.prompts.Pair("The capital of France is", "The capital of Spain is", " Paris", " Madrid")
        >>> metric = gs.workshop.measure_pair(pair)
        ' Paris' less ' Madrid': +15.8... after the clean prompt, -16.4... after the corrupted one
        the model can do this
    """
    if not isinstance(pair, Pair):
        raise GemmascopeError(f"give a pair, gs.prompts.Pair(clean, corrupt, answer, against); given {type(pair).__name__}")
    model = model_or_nano(model)
    metric = logit_diff(pair.answer, pair.against)
    runs = [trace(text, model=model) for text in (pair.clean, pair.corrupt)]
    if len(runs[0]) != len(runs[1]):
        pieces = "\n".join(f"  {len(run)}: {run.tokens}" for run in runs)
        raise GemmascopeError(f"the two prompts need as many tokens as each other: choose other words\n{pieces}")
    clean, corrupt = (metric(run) for run in runs)
    leads = f"{clean:+.2f} after the clean prompt, {corrupt:+.2f} after the corrupted one"
    print(f"{pair.answer!r} less {pair.against!r}: {leads}")
    print("the model can do this" if clean > 0 > corrupt else "the model gets one of the two wrong: choose another pair")
    return metric

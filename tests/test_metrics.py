"""Metrics against their plain formulas; bad answers and functions are refused."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, model, model_of, prompt
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pieces import worded
from torch import Tensor

import gemmascope as gs
from gemmascope.errors import GemmascopeError, MetricError, PromptError
from gemmascope.model.model import Model
from gemmascope.run.metric import bind_metric, measure
from gemmascope.run.metric_names import METRICS
from gemmascope.sweeps.metrics import named_metric

CLOSE = 1e-5


@cache
def wide() -> Model:
    return model_of(checkpoint("lg", vocab_size=70))


def measured(metric: Any, logits: Tensor, m: Model | None = None) -> list[float]:
    return measure(bind_metric(metric, m or model("lg")), logits).tolist()


def probabilities(row: list[float]) -> list[float]:
    powers = [math.exp(x - max(row)) for x in row]
    return [p / sum(powers) for p in powers]


def listed(answer: Any) -> list[int]:
    return answer if isinstance(answer, list) else [answer]


ANSWER = st.integers(0, 60) | st.lists(st.integers(0, 60), min_size=1, max_size=4, unique=True)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(answer=ANSWER, against=ANSWER, seed=st.integers(0, 99), n_runs=st.integers(1, 3))
def test_metrics_are_their_formulas(answer: Any, against: Any, seed: int, n_runs: int) -> None:
    logits = torch.randn(n_runs, 61, generator=torch.Generator().manual_seed(seed)) * 5
    a, b = listed(answer), listed(against)
    assume(set(a) != set(b))
    for i, row in enumerate(logits.double().tolist()):
        p = probabilities(row)
        difference = sum(row[x] for x in a) / len(a) - sum(row[x] for x in b) / len(b)
        formulas = [
            (gs.logit_diff(answer, against), difference),
            (gs.answer_prob(answer), sum(p[x] for x in a)),
            (gs.answer_logprob(answer), math.log(sum(p[x] for x in a))),
            (gs.rank(answer), sum(x > max(row[x] for x in a) for x in row)),
        ]
        for metric, expected in formulas:
            assert abs(measured(metric, logits)[i] - expected) <= CLOSE * max(1, abs(expected)), metric


@pytest.mark.parametrize("name", METRICS)
def test_the_table_says_which_metrics_have_a_gradient(name: str) -> None:
    metric = named_metric(name, 5, 9)
    logits = torch.randn(2, 61, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert len(metric.answers) == METRICS[name].n_answers
    assert bind_metric(metric, model("lg"))(logits).requires_grad == METRICS[name].has_gradient


def test_the_answer_that_wins_is_positive_and_of_rank_0() -> None:
    logits = torch.zeros(1, 61)
    logits[0, 7] = 3.0
    assert measured(gs.logit_diff(7, 8), logits) == [3.0]
    assert measured(gs.rank(7), logits) == [0.0]
    assert measured(gs.rank(8), logits) == [1.0]
    assert measured(gs.rank([8, 7]), logits) == [0.0]
    logits[0, 9] = 3.0  # a token of equal logit does not count as likelier
    assert measured(gs.rank(7), logits) == [0.0]


def test_the_answers_of_a_run_are_its_next_tokens() -> None:
    t = gs.trace(prompt(9), model=model("lg"))
    (_, first, p), (_, second, _) = t.top(2)
    assert abs(measured(gs.answer_prob(first), t.next_logits[None])[0] - p) <= CLOSE
    assert measured(gs.rank(first), t.next_logits[None]) == [0.0]
    assert measured(gs.rank(second), t.next_logits[None]) == [1.0]
    assert measured(gs.answer_prob(list(range(61))), t.next_logits[None])[0] == pytest.approx(1)


def test_kl_from_a_run_is_its_formula_and_0_from_itself() -> None:
    t, second = (gs.trace(prompt(9, seed=seed), model=model("lg")) for seed in (0, 1))
    assert abs(measured(gs.kl_from(t), t.next_logits[None])[0]) <= CLOSE
    p, q = (probabilities(x.next_logits.double().tolist()) for x in (t, second))
    expected = sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)
    both = measured(gs.kl_from(t), torch.stack([t.next_logits, second.next_logits]))
    assert both == [pytest.approx(0, abs=CLOSE), pytest.approx(expected, rel=1e-4)]
    assert expected > 0.1


def test_a_sweep_of_kl_from_its_own_base_begins_at_0() -> None:
    corrupt = gs.trace(prompt(5, seed=1), model=model("lg"))
    s = gs.sweep(prompt(5), corrupt.ids, gs.kl_from(corrupt), site="resid_pre", model=model("lg"))
    assert abs(s.corrupt) <= CLOSE
    assert s.clean > 0.01
    assert (s.effect.values >= -CLOSE).all()


def test_any_function_of_the_logits_is_a_metric() -> None:
    def entropy(logits: Tensor) -> Tensor:
        p = logits.softmax(-1)
        return -(p * p.log()).sum(-1)

    s = gs.sweep(prompt(5), prompt(5, seed=1), entropy, site="resid_post", by="layer", model=model("lg"))
    p = probabilities(gs.trace(prompt(5), model=model("lg")).next_logits.double().tolist())
    assert s.clean == pytest.approx(-sum(x * math.log(x) for x in p), rel=1e-4)
    assert s.question.metric == "entropy"
    of_integers = gs.sweep(
        prompt(5), prompt(5, seed=1), lambda x: x[:, 3].int(), site="resid_post", by="layer", model=model("lg")
    )
    assert of_integers.values.dtype == np.float64


# -- answers as text --


def test_an_answer_may_be_a_text_or_an_id() -> None:
    logits = torch.randn(2, 61, generator=torch.Generator().manual_seed(0))
    mary, john = worded().tokenizer.single(" Mary"), worded().tokenizer.single(" John")
    by_text = measured(gs.logit_diff(" Mary", " John"), logits, worded())
    assert by_text == measured(gs.logit_diff(mary, john), logits) == (logits[:, mary] - logits[:, john]).tolist()
    several = measured(gs.answer_prob([" Mary", john]), logits, worded())
    assert several == measured(gs.answer_prob([mary, john]), logits)
    ids: list[Any] = [np.int64(7), torch.tensor(7), (7,), np.array([7])]
    for answer in ids:
        assert measured(gs.answer_prob(answer), logits) == measured(gs.answer_prob(7), logits)


SAID: list[tuple[Any, str]] = [
    (gs.logit_diff(" Mary", " John"), "gs.logit_diff(' Mary', ' John')"),
    (gs.logit_diff([" Mary", 7], 3), "gs.logit_diff([' Mary', 7], 3)"),
    (gs.answer_prob((1, 2)), "gs.answer_prob((1, 2))"),
    (gs.answer_prob(torch.tensor([1, 2])), "gs.answer_prob([1, 2])"),  # type: ignore[arg-type]
    (gs.answer_logprob("<bos>"), "gs.answer_logprob('<bos>')"),
    (gs.rank(5), "gs.rank(5)"),
]


@pytest.mark.parametrize(("metric", "text"), SAID)
def test_a_metric_prints_as_the_call_that_makes_it(metric: Any, text: str) -> None:
    assert repr(metric) == text
    assert repr(eval(text, {"gs": gs})) == text


def test_kl_from_prints_the_run_that_it_is_from() -> None:
    t = gs.trace([3, 4], model=model("lg"), edits=[gs.scale("z", 2.0, layer=1)])
    text = repr(gs.kl_from(t))
    assert text == "gs.kl_from(gs.trace([3, 4], model=model, edits=[gs.scale('z', 2.0, layer=1)]))"
    again = eval(text, {"gs": gs, "model": model("lg")})
    assert measured(again, t.next_logits[None]) == measured(gs.kl_from(t), t.next_logits[None])


# -- bad input --

BAD_ANSWERS: list[tuple[Any, str]] = [
    ("When Mary", r"an answer is one token; 'When Mary' is 2: \['When', ' Mary'\]$"),
    ("  Mary", r"an answer is one token; '  Mary' is 2: \[' ', ' Mary'\]; ' Mary' is one token: was that meant\?"),
    ("", "an answer is one token; given an empty text"),
    ([" Mary", ", John"], r"', John' is 2: \[',', ' John'\]$"),
    ([], "the list of answers is empty"),
    (61, "token id 61 is outside the vocabulary: ids go from 0 to 60"),
    (-1, "token id -1 is outside"),
    (1.5, "an answer is a text that is one token, or a token id; given 1.5"),
    ([1.5], "a token id; given 1.5"),
    (True, "a token id; given True"),
    (None, "a token id; given None"),
    ([7, 7], r"the answers name a token twice: \[7, 7\]"),
]


class Letters:
    """A tokenizer whose backend has " Mary" and single letters: a name without its leading space is several tokens."""

    bos, size = 2, 61

    def encode(self, text: str) -> list[int]:
        return [3] if text == " Mary" else [5 + ord(char) % 40 for char in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(self.piece, ids))

    def piece(self, token_id: int) -> str:
        return {3: " Mary"}.get(token_id, f"<{token_id}>")

    def is_special(self, token_id: int) -> bool:
        return token_id < 3


@pytest.mark.parametrize("metric", [gs.answer_prob, gs.answer_logprob, gs.rank, lambda a: gs.logit_diff(3, a)])
@pytest.mark.parametrize(("answer", "message"), BAD_ANSWERS, ids=[message[:40] for _, message in BAD_ANSWERS])
def test_an_answer_that_is_not_one_token_is_refused(metric: Any, answer: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        bind_metric(metric(answer), worded())


def test_an_error_suggests_the_answer_with_a_leading_space() -> None:
    from gemmascope.tokens.tokenizer import Tokenizer

    spaced = Model(model("lg").network, Tokenizer(Letters(), bos_id=2), "letters")
    with pytest.raises(PromptError, match=r"'Mary' is 4: \[.*\]; ' Mary' is one token: was that meant\?"):
        bind_metric(gs.answer_prob("Mary"), spaced)
    with pytest.raises(PromptError, match=r"' Ann' is 4: \[[^;]*\]$"):
        bind_metric(gs.answer_prob(" Ann"), spaced)


def test_a_text_needs_a_tokenizer() -> None:
    with pytest.raises(PromptError, match="came without a tokenizer"):
        bind_metric(gs.answer_prob(" Mary"), model("lg"))


BAD_METRICS: list[tuple[Any, type[GemmascopeError], str]] = [
    (3, MetricError, "a metric is a function of soft-capped logits .* given 3"),
    ("logit_diff", MetricError, "a metric is a function.*given 'logit_diff'"),
    (gs.kl_from("clean"), MetricError, "gs.kl_from takes a trace; given str"),  # type: ignore[arg-type]
    (
        lambda x: x,
        MetricError,
        r"the metric returned \(2, 61\) for logits of shape \(2, 61\).*one number per run, shape \(2,\)",
    ),
    (lambda x: x.mean(), MetricError, r"the metric returned \(\) for logits"),
    (lambda x: x[:, :1], MetricError, r"the metric returned \(2, 1\)"),
    (lambda x: [1.0, 2.0], MetricError, "the metric returned list"),
    (lambda x: None, MetricError, "the metric returned NoneType"),
    (lambda x: x[:, 0] / 0 * 0, MetricError, "the metric returned NaN"),
]


@pytest.mark.parametrize(("metric", "kind", "message"), BAD_METRICS, ids=[m[:40] for _, _, m in BAD_METRICS])
def test_a_value_that_is_no_metric_is_refused(metric: Any, kind: type[GemmascopeError], message: str) -> None:
    with pytest.raises(kind, match=message):
        measured(metric, torch.ones(2, 61))


def test_a_run_with_another_vocabulary_is_refused() -> None:
    with pytest.raises(MetricError, match="the trace has a vocabulary of 70 tokens and 'random' one of 61"):
        bind_metric(gs.kl_from(gs.trace([3], model=wide())), model("lg"))

"""Sampling follows the softmax and is cut off at top_p."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, model_of, prompt
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import gemmascope as gs
from gemmascope.generation.sampling import Sampling

DRAWS = 4000
# The chi-squared test turns away one right sampler in ten thousand; with fixed seeds it is the same every time.
LEAST = 1e-4


def naive(logits: Tensor, temperature: float, top_p: float) -> list[float]:
    """The distribution, one token after the other: the likeliest first, until their share reaches top_p."""
    powers = [float(np.exp((x - float(logits.max())) / temperature)) for x in logits.double()]
    probs = [power / sum(powers) for power in powers]
    top, share = [0.0] * len(probs), 0.0
    for token in sorted(range(len(probs)), key=lambda i: (-probs[i], i)):
        if share >= top_p:
            break
        top[token] = probs[token]
        share += probs[token]
    return [p / sum(top) for p in top]


@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    seed=st.integers(0, 10**6), size=st.integers(1, 40), temperature=st.floats(0.05, 20), top_p=st.floats(0.01, 1),
    spread=st.just(0.0) | st.floats(0.01, 10),  # below, logits differ and probabilities do not
)  # fmt: skip
def test_the_distribution_is_that_of_a_naive_loop(
    seed: int, size: int, temperature: float, top_p: float, spread: float
) -> None:
    logits = spread * torch.randn(size, generator=torch.Generator().manual_seed(seed))
    # Where a share is top_p but for rounding, one token more or less is as right: the next test has sums without rounding.
    shares = (logits.double() / temperature).softmax(-1).sort(descending=True).values.cumsum(-1)
    assume(bool(((shares - top_p).abs() > 1e-9).all()) or top_p == 1)
    probs = Sampling(temperature, top_p).probabilities(logits)
    assert probs.tolist() == pytest.approx(naive(logits, temperature, top_p), abs=1e-9)


@pytest.mark.parametrize(
    ("top_p", "n_kept"), [(0.01, 1), (0.5, 1), (0.51, 2), (0.75, 2), (0.7500001, 3), (0.874, 3), (0.876, 4), (1.0, 4)]
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p: float, n_kept: int) -> None:
    logits = torch.tensor([0.125, 0.5, 0.125, 0.25]).double().log()  # sums without rounding
    probs = Sampling(1.0, top_p).probabilities(logits)
    assert probs.nonzero().flatten().tolist() == sorted([1, 3, 0, 2][:n_kept])  # of equal tokens the first
    assert float(probs.sum()) == pytest.approx(1.0)


def test_tiny_and_huge_temperatures_give_finite_probabilities() -> None:
    logits = torch.tensor([3.0, 5.0, 4.9])
    assert Sampling(1e-320, 1.0).probabilities(logits).tolist() == [0, 1, 0]
    assert Sampling(0, 1.0).probabilities(logits).tolist() == [0, 1, 0]
    assert Sampling(1e300, 1.0).probabilities(logits).tolist() == pytest.approx([1 / 3] * 3)


def p_value(counts: Tensor, probs: Tensor) -> float:
    """The p-value of a chi-squared test. Rare tokens are counted as one."""
    expected = probs * counts.sum()
    rare = expected < 5
    assert int(counts[probs == 0].sum()) == 0
    observed = torch.cat((counts[~rare].double(), counts[rare].sum().double()[None]))
    awaited = torch.cat((expected[~rare], expected[rare].sum()[None]))
    if awaited[-1] < 5:
        observed, awaited = observed[:-1], awaited[:-1]
    statistic = ((observed - awaited).square() / awaited).sum()
    degrees = torch.tensor((len(observed) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(degrees, statistic / 2))


@pytest.mark.parametrize(("temperature", "top_p"), [(6.0, 0.8), (10.0, 1.0)])
def test_samples_follow_the_softmax(temperature: float, top_p: float) -> None:
    model = model_of(checkpoint("lg", 1, vocab_size=23))
    ids = prompt(6, vocab_size=23)
    logits = gs.trace(ids, model=model).next_logits
    runs = gs.generate([ids] * DRAWS, model=model, max_new_tokens=1, temperature=temperature, top_p=top_p)
    counts = torch.bincount(torch.tensor([int(g.new_ids[0]) for g in runs]), minlength=23)
    probs = torch.tensor(naive(logits, temperature, top_p), dtype=torch.float64)
    assert p_value(counts, probs) > LEAST
    wrong = torch.tensor(naive(logits, 1.5 * temperature, top_p), dtype=torch.float64)
    assert (counts[wrong == 0].sum() > 0) or p_value(counts, wrong) < LEAST  # the test distinguishes temperatures
    assert runs[0].logprobs[0] == pytest.approx(float(logits.log_softmax(-1)[runs[0].new_ids[0]]), abs=1e-3)

"""Sampling follows the softmax and is cut off at top_p."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, model_of, prompt
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

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


def processors(penalty: float, temperature: float, top_k: int | None, top_p: float, min_p: float) -> LogitsProcessorList:
    """transformers' own list for these settings, in its order."""
    settings: dict[str, Any] = {"temperature": temperature, "top_k": top_k or 0, "top_p": top_p, "min_p": min_p or None}
    config = GenerationConfig(do_sample=True, repetition_penalty=penalty, **settings)
    return checkpoint("l", 0)._get_logits_processor(config, input_ids_seq_length=1)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    seed=st.integers(0, 10**6), size=st.integers(2, 60), penalty=st.just(1.0) | st.floats(0.3, 4),
    temperature=st.floats(0.2, 5), top_k=st.none() | st.integers(1, 70), top_p=st.just(1.0) | st.floats(0.05, 0.99),
    min_p=st.just(0.0) | st.floats(0.001, 1), n_seen=st.integers(1, 30),
)  # fmt: skip
def test_processed_logits_are_those_of_transformers(
    seed: int, size: int, penalty: float, temperature: float, top_k: int | None, top_p: float, min_p: float, n_seen: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(size, generator=random, dtype=torch.float64)
    seen = torch.randint(size, (n_seen,), generator=random)
    theirs = processors(penalty, temperature, top_k, top_p, min_p)(seen[None], logits[None].clone())[0].log_softmax(-1)
    ours = Sampling(temperature, top_p, top_k, min_p, penalty).log_probabilities(logits, seen.tolist())
    assert torch.equal(theirs.isinf(), ours.isinf())
    assert float((theirs - ours)[~ours.isinf()].abs().max()) <= 1e-6
    penalised = processors(penalty, 1.0, None, 1.0, 0.0)(seen[None], logits[None].clone())[0]
    assert Sampling(0.0, repetition_penalty=penalty).draw(logits[None], [], [seen.tolist()]) == [int(penalised.argmax())]


def test_of_equally_likely_tokens_top_k_keeps_all_as_transformers_does() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, 2.0, 0.0])
    assert Sampling(1.0, top_k=2).probabilities(logits).nonzero().flatten().tolist() == [1, 2, 3]


def test_the_penalty_counts_the_prompt_and_what_was_drawn() -> None:
    source = checkpoint("lg", 1, vocab_size=23, eos_token_id=None)
    model, ids = model_of(source), prompt(6, vocab_size=23)
    settings: dict[str, Any] = {"max_new_tokens": 12, "repetition_penalty": 2.5}
    tokens = torch.tensor([list(ids)])
    theirs = source.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False, pad_token_id=0, **settings)
    assert gs.generate(ids, model=model, **settings).ids.tolist() == theirs[0].tolist()
    assert gs.generate(ids, model=model, max_new_tokens=12).ids.tolist() != theirs[0].tolist()


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

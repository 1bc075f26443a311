"""The pure functions: the laws they obey, and their values worked out by hand or in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gemmascope.model.maths import rms_norm, rms_scale, rope_table, rotate, soft_cap, visible

cases = settings(deadline=None, derandomize=True, max_examples=40)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- the norm --


def test_the_norm_multiplies_by_one_plus_its_weight() -> None:
    x = torch.tensor([[3.0, -4.0]])  # root mean square: sqrt(12.5)
    assert torch.allclose(rms_norm(x, torch.zeros(2), 0.0), x / math.sqrt(12.5))
    assert torch.allclose(rms_norm(x, torch.tensor([1.0, -1.0]), 0.0), torch.tensor([[6.0 / math.sqrt(12.5), 0.0]]))


@cases
@given(st.integers(1, 40), st.floats(1e-3, 1e3), st.integers(0, 99))
def test_the_norm_removes_the_scale_of_a_row(d_model: int, factor: float, seed: int) -> None:
    x, weight = random(5, d_model, seed=seed), random(d_model, seed=seed + 1)
    plain = rms_norm(x, torch.zeros(d_model), 0.0)
    torch.testing.assert_close(plain.square().mean(-1), torch.ones(5))
    torch.testing.assert_close(rms_norm(x * factor, weight, 0.0), plain * (1 + weight), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(rms_norm(x, weight, 0.1), x * rms_scale(x, 0.1) * (1 + weight))


def test_the_norm_of_zeros_is_zero() -> None:
    assert torch.equal(rms_norm(torch.zeros(2, 4), torch.zeros(4), 1e-6), torch.zeros(2, 4))


def test_the_norm_is_computed_in_float32() -> None:
    x, weight = random(4, 64).bfloat16() * 300, random(64, seed=1).bfloat16()
    exact = rms_norm(x.float(), weight.float(), 1e-6)
    assert rms_norm(x, weight, 1e-6).dtype == torch.bfloat16
    assert torch.equal(rms_norm(x, weight, 1e-6), exact.bfloat16())  # rounded once, at the end
    assert rms_scale(x, 1e-6).dtype == torch.float32


# -- the soft cap --


@cases
@given(st.floats(0.5, 100), st.integers(0, 99))
def test_the_soft_cap_bounds_and_keeps_order_and_sign(cap: float, seed: int) -> None:
    x = (random(200, seed=seed) * 2 * cap).sort().values
    capped = soft_cap(x, cap)
    assert capped.abs().max() <= cap
    assert (capped.diff() >= 0).all()
    assert torch.equal(soft_cap(-x, cap), -capped)
    assert (capped.abs() <= x.abs() * (1 + 1e-6)).all()
    small = x * 1e-3 / x.abs().max()
    torch.testing.assert_close(soft_cap(small, cap), small, rtol=1e-5, atol=1e-9)


def test_the_soft_cap_has_known_values() -> None:
    assert soft_cap(torch.tensor(50.0), 50.0).item() == pytest.approx(50 * math.tanh(1))
    assert soft_cap(torch.tensor(1e9), 30.0).item() == 30.0
    x = random(3)
    assert soft_cap(x, None) is x


# -- RoPE --


def test_rope_rotates_each_pair_by_its_own_angle() -> None:
    cos, sin = rope_table(torch.tensor([0, 1, 7]), 4, 100.0)  # pairs (0, 2) and (1, 3), at 1 and 1 / 10 radian a step
    assert cos.dtype == sin.dtype == torch.float32
    torch.testing.assert_close(cos, torch.tensor([[p * 1.0, p * 0.1, p * 1.0, p * 0.1] for p in (0, 1, 7)]).cos())
    torch.testing.assert_close(sin, torch.tensor([[p * 1.0, p * 0.1, p * 1.0, p * 0.1] for p in (0, 1, 7)]).sin())
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(3, 1, 4)
    turned = rotate(x, cos, sin)
    assert torch.equal(turned[0], x[0])  # position 0 stays
    c, s, c10, s10 = math.cos(1), math.sin(1), math.cos(0.1), math.sin(0.1)
    by_hand = torch.tensor([[1 * c - 3 * s, 2 * c10 - 4 * s10, 3 * c + 1 * s, 4 * c10 + 2 * s10]])
    torch.testing.assert_close(turned[1], by_hand)


@cases
@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 300), st.sampled_from([2, 6, 16]), st.integers(0, 99))
def test_a_score_depends_only_on_the_distance(q_at: int, k_at: int, shift: int, d_head: int, seed: int) -> None:
    q, k = random(1, 1, d_head, seed=seed), random(1, 1, d_head, seed=seed + 1)

    def score(q_pos: int, k_pos: int) -> Tensor:
        turned = [rotate(x, *rope_table(torch.tensor([at]), d_head, 10000.0)) for x, at in ((q, q_pos), (k, k_pos))]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(q_at, k_at), score(q_at + shift, k_at + shift), rtol=1e-3, atol=1e-3)
    length = rotate(q, *rope_table(torch.tensor([q_at]), d_head, 10000.0)).norm()
    torch.testing.assert_close(length, q.norm())


def test_a_rotation_keeps_the_dtype() -> None:
    cos, sin = rope_table(torch.arange(3), 4, 10000.0)
    assert rotate(random(3, 2, 4).bfloat16(), cos, sin).dtype == torch.bfloat16


# -- which keys a query sees --


@cases
@given(st.integers(0, 20), st.integers(1, 12), st.integers(0, 20), st.integers(1, 12), st.none() | st.integers(1, 30))
def test_a_query_sees_itself_and_the_latest_keys(q_from: int, n_q: int, k_from: int, n_k: int, window: int | None) -> None:
    q_pos, k_pos = torch.arange(q_from, q_from + n_q), torch.arange(k_from, k_from + n_k)
    mask = visible(q_pos, k_pos, window)
    for i, q in enumerate(q_pos.tolist()):
        for j, k in enumerate(k_pos.tolist()):
            assert mask[i, j].item() == (k <= q and (window is None or k > q - window))


def test_a_window_counts_the_query_itself() -> None:
    at = torch.arange(4)
    assert torch.equal(visible(at, at, 1), torch.eye(4, dtype=torch.bool))
    assert visible(at, at, 2).sum(1).tolist() == [1, 2, 2, 2]
    assert visible(at, at, None).sum(1).tolist() == [1, 2, 3, 4]

"""The attention kernels give what plain torch gives, in Triton's interpreter where there is no card.

Random cases: blocks of unlike lengths, prefixes, windows, groups of heads, one-row blocks, caches whose slots are replaced.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from interpreted import mend_bfloat16
from torch import Tensor

from gemmascope.model import attention as attention_file
from gemmascope.model.attention import Attend
from gemmascope.model.kv_cache import KVCache
from gemmascope.model.layout import Block, KeyPool, Layout, PrefixKV
from gemmascope.model.tap import SILENT

pytest.importorskip("triton", reason="the kernels need Triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
WINDOWS = st.sampled_from([None, 1, 3, 20, 100])
CAPS = st.sampled_from([None, 50.0, 4.0])
GROUPS = st.sampled_from([(4, 2), (2, 2), (6, 2), (5, 1), (16, 1)])  # heads, and key-value heads
# Without shrinking: in the interpreter a failing case would take minutes.
cases = settings(deadline=None, derandomize=True, max_examples=6, phases=[Phase.explicit, Phase.generate])


@pytest.fixture(scope="module", autouse=True)
def interpreted() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE.type == "cpu":
            mend_bfloat16(patch)
        yield


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


class Case:
    """Random heads of blocks, given as (count, length, start, n_queries), and prefixes for those that start after 0."""

    def __init__(
        self, blocks: list[tuple[int, int, int, int]], heads: tuple[int, int], d_head: int, dtype: torch.dtype, seed: int
    ) -> None:
        self.draw, self.dtype, self.d_head = torch.Generator().manual_seed(seed), dtype, d_head
        n_heads, n_kv = heads
        built: list[Block] = []
        for count, length, start, n_queries in blocks:
            first = built[-1].rows.stop if built else 0
            run = built[-1].run + built[-1].count if built else 0
            built.append(Block(first, count, length, run, start, n_queries))
        self.layout = Layout.of_blocks(built, DEVICE)
        self.q = self.random(self.layout.query_firsts[-1], n_heads) * 3
        self.k, self.v = (self.random(self.layout.n_rows, n_kv) for _ in range(2))
        most = max(block.start for block in built)
        pool = KeyPool(*(self.random(2 * most + 3, n_kv).transpose(0, 1) for _ in range(2)))
        spans = slice(1, most + 1), slice(most + 2, 2 * most + 2)
        self.pooled = [PrefixKV.in_pool(pool, span) for span in spans]
        self.apart = [PrefixKV(x.k.contiguous(), x.v.contiguous()) for x in self.pooled]

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, self.d_head, generator=self.draw).to(DEVICE, self.dtype)

    def plain(self, cap: float | None, window: int | None) -> Tensor:
        """What plain torch gives in float32."""
        prefixes = [PrefixKV(x.k.float(), x.v.float()) for x in self.apart]
        layout, scale = self.with_prefixes(prefixes), self.d_head**-0.5
        return Attend(scale, cap, window)(self.q.float(), self.k.float(), self.v.float(), layout, SILENT.at(0, layout))

    def with_prefixes(self, prefixes: list[PrefixKV]) -> Layout:
        """The layout, its blocks reading the first prefix, the second one, and so on in turns."""
        return self.layout.with_prefixes([prefixes[i // 2 % 2] for i in range(len(self.layout.blocks))])

    def attend(self, cap: float | None, window: int | None, layout: Layout) -> Tensor:
        scale = self.d_head**-0.5
        return Attend(scale, cap, window)(self.q, self.k, self.v, layout, SILENT.at(0, layout))


def fused(monkeypatch: pytest.MonkeyPatch | Any) -> None:
    monkeypatch.setattr(attention_file, "fuses", lambda x: True)


def assert_close(found: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """Equal to what plain torch computes in float32 from the same numbers, up to the rounding of dtype."""
    assert found.dtype == dtype
    assert found.shape == exact.shape
    allowed = 2e-5 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(found.float(), exact, rtol=allowed, atol=allowed * float(exact.abs().max()))


BLOCKS = st.lists(
    st.tuples(st.integers(1, 2), st.integers(1, 30), st.integers(0, 40), st.integers(0, 30)), min_size=1, max_size=4
)


@cases
@given(BLOCKS, GROUPS, st.sampled_from([8, 12, 16]), DTYPES, WINDOWS, CAPS, st.integers(0, 99))
def test_blocks_of_any_length_start_and_prefix(
    blocks: list[tuple[int, int, int, int]],
    heads: tuple[int, int],
    d_head: int,
    dtype: torch.dtype,
    window: int | None,
    cap: float | None,
    seed: int,
) -> None:
    blocks = [(count, length, start, min(n, length)) for count, length, start, n in blocks]
    case = Case(blocks, heads, d_head, dtype, seed)
    exact = case.plain(cap, window)
    with pytest.MonkeyPatch.context() as patch:
        fused(patch)
        found = case.attend(cap, window, case.with_prefixes(case.pooled))
        assert torch.equal(case.attend(cap, window, case.with_prefixes(case.apart)), found)
    assert_close(found, exact, dtype)


@pytest.mark.parametrize(
    ("length", "start", "n", "d_head", "window", "dtype"),
    [
        (300, 0, 70, 128, None, torch.bfloat16),
        (300, 0, 2, 256, 128, torch.bfloat16),
        (40, 260, 40, 128, 150, torch.float32),
        (1, 299, 1, 256, None, torch.float32),
    ],
)
def test_heads_as_wide_as_gemmas(
    length: int, start: int, n: int, d_head: int, window: int | None, dtype: torch.dtype
) -> None:
    case = Case([(1, length, start, n), (2, 1, 0, 1)], (2, 1), d_head, dtype, 0)
    exact = case.plain(50.0, window)
    with pytest.MonkeyPatch.context() as patch:
        fused(patch)
        assert_close(case.attend(50.0, window, case.with_prefixes(case.pooled)), exact, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 7])
def test_a_block_is_blind_to_its_neighbours(dtype: torch.dtype, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    fused(monkeypatch)
    case = Case([(2, 5, 0, 5), (1, 90, 30, 90), (3, 1, 30, 1), (1, 45, 0, 3)], (4, 2), 16, dtype, 0)
    found = case.attend(50.0, window, case.with_prefixes(case.pooled))
    for i, block in enumerate(case.layout.blocks):
        alone = Layout.of_blocks([Block(0, 1, block.length, 0, block.start, block.n_queries)], DEVICE)
        prefix = case.with_prefixes(case.pooled).prefixes[i]
        rows, queries = slice(block.first, block.first + block.length), case.layout.query_firsts[i]
        q = case.q[queries : queries + block.n_queries]
        layout = alone.with_prefixes([prefix])
        z = Attend(0.25, 50.0, window)(q, case.k[rows], case.v[rows], layout, SILENT.at(0, layout))
        assert torch.equal(z, found[queries : queries + block.n_queries])


def test_heads_that_the_kernels_do_not_hold_take_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    fused(monkeypatch)
    monkeypatch.setattr(attention_file, "attention_kernels", lambda: pytest.fail("a kernel was chosen"))
    for heads, d_head in (((2, 1), 300), ((40, 1), 16)):
        Case([(1, 9, 0, 9)], heads, d_head, torch.float32, 0).attend(50.0, None, Layout.of_lengths([9], DEVICE))


# -- KV caches --


@cases
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=3), st.integers(1, 40), GROUPS, DTYPES, CAPS, st.integers(2, 5),
    st.integers(0, 99),
)  # fmt: skip
def test_steps_of_a_cache(
    starts: list[int], n_slots: int, heads: tuple[int, int], dtype: torch.dtype, cap: float | None, n: int, seed: int
) -> None:
    """Runs that grow from anywhere, in a cache whose slots are replaced as soon as they are all in use."""
    caches = [KVCache(len(starts), heads[1], n_slots, 12, torch.empty(0, device=DEVICE)) for _ in range(2)]
    caches[1].k, caches[1].v = caches[1].k.to(dtype), caches[1].v.to(dtype)
    for step in range(n):
        case = Case([(1, 1, start + step, 1) for start in starts], heads, 12, dtype, seed + step)
        layout = case.layout.with_kv_cache(caches[0])
        q, k, v = (x.float() for x in (case.q, case.k, case.v))
        exact = Attend(12**-0.5, cap, None)(q, k, v, layout, SILENT.at(0, layout))
        with pytest.MonkeyPatch.context() as patch:
            fused(patch)
            found = case.attend(cap, None, case.layout.with_kv_cache(caches[1]))
        assert torch.equal(caches[0].k.to(dtype), caches[1].k)
        assert torch.equal(caches[0].v.to(dtype), caches[1].v)
        assert_close(found, exact, dtype)


def test_a_run_of_a_cache_is_blind_to_longer_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long neighbour makes the launch read more splits, of which a short run has none."""
    fused(monkeypatch)
    starts = (3, 700)
    case = Case([(1, 1, start, 1) for start in starts], (4, 2), 12, torch.float32, 0)
    cache = KVCache(2, 2, 800, 12, case.q[:0, 0, 0])
    cache.k, cache.v = (case.random(2, 2, 800) for _ in range(2))
    together = case.attend(50.0, None, case.layout.with_kv_cache(cache))
    for run, start in enumerate(starts):
        one = KVCache(1, 2, 800, 12, case.q[:0, 0, 0])
        one.k, one.v = cache.k[run : run + 1].clone(), cache.v[run : run + 1].clone()
        layout = Layout.of_blocks([Block(0, 1, 1, 0, start)], DEVICE).with_kv_cache(one)
        row = slice(run, run + 1)
        z = Attend(12**-0.5, 50.0, None)(case.q[row], case.k[row], case.v[row], layout, SILENT.at(0, layout))
        assert torch.equal(z[0], together[run])

"""The KV cache of a generation: keys and values that stay from pass to pass, so that a run grows by one row a pass.

One cache per layer serves all runs. The decoder (generation/decoder.py) chooses the number of slots: all positions that a
run may reach in a global layer, the window in a local layer, where a new key replaces the one that left the window. A local
layer with an edited score or pattern keeps all positions too. Empty slots are masked, so a run does not depend on its
neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gemmascope.kernels.attention_tiles import Scores
from gemmascope.kernels.switch import attention_kernels
from gemmascope.model.maths import index_tensor
from gemmascope.values import moved

# A product reads a multiple of this many slots: on a CPU, the first product of a new shape costs more than spare slots.
STEP = 32

# Values that all layers of a pass share.
PassCache = dict[object, object]
T = TypeVar("T")


@dataclass(frozen=True)
class _Slots:
    """The slots that a step writes and reads, the same in all layers with as many slots.

    rows: where the new position of each run goes in the flattened buffer, [run x kv_head]. n_used: how many slots are in use
    in any run. empty: which of them are empty, [run, 1, 1, slot]; None if none is.
    """

    rows: Int[Tensor, " row"]
    n_used: int
    empty: Bool[Tensor, "run 1 1 slot"] | None


class KVCache:
    """The keys, after RoPE, and the values of one layer: k and v [run, kv_head, slot, d_head].

    n_slots: how many positions of a run are kept, the latest ones. Position p is in slot p % n_slots.
    """

    def __init__(self, n_runs: int, n_kv: int, n_slots: int, d_head: int, like: Float[Tensor, " any"]) -> None:
        # On a CPU the first bfloat16 product of a shape is slow, and here shapes keep changing.
        dtype = torch.float32 if like.device.type == "cpu" else like.dtype
        self.k = torch.zeros((n_runs, n_kv, n_slots, d_head), dtype=dtype, device=like.device)
        self.v = torch.zeros_like(self.k)

    @property
    def n_slots(self) -> int:
        return self.k.shape[2]

    def fill(self, run: int, k: Float[Tensor, "pos kv_head d_head"], v: Float[Tensor, "pos kv_head d_head"]) -> None:
        """Store a run's keys and values from position 0 on; only the latest if there are more than slots."""
        positions = torch.arange(len(k), device=k.device)[-self.n_slots :]
        for buffer, value in ((self.k, k), (self.v, v)):
            buffer[run, :, positions % self.n_slots] = value[positions].transpose(0, 1).to(buffer.dtype)

    def append(
        self,
        k: Float[Tensor, "run kv_head d_head"],
        v: Float[Tensor, "run kv_head d_head"],
        positions: Sequence[int],
        pass_cache: PassCache,
    ) -> None:
        """Store one more position of every run."""
        rows = self._slots(positions, pass_cache).rows
        for buffer, value in ((self.k, k), (self.v, v)):
            buffer.view(-1, buffer.shape[-1]).index_copy_(0, rows, value.flatten(0, 1).to(buffer.dtype))

    def keep_runs(self, runs: Int[Tensor, " kept"]) -> None:
        """Keep these runs only."""
        runs = moved(runs, self.k.device)
        self.k, self.v = self.k[runs], self.v[runs]

    def of_run(
        self, run: int, n_pos: int
    ) -> tuple[Float[Tensor, "kv_head pos d_head"], Float[Tensor, "kv_head pos d_head"]]:
        """A run's keys and values at all its n_pos positions, of which none may have been replaced."""
        assert n_pos <= self.n_slots, f"{n_pos} positions, and only {self.n_slots} slots"
        return self.k[run, :, :n_pos], self.v[run, :, :n_pos]

    def attend(
        self,
        q: Float[Tensor, "run head d_head"],
        positions: Sequence[int],
        scale: float,
        cap: float | None,
        pass_cache: PassCache,
    ) -> Float[Tensor, "run head d_head"]:
        """Attention of the newest row of every run: softmax(cap(q k scale)) v over the slots in use."""
        slots = self._slots(positions, pass_cache)
        factor = scale if cap is None else scale / cap
        queries = (q * factor).to(self.k.dtype).view(len(q), self.k.shape[1], -1, q.shape[-1])
        scores = (queries @ self.k[:, :, : slots.n_used].mT).float()
        if cap is not None:  # maths.soft_cap in place, its division already in the queries
            scores = scores.tanh_().mul_(cap)
        if slots.empty is not None:
            scores = scores.masked_fill_(slots.empty, -torch.inf)
        read = scores.softmax(-1).to(self.v.dtype) @ self.v[:, :, : slots.n_used]
        return read.view(q.shape).to(q.dtype)

    def step_in_kernels(
        self,
        q: Float[Tensor, "run head d_head"],
        k: Float[Tensor, "run kv_head d_head"],
        v: Float[Tensor, "run kv_head d_head"],
        positions: Int[Tensor, " run"],
        last: int,
        scores: Scores,
    ) -> Float[Tensor, "run head d_head"]:
        """append and attend, as Triton kernels. last: the largest of the positions."""
        kernels = attention_kernels()
        kernels.append(k, v, self.k, self.v, positions)
        n_used = min(last + 1, self.n_slots)
        return kernels.attend_cache(q, self.k, self.v, positions, n_used, scores)  # type: ignore[no-any-return]

    def _slots(self, positions: Sequence[int], pass_cache: PassCache) -> _Slots:
        def compute() -> _Slots:
            n_runs, n_kv, n_slots, _ = self.k.shape
            at = np.array(positions)
            first = np.arange(n_runs * n_kv).reshape(n_runs, n_kv) * n_slots
            rows = index_tensor((first + (at % n_slots)[:, None]).reshape(-1), self.k.device)
            n_used = _n_used(int(at.max()) + 1, n_slots)
            empty = np.arange(n_used) > at[:, None]
            return _Slots(rows, n_used, index_tensor(empty[:, None, None], self.k.device) if empty.any() else None)

        return once(pass_cache, ("slots", self.n_slots), compute)

    def slots_on_device(self, positions: Int[Tensor, " run"], stop: int) -> _Slots:
        """The slots of a step whose positions, all before stop, are known on the device alone."""
        n_runs, n_kv, n_slots, _ = self.k.shape
        device = positions.device
        first = torch.arange(n_runs * n_kv, device=device).view(n_runs, n_kv) * n_slots
        rows = (first + (positions % n_slots)[:, None]).reshape(-1)
        n_used = _n_used(stop, n_slots)
        return _Slots(rows, n_used, (torch.arange(n_used, device=device) > positions[:, None])[:, None, None])


def _n_used(stop: int, n_slots: int) -> int:
    """How many slots a product reads when all positions are before stop."""
    return min(n_slots, -(-stop // STEP) * STEP)


def once(pass_cache: PassCache, key: object, compute: Callable[[], T]) -> T:
    """A value that all layers of a pass share, computed when it is first needed."""
    if key not in pass_cache:
        pass_cache[key] = compute()
    return cast(T, pass_cache[key])

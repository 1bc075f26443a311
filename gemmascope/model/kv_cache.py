"""Keys and values that stay from pass to pass, so that a run goes on with one row: the cache of a generation.

One for each layer, for all runs of a generation together. A local layer has as many slots as its window: a new key takes
the place of the one that left it. Slots that hold nothing yet are masked, so a run does not depend on its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Slots come into a product in steps of this many: on a CPU, the first product of a shape costs more than spare slots.
STEP = 32


@dataclass(frozen=True)
class _Places:
    """Where the newest position of every run goes, and what there is to read: the same in layers of as many slots.

    rows: its rows in a buffer laid out flat, [run x kv_head]. n_used: the slots that hold something in any run. empty:
    those that hold nothing, [run, 1, 1, slot]; None where all do.
    """

    rows: Int[Tensor, " row"]
    n_used: int
    empty: Bool[Tensor, "run 1 1 slot"] | None


class KVCache:
    """The keys, after RoPE, and the values of one layer: k and v [run, kv_head, slot, d_head].

    n_slots: how many positions a run can have here; where it has more, the latest of them stay. Position p is in slot
    p % n_slots.
    """

    def __init__(self, n_runs: int, n_kv: int, n_slots: int, d_head: int, like: Float[Tensor, " any"]) -> None:
        # A CPU's bfloat16 products have a price for every new shape, and here every step is one.
        dtype = torch.float32 if like.device.type == "cpu" else like.dtype
        self.k = torch.zeros((n_runs, n_kv, n_slots, d_head), dtype=dtype, device=like.device)
        self.v = torch.zeros_like(self.k)

    @property
    def n_slots(self) -> int:
        return self.k.shape[2]

    def fill(self, run: int, k: Float[Tensor, "pos kv_head d_head"], v: Float[Tensor, "pos kv_head d_head"]) -> None:
        """Take a run's keys and values from position 0 on; the latest of them where there are more than slots."""
        positions = torch.arange(len(k), device=k.device)[-self.n_slots :]
        for buffer, value in ((self.k, k), (self.v, v)):
            buffer[run, :, positions % self.n_slots] = value[positions].transpose(0, 1).to(buffer.dtype)

    def append(
        self,
        k: Float[Tensor, "run kv_head d_head"],
        v: Float[Tensor, "run kv_head d_head"],
        positions: Int[Tensor, " run"],
        pass_cache: dict[Any, Any],
    ) -> None:
        """Take one more position of every run. pass_cache: what is the same in every layer of a pass, once it was needed."""
        rows = self._places(positions, pass_cache).rows
        for buffer, value in ((self.k, k), (self.v, v)):
            buffer.view(-1, buffer.shape[-1]).index_copy_(0, rows, value.flatten(0, 1).to(buffer.dtype))

    def keep_runs(self, runs: Int[Tensor, " kept"]) -> None:
        """Go on with these runs only."""
        self.k, self.v = self.k[runs], self.v[runs]

    def of_run(
        self, run: int, n_pos: int
    ) -> tuple[Float[Tensor, "kv_head pos d_head"], Float[Tensor, "kv_head pos d_head"]]:
        """A run's keys and values of all its n_pos positions so far, where none of them has lost its slot."""
        assert n_pos <= self.n_slots, f"{n_pos} positions, of which {self.n_slots} stay"
        return self.k[run, :, :n_pos], self.v[run, :, :n_pos]

    def attend(
        self,
        q: Float[Tensor, "run head d_head"],
        positions: Int[Tensor, " run"],
        scale: float,
        cap: float | None,
        pass_cache: dict[Any, Any],
    ) -> Float[Tensor, "run head d_head"]:
        """What the newest row of every run reads: softmax(cap(q k scale)) v over the slots that hold something."""
        places = self._places(positions, pass_cache)
        factor = scale if cap is None else scale / cap
        queries = (q * factor).to(self.k.dtype).view(len(q), self.k.shape[1], -1, q.shape[-1])
        scores = (queries @ self.k[:, :, : places.n_used].mT).float()
        if cap is not None:
            scores = scores.tanh_().mul_(cap)
        if places.empty is not None:
            scores = scores.masked_fill_(places.empty, -torch.inf)
        read = scores.softmax(-1).to(self.v.dtype) @ self.v[:, :, : places.n_used]
        return read.view(q.shape).to(q.dtype)

    def _places(self, positions: Int[Tensor, " run"], pass_cache: dict[Any, Any]) -> _Places:
        key = ("places", self.n_slots)
        if key not in pass_cache:
            n_runs, n_kv, n_slots, _ = self.k.shape
            first = torch.arange(n_runs * n_kv, device=positions.device).view(n_runs, n_kv) * n_slots
            n_used = min(n_slots, -(-(int(positions.max()) + 1) // STEP) * STEP)
            empty = torch.arange(n_used, device=positions.device) > positions[:, None]
            pass_cache[key] = _Places(
                (first + (positions % n_slots)[:, None]).flatten(),
                n_used,
                empty[:, None, None] if bool(empty.any()) else None,
            )
        found: _Places = pass_cache[key]
        return found

"""Keys and values that stay from pass to pass, so that a run goes on with one row: the cache of a generation.

One for each layer, for all runs of a generation together. A local layer has as many slots as its window: a new key takes
the place of the one that left it. Slots that hold nothing for a run are masked, so a run does not depend on its neighbours.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gemmascope.model.maths import soft_cap

# Slots come into a product in steps of this many: on a CPU, the first product of a shape costs more than spare slots.
STEP = 32


class Kept:
    """The keys, after RoPE, and the values of one layer: k and v [run, kv_head, slot, d_head].

    n_slots: how many positions a run can have here; where it has more, the latest of them stay. positions: what each
    slot holds, [run, slot]; -1 for nothing.
    """

    def __init__(self, n_runs: int, n_kv: int, n_slots: int, d_head: int, like: Float[Tensor, " any"]) -> None:
        # A CPU's bfloat16 products have a price for every new shape, and here every step is one.
        dtype = torch.float32 if like.device.type == "cpu" else like.dtype
        shape = (n_runs, n_kv, n_slots, d_head)
        self.k = torch.zeros(shape, dtype=dtype, device=like.device)
        self.v = torch.zeros(shape, dtype=dtype, device=like.device)
        self.positions = torch.full((n_runs, n_slots), -1, device=like.device)

    @property
    def n_slots(self) -> int:
        return self.positions.shape[1]

    def fill(self, run: int, k: Float[Tensor, "pos kv_head d_head"], v: Float[Tensor, "pos kv_head d_head"]) -> None:
        """Take a run's keys and values from position 0 on; the latest of them where there are more than slots."""
        positions = torch.arange(len(k), device=k.device)[-self.n_slots :]
        slots = positions % self.n_slots
        self.positions[run, slots] = positions
        for buffer, value in ((self.k, k), (self.v, v)):
            buffer[run, :, slots] = value[positions].transpose(0, 1).to(buffer.dtype)

    def take(
        self, k: Float[Tensor, "run kv_head d_head"], v: Float[Tensor, "run kv_head d_head"], positions: Int[Tensor, " run"]
    ) -> None:
        """Take one more position of every run."""
        runs, slots = torch.arange(len(k), device=k.device), positions % self.n_slots
        self.positions[runs, slots] = positions
        self.k[runs, :, slots] = k.to(self.k.dtype)
        self.v[runs, :, slots] = v.to(self.v.dtype)

    def keep_runs(self, runs: Int[Tensor, " kept"]) -> None:
        """Go on with these runs only."""
        self.k, self.v, self.positions = self.k[runs], self.v[runs], self.positions[runs]

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
        made: dict[Any, Any],
    ) -> Float[Tensor, "run head d_head"]:
        """What the newest row of every run reads: softmax(cap(q k scale)) v over the slots that hold something.

        made: what is the same in every layer of a pass, from where it was needed first.
        """
        key = ("slots", self.n_slots)
        if key not in made:
            most = min(self.n_slots, -(-(int(positions.max()) + 1) // STEP) * STEP)
            made[key] = most, (self.positions[:, :most] < 0)[:, None, None]
        most, empty = made[key]
        n_runs, n_kv = len(q), self.k.shape[1]
        queries = (q * scale).to(self.k.dtype).view(n_runs, n_kv, -1, q.shape[-1])
        scores = soft_cap((queries @ self.k[:, :, :most].mT).float(), cap).masked_fill_(empty, -torch.inf)
        read = scores.softmax(-1).to(self.v.dtype) @ self.v[:, :, :most]
        return read.view(q.shape).to(q.dtype)

"""Records what a user's function wrote to a run, by position, so that a layer that runs again writes the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gemmascope.errors import EditError

# How far a second result may differ from the first, in units of the dtype's precision and of the largest value: a layer that
# runs alone rounds differently than in a pass of many prompts.
_ROUNDING = 256

# write(old, rows) -> the new values. rows: a mask of the requested positions that old has; None for all.
Write = Callable[[Tensor, Tensor | None], Tensor]


class WriteRecord:
    """The values that one edit wrote at the positions of its run.

    axis: that of the positions among the places of the edit: 0 at row sites; 1 at edge sites, where the keys are axis 2
    and each position's values are kept with the keys that were there.
    """

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self._parts: list[tuple[list[int], Tensor, Tensor | None]] = []  # positions, values [pos, ...], keys
        self._at: dict[int, tuple[int, int]] = {}  # position -> part, and row in it

    def copy_from(self, other: WriteRecord) -> None:
        """Record what another run of the same prompt recorded: the runs share that part of the pass."""
        self._parts, self._at = list(other._parts), dict(other._at)

    def __call__(self, write: Write, old: Tensor, positions: Tensor, keys: Tensor | None) -> Tensor:
        """The new values: those recorded, and write(...) for positions without a record.

        EditError if a gradient must flow through a function that now returns something else.
        """
        listed = positions.tolist()
        known = torch.tensor([pos in self._at for pos in listed], device=old.device)
        if not bool(known.any()):
            return self._write(write(old, None), listed, keys, old.dtype)
        if not bool(known.all()):
            unknown = [pos for pos in listed if pos not in self._at]
            some = old.movedim(self.axis, 0)[~known].movedim(0, self.axis)
            self._write(write(some, ~known), unknown, keys, old.dtype)
        recorded = self._read(old, listed, keys)
        if torch.is_grad_enabled() and old.requires_grad:
            return _require_same(write(old, None), recorded)
        return recorded

    def _write(self, new: Tensor, positions: Sequence[int], keys: Tensor | None, dtype: torch.dtype) -> Tensor:
        # A copy, since the function may later write to what it returned.
        values = new.detach().to(dtype, copy=True).movedim(self.axis, 0)
        self._at |= {pos: (len(self._parts), row) for row, pos in enumerate(positions)}
        self._parts.append((list(positions), values, keys))
        return new

    def _read(self, old: Tensor, positions: Sequence[int], keys: Tensor | None) -> Tensor:
        for part_positions, values, at in self._parts:  # nearly always one part has them all
            if part_positions == positions and (at is None or keys is None or torch.equal(keys, at)):
                return values.movedim(0, self.axis)
        new = old.detach().clone()
        rows = new.movedim(self.axis, 0)
        for row, pos in enumerate(positions):
            part, part_row = self._at[pos]
            _, values, at = self._parts[part]
            if at is None or keys is None:
                rows[row] = values[part_row]
            else:
                rows[row][:, torch.isin(keys, at)] = values[part_row][:, torch.isin(at, keys)]
        return new


def _require_same(again: Tensor, first: Tensor) -> Tensor:
    """A second result, through which a gradient can flow. EditError unless it equals the first up to rounding."""
    off = (again.detach().float() - first.float()).abs().nan_to_num(0.0)  # NaN in both counts as equal
    allowed = _ROUNDING * torch.finfo(first.dtype).eps * float(first.float().abs().nan_to_num(0.0).max().clamp(min=1e-30))
    if float(off.max()) > allowed:
        raise EditError(
            "a gradient goes through the function of gs.edit by calling it again, and it returned something else than in "
            f"the run (off by {float(off.max()):.3g}): draw random numbers before it, and let it read nothing that changes; "
            "or patch what it wrote (gs.patch) and ask for the gradient of that run"
        )
    return again

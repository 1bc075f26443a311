"""What the training runs share: the schedule of the learning rate, and a state that is saved whole or not at all."""

from __future__ import annotations

from pathlib import Path

import torch


def schedule(step: int, steps: int, warm_up: int, decay: float) -> float:
    """The learning rate's share of its peak: a linear warm-up, a plateau, and a linear decay to zero.

    warm_up: in steps. decay: as a share of all steps, at the end.
    """
    return min(1.0, (step + 1) / warm_up, (steps - step) / (decay * steps))


def save_whole(state: object, path: Path) -> None:
    """Save with torch.save. An interrupt while writing leaves what was there before."""
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)

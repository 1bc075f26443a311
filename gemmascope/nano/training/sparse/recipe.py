"""Recipe: what a training run of a dictionary does, as numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run of a dictionary at one layer.

    site: that it reconstructs, or "transcoder". features: how many it has. active: how many of them are active at a position
    on average. rows: how many positions of the corpus are collected. batch: how many of them a step takes.
    """

    seed: int
    site: str
    layer: int
    features: int
    active: int
    rows: int
    batch: int
    steps: int
    rate: float = 1.5e-3
    warm_up: int = 100
    decay: float = 0.25
    # At first `wide` times as many features may be active, falling to `active` over this share of the steps: fewer die.
    wide: float = 4.0
    wide_share: float = 0.2
    # Features inactive for dead_after steps learn to reconstruct what the others leave, `revived` of them for each row, in
    # the first revived_rows rows of a batch.
    dead_after: int = 100
    revived: int = 32
    revived_rows: int = 2048
    revived_weight: float = 1 / 32
    # The threshold is the running mean of the cut, which is found in the first threshold_rows rows of a batch.
    threshold_rows: int = 512
    threshold_memory: float = 0.99
    save_every: int = 250
    # Features start as examples, the input of a position as the encoder's row, which gets this length, and its output as the
    # decoder's. None starts from random decoder rows, which are the encoder's as well.
    from_examples: float | None = None

    @property
    def corpus(self) -> str:
        """The seed of the texts."""
        return f"dictionary {self.seed}"

"""What a trained dictionary does on held-out rows: how sparse it is, what it explains, and which features never act."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gemmascope.legible import prints_legibly
from gemmascope.sae.dictionary import Dictionary
from gemmascope.sae.loss import LossRecovered
from gemmascope.training.rows import Rows


@dataclass(frozen=True)
class DictionaryMeasures:
    """A dictionary on rows that it was not trained on. Made by gs.train_sae.

    Attributes:
        l0: Active features at a position, on average.
        explained: The share of variance explained: 1 - the squared error over the squared distance from the mean. NaN where
            the rows are all alike, such as one row.
        density: In which share of the rows each feature is active, [feature].
        n_rows: How many rows these are of.
        loss: How much of the model's next-token loss is kept; None if it was not measured.

    Examples:
        >>> import torch
        >>> rows = torch.randn(400, 16)
        >>> trained = gs.train_sae(
        ...     rows, "resid_post", 0, out="sae", features=32, l0=4, architecture="topk", steps=20, batch_size=64
        ... )
        >>> trained.measures.l0, trained.measures.density.shape, trained.measures.n_rows
        (4.0, torch.Size([32]), 20)
    """

    l0: float
    explained: float
    density: torch.Tensor
    n_rows: int
    loss: LossRecovered | None = None

    @property
    def n_dead(self) -> int:
        """How many features are active at none of the rows."""
        return int((self.density == 0).sum())

    @prints_legibly
    def __repr__(self) -> str:
        loss = "" if self.loss is None else f"; {self.loss!r}"
        return (
            f"L0 {self.l0:.1f}, {self.explained:.1%} of variance explained, {self.n_dead:,} of {len(self.density):,} "
            f"features dead, on {self.n_rows:,} rows held out{loss}"
        )


def measured(dictionary: Dictionary, rows: Rows, loss: LossRecovered | None) -> DictionaryMeasures:
    """The measures on held-out rows, in float64.

    Args:
        dictionary: The dictionary.
        rows: What it was trained on.
        loss: Of the model, which is measured elsewhere.
    """
    device = dictionary.device
    count = torch.zeros(dictionary.n_features, dtype=torch.int64)
    n_rows, error = 0, 0.0
    total = torch.zeros(dictionary.d_out, dtype=torch.float64)
    squares = 0.0
    for x, target in rows.held_out():
        read = x.to(device)
        pos, feature, value = dictionary.sparse(read)
        written = dictionary.summed(pos, feature, value, len(x), read).cpu()
        error += float((target - written).double().square().sum())
        total += target.double().sum(0)
        squares += float(target.double().square().sum())
        count += torch.bincount(feature.cpu(), minlength=dictionary.n_features)
        n_rows += len(x)
    variance = squares - float(total.square().sum()) / n_rows
    explained = 1 - error / variance if variance > 0 else float("nan")
    return DictionaryMeasures(float(count.sum()) / n_rows, explained, count / n_rows, n_rows, loss)

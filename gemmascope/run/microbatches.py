"""Bins: many whole runs carried through the layers, of which a layer takes a bin of rows at a time.

Each layer is asked for once, however many runs there are, and what it makes inside is never held for more than a bin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gemmascope.edits.bound import BoundEdit
from gemmascope.memory.placement import MICROBATCH_ROWS
from gemmascope.model.gemma2 import Layer
from gemmascope.model.layout import Layout
from gemmascope.model.model import Model
from gemmascope.model.tap import SILENT, Tap
from gemmascope.run.passes import EditTap


@dataclass
class Microbatch:
    """Some runs of a pass, by their numbers, and their rows as they are now."""

    runs: tuple[int, ...]
    layout: Layout
    rows: Tensor
    tap: Tap = SILENT

    def through(self, layer: Layer) -> None:
        """Carry the rows through a layer."""
        self.rows = layer(self.rows, self.layout, self.tap.at(layer.index, self.layout))

    def each(self) -> Iterator[tuple[int, Tensor]]:
        """Every run's number and rows, [pos, d_model]."""
        for run, span in zip(self.runs, self.layout.spans, strict=True):
            yield run, self.rows[span]


def embed_in_microbatches(model: Model, prompts: Sequence[Tensor]) -> list[Microbatch]:
    """The runs of these prompts (token ids) at the entry of the first layer."""
    lengths = [len(ids) for ids in prompts]
    with torch.no_grad():
        rows = model.network.embed(torch.cat(list(prompts)), Layout.of_lengths(lengths, model.device))
    return in_microbatches(model, torch.split(rows, lengths))


def in_microbatches(model: Model, rows: Sequence[Tensor], edits: Sequence[Sequence[BoundEdit]] = ()) -> list[Microbatch]:
    """Runs in bins, those of a length side by side. rows: every run's, [pos, d_model]. edits: of every run, or none."""
    bins = []
    for runs in _shared_out([len(x) for x in rows]):
        layout = Layout.of_lengths([len(rows[run]) for run in runs], model.device)
        tap = EditTap([edits[run] for run in runs]) if edits else SILENT
        bins.append(Microbatch(runs, layout, torch.cat([rows[run] for run in runs]), tap))
    return bins


def _shared_out(lengths: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The numbers of runs, shortest first, in tuples of at most MICROBATCH_ROWS rows, and of one run at least."""
    found: list[int] = []
    n_rows = 0
    for run in sorted(range(len(lengths)), key=lengths.__getitem__):
        if found and n_rows + lengths[run] > MICROBATCH_ROWS:
            yield tuple(found)
            found, n_rows = [], 0
        found.append(run)
        n_rows += lengths[run]
    if found:
        yield tuple(found)

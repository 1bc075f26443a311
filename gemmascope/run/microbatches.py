"""Microbatches: a pass of many runs, of which each layer processes one microbatch of rows at a time.

The weights are streamed once, however many runs there are, and a layer's activations exist for one microbatch only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gemmascope.edits.edit import BoundEdit
from gemmascope.edits.of_run import all_edits
from gemmascope.memory.placement import MICROBATCH_ROWS
from gemmascope.model.gemma2 import Layer
from gemmascope.model.layout import Layout
from gemmascope.model.model import Model
from gemmascope.model.tap import SILENT, Tap
from gemmascope.run.taps import EditTap


@dataclass
class Microbatch:
    """Some runs of a pass, by their indices, with their rows at the current layer."""

    runs: tuple[int, ...]
    layout: Layout
    rows: Tensor
    tap: Tap = SILENT

    def through(self, layer: Layer) -> None:
        """Carry the rows through a layer."""
        self.rows = layer(self.rows, self.layout, self.tap.at(layer.index, self.layout))

    def each(self) -> Iterator[tuple[int, Tensor]]:
        """The index and the rows [pos, d_model] of every run."""
        for run, span in zip(self.runs, self.layout.spans, strict=True):
            yield run, self.rows[span]


def embed_in_microbatches(model: Model, prompts: Sequence[Tensor]) -> list[Microbatch]:
    """The runs of these prompts (token ids) at the entry of the first layer, with the edits that the model keeps."""
    lengths = [len(ids) for ids in prompts]
    edits = [[edit.bind(model, ids) for edit in all_edits(model)] for ids in prompts] if model.edits else ()
    tap = EditTap(edits) if edits else SILENT
    with torch.no_grad():
        rows = model.network.embed(torch.cat(list(prompts)), Layout.of_lengths(lengths, model.device), tap)
    return in_microbatches(model, torch.split(rows, lengths), edits)


def in_microbatches(model: Model, rows: Sequence[Tensor], edits: Sequence[Sequence[BoundEdit]] = ()) -> list[Microbatch]:
    """Runs in microbatches, equal lengths adjacent. rows: of each run, [pos, d_model]. edits: of each run, or none."""
    batches = []
    for runs in _batches([len(x) for x in rows]):
        layout = Layout.of_lengths([len(rows[run]) for run in runs], model.device)
        tap = EditTap([edits[run] for run in runs]) if edits else SILENT
        batches.append(Microbatch(runs, layout, torch.cat([rows[run] for run in runs]), tap))
    return batches


def _batches(lengths: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The indices of runs, shortest first, in batches of at most MICROBATCH_ROWS rows, or of one longer run."""
    batch: list[int] = []
    n_rows = 0
    for run in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and n_rows + lengths[run] > MICROBATCH_ROWS:
            yield tuple(batch)
            batch, n_rows = [], 0
        batch.append(run)
        n_rows += lengths[run]
    if batch:
        yield tuple(batch)

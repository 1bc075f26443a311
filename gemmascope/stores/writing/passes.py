"""One pass of some runs through the layers, and the rows of the sites that are asked for: the core of a harvest.

It knows nothing of files, so that any process can run it and hand the rows on.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

import torch
from torch import Tensor

from gemmascope.edits.of_run import all_edits
from gemmascope.errors import CheckpointError
from gemmascope.memory.limits import explain_oom
from gemmascope.model.finite import is_finite
from gemmascope.model.layout import Layout
from gemmascope.model.model import Model
from gemmascope.model.tap import Chain
from gemmascope.run.microbatches import Microbatch
from gemmascope.run.passes import streams
from gemmascope.run.taps import EditTap, SitesTap
from gemmascope.sites import SiteKey
from gemmascope.stores.spec import ArraySpec


class SiteRows(NamedTuple):
    """The values of one array at all positions of some runs, one run after the other.

    runs: the numbers of the runs in the pass. values: [row, *shape], in the dtype and on the device of their layer.
    n_layers: how many layers the pass went through for it, of all that it needs: for a progress bar.
    """

    array: ArraySpec
    runs: tuple[int, ...]
    values: Tensor


class Step(NamedTuple):
    """What a pass gives after each layer of each group of runs. share: of the pass, which this step was."""

    rows: list[SiteRows]
    share: float


class _Taken(SitesTap):
    """Takes the values of some sites of one layer of a pass."""

    def __init__(self, sites: Collection[str]) -> None:
        super().__init__(sites)
        self.values = dict[str, Tensor]()

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        if site in self.sites:
            self.values[site] = value
        return value


class Pass:
    """A pass of some runs, up to the last layer that is asked for.

    Args:
        model: The model, with the edits that it keeps.
        ids: The token ids of every run, [pos] each, on the model's device.
        arrays: The arrays whose rows are wanted.
        groups: The numbers of the runs that go through a layer together. A run by itself has the rows of gs.trace(ids), bit
            for bit; products of more rows round otherwise.
    """

    def __init__(
        self, model: Model, ids: Sequence[Tensor], arrays: Sequence[ArraySpec], groups: Sequence[Sequence[int]]
    ) -> None:
        self.model, self.ids, self.groups = model, ids, groups
        self.arrays: dict[SiteKey, ArraySpec] = {array.key: array for array in arrays}
        edits = all_edits(model)
        self.edits = [[edit.bind(model, of_run) for edit in edits] for of_run in ids] if edits else [[] for _ in ids]
        layers = [array.layer for array in arrays if array.layer is not None]
        self.outside = [array.site for array in arrays if array.layer is None and array.site != "embed"]
        self.last = model.n_layers - 1 if self.outside else max(layers, default=-1)
        self.n_steps = len(groups) * (self.last + 2)

    def steps(self) -> Generator[Step]:
        """Run the pass. Each step gives the rows of the arrays that one group has at one layer, or outside the layers.

        Raises:
            EditError, CheckpointError: A run holds NaN or infinity. BudgetError: The device ran out of memory.
        """
        batches = []
        for group in self.groups:
            batch, rows = self._embed(tuple(group))
            batches.append(batch)
            yield Step(rows, 1 / self.n_steps)
        if self.last >= 0:
            with closing(self.model.layers()) as layers:
                for layer in layers:
                    for batch in batches:
                        tap = _Taken([site for site, at in self.arrays if at == layer.index])
                        edits, batch.tap = batch.tap, Chain(batch.tap, tap) if tap.sites else batch.tap
                        with torch.no_grad(), explain_oom(self.model):
                            batch.through(layer)
                        batch.tap = edits
                        yield Step(self._rows(tap, layer.index, batch.runs), 1 / self.n_steps)
                    if layer.index == self.last:
                        break
        for batch in batches:
            self._require_finite(batch)
        if self.outside:
            for batch in batches:
                for run, rows_of_run in batch.each():
                    yield Step(self._unembed(run, rows_of_run), 0.0)

    def _embed(self, runs: tuple[int, ...]) -> tuple[Microbatch, list[SiteRows]]:
        layout = Layout.of_lengths([len(self.ids[run]) for run in runs], self.model.device)
        taken = _Taken(["embed"] if ("embed", None) in self.arrays else [])
        edits = EditTap([self.edits[run] for run in runs])
        with torch.no_grad(), explain_oom(self.model):
            together = self.ids[runs[0]] if len(runs) == 1 else torch.cat([self.ids[run] for run in runs])
            rows = self.model.network.embed(together, layout, Chain(edits, taken))
        return Microbatch(runs, layout, rows, edits), self._rows(taken, None, runs)

    def _unembed(self, run: int, rows: Tensor) -> list[SiteRows]:
        """What follows the layers, of one run: logits of many rows would take much memory."""
        taken = _Taken(self.outside)
        layout = Layout.of_lengths([len(rows)], self.model.device)
        with torch.no_grad(), explain_oom(self.model):
            tap = Chain(EditTap([self.edits[run]]), taken)
            self.model.network.unembed(rows, tap.at(None, layout))
        return self._rows(taken, None, (run,))

    def _rows(self, taken: _Taken, layer: int | None, runs: tuple[int, ...]) -> list[SiteRows]:
        return [SiteRows(self.arrays[site, layer], runs, value) for site, value in taken.values.items()]

    def _require_finite(self, batch: Microbatch) -> None:
        """The error of gs.trace for a run that holds NaN or infinity."""
        if is_finite(batch.rows):
            return
        for run, rows in batch.each():
            if not is_finite(rows):
                streams(self.model, [self.ids[run]], [self.edits[run]])
                raise CheckpointError(
                    f"run {run} of a pass of {self.model.name!r} holds NaN or infinity, and alone it does not"
                )


def groups_of(lengths: Sequence[int], exact: bool, rows_at_once: int) -> list[tuple[int, ...]]:
    """The runs that go through a layer together: each by itself, or rows_at_once rows of runs of about one length."""
    if exact:
        return [(run,) for run in range(len(lengths))]
    groups: list[tuple[int, ...]] = []
    group: list[int] = []
    n_rows = 0
    for run in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and n_rows + lengths[run] > rows_at_once:
            groups.append(tuple(group))
            group, n_rows = [], 0
        group.append(run)
        n_rows += lengths[run]
    return [*groups, tuple(group)] if group else groups


def passes_of(groups: Sequence[tuple[int, ...]], lengths: Sequence[int], max_rows: int) -> Iterator[list[tuple[int, ...]]]:
    """Groups in passes of at most max_rows rows, or of one larger group. The groups do not depend on it."""
    together: list[tuple[int, ...]] = []
    n_rows = 0
    for group in groups:
        rows = sum(lengths[run] for run in group)
        if together and n_rows + rows > max_rows:
            yield together
            together, n_rows = [], 0
        together.append(group)
        n_rows += rows
    if together:
        yield together

"""Variants: runs that are a few edits away from a base run, carried through the layers beside it in one pass.

A variant equals its base below the first layer, and left of the first position, that it edits. So it joins the pass at that
layer with the rows from that position on, and reads its base's keys for the positions before. The runs that variants are
patched from go through the layers in the same pass, so that every layer is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gemmascope.edits.edit import BoundEdit
from gemmascope.edits.target import DeferredValues
from gemmascope.memory.limits import explain_oom, microbatch_rows
from gemmascope.model.gemma2 import Layer
from gemmascope.model.layout import Layout, PrefixKV, RunRows
from gemmascope.model.maths import index_tensor, ranges
from gemmascope.model.model import Model
from gemmascope.model.tap import SILENT, Chain
from gemmascope.run.taps import EditTap, KeysTap, Recorder
from gemmascope.values import Array, moved


@dataclass(frozen=True)
class BaseRun:
    """A base run: its token ids, its edits, and the positions whose logits are read, in order."""

    ids: Tensor
    edits: tuple[BoundEdit, ...]
    positions: tuple[int, ...]


@dataclass(frozen=True)
class SourceRun:
    """A run to patch from: its token ids, for every site that is read what takes each layer's value of it, the positions
    whose logits are read, and the edits it has.
    """

    ids: Tensor
    values: dict[str, DeferredValues]
    positions: tuple[int, ...]
    edits: tuple[BoundEdit, ...] = ()


@dataclass(frozen=True)
class Variant:
    """A base run (its number) with more edits, of sites in the layers or of the embedding."""

    base: int
    edits: tuple[BoundEdit, ...]


@dataclass(frozen=True)
class FinalResiduals:
    """The stream after the last layer at the positions that are read: of every base and source, [pos, d_model].

    These rows come before the last norm, unlike the site `final`, which comes after it. rows: those of all variants, of
    which variant i has the n_read[i] from first[i] on.
    """

    bases: Sequence[Tensor]
    sources: Sequence[Tensor]
    rows: Tensor
    first: Array
    n_read: Array

    def of(self, variants: Sequence[int]) -> Tensor:
        """The rows of some variants of one base, [variant, pos, d_model]."""
        numbers = np.asarray(variants, dtype=np.int64)
        at = ranges(self.first[numbers], self.n_read[numbers])
        n_pos = int(self.n_read[numbers[0]]) if len(numbers) else 1
        rows = self.rows[index_tensor(at, self.rows.device)]
        return rows.reshape(len(numbers), n_pos, rows.shape[-1])


def final_residuals(
    model: Model,
    bases: Sequence[BaseRun],
    variants: Sequence[Variant],
    sources: Sequence[SourceRun] = (),
    n_at_once: int | None = None,
) -> FinalResiduals:
    """Run all of them in one pass. The layers are the outer loop: each is read once.

    n_at_once: how many rows go through a layer at once; None: as many as suit the model's device.
    """
    with torch.no_grad(), explain_oom(model):
        return _Pass(model, bases, variants, sources, n_at_once or microbatch_rows(model)).run()


class _Joiner:
    """A variant in a pass.

    layer: the first layer at whose entry, or within which, it differs from its base. start: the first position at which it
    may differ. confined: the positions (first, stop) that it changes within that layer; None if it may change all.
    """

    __slots__ = ("base", "base_run", "confined", "edits", "index", "layer", "own_edits", "start")

    def __init__(self, index: int, variant: Variant, bases: Sequence[BaseRun]) -> None:
        self.index, self.base, self.base_run = index, variant.base, bases[variant.base]
        self.own_edits, self.edits = variant.edits, (*self.base_run.edits, *variant.edits)
        changing = [edit for edit in variant.edits if edit.reach[0] < edit.reach[1]]
        self.layer = min((edit.address.layer or 0 for edit in changing), default=0)
        # All rows that a user's function in the base names must be there, and so must the keys ahead of a query whose
        # pattern was written.
        wide = [e for e in self.base_run.edits if e.edit.needs_all or (e.address.site.is_edges and e.spreads)]
        no_effect = len(self.base_run.ids)
        self.start = min((edit.reach[0] for edit in (*changing, *wide)), default=no_effect) if changing else no_effect
        in_first = [edit for edit in changing if (edit.address.layer or 0) == self.layer]
        spreads = wide or any(edit.spreads for edit in in_first)
        self.confined = None
        if in_first and not spreads:
            self.confined = (min(e.reach[0] for e in in_first), max(e.reach[1] for e in in_first))

    def edits_at(self, layer: int | None) -> list[BoundEdit]:
        return [edit for edit in self.edits if edit.address.layer == layer]


class _Pass:
    """The state of one pass.

    The bases and sources go through all layers, in `full_layout`. The rows of the variants that have joined are in `buffer`,
    in which every variant has its rows from the start, beside those of its base that begin where it begins. Variants are
    numbered in that order, and what is known of each is an array, so that a layer takes no step for every variant.
    """

    def __init__(
        self,
        model: Model,
        bases: Sequence[BaseRun],
        variants: Sequence[Variant],
        sources: Sequence[SourceRun],
        n_at_once: int,
    ) -> None:
        self.n_at_once = n_at_once
        self.model, self.bases, self.sources, self.last = model, bases, sources, model.n_layers - 1
        joiners = [_Joiner(i, variant, bases) for i, variant in enumerate(variants)]
        # An edit right of the positions that are read, or of what its base already has, has no effect.
        with_effect = [j for j in joiners if j.start <= j.base_run.positions[-1]]
        self.joiners = sorted(with_effect, key=lambda j: (j.base, j.start))
        self.full_ids = [base.ids for base in bases] + [source.ids for source in sources]
        self.full_layout = Layout.of_lengths([len(ids) for ids in self.full_ids], model.device)
        self.full_first = np.array([span.start for span in self.full_layout.spans])
        self.base_edits = EditTap([*(base.edits for base in bases), *(source.edits for source in sources)])
        # On a CPU the first bfloat16 product of a row count costs milliseconds: padding makes the row counts alike.
        self.row_multiple = 64 if model.dtype == torch.bfloat16 and model.device.type == "cpu" else 1
        numbers = np.array([(j.layer, j.index) for j in self.joiners], dtype=np.int64)
        self.layer, self.index = numbers.reshape(-1, 2).T
        self.is_edited_last = np.array([bool(j.edits_at(self.last)) for j in self.joiners], dtype=bool)
        self.base_of = np.array([variant.base for variant in variants], dtype=np.int64)
        self.positions = [np.array(base.positions, dtype=np.int64) for base in bases]
        self.n_read = np.array([len(read) for read in self.positions], dtype=np.int64)[self.base_of]
        self.first_read = np.cumsum(self.n_read) - self.n_read
        self.is_confined = np.array([j.confined is not None for j in self.joiners], dtype=bool)
        self.all_rows = self._rows(lambda j: (j.start, len(j.base_run.ids)))
        self.changed_rows = self._rows(lambda j: j.confined or (j.start, len(j.base_run.ids)))
        self.at = np.cumsum(self.all_rows.n_rows) - self.all_rows.n_rows
        self.device = model.device  # of the layer that the pass is at
        self.buffer = self._empty(int(self.all_rows.n_rows.sum()), model.device)
        self.final = self._empty(int(self.n_read.sum()), model.network.device_of(self.last))

    def run(self) -> FinalResiduals:
        x = self.model.network.embed(torch.cat(self.full_ids), self.full_layout, self.base_edits)
        with closing(self.model.layers()) as layers:
            for layer in layers:
                x = self._run_layer(layer, x)
        read = [*(base.positions for base in self.bases), *(source.positions for source in self.sources)]
        ends = [x[self._indices(first + np.array(at))] for first, at in zip(self.full_first, read, strict=True)]
        rows, final = [moved(end, self.model.device) for end in ends], moved(self.final, self.model.device)
        n_bases = len(self.bases)
        return FinalResiduals(rows[:n_bases], rows[n_bases:], final, self.first_read, self.n_read)

    def _run_layer(self, layer: Layer, x: Tensor) -> Tensor:
        """Carry all runs through a layer. x: the rows of bases and sources at its entry; returned: those at its exit."""
        self.device = layer.device
        x, self.buffer = moved(x, self.device), moved(self.buffer, self.device)
        y, prefixes = self._run_full(layer, x)
        if layer.index == self.last and len(self.base_of):  # where a variant has no rows of its own, it has its base's
            at = np.concatenate([self.full_first[base] + self.positions[base] for base in self.base_of])
            self.final[:] = y[self._indices(at)]
        joining = self.layer == layer.index
        self._enter(np.flatnonzero(joining & ~self.is_confined), x)
        joined = (self.layer < layer.index) | (joining & ~self.is_confined)
        # Runs of which the last layer computes only the rows that are read are apart from those that it edits.
        reduced = joined & ~self.is_edited_last & (layer.index == self.last)
        for group in (reduced, joined & ~reduced):
            for batch in self._microbatches(np.flatnonzero(group), self.all_rows):
                self._run_joined(layer, batch, prefixes)
        for batch in self._microbatches(np.flatnonzero(joining & self.is_confined), self.changed_rows):
            self._run_confined(layer, batch, x, y, prefixes)
        return y

    def _rows(self, positions: Callable[[_Joiner], tuple[int, int]]) -> RunRows:
        """Rows of every variant. positions: the first, and the one after the last."""
        table = np.array([(j.base, *positions(j)) for j in self.joiners], dtype=np.int64).reshape(-1, 3)
        base, start, stop = table.T
        return RunRows(base, start, stop, stop - start)

    def _indices(self, numbers: Array | list[int]) -> Tensor:
        return index_tensor(np.asarray(numbers, dtype=np.int64), self.device)

    def _empty(self, n_rows: int, device: torch.device) -> Tensor:
        return torch.empty(n_rows, self.model.config.d_model, dtype=self.model.dtype, device=device)

    def _run_full(self, layer: Layer, x: Tensor) -> tuple[Tensor, list[PrefixKV]]:
        """The rows of bases and sources after a layer, and each base's keys and values. Sets the sources' values."""
        sites = {site for source in self.sources for site in source.values}
        keys, recorder = KeysTap(), Recorder(sites, len(self.full_layout.spans))
        y = layer(x, self.full_layout, Chain(self.base_edits, keys, recorder).at(layer.index, self.full_layout))
        for source, recorded in zip(self.sources, recorder.values[len(self.bases) :], strict=True):
            for site, values in source.values.items():
                values.set(layer.index, recorded[site, layer.index])
        return y, keys.prefixes(self.full_layout.spans[: len(self.bases)])

    def _enter(self, variants: Array, x: Tensor) -> None:
        """Put the rows with which variants enter their first layer: their bases', with their own edits of the embedding."""
        if not len(variants):
            return
        rows = self.all_rows.of(variants)
        self.buffer[self._place(variants)] = x[self._indices(self._full_rows(rows))]
        for number in variants.tolist() if self.layer[variants[0]] == 0 else ():
            joiner = self.joiners[number]
            for edit in joiner.own_edits:
                if edit.address.layer is None:
                    edit.write_to(self.buffer[self._place(np.array([number]))], joiner.start)

    def _full_rows(self, rows: RunRows) -> Array:
        """Where these rows of their bases are in the full layout."""
        return ranges(self.full_first[rows.base] + rows.start, rows.n_rows)

    def _place(self, variants: Array) -> slice | Tensor:
        """Where all rows of these variants, which are in order, are in the buffer."""
        starts, n_rows = self.at[variants], self.all_rows.n_rows[variants]
        if (starts[1:] == starts[:-1] + n_rows[:-1]).all():
            return slice(int(starts[0]), int(starts[-1] + n_rows[-1]))
        return self._indices(ranges(starts, n_rows))

    def _run_joined(self, layer: Layer, variants: Array, prefixes: list[PrefixKV]) -> None:
        """Carry variants that have joined through a layer. The last layer puts their rows into the result."""
        is_edited = any(self.joiners[number].edits_at(layer.index) for number in variants.tolist())
        rows = self.all_rows.of(variants)
        if layer.index == self.last and not is_edited:
            first_read = np.array([self.positions[base][0] for base in rows.base], dtype=np.int64)
            rows = replace(rows, n_queries=rows.stop - np.maximum(first_read, rows.start))
        place = self._place(variants)
        y = self._run_rows(layer, variants if is_edited else None, rows, self.buffer[place], prefixes)
        if layer.index == self.last:
            self._put_into_result(variants, rows, y)
        else:
            self.buffer[place] = y

    def _run_confined(self, layer: Layer, variants: Array, x: Tensor, y: Tensor, prefixes: list[PrefixKV]) -> None:
        """Carry variants through the layer that they join. Only the rows that they edit are run; others are the base's."""
        rows = self.changed_rows.of(variants)
        new = self._run_rows(layer, variants, rows, x[self._indices(self._full_rows(rows))], prefixes)
        if layer.index < self.last:
            self.buffer[self._place(variants)] = y[self._indices(self._full_rows(self.all_rows.of(variants)))]
            changed = ranges(self.at[variants] + rows.start - self.all_rows.start[variants], rows.n_rows)
            self.buffer[self._indices(changed)] = new
            return
        self._put_into_result(variants, rows, new)

    def _put_into_result(self, variants: Array, rows: RunRows, y: Tensor) -> None:
        """Put the rows that are read into the result. y: the last n_queries of each variant's rows, after the last layer."""
        read = [self.positions[base] for base in rows.base]
        n_read = np.array([len(at) for at in read])
        owner, pos = np.repeat(np.arange(len(variants)), n_read), np.concatenate(read)
        first_query, first_row = rows.stop - rows.n_queries, np.cumsum(rows.n_queries) - rows.n_queries
        present = np.flatnonzero((first_query[owner] <= pos) & (pos < rows.stop[owner]))
        into = ranges(self.first_read[self.index[variants]], n_read)[present]
        self.final[self._indices(into)] = y[self._indices(((first_row - first_query)[owner] + pos)[present])]

    def _run_rows(self, layer: Layer, edited: Array | None, rows: RunRows, x: Tensor, prefixes: list[PrefixKV]) -> Tensor:
        """These rows after a layer. edited: the variants whose edits are written; None for none."""
        n_padding = -len(x) % self.row_multiple
        if n_padding:
            x = torch.cat((x, x.new_zeros(n_padding, x.shape[1])))
        layout, bases = rows.with_padding(n_padding).layout(self.device)
        layout = layout.with_prefixes([prefixes[base] for base in bases])
        edits = [] if edited is None else [self.joiners[number].edits_at(layer.index) for number in edited.tolist()]
        tap = EditTap(edits) if edits else SILENT
        return layer(x, layout, tap.at(layer.index, layout))[: int(rows.n_queries.sum())]  # type: ignore[no-any-return]

    def _microbatches(self, variants: Array, rows: RunRows) -> Iterator[Array]:
        """Variants in as few batches of about n_at_once rows as possible, of about one size."""
        if not len(variants):
            return
        stops = np.cumsum(rows.n_rows[variants])
        n_batches = max(1, -(-int(stops[-1]) // self.n_at_once))
        middles = stops - rows.n_rows[variants] / 2
        batch = np.minimum(middles * n_batches // stops[-1], n_batches - 1)
        yield from np.split(variants, np.flatnonzero(np.diff(batch)) + 1)

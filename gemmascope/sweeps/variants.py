"""Variants: runs that are a few edits away from a base run, carried through the layers beside it in one pass.

A variant equals its base below the first layer, and left of the first position, that it edits. So it joins the pass at that
layer with the rows from that position on, and reads its base's keys for the positions before. The runs that variants are
patched from go through the layers in the same pass, so that every layer is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from gemmascope.edits.edit import BoundEdit
from gemmascope.edits.target import DeferredValues
from gemmascope.memory.limits import explain_oom
from gemmascope.memory.placement import MICROBATCH_ROWS
from gemmascope.model.gemma2 import Layer
from gemmascope.model.layout import Block, Layout, PrefixKV
from gemmascope.model.model import Model
from gemmascope.model.tap import SILENT, Chain
from gemmascope.run.taps import EditTap, Recorder


@dataclass(frozen=True)
class BaseRun:
    """A base run: its token ids, its edits, and the position whose logits are read."""

    ids: Tensor
    edits: tuple[BoundEdit, ...]
    pos: int

    @property
    def n_last(self) -> int:
        """How many rows there are from that position on."""
        return len(self.ids) - self.pos


@dataclass(frozen=True)
class SourceRun:
    """A run to patch from: its token ids, the site that is read, and what takes each layer's value of it."""

    ids: Tensor
    site: str
    values: DeferredValues


@dataclass(frozen=True)
class Variant:
    """A base run (its number) with more edits, of sites in the layers or of the embedding."""

    base: int
    edits: tuple[BoundEdit, ...]


@dataclass(frozen=True)
class FinalResiduals:
    """The stream after the last layer, [run, d_model], at the position that is read; of a source at its last position.

    These rows come before the last norm, unlike the site `final`, which comes after it.
    """

    bases: Tensor
    variants: Tensor
    sources: Tensor


def final_residuals(
    model: Model, bases: Sequence[BaseRun], variants: Sequence[Variant], sources: Sequence[SourceRun] = ()
) -> FinalResiduals:
    """Run all of them in one pass. The layers are the outer loop: each is read once."""
    with torch.no_grad(), explain_oom(model):
        return _Pass(model, bases, variants, sources).run()


class _Rows(NamedTuple):
    """Rows of a run: of which base, and positions start to stop - 1. n_queries: as in Block."""

    base: int
    start: int
    stop: int
    n_queries: int = 0

    @property
    def n_rows(self) -> int:
        return self.stop - self.start


class _Joiner:
    """A variant in a pass.

    layer: the first layer at whose entry, or within which, it differs from its base. start: the first position at which it
    may differ. confined: the positions (first, stop) that it changes within that layer; None if it may change all.
    """

    __slots__ = ("base", "base_run", "confined", "edits", "index", "layer", "own_edits", "start")

    def __init__(self, index: int, variant: Variant, bases: Sequence[BaseRun]) -> None:
        self.index, self.base, self.base_run = index, variant.base, bases[variant.base]
        self.own_edits, self.edits = variant.edits, (*self.base_run.edits, *variant.edits)
        self.layer = min(edit.address.layer or 0 for edit in variant.edits)
        # All rows that a user's function in the base names must be there, and so must the keys ahead of a query whose
        # pattern was written.
        wide = [e for e in self.base_run.edits if e.edit.needs_all or (e.address.site.is_edges and e.spreads)]
        self.start = min(edit.reach[0] for edit in (*variant.edits, *wide))
        in_first = [edit for edit in variant.edits if (edit.address.layer or 0) == self.layer]
        spreads = wide or any(edit.spreads for edit in in_first)
        self.confined = None if spreads else (min(e.reach[0] for e in in_first), max(e.reach[1] for e in in_first))

    def edits_at(self, layer: int | None) -> list[BoundEdit]:
        return [edit for edit in self.edits if edit.address.layer == layer]

    def all_rows(self) -> _Rows:
        return _Rows(self.base, self.start, len(self.base_run.ids))

    def changed_rows(self) -> _Rows:
        assert self.confined is not None
        return _Rows(self.base, *self.confined)


class _Pass:
    """The state of one pass.

    The bases and sources go through all layers, in `full_layout`. The rows of the variants that have joined are in `buffer`,
    in which every variant has its slice from the start, beside those of its base that begin where it begins.
    """

    def __init__(
        self, model: Model, bases: Sequence[BaseRun], variants: Sequence[Variant], sources: Sequence[SourceRun]
    ) -> None:
        self.model, self.bases, self.sources, self.last = model, bases, sources, model.n_layers - 1
        joiners = [_Joiner(i, variant, bases) for i, variant in enumerate(variants)]
        self.joiners = [j for j in joiners if j.start <= j.base_run.pos]
        self.without_effect = [j for j in joiners if j.start > j.base_run.pos]  # edits right of the position that is read
        self.full_ids = [base.ids for base in bases] + [source.ids for source in sources]
        self.full_layout = Layout.of_lengths([len(ids) for ids in self.full_ids], model.device)
        self.base_edits = EditTap([*(base.edits for base in bases), *(() for _ in sources)])
        buffered = [j for j in self.joiners if j.confined is None or j.layer < self.last]
        self.buffered = sorted(buffered, key=_Joiner.all_rows)
        stops = list(accumulate(j.all_rows().n_rows for j in self.buffered))
        self.slices = {j.index: slice(a, b) for j, a, b in zip(self.buffered, [0, *stops], stops, strict=False)}
        self.buffer = self._empty(stops[-1] if stops else 0)
        self.joined: set[int] = set()
        self.layouts: dict[tuple[_Rows, ...], Layout] = {}
        # On a CPU the first bfloat16 product of a row count costs milliseconds: padding makes the row counts alike.
        self.row_multiple = 64 if model.dtype == torch.bfloat16 and model.device.type == "cpu" else 1
        self.final = self._empty(len(variants))

    def run(self) -> FinalResiduals:
        x = self.model.network.embed(torch.cat(self.full_ids), self.full_layout, self.base_edits)
        with closing(self.model.layers()) as layers:
            for layer in layers:
                x = self._run_layer(layer, x)
        n_last = (*(base.n_last for base in self.bases), *(1 for _ in self.sources))
        read = x[[span.stop - n for span, n in zip(self.full_layout.spans, n_last, strict=True)]]
        for joiner in self.without_effect:
            self.final[joiner.index] = read[joiner.base]
        return FinalResiduals(read[: len(self.bases)], self.final, read[len(self.bases) :])

    def _run_layer(self, layer: Layer, x: Tensor) -> Tensor:
        """Carry all runs through a layer. x: the rows of bases and sources at its entry; returned: those at its exit."""
        y, prefixes = self._run_full(layer, x)
        joining = [j for j in self.joiners if j.layer == layer.index]
        self._join((j, self._entering_rows(j, x)) for j in joining if j.confined is None)
        for batch in _microbatches([j for j in self.buffered if j.index in self.joined], _Joiner.all_rows):
            self._run_joined(layer, batch, prefixes)
        changed = self._run_confined(layer, [j for j in joining if j.confined is not None], x, y, prefixes)
        self._join(changed) if layer.index < self.last else self._finish(changed)
        return y

    def _empty(self, n_rows: int) -> Tensor:
        return torch.empty(n_rows, self.model.config.d_model, dtype=self.model.dtype, device=self.model.device)

    def _run_full(self, layer: Layer, x: Tensor) -> tuple[Tensor, list[PrefixKV]]:
        """The rows of bases and sources after a layer, and each base's keys and values. Sets the sources' values."""
        recorder = Recorder(("k_rot", "v", *(source.site for source in self.sources)), len(self.full_layout.spans))
        y = layer(x, self.full_layout, Chain(self.base_edits, recorder).at(layer.index, self.full_layout))
        n_bases = len(self.bases)
        for source, values in zip(self.sources, recorder.values[n_bases:], strict=True):
            source.values.set(layer.index, values[source.site, layer.index])
        of_bases = recorder.values[:n_bases]
        return y, [_prefix(values["k_rot", layer.index], values["v", layer.index]) for values in of_bases]

    def _join(self, rows: Iterable[tuple[_Joiner, Tensor]]) -> None:
        for joiner, x in rows:
            self.buffer[self.slices[joiner.index]] = x
            self.joined.add(joiner.index)

    def _finish(self, rows: Iterable[tuple[_Joiner, Tensor]]) -> None:
        for joiner, x in rows:
            self.final[joiner.index] = x[-joiner.base_run.n_last]

    def _entering_rows(self, joiner: _Joiner, x: Tensor) -> Tensor:
        """The rows with which a variant enters its first layer: its base's, with its own edits of the embedding."""
        rows = x[self.full_layout.spans[joiner.base]][joiner.start :]
        edits = [edit for edit in joiner.own_edits if edit.address.layer is None]
        if edits:
            rows = rows.clone()
            for edit in edits:
                edit.write_to(rows, joiner.start)
        return rows

    def _run_joined(self, layer: Layer, joiners: Sequence[_Joiner], prefixes: list[PrefixKV]) -> None:
        """Carry variants that have joined through a layer. The last layer puts their rows into the result."""
        is_edited = any(joiner.edits_at(layer.index) for joiner in joiners)
        only_last = layer.index == self.last and not is_edited
        parts = [j.all_rows()._replace(n_queries=j.base_run.n_last if only_last else 0) for j in joiners]
        slices = _merged([self.slices[j.index] for j in joiners])
        x = self.buffer[slices[0]] if len(slices) == 1 else torch.cat([self.buffer[rows] for rows in slices])
        y, layout = self._run_rows(layer, joiners if is_edited else (), parts, x, prefixes)
        if layer.index == self.last:
            self._finish((j, y[:stop]) for j, stop in zip(joiners, layout.query_stops, strict=False))
            return
        for rows, part in zip(slices, torch.split(y, [s.stop - s.start for s in slices]), strict=True):
            self.buffer[rows] = part

    def _run_confined(
        self, layer: Layer, joiners: Sequence[_Joiner], x: Tensor, y: Tensor, prefixes: list[PrefixKV]
    ) -> list[tuple[_Joiner, Tensor]]:
        """Variants with their rows at the layer's exit. Only the rows that they edit are run; the others are the base's."""
        done = []
        for batch in _microbatches(joiners, _Joiner.changed_rows):
            parts = [j.changed_rows() for j in batch]
            rows = torch.cat([x[self.full_layout.spans[part.base]][part.start : part.stop] for part in parts])
            new, layout = self._run_rows(layer, batch, parts, rows, prefixes)
            for joiner, part, span in zip(batch, parts, layout.spans, strict=False):
                base = y[self.full_layout.spans[joiner.base]]
                done.append((joiner, torch.cat((base[joiner.start : part.start], new[span], base[part.stop :]))))
        return done

    def _run_rows(
        self, layer: Layer, edited: Sequence[_Joiner], parts: Sequence[_Rows], x: Tensor, prefixes: list[PrefixKV]
    ) -> tuple[Tensor, Layout]:
        """These rows after a layer, and their layout, at whose end there may be padding. edited: whose edits to write."""
        n_padding = -len(x) % self.row_multiple
        if n_padding:
            x, parts = torch.cat((x, x.new_zeros(n_padding, x.shape[1]))), [*parts, _Rows(0, 0, n_padding)]
        key = tuple(parts)
        if key not in self.layouts:
            self.layouts[key] = _layout(parts, self.model.device)
        layout = self.layouts[key]
        layout = layout.with_prefixes([prefixes[parts[block.run].base] for block in layout.blocks])
        tap = EditTap([j.edits_at(layer.index) for j in edited]) if edited else SILENT
        y = layer(x, layout, tap.at(layer.index, layout))
        return y[: sum(part.n_queries or part.n_rows for part in parts[: len(parts) - bool(n_padding)])], layout


def _microbatches(joiners: Sequence[_Joiner], rows_of: Callable[[_Joiner], _Rows]) -> Iterator[list[_Joiner]]:
    """Variants in as few batches of about MICROBATCH_ROWS rows as possible, of about one size; like rows side by side."""
    ordered = sorted(joiners, key=rows_of)
    total = sum(rows_of(joiner).n_rows for joiner in ordered)
    size = total / max(1, -(-total // MICROBATCH_ROWS))
    batch: list[_Joiner] = []
    n_rows = 0
    for joiner in ordered:
        count = rows_of(joiner).n_rows
        if batch and n_rows + count / 2 > size:
            yield batch
            batch, n_rows = [], 0
        batch.append(joiner)
        n_rows += count
    if batch:
        yield batch


def _merged(slices: Sequence[slice]) -> list[slice]:
    """The same slices, with those that follow each other joined."""
    merged = [slices[0]]
    for rows in slices[1:]:
        if rows.start == merged[-1].stop:
            merged[-1] = slice(merged[-1].start, rows.stop)
        else:
            merged.append(rows)
    return merged


def _layout(parts: Sequence[_Rows], device: torch.device) -> Layout:
    blocks: list[Block] = []
    first = run = 0
    for part, equal in groupby(parts):
        n_runs = len(list(equal))
        blocks.append(Block(first, n_runs, part.n_rows, run, part.start, part.n_queries))
        first, run = first + n_runs * part.n_rows, run + n_runs
    return Layout.of_blocks(blocks, device)


def _prefix(k: Tensor, v: Tensor) -> PrefixKV:
    k, v = (rearrange(x, "pos kv_head d_head -> kv_head pos d_head").contiguous() for x in (k, v))
    return PrefixKV(k, v)

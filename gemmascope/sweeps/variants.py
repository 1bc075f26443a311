"""Variants: runs that are a few edits away from a base run, carried through the layers beside it in one pass.

A variant equals its base below the first layer and left of the first position that it edits. So it joins the pass
there, with the rows from that position on, and reads its base's keys for the positions before. The runs that variants
are patched from ride along: every layer is asked for once, whoever needs it.
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

from gemmascope.edits.bound import BoundEdit, DeferredValues
from gemmascope.memory.limits import explain_oom
from gemmascope.memory.placement import MICROBATCH_ROWS
from gemmascope.model.gemma2 import Layer
from gemmascope.model.layout import Block, Layout, PrefixKV
from gemmascope.model.model import Model
from gemmascope.model.tap import SILENT, Chain
from gemmascope.run.passes import EditTap, Recorder


@dataclass(frozen=True)
class BaseRun:
    """A base run: its token ids, its own edits, and the position whose logits are wanted."""

    ids: Tensor
    edits: tuple[BoundEdit, ...]
    pos: int

    @property
    def n_after(self) -> int:
        """How many rows there are from the wanted position on."""
        return len(self.ids) - self.pos


@dataclass(frozen=True)
class SourceRun:
    """A run to patch from: its token ids, the site that is read, and what takes each layer's value of it."""

    ids: Tensor
    site: str
    values: DeferredValues


@dataclass(frozen=True)
class Variant:
    """A run with edits, of sites in the layers or of the embedding, on top of those of its base (a number)."""

    base: int
    edits: tuple[BoundEdit, ...]


@dataclass(frozen=True)
class FinalResiduals:
    """The stream after the last layer, at the wanted position of every run (the last one's of a source): [run, d_model]."""

    bases: Tensor
    variants: Tensor
    sources: Tensor


def final_rows(
    model: Model, bases: Sequence[BaseRun], variants: Sequence[Variant], sources: Sequence[SourceRun] = ()
) -> FinalResiduals:
    """One pass of all these runs. The layers are the outer loop: each is asked for once."""
    with torch.no_grad(), explain_oom(model):
        return _Pass(model, bases, variants, sources).run()


class _Run(NamedTuple):
    """The rows that a member has in a pass: its base's number, and positions start to stop - 1. asked: as in Block."""

    base: int
    start: int
    stop: int
    n_queries: int = 0

    @property
    def n_rows(self) -> int:
        return self.stop - self.start


class _Member:
    """A variant in a pass.

    layer: from whose entry on it may differ from its base. start: the first position at which it may. confined: the
    positions (first, stop) that it changes within that layer, if it changes no others there; else None.
    """

    __slots__ = ("base", "base_run", "confined", "edits", "index", "layer", "own_edits", "start")

    def __init__(self, index: int, variant: Variant, bases: Sequence[BaseRun]) -> None:
        self.index, self.base, self.base_run = index, variant.base, bases[variant.base]
        self.own_edits, self.edits = variant.edits, (*self.base_run.edits, *variant.edits)
        self.layer = min(edit.address.layer or 0 for edit in variant.edits)
        # A user's function in the base must see all the rows that it names, and a query whose pattern was written sees
        # keys ahead of it: such rows all come along.
        wide = [e for e in self.base_run.edits if e.edit.needs_all or (e.address.site.is_edges and e.spreads)]
        self.start = min(edit.reach[0] for edit in (*variant.edits, *wide))
        here = [edit for edit in variant.edits if (edit.address.layer or 0) == self.layer]
        spreads = wide or any(edit.spreads for edit in here)
        self.confined = None if spreads else (min(e.reach[0] for e in here), max(e.reach[1] for e in here))

    def edits_at(self, layer: int | None) -> list[BoundEdit]:
        return [edit for edit in self.edits if edit.address.layer == layer]

    def whole_run(self) -> _Run:
        return _Run(self.base, self.start, len(self.base_run.ids))

    def changed_run(self) -> _Run:
        assert self.confined is not None
        return _Run(self.base, *self.confined)


class _Pass:
    """The state of one pass: the rows of its leads (the bases and sources), and those of the variants joined so far.

    Every variant has its place in `rows` from the start, beside those of its base that begin where it begins.
    """

    def __init__(
        self, model: Model, bases: Sequence[BaseRun], variants: Sequence[Variant], sources: Sequence[SourceRun]
    ) -> None:
        self.model, self.bases, self.sources, self.last = model, bases, sources, model.n_layers - 1
        members = [_Member(i, variant, bases) for i, variant in enumerate(variants)]
        self.members = [m for m in members if m.start <= m.base_run.pos]
        self.untouched = [m for m in members if m.start > m.base_run.pos]  # edits right of what is wanted: no effect
        self.lead_ids = [base.ids for base in bases] + [source.ids for source in sources]
        self.leads = Layout.of_lengths([len(ids) for ids in self.lead_ids], model.device)
        self.editing = EditTap([*(base.edits for base in bases), *(() for _ in sources)])
        to_join = [m for m in self.members if m.confined is None or m.layer < self.last]
        self.planned = sorted(to_join, key=_Member.whole_run)
        stops = list(accumulate(m.whole_run().n_rows for m in self.planned))
        self.place = {m.index: slice(a, b) for m, a, b in zip(self.planned, [0, *stops], stops, strict=False)}
        self.rows = self._empty(stops[-1] if stops else 0)
        self.joined: set[int] = set()
        self.layouts: dict[tuple[_Run, ...], Layout] = {}
        # On a CPU the first bfloat16 product of a row count costs milliseconds: a few spare rows make the counts alike.
        self.row_step = 64 if model.dtype == torch.bfloat16 and model.device.type == "cpu" else 1
        self.final = self._empty(len(variants))

    def run(self) -> FinalResiduals:
        x = self.model.network.embed(torch.cat(self.lead_ids), self.leads, self.editing)
        with closing(self.model.layers()) as layers:
            for layer in layers:
                x = self._through_one(layer, x)
        ends = zip(self.leads.spans, (*(base.n_after for base in self.bases), *(1 for _ in self.sources)), strict=True)
        wanted = x[[span.stop - n_after for span, n_after in ends]]
        for member in self.untouched:
            self.final[member.index] = wanted[member.base]
        return FinalResiduals(wanted[: len(self.bases)], self.final, wanted[len(self.bases) :])

    def _through_one(self, layer: Layer, x: Tensor) -> Tensor:
        """Carry all runs through a layer. x: the leads' rows at its entry; returned: those at its exit."""
        y, earlier = self._lead(layer, x)
        joiners = [m for m in self.members if m.layer == layer.index]
        self._join((m, self._entering(m, x)) for m in joiners if m.confined is None)
        for batch in _batches([m for m in self.planned if m.index in self.joined], _Member.whole_run):
            self._through_layer(layer, batch, earlier)
        changed = self._confined(layer, [m for m in joiners if m.confined is not None], x, y, earlier)
        self._join(changed) if layer.index < self.last else self._finish(changed)
        return y

    def _empty(self, n_rows: int) -> Tensor:
        return torch.empty(n_rows, self.model.config.d_model, dtype=self.model.dtype, device=self.model.device)

    def _lead(self, layer: Layer, x: Tensor) -> tuple[Tensor, list[PrefixKV]]:
        """The leads' rows after a layer, and every base's keys and values in it. Hands the sources' values over."""
        recorder = Recorder(("k_rot", "v", *(source.site for source in self.sources)), len(self.leads.spans))
        y = layer(x, self.leads, Chain(self.editing, recorder).at(layer.index, self.leads))
        n_bases = len(self.bases)
        for source, kept in zip(self.sources, recorder.values[n_bases:], strict=True):
            source.values.set(layer.index, kept[source.site, layer.index])
        return y, [_earlier(kept["k_rot", layer.index], kept["v", layer.index]) for kept in recorder.values[:n_bases]]

    def _join(self, joining: Iterable[tuple[_Member, Tensor]]) -> None:
        for member, x in joining:
            self.rows[self.place[member.index]] = x
            self.joined.add(member.index)

    def _finish(self, rows: Iterable[tuple[_Member, Tensor]]) -> None:
        for member, x in rows:
            self.final[member.index] = x[-member.base_run.n_after]

    def _entering(self, member: _Member, x: Tensor) -> Tensor:
        """The rows with which a variant enters its first layer: its base's, with its own edits of the embedding."""
        rows = x[self.leads.spans[member.base]][member.start :]
        embedded = [e for e in member.own_edits if e.address.layer is None]
        if embedded:
            rows = rows.clone()
            for edit in embedded:
                edit.write_to(rows, member.start)
        return rows

    def _through_layer(self, layer: Layer, members: Sequence[_Member], earlier: list[PrefixKV]) -> None:
        """Carry these members through a layer. The last layer hands their rows to the result."""
        edited = any(member.edits_at(layer.index) for member in members)
        asks_less = layer.index == self.last and not edited
        runs = [m.whole_run()._replace(n_queries=m.base_run.n_after if asks_less else 0) for m in members]
        places = _merged([self.place[m.index] for m in members])
        x = self.rows[places[0]] if len(places) == 1 else torch.cat([self.rows[place] for place in places])
        y, layout = self._through(layer, members if edited else (), runs, x, earlier)
        if layer.index == self.last:
            self._finish((m, y[:stop]) for m, stop in zip(members, layout.query_stops, strict=False))
            return
        for place, part in zip(places, torch.split(y, [p.stop - p.start for p in places]), strict=True):
            self.rows[place] = part

    def _confined(
        self, layer: Layer, members: Sequence[_Member], x: Tensor, y: Tensor, earlier: list[PrefixKV]
    ) -> list[tuple[_Member, Tensor]]:
        """Members with their rows at the layer's exit, where only the rows that they edit are run through the layer."""
        done = []
        for batch in _batches(members, _Member.changed_run):
            runs = [m.changed_run() for m in batch]
            rows = torch.cat([x[self.leads.spans[run.base]][run.start : run.stop] for run in runs])
            new, layout = self._through(layer, batch, runs, rows, earlier)
            for member, run, span in zip(batch, runs, layout.spans, strict=False):
                base = y[self.leads.spans[member.base]]
                done.append((member, torch.cat((base[member.start : run.start], new[span], base[run.stop :]))))
        return done

    def _through(
        self, layer: Layer, edited: Sequence[_Member], runs: Sequence[_Run], x: Tensor, earlier: list[PrefixKV]
    ) -> tuple[Tensor, Layout]:
        """The rows of these runs after a layer, and their layout, in which a spare run may follow them."""
        n_spare = -len(x) % self.row_step
        if n_spare:
            x, runs = torch.cat((x, x.new_zeros(n_spare, x.shape[1]))), [*runs, _Run(0, 0, n_spare)]
        same = tuple(runs)
        if same not in self.layouts:
            self.layouts[same] = _layout(runs, self.model.device)
        layout = self.layouts[same]
        layout = layout.with_prefixes([earlier[runs[block.run].base] for block in layout.blocks])
        tap = EditTap([m.edits_at(layer.index) for m in edited]) if edited else SILENT
        y = layer(x, layout, tap.at(layer.index, layout))
        return y[: sum(run.n_queries or run.n_rows for run in runs[: len(runs) - bool(n_spare)])], layout


def _batches(members: Sequence[_Member], run_of: Callable[[_Member], _Run]) -> Iterator[list[_Member]]:
    """Members sorted so that like runs are neighbours, in as few batches of about MICROBATCH_ROWS rows as possible."""
    ordered = sorted(members, key=run_of)
    total = sum(run_of(member).n_rows for member in ordered)
    share = total / max(1, -(-total // MICROBATCH_ROWS))
    batch: list[_Member] = []
    n_rows = 0
    for member in ordered:
        length = run_of(member).n_rows
        if batch and n_rows + length / 2 > share:
            yield batch
            batch, n_rows = [], 0
        batch.append(member)
        n_rows += length
    if batch:
        yield batch


def _merged(places: Sequence[slice]) -> list[slice]:
    """Slices that follow each other, as one."""
    found = [places[0]]
    for place in places[1:]:
        if place.start == found[-1].stop:
            found[-1] = slice(found[-1].start, place.stop)
        else:
            found.append(place)
    return found


def _layout(runs: Sequence[_Run], device: torch.device) -> Layout:
    blocks: list[Block] = []
    first = at = 0
    for run, same in groupby(runs):
        count, length = len(list(same)), run.stop - run.start
        blocks.append(Block(first, count, length, at, run.start, run.n_queries))
        first, at = first + count * length, at + count
    return Layout.of_blocks(blocks, device)


def _earlier(k: Tensor, v: Tensor) -> PrefixKV:
    k, v = (rearrange(x, "pos kv_head d_head -> kv_head pos d_head").contiguous() for x in (k, v))
    return PrefixKV(k, v)

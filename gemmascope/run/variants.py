"""Variants: runs that are a few edits away from a base run, carried through the layers beside it in one pass.

A variant equals its base below the first layer and left of the first position that it edits. So it joins the pass
there, with the rows from that position on, and reads its base's keys for the positions before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from gemmascope.model.gemma2 import Layer
from gemmascope.model.layout import Block, Earlier, Layout
from gemmascope.model.model import Model
from gemmascope.model.tap import SILENT, Chain
from gemmascope.run.edits import BoundEdit, Custom
from gemmascope.run.passes import Editing, Keeping

# Rows that go through a layer at once, so that what lies between two products stays in the cache. Measured on two cores.
BIN_ROWS = 1024


@dataclass(frozen=True)
class Base:
    """A base run: its token ids, its own edits, and the position whose logits are wanted."""

    ids: Tensor
    edits: tuple[BoundEdit, ...]
    pos: int

    @property
    def n_after(self) -> int:
        """How many rows there are from the wanted position on."""
        return len(self.ids) - self.pos


@dataclass(frozen=True)
class Variant:
    """A run with edits, of sites in the layers or of the embedding, on top of those of its base (a number)."""

    base: int
    edits: tuple[BoundEdit, ...]


def final_rows(model: Model, bases: Sequence[Base], variants: Sequence[Variant]) -> tuple[Tensor, Tensor]:
    """One pass: the stream after the last layer, at the wanted position of every run.

    Returns [base, d_model] and [variant, d_model]. The layers are the outer loop: each is asked for once.
    """
    with torch.no_grad():
        return _Pass(model, bases, variants).run()


class _Run(NamedTuple):
    """The rows that a member has in a pass: its base's number, and positions start to stop - 1. asked: as in Block."""

    base: int
    start: int
    stop: int
    asked: int = 0


class _Member:
    """A variant in a pass.

    layer: from whose entry on it may differ from its base. start: the first position at which it may. confined: the
    positions (first, stop) that it changes within that layer, if it changes no others there; else None.
    """

    __slots__ = ("base", "base_run", "confined", "edits", "index", "layer", "own_edits", "start")

    def __init__(self, index: int, variant: Variant, bases: Sequence[Base]) -> None:
        self.index, self.base, self.base_run = index, variant.base, bases[variant.base]
        self.own_edits, self.edits = variant.edits, (*self.base_run.edits, *variant.edits)
        self.layer = min(edit.address.layer or 0 for edit in variant.edits)
        # A user's function in the base must see all the rows that it names, and a query whose pattern was written sees
        # keys ahead of it: such rows all come along.
        wide = [e for e in self.base_run.edits if isinstance(e.edit, Custom) or (e.address.site.is_edges and e.spreads)]
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


@dataclass
class _Bin:
    """Members that go through the layers together: those that have joined, their rows, and all that are to join."""

    planned: list[_Member]
    members: list[_Member]
    x: Tensor | None = None

    def join(self, joining: Sequence[tuple[_Member, Tensor]]) -> None:
        """Take members in, each in its planned place, so that rows of one base and start lie side by side."""
        place = {member.index: i for i, member in enumerate(self.planned)}
        held = [] if self.x is None else torch.split(self.x, [len(m.base_run.ids) - m.start for m in self.members])
        rows = [*zip(self.members, held, strict=True), *joining]
        rows.sort(key=lambda pair: place[pair[0].index])
        self.members = [member for member, _ in rows]
        self.x = torch.cat([x for _, x in rows])


class _Pass:
    """The state of one pass: the rows of the bases, and the bins of variants that have joined so far."""

    def __init__(self, model: Model, bases: Sequence[Base], variants: Sequence[Variant]) -> None:
        self.model, self.bases, self.last = model, bases, model.n_layers - 1
        members = [_Member(i, variant, bases) for i, variant in enumerate(variants)]
        self.members = [m for m in members if m.start <= m.base_run.pos]
        self.untouched = [m for m in members if m.start > m.base_run.pos]  # edits right of what is wanted: no effect
        self.layout = Layout.of_lengths([len(base.ids) for base in bases], model.device)
        self.editing = Editing([base.edits for base in bases])
        to_join = [m for m in self.members if m.confined is None or m.layer < self.last]
        self.bins = [_Bin(planned, []) for planned in _batches(to_join, _Member.whole_run)]
        self.bin_of = {member.index: bin_ for bin_ in self.bins for member in bin_.planned}
        # On a CPU the first bfloat16 product of a row count costs milliseconds: a few spare rows make the counts alike.
        self.row_step = 64 if model.dtype == torch.bfloat16 and model.device.type == "cpu" else 1
        self.final = torch.empty(len(variants), model.config.d_model, dtype=model.dtype, device=model.device)

    def run(self) -> tuple[Tensor, Tensor]:
        x = self.model.network.embed(torch.cat([base.ids for base in self.bases]), self.layout, self.editing)
        for layer in self.model.layers():
            joiners = [m for m in self.members if m.layer == layer.index]
            self._join([(m, self._entering(m, x)) for m in joiners if m.confined is None])
            keeping = Keeping(("k_rot", "v"), len(self.bases))
            y = layer(x, self.layout, Chain(self.editing, keeping).at(layer.index, self.layout))
            earlier = [_earlier(kept["k_rot", layer.index], kept["v", layer.index]) for kept in keeping.kept]
            for bin_ in self.bins:
                if bin_.x is not None:
                    bin_.x = self._through_layer(layer, bin_.members, bin_.x, earlier)
            changed = self._confined(layer, [m for m in joiners if m.confined is not None], x, y, earlier)
            self._join(changed) if layer.index < self.last else self._finish(changed)
            x = y
        ends = zip(self.layout.spans, self.bases, strict=True)
        wanted = x[[span.stop - base.n_after for span, base in ends]]
        for member in self.untouched:
            self.final[member.index] = wanted[member.base]
        return wanted, self.final

    def _join(self, joining: Sequence[tuple[_Member, Tensor]]) -> None:
        for bin_ in self.bins:
            if found := [pair for pair in joining if self.bin_of[pair[0].index] is bin_]:
                bin_.join(found)

    def _finish(self, rows: Iterable[tuple[_Member, Tensor]]) -> None:
        for member, x in rows:
            self.final[member.index] = x[-member.base_run.n_after]

    def _entering(self, member: _Member, x: Tensor) -> Tensor:
        """The rows with which a variant enters its first layer: its base's, with its own edits of the embedding."""
        rows = x[self.layout.spans[member.base]][member.start :]
        embedded = [e for e in member.own_edits if e.address.layer is None]
        if embedded:
            rows = rows.clone()
            for edit in embedded:
                edit.write_to(rows, member.start)
        return rows

    def _through_layer(self, layer: Layer, members: list[_Member], x: Tensor, earlier: list[Earlier]) -> Tensor:
        """Carry the members of a bin through a layer. The last layer hands their rows to the result."""
        edited = any(member.edits_at(layer.index) for member in members)
        asks_less = layer.index == self.last and not edited
        runs = [_Run(m.base, m.start, len(m.base_run.ids), m.base_run.n_after if asks_less else 0) for m in members]
        y, layout = self._through(layer, members if edited else (), runs, x, earlier)
        if layer.index == self.last:
            self._finish((m, y[:stop]) for m, stop in zip(members, layout.asked_stops, strict=False))
        return y

    def _confined(
        self, layer: Layer, members: Sequence[_Member], x: Tensor, y: Tensor, earlier: list[Earlier]
    ) -> list[tuple[_Member, Tensor]]:
        """Members with their rows at the layer's exit, where only the rows that they edit are run through the layer."""
        done = []
        for batch in _batches(members, _Member.changed_run):
            runs = [m.changed_run() for m in batch]
            rows = torch.cat([x[self.layout.spans[run.base]][run.start : run.stop] for run in runs])
            new, layout = self._through(layer, batch, runs, rows, earlier)
            for member, run, span in zip(batch, runs, layout.spans, strict=False):
                base = y[self.layout.spans[member.base]]
                done.append((member, torch.cat((base[member.start : run.start], new[span], base[run.stop :]))))
        return done

    def _through(
        self, layer: Layer, edited: Sequence[_Member], runs: Sequence[_Run], x: Tensor, earlier: list[Earlier]
    ) -> tuple[Tensor, Layout]:
        """The rows of these runs after a layer, and their layout, in which a spare run may follow them."""
        n_spare = -len(x) % self.row_step
        if n_spare:
            x, runs = torch.cat((x, x.new_zeros(n_spare, x.shape[1]))), [*runs, _Run(0, 0, n_spare)]
        layout = _layout(runs, self.model.device)
        layout = layout.with_earlier([earlier[runs[block.run].base] for block in layout.blocks])
        tap = Editing([m.edits_at(layer.index) for m in edited]) if edited else SILENT
        y = layer(x, layout, tap.at(layer.index, layout))
        return y[: sum(run.asked or run.stop - run.start for run in runs[: len(runs) - bool(n_spare)])], layout


def _batches(members: Iterable[_Member], run_of: Callable[[_Member], _Run]) -> Iterator[list[_Member]]:
    """Members sorted so that like runs are neighbours, in batches of about BIN_ROWS rows."""
    batch: list[_Member] = []
    n_rows = 0
    for member in sorted(members, key=run_of):
        length = run_of(member).stop - run_of(member).start
        if batch and n_rows + length > BIN_ROWS:
            yield batch
            batch, n_rows = [], 0
        batch.append(member)
        n_rows += length
    if batch:
        yield batch


def _layout(runs: Sequence[_Run], device: torch.device) -> Layout:
    blocks: list[Block] = []
    first = at = 0
    for run, same in groupby(runs):
        count, length = len(list(same)), run.stop - run.start
        blocks.append(Block(first, count, length, at, run.start, run.asked))
        first, at = first + count * length, at + count
    return Layout.of_blocks(blocks, device)


def _earlier(k: Tensor, v: Tensor) -> Earlier:
    k, v = (rearrange(x, "pos kv_head d_head -> kv_head pos d_head").contiguous() for x in (k, v))
    return Earlier(k, v)

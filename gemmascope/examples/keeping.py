"""Keeper: what is kept of one group of units while its rows go by."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from gemmascope.errors import ExamplesError
from gemmascope.examples.blocks import Block
from gemmascope.examples.running import Entries, RunningTop, Shown, keys_of, priorities
from gemmascope.examples.settings import ExampleSettings
from gemmascope.examples.statistics import CoActivity, Statistics
from gemmascope.examples.units import HEAD, Active, SaeFeatures, UnitGroup
from gemmascope.legible import legible_line
from gemmascope.values import Array

# Units whose values around new entries are looked up at once, in elements of a block.
_LOOKED_UP = 2**24


class Keeper:
    """The strongest entries of each unit of a group, a random sample of those that are not zero, and statistics.

    Args:
        group: The units.
        settings: What is to be kept.
        count_pairs: Whether to count which features are active together.
    """

    def __init__(self, group: UnitGroup, settings: ExampleSettings, count_pairs: bool) -> None:
        n = len(group.numbers)
        self.group, self.offsets = group, settings.offsets
        self.one_per_text, self.seed = settings.one_per_text, settings.seed
        self.top = RunningTop(n, settings.k, len(self.offsets))
        self.bottom = RunningTop(n, settings.k, len(self.offsets)) if group.signed else None
        self.sample = RunningTop(n, settings.sample, len(self.offsets)) if settings.sample else None
        self.statistics = Statistics(n, group.signed, group.sparse)
        self.pairs = CoActivity(group.numbers, group.width) if count_pairs else None
        self.texts = dict[int, Array]()  # whole texts of a head's examples, to see where it looked

    def add(self, block: Block) -> None:
        """Read the values of a block, and keep what is to be kept of them."""
        if isinstance(self.group, SaeFeatures):
            self._add_active(block, self.group)
        else:
            self._add_all(block)
        if self.group.kind == HEAD:
            self._keep_texts(block)

    def _add_all(self, block: Block) -> None:
        values = self.group.values(block.rows)
        self._require_finite(block, values)
        self.statistics.add(values)
        shown = partial(_shown, block, self.offsets, values)
        places = torch.from_numpy(block.place).to(values.device)[:, None]
        for top, signed in ((self.top, values), (self.bottom, -values)):
            if top is not None:
                top.add(_strongest(top, keys_of(signed, places), block, self.one_per_text), shown)
        if self.sample is not None:
            random = torch.from_numpy(priorities(block.place, self.seed)).to(values.device)[:, None]
            keys = torch.where(values != 0, (random << 32) + (0xFFFFFFFF - places), torch.iinfo(torch.int64).min)
            self.sample.add(_strongest(self.sample, keys, block, False), shown)

    def _require_finite(self, block: Block, values: Tensor) -> None:
        """ExamplesError for values [row, ...] that are NaN or infinite, which have no order and no place in a histogram."""
        finite = torch.isfinite(values)
        if not bool(finite.all()):
            row = int((~finite).flatten(1).any(1).nonzero()[0, 0])
            raise ExamplesError(
                f"{legible_line(self.group.name)}: NaN or infinity at token {block.pos[row]} of text {block.number[row]}. "
                "Leave that text out, or give smaller vectors, or a model in another dtype"
            )

    def _keep_texts(self, block: Block) -> None:
        shown = set(np.unique(self.top.text).tolist())
        self.texts = {number: ids for number, ids in self.texts.items() if number in shown}
        self.texts |= {text.number: text.ids for text in block.texts if text.number in shown}

    def _add_active(self, block: Block, group: SaeFeatures) -> None:
        self._require_finite(block, block.rows)
        found = group.of_all(block.rows)
        if self.pairs is not None:
            self.pairs.add(found.row.cpu().numpy(), found.unit.cpu().numpy())
        active = group.chosen(found)
        self.statistics.add_active(len(block.pos), active.unit, active.value)
        row, unit = active.row.cpu().numpy(), active.unit.cpu().numpy()
        place = block.place[row]
        shown = partial(_shown_active, block, self.offsets, active, len(group.numbers))
        entries = Entries(row, unit, keys_of(active.value.cpu(), torch.from_numpy(place)).numpy())
        self.top.add(_one_per_text(entries, block) if self.one_per_text else entries, shown)
        if self.sample is not None:
            keys = (priorities(place, self.seed) << 32) + (0xFFFFFFFF - place)
            self.sample.add(Entries(row, unit, keys), shown)


def _strongest(top: RunningTop, keys: Tensor, block: Block, one_per_text: bool) -> Entries:
    """Entries of a block that may be among the strongest. keys: [row, unit]."""
    rows = torch.arange(len(keys), device=keys.device)
    least = torch.from_numpy(top.least).to(keys.device)
    units = (keys.amax(0) > least).nonzero()[:, 0]
    keys = keys[:, units]
    if one_per_text:
        ends = np.cumsum([len(text.pos) for text in block.texts]).tolist()
        best = [keys[start:end].max(0) for start, end in zip([0, *ends], ends, strict=False) if end > start]
        firsts = [start for start, end in zip([0, *ends], ends, strict=False) if end > start]
        of_row = torch.stack([one.indices + first for one, first in zip(best, firsts, strict=True)])
        keys = torch.stack([one.values for one in best])
    else:
        of_row = rows[:, None].expand(keys.shape)
    if len(keys) > top.k:
        keys, order = keys.topk(top.k, dim=0)
        of_row = of_row.gather(0, order)
    at, unit = (keys > least[units]).nonzero(as_tuple=True)
    return Entries(*(part.cpu().numpy() for part in (of_row[at, unit], units[unit], keys[at, unit])))


def _one_per_text(entries: Entries, block: Block) -> Entries:
    """Of each unit and text the entry with the largest key."""
    text = block.text_of_row[entries.row]
    order = np.lexsort((entries.key, text, entries.unit))
    unit, text = entries.unit[order], text[order]
    last = np.ones(len(order), dtype=bool)
    last[:-1] = (unit[1:] != unit[:-1]) | (text[1:] != text[:-1])
    return entries.where(order[last])


def _shown(block: Block, offsets: Array, values: Tensor, entries: Entries) -> Shown:
    """What is kept of entries, by the values of all units, [row, unit]."""
    rows, ids = block.around(entries.row, offsets)
    at, unit = torch.from_numpy(rows).to(values.device), torch.from_numpy(entries.unit).to(values.device)
    around = values[at.clamp(min=0), unit[:, None]].cpu().numpy()
    return Shown(block.number[entries.row], block.pos[entries.row], np.where(rows < 0, np.nan, around), ids)


def _shown_active(block: Block, offsets: Array, active: Active, n_units: int, entries: Entries) -> Shown:
    """The same by the values above zero."""
    rows, ids = block.around(entries.row, offsets)
    around = np.zeros(rows.shape, dtype=np.float32)
    step = max(1, _LOOKED_UP // max(1, len(block.pos)))
    row, unit = active.row.cpu().numpy(), active.unit.cpu().numpy()
    value = active.value.cpu().numpy()
    needed = np.unique(entries.unit)
    for start in range(0, len(needed), step):
        some = needed[start : start + step]
        place = np.full(n_units, -1)
        place[some] = np.arange(len(some))
        table = np.zeros((len(block.pos), len(some)), dtype=np.float32)
        inside = place[unit] >= 0
        table[row[inside], place[unit[inside]]] = value[inside]
        of = np.flatnonzero(place[entries.unit] >= 0)
        around[of] = table[np.maximum(rows[of], 0), place[entries.unit[of]][:, None]]
    return Shown(block.number[entries.row], block.pos[entries.row], np.where(rows < 0, np.nan, around), ids)

"""Desk: what a head lab does to each head, as on a mixing desk: a factor, muted, or soloed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from gemmascope.edits.edit import Edit
from gemmascope.edits.kinds import Ablate, Scale
from gemmascope.edits.make import scale
from gemmascope.edits.places import find_heads
from gemmascope.model.model import Model
from gemmascope.sites import find

# A head, as (layer, head).
Channel = tuple[int, int]

# What a head reads, which a desk scales.
HELD_SITE = "z"


@dataclass(frozen=True)
class Desk:
    """What is done to the heads of a model; a value, which its methods return changed.

    gains: the factor of each head that has one other than 1, kept while the head is muted. muted: heads that are multiplied
    by 0. soloed: if there are any, every head that is not among them is multiplied by 0, too.
    """

    gains: Mapping[Channel, float] = field(default_factory=dict)
    muted: frozenset[Channel] = frozenset()
    soloed: frozenset[Channel] = frozenset()

    def scaled(self, channel: Channel, by: float) -> Desk:
        """With a head multiplied by a number: 0 mutes it, and its factor of before comes back when that ends."""
        if by == 0:
            return self.with_mute(channel, True)
        gains = {other: gain for other, gain in self.gains.items() if other != channel}
        if by != 1:
            gains[channel] = by
        return replace(self, gains=gains, muted=self.muted - {channel})

    def with_mute(self, channel: Channel, on: bool) -> Desk:
        return replace(self, muted=self.muted | {channel} if on else self.muted - {channel})

    def with_solo(self, channel: Channel, on: bool) -> Desk:
        return replace(self, soloed=self.soloed | {channel} if on else self.soloed - {channel})

    def factors(self, n_layers: int, n_heads: int) -> dict[Channel, float]:
        """The factor of every head that is not left as it is, by layer and head."""
        channels = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
        factors = {channel: self._factor(channel) for channel in channels}
        return {channel: factor for channel, factor in factors.items() if factor != 1}

    def _factor(self, channel: Channel) -> float:
        if channel in self.muted or (self.soloed and channel not in self.soloed):
            return 0.0
        return self.gains.get(channel, 1.0)

    def as_data(self) -> dict[str, object]:
        """As JSON."""
        return {
            "gains": [[*channel, gain] for channel, gain in sorted(self.gains.items())],
            "muted": [list(channel) for channel in sorted(self.muted)],
            "soloed": [list(channel) for channel in sorted(self.soloed)],
        }


def edits_of(factors: Mapping[Channel, float]) -> list[Edit]:
    """Factors as edits: one for the heads of a layer that have the same factor."""
    heads: dict[tuple[int, float], list[int]] = defaultdict(list)
    for (layer, head), by in sorted(factors.items()):
        heads[layer, by].append(head)
    return [
        scale(HELD_SITE, by, layer=layer, head=listed[0] if len(listed) == 1 else listed)
        for (layer, by), listed in heads.items()
    ]


def taken_up(edits: Sequence[Edit], model: Model) -> tuple[Desk, list[Edit]]:
    """The desk that does what some of these edits do, and the others, after which the desk's are made.

    It takes whole heads that are scaled or ablated to 0 at every position, once each, unless a later one of the others
    writes to the same layer's z. SiteError for a site, layer or head that the model lacks.
    """
    desk, others = Desk(), list[Edit]()
    written: set[int | None] = set()  # layers whose z a later edit writes to
    for edit in reversed(edits):
        address = find(edit.site, model.n_layers, edit.layer)
        channels = _channels_of(edit, model) if address.layer not in written else []
        is_taken = channels and not any(channel in desk.gains or channel in desk.muted for channel in channels)
        if is_taken:
            for channel in channels:
                desk = desk.scaled(channel, edit.factor if isinstance(edit, Scale) else 0.0)
        else:
            others.insert(0, edit)
            if address.site.name == HELD_SITE:
                written.add(address.layer)
    return desk, others


def _channels_of(edit: Edit, model: Model) -> list[Channel]:
    """The heads that an edit multiplies by a number at every position; none if it does something else."""
    address = find(edit.site, model.n_layers, edit.layer)
    is_ablated = isinstance(edit, Ablate) and edit.value == 0.0
    if address.site.name != HELD_SITE or address.layer is None or edit.pos is not None:
        return []
    heads = find_heads(edit.head, address.site, model) or []
    return [(address.layer, head) for head in heads] if is_ablated or isinstance(edit, Scale) else []

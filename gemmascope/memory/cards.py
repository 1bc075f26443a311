"""Cards: common GPUs, and whether a model fits on one: whole, with layers that stream, or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from gemmascope.arguments import shown
from gemmascope.config import GemmaConfig
from gemmascope.errors import BudgetError
from gemmascope.legible import legibly
from gemmascope.memory.placement import RESERVED_ROWS, Placement, Sizes, parse_bytes, place_layers, work_bytes

# Of a card's memory: some 0.6 GB for the driver, the rest because a card reports somewhat less than its name says.
DRIVER = 10**9


@dataclass(frozen=True)
class Card:
    """A GPU, and its memory in bytes as its name says it, in units of 10^9."""

    name: str
    n_bytes: int


CARDS = tuple(
    Card(name, gigabytes * 10**9)
    for name, gigabytes in (
        ("RTX 4060 8 GB", 8), ("T4 16 GB", 16), ("L4 24 GB", 24), ("RTX 3090 24 GB", 24), ("RTX 4090 24 GB", 24),
        ("A100 40 GB", 40), ("A100 80 GB", 80), ("H100 80 GB", 80),
    )
)  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """How a model fits on a card.

    how: "resident", "streams" or "no". n_kept: layers that stay. memory: what to give to gs.load, None for no budget.
    missing: bytes that a card on which it does not fit lacks.
    """

    card: Card
    how: str
    n_kept: int
    n_layers: int
    memory: int | None = None
    missing: int = 0

    def __bool__(self) -> bool:
        return self.how != "no"

    @legibly
    def __str__(self) -> str:
        if self.how == "resident":
            return "resident"
        if self.how == "no":
            return f"no: {self.missing / 1e9:.2f} GB are missing"
        return f"streams: {self.n_kept} of {self.n_layers} layers stay, with memory={memory_text(self.memory or 0)!r}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "card": self.card.name, "bytes": self.card.n_bytes, "how": self.how, "layers_kept": self.n_kept,
            "load_memory": self.memory, "missing": self.missing,
        }  # fmt: skip


@dataclass(frozen=True)
class MemoryNeed:
    """What must fit: a model's weights, whole or shared out, beside so many bytes for what is run."""

    config: GemmaConfig
    sizes: Sizes
    dtype: torch.dtype
    whole: int
    beside: int

    @property
    def least(self) -> int:
        """What is needed if nothing stays on the device."""
        return self.sizes.weights(0, 1, embedded=False) + self.beside

    def on(self, card: Card, room: int) -> Fit:
        """How it fits within so many bytes of a card."""
        n_layers = self.config.n_layers
        if self.whole + self.beside <= room:
            return Fit(card, "resident", n_layers, n_layers)
        share = self.share_within(room)
        if share is None:
            return Fit(card, "no", 0, n_layers, missing=max(1, self.least - room))
        return Fit(card, "streams", len(share.kept), n_layers, share.weights + share.work)

    def share_within(self, room: int) -> Placement | None:
        """What may stay on the device so that what is run fits beside it; None if even nothing is too much.

        share_out leaves room for a sweep's rows: for a run that takes more than they do, it is given less.
        """
        rows = work_bytes(self.config, self.dtype, RESERVED_ROWS)
        budget = room - max(0, self.beside - rows)
        if self.least > room or budget <= 0:
            return None
        try:
            return place_layers(self.config, self.sizes, self.dtype, _rounded(budget))
        except BudgetError:  # less than the least rows of a sweep take
            return None


def memory_text(n_bytes: int) -> str:
    """An amount of memory as it is written for gs.load."""
    return f"{n_bytes / 1e9:.12g}GB" if n_bytes >= 10**9 else f"{n_bytes / 1e6:.12g}MB"


def _rounded(n_bytes: int) -> int:
    """Down to four digits, which can be typed."""
    step: int = 10 ** max(0, len(str(n_bytes)) - 4)
    return n_bytes // step * step


def find_card(given: Any) -> Card:
    """A card by name ("T4", "rtx 4090"), or one of so many bytes (or "24GiB"). BudgetError for any other."""
    if isinstance(given, Card):
        return given
    if isinstance(given, str):
        wanted = _plain(given)
        found = [card for card in CARDS if wanted and wanted in _plain(card.name)]
        if found:
            return min(found, key=lambda card: card.n_bytes)
    try:
        n_bytes = parse_bytes(given)
    except BudgetError as error:
        names = ", ".join(card.name for card in CARDS)
        raise BudgetError(
            f"{shown(given)} is no card that is known ({names}) and no amount of memory such as '24GB'"
        ) from error
    return Card(f"{n_bytes / 1e9:.1f} GB", n_bytes)  # parse_bytes bounds it


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())

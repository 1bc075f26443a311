"""Common GPUs, and whether a model fits on one: whole, with layers that stream, or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import torch

from gemmascope.arguments import short_repr
from gemmascope.config import GemmaConfig
from gemmascope.errors import BudgetError
from gemmascope.legible import prints_legibly
from gemmascope.memory.placement import RESERVED_ROWS, Placement, Sizes, parse_bytes, place_layers, work_bytes

# Memory that a model cannot use: some 0.6 GB for the driver, the rest because a card has less than its name says.
DRIVER = 10**9


@dataclass(frozen=True)
class Card:
    """A GPU and its memory in bytes, as its name says it: a GB is 10^9 bytes."""

    name: str
    n_bytes: int


CARDS = tuple(
    Card(name, gigabytes * 10**9)
    for name, gigabytes in (
        ("RTX 4060 8 GB", 8), ("T4 16 GB", 16), ("L4 24 GB", 24), ("RTX 3090 24 GB", 24), ("RTX 4090 24 GB", 24),
        ("A100 40 GB", 40), ("A100 80 GB", 80), ("H100 80 GB", 80),
    )
)  # fmt: skip


class FitData(TypedDict):
    """A fit as JSON."""

    card: str
    bytes: int
    how: str
    layers_kept: int
    load_memory: int | None
    missing: int


@dataclass(frozen=True)
class Fit:
    """How a model fits on a card. True if it fits, whole or streaming.

    Attributes:
        card: The card.
        how: "resident", "streams" or "no".
        n_kept: Layers that stay on the card.
        n_layers: Layers of the model.
        memory: The memory= to give to gs.load; None for no budget.
        missing: Bytes that are missing, if the model does not fit.
    """

    card: Card
    how: str
    n_kept: int
    n_layers: int
    memory: int | None = None
    missing: int = 0

    def __bool__(self) -> bool:
        return self.how != "no"

    @prints_legibly
    def __str__(self) -> str:
        if self.how == "resident":
            return "resident"
        if self.how == "no":
            return f"no: {self.missing / 1e9:.2f} GB are missing"
        return f"streams: {self.n_kept} of {self.n_layers} layers stay, with memory={memory_text(self.memory or 0)!r}"

    def to_dict(self) -> FitData:
        """The fit as JSON, in bytes."""
        return {
            "card": self.card.name, "bytes": self.card.n_bytes, "how": self.how, "layers_kept": self.n_kept,
            "load_memory": self.memory, "missing": self.missing,
        }  # fmt: skip


@dataclass(frozen=True)
class MemoryNeed:
    """What must fit on a card: a model's weights, all of them or with layers that stream, and the memory of a run.

    all_weights: bytes of the weights if every layer stays. run_bytes: bytes that a run takes beside the weights.
    """

    config: GemmaConfig
    sizes: Sizes
    dtype: torch.dtype
    all_weights: int
    run_bytes: int

    @property
    def least(self) -> int:
        """Bytes needed if no layer stays on the device."""
        return self.sizes.weights(0, 1, embedded=False) + self.run_bytes

    def on(self, card: Card, n_bytes: int) -> Fit:
        """How it fits within this much of a card's memory."""
        n_layers = self.config.n_layers
        if self.all_weights + self.run_bytes <= n_bytes:
            return Fit(card, "resident", n_layers, n_layers)
        placement = self.placement_within(n_bytes)
        if placement is None:
            return Fit(card, "no", 0, n_layers, missing=max(1, self.least - n_bytes))
        return Fit(card, "streams", len(placement.kept), n_layers, placement.weights + placement.workspace)

    def placement_within(self, n_bytes: int) -> Placement | None:
        """What may stay on the device so that the run fits beside it; None if the run does not fit at all.

        place_layers reserves memory for a sweep's rows. A run that takes more than that leaves it a smaller budget.
        """
        rows = work_bytes(self.config, self.dtype, RESERVED_ROWS)
        budget = n_bytes - max(0, self.run_bytes - rows)
        if self.least > n_bytes or budget <= 0:
            return None
        try:
            return place_layers(self.config, self.sizes, self.dtype, _rounded(budget))
        except BudgetError:  # less than the smallest pass needs
            return None


def smallest_holding(n_bytes: int) -> int | None:
    """The memory of the smallest common card that holds so many bytes beside its driver, in bytes; None if there is none."""
    return min((card.n_bytes for card in CARDS if n_bytes + DRIVER <= card.n_bytes), default=None)


def memory_text(n_bytes: int) -> str:
    """An amount of memory as text that gs.load takes."""
    return f"{n_bytes / 1e9:.12g}GB" if n_bytes >= 10**9 else f"{n_bytes / 1e6:.12g}MB"


def _rounded(n_bytes: int) -> int:
    """Rounded down to four digits, which are easy to type."""
    step: int = 10 ** max(0, len(str(n_bytes)) - 4)
    return n_bytes // step * step


def find_card(card: object) -> Card:
    """A card by name ("T4", "rtx 4090") or by its memory (a number of bytes, or "24GiB"). Raises BudgetError otherwise."""
    if isinstance(card, Card):
        return card
    if isinstance(card, str):
        name = _plain(card)
        matches = [card for card in CARDS if name and name in _plain(card.name)]
        if matches:
            return min(matches, key=lambda card: card.n_bytes)
    try:
        n_bytes = parse_bytes(card)
    except BudgetError as error:
        names = ", ".join(card.name for card in CARDS)
        raise BudgetError(
            f"{short_repr(card)} is no card that is known ({names}) and no amount of memory such as '24GB'"
        ) from error
    return Card(f"{n_bytes / 1e9:.1f} GB", n_bytes)  # parse_bytes bounds it


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())

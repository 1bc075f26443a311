"""Detects NaN and infinity in a pass, and the site at which they first appear."""

from __future__ import annotations

import torch
from torch import Tensor

from gemmascope.errors import CheckpointError
from gemmascope.model.gemma2 import Gemma2
from gemmascope.model.layout import Layout
from gemmascope.model.tap import Tap
from gemmascope.sites import Address, find_site

# Sites where minus infinity is allowed: it hides an edge or excludes a token.
_MAY_HIDE = frozenset(("scores", "scores_capped", "logits_raw", "logits"))


def is_finite(value: Tensor) -> bool:
    """Whether all numbers are finite, which a finite sum proves quickly. True on the meta device."""
    return value.is_meta or bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all())


def can_normalize(rows: Tensor) -> bool:
    """Whether the mean square of each row [..., d] is finite, so that a norm does not fail on it."""
    return rows.is_meta or bool(torch.isfinite(rows.float().square().sum(-1)).all())


def valid_logits(logits: Tensor) -> bool:
    """Whether these can be logits [..., vocab]: minus infinity may exclude tokens, but not all of them."""
    largest = logits.amax(-1)  # NaN if any is NaN
    return bool(torch.isfinite(largest).all())


class FirstNonFinite(Tap):
    """Records the first site whose value holds NaN or infinity."""

    def __init__(self) -> None:
        self.address: Address | None = None
        self.pos = 0

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        self.see(site, layer, value, layout.starts[0])
        return value

    def see(self, site: str, layer: int | None, value: Tensor, first: int) -> None:
        if self.address is None and not _is_allowed(site, value):
            self.address = Address(find_site(site), layer)
            self.pos = int(torch.nonzero(~torch.isfinite(value))[0, 0]) + first

    def __str__(self) -> str:
        return "at its end" if self.address is None else f"first at '{self.address}', position {self.pos}"


def _is_allowed(site: str, value: Tensor) -> bool:
    return is_finite(value) or (site in _MAY_HIDE and not bool((value.isnan() | value.isposinf()).any()))


def require_sound_weights(network: Gemma2, name: str, ids: Tensor) -> None:
    """Raise CheckpointError if a run without edits or taps holds NaN or infinity as well."""
    layout, first = Layout.of_lengths([len(ids)], ids.device), FirstNonFinite()
    with torch.no_grad():
        logits = network.unembed(network(ids, layout, first), first.at(None, layout))
    if first.address is not None or not valid_logits(logits):
        raise damaged(name, str(first))


def damaged(name: str, place: str) -> CheckpointError:
    """The error for weights whose own runs hold NaN or infinity."""
    return CheckpointError(
        f"a run of {name!r} holds NaN or infinity, {place}, without any edit: its weights are damaged. "
        "gs.load(..., check=True) finds the tensor"
    )

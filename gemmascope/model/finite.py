"""Runs that hold NaN or infinity: what is checked at the end of a pass, and the site at which it began."""

from __future__ import annotations

import torch
from torch import Tensor

from gemmascope.errors import CheckpointError
from gemmascope.model.gemma2 import Gemma2
from gemmascope.model.layout import Layout
from gemmascope.model.tap import Tap
from gemmascope.sites import Address, find_site

# Sites where a tap or an edit may write minus infinity, to hide an edge or to rule out a token.
_MAY_HIDE = frozenset(("scores", "scores_capped", "logits_raw", "logits"))


def is_finite(value: Tensor) -> bool:
    """Whether all numbers are finite. A finite sum proves it quickly. A tensor on the meta device has no numbers."""
    return value.is_meta or bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all())


def can_normalize(rows: Tensor) -> bool:
    """Whether the mean square of each row, [..., d], is finite: where it is not, a norm makes zeros of the row."""
    return rows.is_meta or bool(torch.isfinite(rows.float().square().sum(-1)).all())


def valid_logits(logits: Tensor) -> bool:
    """Whether these can be logits, [..., vocab]: minus infinity rules a token out, and one at least is left."""
    most = logits.amax(-1)  # NaN where there is one
    return bool(torch.isfinite(most).all())


class FirstNonFinite(Tap):
    """Records the first site whose value holds NaN or infinity."""

    def __init__(self) -> None:
        self.where: Address | None = None
        self.pos = 0

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        self.see(site, layer, value, layout.starts[0])
        return value

    def see(self, site: str, layer: int | None, value: Tensor, first: int) -> None:
        if self.where is None and not _allowed(site, value):
            self.where = Address(find_site(site), layer)
            self.pos = int(torch.nonzero(~torch.isfinite(value))[0, 0]) + first

    def __str__(self) -> str:
        return "at its end" if self.where is None else f"first at '{self.where}', position {self.pos}"


def _allowed(site: str, value: Tensor) -> bool:
    return is_finite(value) or (site in _MAY_HIDE and not bool((value.isnan() | value.isposinf()).any()))


def require_sound_weights(network: Gemma2, name: str, ids: Tensor) -> None:
    """Raise CheckpointError if a run without edits or taps holds NaN or infinity as well."""
    layout, found = Layout.of_lengths([len(ids)], ids.device), FirstNonFinite()
    with torch.no_grad():
        logits = network.unembed(network(ids, layout, found), found.at(None, layout))
    if found.where is not None or not valid_logits(logits):
        raise damaged(name, str(found))


def damaged(name: str, where: str) -> CheckpointError:
    """The error for weights whose own runs hold NaN or infinity."""
    return CheckpointError(
        f"a run of {name!r} holds NaN or infinity, {where}, without any edit: its weights are damaged. "
        "gs.load(..., check=True) finds the tensor"
    )

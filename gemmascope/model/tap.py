"""Taps: the one mechanism that reads or changes a pass.

A tap sees a site's value when it is computed, and returns the value that the model continues with. It is an argument of the
forward, never state of the model, so nothing must be reset and threads do not interfere.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gemmascope.errors import TapError
from gemmascope.model.layout import Block, Layout
from gemmascope.sites import SCALE_SITES
from gemmascope.values import moved, real_tensor

TapFn = Callable[[str, int | None, Tensor], Tensor | None]


class Tap:
    """Returns every value unchanged. Subclasses read or write.

    Values come flat: a row site has all rows of the pass, [row, ...]; an edge site (scores, scores_capped, pattern)
    comes block by block, [count, head, q_pos, k_pos]. layer is None for the sites outside the layers.
    """

    # Whether rows() takes the heads of this process alone, where processes share a layer (parallel/).
    own_heads = False

    def wants(self, site: str, layer: int | None) -> bool:
        """Whether to compute a site that the forward does not need: the edge sites, head_out, and the norms' scales."""
        return False

    def reads(self, site: str, layer: int | None) -> bool:
        """Whether rows() may look at a site, for which it must be whole where processes share a layer."""
        return True

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        return value

    def edges(self, site: str, layer: int, value: Tensor, block: Block) -> Tensor:
        return value

    def takes_pattern(self, layer: int) -> bool:
        """Whether take_pattern() gets the pattern of a layer as attention computed it, to be read alone.

        Attention then computes as it does without a tap. A tap that wants the pattern has it built whole, which rounds
        otherwise. Where a kernel computes attention, no pattern is made and the tap gets none.
        """
        return False

    def take_pattern(self, layer: int, value: Tensor, block: Block) -> None:
        """value: [count, head, q_pos, k_pos]."""

    def at(self, layer: int | None, layout: Layout) -> BoundTap:
        return BoundTap(self, layer, layout)


class BoundTap:
    """A tap at one layer of one pass, which the layer calls."""

    __slots__ = ("layer", "layout", "tap")

    def __init__(self, tap: Tap, layer: int | None, layout: Layout) -> None:
        self.tap, self.layer, self.layout = tap, layer, layout

    def __call__(self, site: str, value: Tensor) -> Tensor:
        return self.tap.rows(site, self.layer, value, self.layout)

    def on(self, layout: Layout) -> BoundTap:
        """This tap where the layer is, in the layout that is there."""
        return self if layout is self.layout else BoundTap(self.tap, self.layer, layout)

    def edges(self, site: str, value: Tensor, block: Block) -> Tensor:
        assert self.layer is not None
        return self.tap.edges(site, self.layer, value, block)

    def wants(self, site: str) -> bool:
        return self.tap.wants(site, self.layer)

    def takes_pattern(self) -> bool:
        return self.layer is not None and self.tap.takes_pattern(self.layer)

    def take_pattern(self, value: Tensor, block: Block) -> None:
        assert self.layer is not None
        self.tap.take_pattern(self.layer, value, block)


class _Silent(Tap):
    """Looks at nothing."""

    def reads(self, site: str, layer: int | None) -> bool:
        return False


SILENT = _Silent()


class Chain(Tap):
    """Several taps: each sees what the one before it returned."""

    def __init__(self, *taps: Tap) -> None:
        self.taps = taps

    def wants(self, site: str, layer: int | None) -> bool:
        return any(tap.wants(site, layer) for tap in self.taps)

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        for tap in self.taps:
            value = tap.rows(site, layer, value, layout)
        return value

    def edges(self, site: str, layer: int, value: Tensor, block: Block) -> Tensor:
        for tap in self.taps:
            if tap.wants(site, layer):
                value = tap.edges(site, layer, value, block)
        return value

    def takes_pattern(self, layer: int) -> bool:
        return any(tap.takes_pattern(layer) for tap in self.taps)

    def take_pattern(self, layer: int, value: Tensor, block: Block) -> None:
        for tap in self.taps:
            if tap.takes_pattern(layer):
                tap.take_pattern(layer, value, block)


class FunctionTap(Tap):
    """A user's function fn(site, layer, value) -> value as a tap: it sees every site of one prompt, once a layer.

    Values have the axes of the table of sites, without a batch axis. A function that returns None leaves the value as it is,
    with what it may have written in place, as hooks of torch do. device: where the function gets them; None: wherever their
    layer is.
    """

    def __init__(self, fn: TapFn, device: torch.device | None = None) -> None:
        if not callable(fn):
            raise TapError(f"a tap is a function fn(site, layer, value) -> value; given {type(fn).__name__}")
        self.fn, self.device = fn, device
        self.sums: list[tuple[str, Tensor]] = []  # of every returned value, to name the first that is NaN

    def wants(self, site: str, layer: int | None) -> bool:
        return True

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        # A write in place must not reach the layer's own copy of head_out or of a norm's scale, of whose change it makes
        # use; nor the stream that the function may have kept at the end of the layer before.
        if site in ("head_out", "resid_pre", *SCALE_SITES):
            value = value.clone()
        return self._checked(site, layer, value)

    def edges(self, site: str, layer: int, value: Tensor, block: Block) -> Tensor:
        return self._checked(site, layer, value[0])[None]

    def _checked(self, site: str, layer: int | None, value: Tensor) -> Tensor:
        given = value if self.device is None else moved(value, self.device)
        returned = self.fn(site, layer, given)
        result = given if returned is None else returned
        place = f"the tap at '{site}'" + ("" if layer is None else f" of layer {layer}")
        if not isinstance(result, Tensor):
            raise TapError(
                f"{place} returned {type(result).__name__}; return the value to go on with (unchanged: the one it was given)"
            )
        result = real_tensor(result, f"what {place} returned", TapError)
        if result.shape != value.shape:
            raise TapError(f"{place} returned shape {tuple(result.shape)}; the site has {tuple(value.shape)}")
        result = result.to(device=value.device, dtype=value.dtype)
        self.sums.append((place, result.detach().sum()))
        return result

    def first_nan(self) -> str | None:
        """The first site at which the function returned NaN; None if there is none."""
        return next((place for place, total in self.sums if bool(total.isnan())), None)

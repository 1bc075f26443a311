"""What an edit selects in a run, which values a run can hold there, and values that another run of the pass provides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gemmascope.edits.places import find_heads, find_positions
from gemmascope.errors import EditError
from gemmascope.model.finite import can_normalize
from gemmascope.model.maths import visible
from gemmascope.model.model import Model
from gemmascope.sites import Address, Site, find
from gemmascope.values import real_tensor

# Sites that are part of the residual stream, or are added to it unchanged.
_IN_STREAM = frozenset(("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"))

# Sites where minus infinity hides an edge or a token.
_MASKED_BY_INFINITY = frozenset(("scores", "scores_capped", "logits_raw", "logits"))


@dataclass(frozen=True)
class Target:
    """What an edit selects: a run, a site and layer, and the places on the site's axes.

    Places are tensors on the CPU, so that looking at them never waits for an accelerator.
    """

    model: Model
    ids: Tensor
    address: Address
    places: tuple[Tensor, ...]

    def shape(self) -> tuple[int, ...]:
        """The shape of the selected values."""
        axes = self.address.site.axes[len(self.places) :]
        return (*map(len, self.places), *(self.model.config.size_of(axis, len(self.ids)) for axis in axes))

    def select(self, value: Tensor) -> Tensor:
        """The selected places of a site's value."""
        return value[mesh(self.places, value.device)]

    def fit(self, source: object, what: str) -> Tensor:
        """A source in the shape of the selected values: it has that shape, or that of its last axes, and is then repeated.

        source: a tensor or an array of real numbers. what: what an error calls it.
        """
        value = real_tensor(source, what, EditError).detach().to(self.model.device)
        shape, axes = self.shape(), self.address.site.axes
        long = [n for n in value.shape if n > 1]  # axes of one place are optional
        squeezed = value.reshape(shape) if long == [n for n in shape if n > 1] else value
        if tuple(squeezed.shape) != shape[len(shape) - squeezed.dim() :]:
            raise EditError(
                f"{what} has shape {tuple(value.shape)}; '{self.address}' at the places named takes {shape} "
                f"({', '.join(axes)}), or the last axes of that"
            )
        return squeezed.expand(shape)


def find_target(model: Model, ids: Tensor, site: str, layer: int | None, places: Mapping[str, object]) -> Target:
    """The target in a run of these ids. places: pos, head, q_pos and k_pos as the user wrote them, None for all.

    SiteError for a site, layer or place that does not exist, EditError for a kind of place that the site does not have.
    """
    address = find(site, model.n_layers, layer)
    heads = find_heads(places["head"], address.site, model)
    if address.site.is_edges:
        _refuse(site, places, "pos", "lives on attention edges: say q_pos and k_pos instead of pos")
        axes: tuple[list[int] | None, ...] = (
            heads,
            find_positions(places["q_pos"], model, ids),
            find_positions(places["k_pos"], model, ids),
        )
    else:
        _refuse(site, places, "q_pos", "has positions, not edges: say pos instead of q_pos and k_pos")
        _refuse(site, places, "k_pos", "has positions, not edges: say pos instead of q_pos and k_pos")
        axes = (find_positions(places["pos"], model, ids), heads)
    return Target(model, ids, address, tuple(torch.tensor(axis) for axis in axes if axis is not None))


def _refuse(site: str, places: Mapping[str, object], name: str, why: str) -> None:
    if places[name] is not None:
        raise EditError(f"'{site}' {why}; given {name}={places[name]!r}")


class DeferredValues:
    """The values of a site that another run of the same pass provides, layer by layer."""

    def __init__(self) -> None:
        self._layer, self._value = -1, torch.empty(0)

    def set(self, layer: int, value: Tensor) -> None:
        """Replace the value by that of another layer: the whole site."""
        self._layer, self._value = layer, value

    @property
    def value(self) -> Tensor:
        """The whole site's value at the layer that was set last."""
        return self._value

    def at(self, layer: int) -> Tensor:
        assert layer == self._layer, f"the pass is at layer {self._layer}, and layer {layer} is read"
        return self._value


@dataclass(frozen=True)
class DeferredRead:
    """A reading of deferred values, once the pass is at the layer."""

    deferred: DeferredValues
    layer: int
    places: tuple[Tensor, ...]

    def read(self) -> Tensor:
        value = self.deferred.at(self.layer)
        return value[mesh(self.places, value.device)]


def seen_edges(address: Address, places: Sequence[Tensor], model: Model) -> Tensor:
    """Which of the selected edges the mask lets through, [q_pos, k_pos], at an edge site."""
    _, q_pos, k_pos = places
    assert address.layer is not None
    return visible(q_pos, k_pos, model.config.window_of(address.layer))


def is_hidden(address: Address, places: Sequence[Tensor], model: Model) -> bool:
    """Whether the mask hides all selected edges. False at row sites."""
    return address.site.is_edges and not bool(seen_edges(address, places, model).any())


def what_is_seen(address: Address, model: Model) -> str:
    """The edges that the mask of a layer lets through, for an error."""
    assert address.layer is not None
    window = model.config.window_of(address.layer)
    if window is None:
        return f"position q of layer {address.layer} sees keys 0 to q"
    return f"position q of local layer {address.layer} sees keys q-{window - 1} to q"


def can_normalize_site(site: Site, values: Tensor) -> bool:
    """Whether a norm after a site can take these rows, or divide by these scales.

    Rows of the stream itself are checked at the end of the run.
    """
    if site.is_scale:
        return bool((values > 0).all())
    if site.is_edges or "vocab" in site.axes or site.name in _IN_STREAM:
        return True
    return can_normalize(values)


def why_not_normalized(site: Site) -> str:
    """What values hold that can_normalize_site refuses, for an error."""
    if site.is_scale:
        return "scales of a norm: a norm divides by them, and one is 0 or below"
    return "numbers whose squares are infinite: a norm would make zeros of them"


def can_continue_from(site: Site, values: Tensor) -> Tensor:
    """Which values a run can continue from: finite ones, above 0 if a norm divides by them, and minus infinity where it
    hides an edge or a token.
    """
    finite = torch.isfinite(values) & (values > 0) if site.is_scale else torch.isfinite(values)
    return finite | torch.isneginf(values) if site.name in _MASKED_BY_INFINITY else finite


def mesh(places: Sequence[Tensor], device: torch.device) -> tuple[Tensor, ...]:
    """Indices on a device that select the outer product of the places. The host does not wait for their copy."""
    n = len(places)
    views = (p.view(*(-1 if i == j else 1 for j in range(n))) for i, p in enumerate(places))
    return tuple(view.to(device, non_blocking=True) for view in views)

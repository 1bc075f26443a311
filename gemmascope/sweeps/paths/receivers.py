"""Receivers of path patching: the heads, or the end of the stream, that read what a sender changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from gemmascope.arguments import short_repr
from gemmascope.edits.edit import BoundEdit
from gemmascope.edits.kinds import Patch
from gemmascope.edits.places import Head, find_heads
from gemmascope.errors import SweepError
from gemmascope.model.gemma2 import Layer
from gemmascope.model.model import Model
from gemmascope.sites import find, parse_site_name
from gemmascope.sweeps.grid import Cell
from gemmascope.values import moved

RECEIVER_SITES = ("q", "k", "v", "q_raw", "k_raw")

# A receiver as users write it: "final", "blocks.5.attn.hook_q", or (site, layer, heads).
ReceiverLike = str | tuple[str] | tuple[str, int | None] | tuple[str, int | None, Head]


@dataclass(frozen=True)
class Receiver:
    """Heads of a layer that read the sender's change in queries, keys or values; or "resid_post", the end of the stream.

    Of the queries and keys of Gemma 3, q_raw and k_raw are before their norms.
    """

    site: str
    layer: int
    heads: list[int] | None

    def hears(self, layer: int) -> bool:
        """Whether what a sender writes in this layer comes before it."""
        return layer < self.layer or self.site == "resid_post"

    def edit(self, model: Model, positions: Tensor, value: Tensor) -> BoundEdit:
        """The edit that writes what it read at these positions: [row, d_model] of the stream, or [row, head, d_head]."""
        indices = (positions,) if self.heads is None else (positions, torch.tensor(self.heads))
        edit = Patch(site=self.site, source=value, layer=self.layer, pos=positions.tolist(), head=self.heads or None)
        return BoundEdit(edit, find((self.site, self.layer), model.n_layers), indices, value)

    def read(self, layer: Layer, stream: Tensor) -> Tensor:
        """Its heads' queries, keys or values of rows of the stream that enters its layer. [row, head, d_head]"""
        project = getattr(layer.self_attn, f"{self.site.removesuffix('_raw')}_proj")
        with torch.no_grad():
            flat = project(layer.input_layernorm(moved(stream, layer.device)))
        heads: Tensor = rearrange(flat, "pos (head d) -> pos head d", d=layer.self_attn.config.d_head)[:, self.heads]
        norms = {"q": layer.self_attn.q_norm, "k": layer.self_attn.k_norm}
        with torch.no_grad():
            return norms[self.site](heads) if self.site in norms else heads


def attn_out(layer: Layer, z: Tensor) -> Tensor:
    """What attention adds to the stream for given z: W_O and the post-norm, whose scale is computed anew."""
    raw = layer.self_attn.o_proj(rearrange(moved(z, layer.device), "pos head d -> pos (head d)"))
    out: Tensor = layer.post_attention_layernorm(raw)
    return out


def has_path(cell: Cell, receivers: Sequence[Receiver]) -> bool:
    """Whether what a cell's senders write comes before any receiver."""
    return any(receiver.hears(layer) for layer in cell["layer"] for receiver in receivers)


def receivers_of(receiver: object, model: Model) -> list[Receiver]:
    """The receivers that a user names. SweepError for what is none, SiteError for a layer or head that is not there."""
    several = receiver if isinstance(receiver, list) else [receiver]
    if not several:
        raise SweepError("receiver is an empty list: name at least one")
    return [resolved for one in several for resolved in _receiver(one, model)]


def _receiver(receiver: object, model: Model) -> Iterator[Receiver]:
    if isinstance(receiver, str) and receiver == "final":
        yield Receiver("resid_post", model.n_layers - 1, None)
        return
    parts = (receiver,) if isinstance(receiver, str) else receiver
    if not isinstance(parts, tuple) or not 1 <= len(parts) <= 3 or parse_site_name(parts[0])[0].name not in RECEIVER_SITES:
        raise SweepError(f"a receiver is ('q' | 'k' | 'v', layer, head) or 'final'; given {short_repr(receiver)}")
    if len(parts) == 2 and parse_site_name(parts[0])[1] is not None:  # is the number its layer once more, or a head?
        raise SweepError(
            f"{parts[0]!r} names its layer: give it alone, or as ({parts[0]!r}, None, head); given {short_repr(receiver)}"
        )
    address = find(parts[0], model.n_layers, parts[1] if len(parts) > 1 else None)
    heads = find_heads(parts[2] if len(parts) == 3 else None, address.site, model)
    assert address.layer is not None
    yield Receiver(address.site.name, address.layer, heads)

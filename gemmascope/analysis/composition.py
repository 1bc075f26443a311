"""Composition: how far later heads read what earlier heads write, from the weights alone.

Source: Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021): the norm of the product of two matrices
over the product of their norms.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch
from einops import einsum
from torch import Tensor

from gemmascope.errors import SiteError
from gemmascope.model.factors import Factors
from gemmascope.model.gemma2 import Layer
from gemmascope.model.model import Model
from gemmascope.run.default import model_or_nano
from gemmascope.sites import find_layer

if TYPE_CHECKING:
    import xarray

KINDS = {"q": "queries", "k": "keys", "v": "values"}


def composition(
    model: Model | None = None,
    kind: str = "v",
    *,
    senders: Sequence[int] | None = None,
    receivers: Sequence[int] | None = None,
) -> xarray.DataArray:
    """How far each head's queries, keys or values read what each earlier head writes: 0 for not at all, 1 at most.

    kind: "q", "k" or "v". Returns (from_layer, from_head, to_layer, to_head), NaN where the sender comes no earlier. The
    gains of the sender's post-norm and of the receiver's norm are gone through; RoPE is left out. Heads that share a kv
    head have the same keys and values, and differ by their queries and by W_O. senders, receivers: layers; None for all.
    What senders write is held for all heads at once: d_head x d_model numbers each.
    SiteError for an unknown kind or layer.
    """
    model = model_or_nano(model)
    if kind not in KINDS:
        raise SiteError(f"kind is one of {', '.join(map(repr, KINDS))}; given {kind!r}")
    sending, receiving = (_layers(given, model.n_layers) for given in (senders, receivers))
    n_heads = model.config.n_heads
    scores = torch.full((len(sending), n_heads, len(receiving), n_heads), torch.nan)
    written: dict[int, tuple[Tensor, Tensor]] = {}
    with closing(model.layers()) as layers:
        for layer in layers:
            if layer.index in receiving:
                left, right = _readers(layer, kind)
                for sender, (root, rights) in written.items():
                    at = sending.index(sender), slice(None), receiving.index(layer.index)
                    scores[at] = _scores(root, rights, left, right)
            if layer.index in sending:
                written[layer.index] = _writers(layer)
    return _labelled(model, scores, sending, receiving, kind)


def _writers(layer: Layer) -> tuple[Tensor, Tensor]:
    """Of every head's OV: a root of its left factor's products [head, d_head, d_head], and its right factor."""
    found = [layer.ov(head) for head in range(layer.self_attn.config.n_heads)]
    return torch.stack([_root(ov.left) for ov in found]), torch.stack([ov.right for ov in found])


def _readers(layer: Layer, kind: str) -> tuple[Tensor, Tensor]:
    """Of every head: its left factor, and a root of its right factor's products, of what reads the stream."""
    sides = [_reading(layer, head, kind) for head in range(layer.self_attn.config.n_heads)]
    return torch.stack([left for left, _ in sides]), torch.stack([_root(right.mT) for _, right in sides])


def _reading(layer: Layer, head: int, kind: str) -> tuple[Tensor, Tensor]:
    found: Factors = layer.ov(head) if kind == "v" else layer.qk(head)
    return (found.right.mT, found.left.mT) if kind == "k" else (found.left, found.right)


def _root(thin: Tensor) -> Tensor:
    """R of a thin matrix's QR: it has the same products, and so the same norms."""
    return torch.linalg.qr(thin, mode="r").R


def _scores(root: Tensor, rights: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The norms of all products, over those of the factors, [sender, receiver]."""
    both = einsum(rights, left, "s a d, r d b -> s r a b")
    through = einsum(root, both, right, "s x a, s r a b, r y b -> s r x y")
    sender, receiver = _norms(root, rights), _norms(right, left.mT)
    return (through.square().sum((-2, -1)).sqrt() / (sender[:, None] * receiver)).cpu()


def _norms(root: Tensor, thin: Tensor) -> Tensor:
    return (root @ thin).square().sum((-2, -1)).sqrt().clamp(min=torch.finfo(torch.float32).tiny)


def _layers(given: Any, n_layers: int) -> list[int]:
    return list(range(n_layers)) if given is None else [find_layer(layer, n_layers) for layer in given]


def _labelled(model: Model, scores: Tensor, sending: list[int], receiving: list[int], kind: str) -> xarray.DataArray:
    import xarray

    heads = range(model.config.n_heads)
    coords = {
        "from_layer": sending,
        "from_head": heads,
        "to_layer": receiving,
        "to_head": heads,
        "to_kv_head": ("to_head", [head // model.config.heads_per_kv for head in heads]),
    }
    dims = ("from_layer", "from_head", "to_layer", "to_head")
    attrs = {"long_name": f"composition through {KINDS[kind]}"}
    return xarray.DataArray(scores.numpy(), dims=dims, coords=coords, name="composition", attrs=attrs)

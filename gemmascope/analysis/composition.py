"""Composition: how far later heads read what earlier heads write, from the weights alone.

Source: Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021): the norm of the product of two matrices
over the product of their norms.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from gemmascope.arguments import listed_numbers, one_of, shown, whole_number
from gemmascope.errors import SiteError
from gemmascope.legible import legibly, spelled
from gemmascope.loading.default import model_or_nano
from gemmascope.model.gemma2 import Layer
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.sites import find_layer

if TYPE_CHECKING:
    import pandas
    import xarray

KINDS = {"q": "queries", "k": "keys", "v": "values"}


@dataclass(frozen=True, repr=False, eq=False)
class Composition:
    """How far each head reads, as its queries, keys or values, what each earlier head writes. Made by gs.composition.

    scores: (from_layer, from_head, to_layer, to_head), float32, NaN where the sender comes no earlier. kind: "q", "k", "v".
    """

    kind: str
    scores: xarray.DataArray
    model: str

    def best(self, k: int = 5) -> list[tuple[int, int, int, int, float]]:
        """The pairs that compose most: (from_layer, from_head, to_layer, to_head, score)."""
        frame = self.to_dataframe().nlargest(whole_number(k, "k", least=1, error=SiteError), "score")
        columns = [frame[name].tolist() for name in ("from_layer", "from_head", "to_layer", "to_head", "score")]
        return list(zip(*columns, strict=True))

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each pair of an earlier head and a later one."""
        return self.scores.to_dataframe(name="score").reset_index().dropna(subset="score", ignore_index=True)

    def plot(self) -> Any:
        """A plotly heat map, sending head by receiving head; of many heads, the largest score of each pair of layers."""
        from gemmascope.figures.composition import composition_figure

        return composition_figure(self)

    @legibly
    def __repr__(self) -> str:
        kv_heads = self.scores["to_kv_head"].values
        best = [
            f"  {score:6.3f}  layer {a} head {b} -> layer {c} head {d} (kv head {kv_heads[d]})"
            for a, b, c, d, score in self.best()
        ]
        return "\n".join([f"composition through {KINDS[self.kind]} in {spelled(self.model)}, 0 to 1", *best])


@computes
def composition(
    model: Model | None = None,
    kind: str = "v",
    *,
    senders: int | Sequence[int] | None = None,
    receivers: int | Sequence[int] | None = None,
) -> Composition:
    """How far each head's queries, keys or values read what each earlier head writes: 0 for not at all, 1 at most.

    kind: "q", "k" or "v". ||W_send W_receive|| / (||W_send|| ||W_receive||), Frobenius norms; W_send is the sender's OV, and
    W_receive the receiver's OV, or its QK from the side of the query or of the key. The gains of the sender's post-norm and
    of the receiver's input norm are gone through; RoPE and MLPs are left out. Query heads that share a kv head have the
    same keys and values, and differ here by their queries ("k") and by W_O ("v").
    senders, receivers: layers; None for all. One stream of the layers, to the last receiver. What the senders write is held
    meanwhile, d_head x d_model float32 numbers a head: 75 MB for each of 27B's layers, so choose senders where that is much.
    SiteError for an unknown kind or layer, or where no sender comes before a receiver.
    """
    model = model_or_nano(model)
    one_of(kind, "kind", KINDS, error=SiteError)
    sending, receiving = _layers(senders, "senders", model), _layers(receivers, "receivers", model)
    if min(sending) >= max(receiving):
        raise SiteError(
            f"no sender comes before a receiver: senders are layers {sending}, receivers layers {receiving}, "
            f"and a head reads only what earlier layers wrote"
        )
    n_heads = model.config.n_heads
    scores = torch.full((len(sending), n_heads, len(receiving), n_heads), torch.nan, dtype=torch.float32)
    written: dict[int, Sender] = {}
    with closing(model.layers()) as layers:
        for layer in layers:
            if layer.index in receiving:
                reader = _reader(layer, kind)
                for sender, writer in written.items():
                    at = sending.index(sender), slice(None), receiving.index(layer.index)
                    scores[at] = _scores(writer, reader)
            if layer.index == max(receiving):
                break
            if layer.index in sending:
                written[layer.index] = _writer(layer)
    return Composition(kind, _labelled(model, scores, sending, receiving, kind), model.name)


# Of every head of a layer: its matrix as two thin factors, of which the outer one is replaced by a root of its products.
Sender = tuple[Float[Tensor, "head x d_head"], Float[Tensor, "head d_head d_model"]]
Receiver = tuple[Float[Tensor, "head d_model d_head"], Float[Tensor, "head y d_head"]]


def _writer(layer: Layer) -> Sender:
    found = [layer.ov(head) for head in range(layer.self_attn.config.n_heads)]
    return torch.stack([_root(ov.left) for ov in found]), torch.stack([ov.right for ov in found])


def _reader(layer: Layer, kind: str) -> Receiver:
    sides = [_reading(layer, head, kind) for head in range(layer.self_attn.config.n_heads)]
    return torch.stack([left for left, _ in sides]), torch.stack([_root(right.mT) for _, right in sides])


def _reading(layer: Layer, head: int, kind: str) -> tuple[Tensor, Tensor]:
    """The factors of what reads the stream, the side that reads it first."""
    found = layer.ov(head) if kind == "v" else layer.qk(head)
    return (found.right.mT, found.left.mT) if kind == "k" else (found.left, found.right)


def _root(thin: Float[Tensor, "d_model d_head"]) -> Float[Tensor, "x d_head"]:
    """R of a thin matrix's QR: it has the same products with itself, and so takes its place in a Frobenius norm."""
    r: Tensor = torch.linalg.qr(thin, mode="r").R
    return r


def _scores(sender: Sender, receiver: Receiver) -> Float[Tensor, "sender receiver"]:
    (root, right), (left, other_root) = sender, receiver
    both = einsum(right, left, "s a d, r d b -> s r a b")
    through = einsum(root, both, other_root, "s x a, s r a b, r y b -> s r x y")
    sizes = _norms(root @ right)[:, None] * _norms(left @ other_root.mT)
    # A head that writes or reads nothing composes with none: 0 over the smallest number is 0.
    return (_norms(through) / sizes.clamp(min=torch.finfo(torch.float32).tiny)).cpu()


def _norms(matrices: Float[Tensor, "*heads m n"]) -> Float[Tensor, "*heads"]:
    return matrices.square().sum((-2, -1)).sqrt()


def _layers(given: Any, name: str, model: Model) -> list[int]:
    """The layers meant, in the order given. SiteError for one that is not there, one named twice, or none."""
    if given is None:
        return list(range(model.n_layers))
    found = listed_numbers(given)
    if found is None:
        raise SiteError(f"{name} is a layer or a list of layers; given {shown(given)}")
    layers = [find_layer(layer, model.n_layers) for layer in found]
    if not layers:
        raise SiteError(f"{name} is an empty list: name at least one layer, or leave it out for all")
    if len(set(layers)) < len(layers):
        raise SiteError(f"{name} names a layer twice: {shown(found)}")
    return layers


def _labelled(model: Model, scores: Tensor, sending: list[int], receiving: list[int], kind: str) -> xarray.DataArray:
    import xarray

    heads, kinds = range(model.config.n_heads), model.config.kinds
    kv_heads = [head // model.config.heads_per_kv for head in heads]
    coords = {
        "from_layer": sending, "from_kind": ("from_layer", [kinds[layer] for layer in sending]),
        "from_head": heads, "from_kv_head": ("from_head", kv_heads),
        "to_layer": receiving, "to_kind": ("to_layer", [kinds[layer] for layer in receiving]),
        "to_head": heads, "to_kv_head": ("to_head", kv_heads),
    }  # fmt: skip
    dims = ("from_layer", "from_head", "to_layer", "to_head")
    attrs = {"long_name": f"composition through {KINDS[kind]}"}
    return xarray.DataArray(scores.numpy(), dims=dims, coords=coords, name="composition", attrs=attrs)

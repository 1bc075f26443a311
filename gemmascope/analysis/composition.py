"""gs.composition: how far later heads read what earlier heads write, from the weights alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from gemmascope.arguments import as_numbers, one_of, short_repr, whole_number
from gemmascope.errors import SiteError
from gemmascope.legible import legible_line, prints_legibly
from gemmascope.loading.default import model_or_nano
from gemmascope.model.gemma2 import Layer
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.sites import find_layer
from gemmascope.values import labelled, moved

if TYPE_CHECKING:
    import pandas
    import xarray
    from plotly.graph_objects import Figure

KINDS = {"q": "queries", "k": "keys", "v": "values"}


@dataclass(frozen=True, repr=False, eq=False)
class Composition:
    """How far each head reads, as its queries, keys or values, what each earlier head writes. Made by gs.composition.

    Attributes:
        kind: What the receiver reads for: "q", "k" or "v".
        scores: An xarray.DataArray (from_layer, from_head, to_layer, to_head), float32, 0 to 1; NaN where the sender does
            not come before the receiver.
        model: The model's name.

    Examples:
        >>> composition = gs.composition(kind="k", senders=[0, 1], receivers=[2, 3])
        >>> composition.scores.shape
        (2, 4, 2, 4)
        >>> len(composition.best(3))
        3
    """

    kind: str
    scores: xarray.DataArray
    model: str

    def best(self, k: int = 5) -> list[tuple[int, int, int, int, float]]:
        """The pairs that compose most: (from_layer, from_head, to_layer, to_head, score), the strongest first.

        Args:
            k: The number of pairs.
        """
        frame = self.to_dataframe().nlargest(whole_number(k, "k", least=1, error=SiteError), "score")
        columns = [frame[name].tolist() for name in ("from_layer", "from_head", "to_layer", "to_head", "score")]
        return list(zip(*columns, strict=True))

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each pair of an earlier head and a later one."""
        return self.scores.to_dataframe(name="score").reset_index().dropna(subset="score", ignore_index=True)

    def plot(self) -> Figure:
        """A plotly heat map, sending head by receiving head; with many heads, the largest score of each pair of layers."""
        from gemmascope.figures.composition import composition_figure

        title = f"composition through {KINDS[self.kind]}, {self.model}"
        unit, subtitle = "composition, 0 to 1", "from the weights, without prompts"
        return composition_figure(self.scores, title=title, unit=unit, subtitle=subtitle)

    @prints_legibly
    def __repr__(self) -> str:
        kv_heads = self.scores["to_kv_head"].values
        best = [
            f"  {score:6.3f}  layer {a} head {b} -> layer {c} head {d} (kv head {kv_heads[d]})"
            for a, b, c, d, score in self.best()
        ]
        return "\n".join([f"composition through {KINDS[self.kind]} in {legible_line(self.model)}, 0 to 1", *best])


@computes
def composition(
    model: Model | None = None,
    kind: str = "v",
    *,
    senders: int | Sequence[int] | None = None,
    receivers: int | Sequence[int] | None = None,
) -> Composition:
    """How far each head's queries, keys or values read what each earlier head writes: from 0, not at all, to 1.

    The score is ||W_send W_receive|| / (||W_send|| ||W_receive||) with Frobenius norms. W_send is the sender's OV matrix;
    W_receive is the receiver's OV, or its QK from the side of the query or of the key. The gains of the sender's post-norm
    and of the receiver's input norm are included; RoPE and MLPs are left out. Query heads that share a kv head share keys
    and values: they differ by their queries ("k") and by W_O ("v").

    One stream of the layers, to the last receiver. It holds d_head x d_model float32 numbers for each sending head: 75 MB
    for each of 27B's layers, so choose the senders of a large model.

    Args:
        model: The model; None means nano.
        kind: What the receiver reads for: "q" (queries), "k" (keys) or "v" (values).
        senders: The layers of the heads that write, a number or a list; None means all.
        receivers: The layers of the heads that read, a number or a list; None means all.

    Returns:
        Scores (from_layer, from_head, to_layer, to_head), NaN where the sender does not come before the receiver.

    Raises:
        SiteError: For an unknown kind or layer, or where no sender comes before a receiver.

    Examples:
        >>> gs.composition(kind="v").best(1)
        [(0, 3, 1, 2, 0.16...)]

    References:
        Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021).
    """
    model = model_or_nano(model)
    one_of(kind, "kind", KINDS, error=SiteError)
    sending, receiving = _listed_layers(senders, "senders", model), _listed_layers(receivers, "receivers", model)
    if min(sending) >= max(receiving):
        raise SiteError(
            f"no sender comes before a receiver: senders are layers {sending}, receivers layers {receiving}, "
            f"and a head reads only what earlier layers wrote"
        )
    n_heads = model.config.n_heads
    scores = torch.full((len(sending), n_heads, len(receiving), n_heads), torch.nan, dtype=torch.float32)
    writers: dict[int, Sender] = {}
    with closing(model.layers()) as layers:
        for layer in layers:
            if layer.index in receiving:
                reader = _reader(layer, kind)
                for sender, writer in writers.items():
                    scores[sending.index(sender), :, receiving.index(layer.index)] = _scores(writer, reader)
            if layer.index == max(receiving):
                break
            if layer.index in sending:
                writers[layer.index] = _writer(layer)
    return Composition(kind, _labelled(model, scores, sending, receiving, kind), model.name)


# The matrices of a layer's heads as two thin factors. The outer factor is replaced by its root, which has the same norms.
Sender = tuple[Float[Tensor, "head x d_head"], Float[Tensor, "head d_head d_model"]]
Receiver = tuple[Float[Tensor, "head d_model d_head"], Float[Tensor, "head y d_head"]]


def _writer(layer: Layer) -> Sender:
    matrices = [layer.ov(head) for head in range(layer.self_attn.config.n_heads)]
    return torch.stack([_root(ov.left) for ov in matrices]), torch.stack([ov.right for ov in matrices])


def _reader(layer: Layer, kind: str) -> Receiver:
    sides = [_reading_factors(layer, head, kind) for head in range(layer.self_attn.config.n_heads)]
    return torch.stack([left for left, _ in sides]), torch.stack([_root(right.mT) for _, right in sides])


def _reading_factors(layer: Layer, head: int, kind: str) -> tuple[Tensor, Tensor]:
    """The factors of the matrix that reads the stream, the reading side first."""
    matrix = layer.ov(head) if kind == "v" else layer.qk(head)
    return (matrix.right.mT, matrix.left.mT) if kind == "k" else (matrix.left, matrix.right)


def _root(thin: Float[Tensor, "d_model d_head"]) -> Float[Tensor, "x d_head"]:
    """R of the QR decomposition. R^T R is the same product as of the matrix itself, so Frobenius norms stay."""
    r: Tensor = torch.linalg.qr(thin, mode="r").R
    return r


def _scores(sender: Sender, receiver: Receiver) -> Float[Tensor, "sender receiver"]:
    left, other_root = receiver
    root, right = (moved(factor, left.device) for factor in sender)
    both = einsum(right, left, "s a d, r d b -> s r a b")
    through = einsum(root, both, other_root, "s x a, s r a b, r y b -> s r x y")
    sizes = _norms(root @ right)[:, None] * _norms(left @ other_root.mT)
    # A head that writes or reads nothing has norm 0 and composes with nothing: 0 over the smallest number is 0.
    return (_norms(through) / sizes.clamp(min=torch.finfo(torch.float32).tiny)).cpu()


def _norms(matrices: Float[Tensor, "*heads m n"]) -> Float[Tensor, "*heads"]:
    return matrices.square().sum((-2, -1)).sqrt()


def _listed_layers(requested: object, name: str, model: Model) -> list[int]:
    """The layers as numbers, in the user's order. SiteError for one that is not there, one named twice, or none."""
    if requested is None:
        return list(range(model.n_layers))
    numbers = as_numbers(requested)
    if numbers is None:
        raise SiteError(f"{name} is a layer or a list of layers; given {short_repr(requested)}")
    layers = [find_layer(layer, model.n_layers) for layer in numbers]
    if not layers:
        raise SiteError(f"{name} is an empty list: name at least one layer, or leave it out for all")
    if len(set(layers)) < len(layers):
        raise SiteError(f"{name} names a layer twice: {short_repr(numbers)}")
    return layers


def _labelled(model: Model, scores: Tensor, sending: list[int], receiving: list[int], kind: str) -> xarray.DataArray:
    heads, kinds = range(model.config.n_heads), model.config.kinds
    kv_heads = [head // model.config.heads_per_kv for head in heads]
    coords = {
        "from_layer": sending, "from_kind": ("from_layer", [kinds[layer] for layer in sending]),
        "from_head": heads, "from_kv_head": ("from_head", kv_heads),
        "to_layer": receiving, "to_kind": ("to_layer", [kinds[layer] for layer in receiving]),
        "to_head": heads, "to_kv_head": ("to_head", kv_heads),
    }  # fmt: skip
    dims = ("from_layer", "from_head", "to_layer", "to_head")
    return labelled(scores, coords, dims, "composition", f"composition through {KINDS[kind]}")

"""Factors: a head's matrices as they are, products of two thin ones, so that no d_model x d_model matrix is made.

Rows multiply from the left: row @ left @ right. Source: Elhage et al., "A Mathematical Framework for Transformer Circuits"
(2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from gemmascope.arguments import is_whole, whole_number
from gemmascope.arguments import shown as quoted
from gemmascope.errors import DeviceError, GemmascopeError, SiteError
from gemmascope.legible import legibly
from gemmascope.model.maths import rms_scale, rope_table, rotate
from gemmascope.model.modes import computes
from gemmascope.tokens.tokenizer import shown

if TYPE_CHECKING:
    import pandas

    from gemmascope.config import GemmaConfig
    from gemmascope.model.gemma2 import Layer, RMSNorm
    from gemmascope.model.model import Model


# No key stands further behind its query than this.
FAR = 2**31


@dataclass(frozen=True, repr=False, eq=False)
class FactoredMatrix:
    """left [d_model, d_head] @ right [d_head, d_model], float32: the OV or QK matrix of one query head.

    kind: "ov": what a head writes for what stands where it reads: normed row @ left @ right. "qk": a score: query row @ left
    @ right @ key row. kv_head: the kv head that it reads with; shared_with: the other query heads that read with it.
    distance: of a "qk", how many positions before the query the key stands. gains: whether the norms' are folded in.
    """

    kind: str
    layer: int
    head: int
    kv_head: int
    shared_with: tuple[int, ...]
    left: Float[Tensor, "d_model d_head"]
    right: Float[Tensor, "d_head d_model"]
    gains: bool = True
    distance: int | None = None

    @computes
    def matrix(self) -> Float[Tensor, "d_model d_model"]:
        """The whole matrix."""
        return self.left @ self.right

    @computes
    def singular(self) -> tuple[Float[Tensor, "d_model n"], Float[Tensor, " n"], Float[Tensor, "n d_model"]]:
        """The singular value decomposition U, S, Vh of the matrix, its d_head largest values, the largest first."""
        q_left, r_left = torch.linalg.qr(self.left)
        q_right, r_right = torch.linalg.qr(self.right.mT)
        u, s, vh = torch.linalg.svd(r_left @ r_right.mT)
        return q_left @ u, s, vh @ q_right.mT

    @computes
    def eigenvalues(self) -> Complex[Tensor, " d_head"]:
        """The eigenvalues of the matrix that are not 0 by its rank."""
        values: Tensor = torch.linalg.eigvals(self.right @ self.left)
        return values

    @computes
    def norm(self) -> float:
        """The Frobenius norm of the matrix."""
        return float(((self.left.mT @ self.left) * (self.right @ self.right.mT)).sum().clamp(min=0).sqrt())

    @computes
    def read_out(self, model: Model, k: int = 5, n: int = 3) -> pandas.DataFrame:
        """The n strongest singular vectors in tokens: what the left side reads, and what the right side writes or reads.

        One row for each vector and sign. Tokens stand for themselves as they enter the first layer, each normed; what an OV
        matrix writes is read through the last norm's gain and the unembedding. k: tokens of each side, the strongest first.
        GemmascopeError for another width than the model's, SiteError for a k or n that there is not.
        """
        import pandas

        self._check(model, k, n)

        u, s, vh = self.singular()
        rows = []
        left = _strengths(model, u[:, :n], normed=True)
        right = _strengths(model, self._as_written(model, vh[:n]).mT, normed=self.kind == "qk")
        names = ("queries", "keys") if self.kind == "qk" else ("reads", "writes")
        for i in range(n):
            for sign, mark in ((1, "+"), (-1, "-")):
                sides = [_top(model, sign * side[:, i], k) for side in (left, right)]
                rows.append({"vector": i, "sign": mark, "value": float(s[i]), **dict(zip(names, sides, strict=True))})
        return pandas.DataFrame(rows)

    def _check(self, model: Model, k: Any, n: Any) -> None:
        width, theirs = len(self.left), getattr(getattr(model, "config", None), "d_model", None)
        if not isinstance(theirs, int) or theirs != width:
            given = type(model).__name__ if theirs is None else f"{model.name!r}, whose d_model is {theirs}"
            raise GemmascopeError(f"read_out takes the model that these factors are of, of d_model {width}; given {given}")
        for name, number, most in (("k", k, model.config.vocab_size), ("n", n, min(self.left.shape))):
            whole_number(number, name, least=1, most=most, error=SiteError)

    def _as_written(self, model: Model, rows: Tensor) -> Tensor:
        return rows if self.kind == "qk" else rows * (1 + model.network.model.norm.weight.detach().float())

    @legibly
    def __repr__(self) -> str:
        others = ", ".join(map(str, self.shared_with))
        shared = f", shared with query head{'s' if len(self.shared_with) > 1 else ''} {others}" if others else ""
        shape = f"{self.left.shape[0]} x {self.left.shape[0]}, rank {self.left.shape[1]}"
        apart = "" if self.distance is None else f" at distance {self.distance}"
        bare = "" if self.gains else ", without the norms' gains"
        return (
            f"Factors({self.kind}{apart} of layer {self.layer}, query head {self.head}, which reads kv head {self.kv_head}"
            f"{shared}: {shape}, norm {self.norm():.4g}{bare})"
        )


@computes
def ov_of(layer: Layer, head: int, *, gains: bool) -> FactoredMatrix:
    """The OV matrix of a layer's query head; see Layer.ov."""
    _require_values(layer)
    attention, config = layer.self_attn, layer.self_attn.config
    head = _head_of(head, config)
    values, columns = head // config.heads_per_kv, slice(head * config.d_head, (head + 1) * config.d_head)
    left = _rows(attention.v_proj.weight, values, config.d_head)
    right = attention.o_proj.weight[:, columns].mT.detach().float()
    if gains:
        left, right = left * _gain(layer.input_layernorm), right * _gain(layer.post_attention_layernorm)
    return _factors("ov", layer, head, left.mT, right, gains)


@computes
def qk_of(layer: Layer, head: int, distance: int, *, gains: bool) -> FactoredMatrix:
    """The QK matrix of a layer's query head; see Layer.qk."""
    _require_values(layer)
    if not is_whole(distance) or not 0 <= int(distance) <= FAR:
        raise SiteError(
            f"distance is how many positions before the query the key stands, 0 or more; given {quoted(distance)}"
        )
    distance = int(distance)
    attention, config = layer.self_attn, layer.self_attn.config
    head = _head_of(head, config)
    left = _rows(attention.q_proj.weight, head, config.d_head) * attention.attend.scale
    right = _rows(attention.k_proj.weight, head // config.heads_per_kv, config.d_head)
    # A rotation by the query's angles and one by the key's leave the one by their difference.
    cos, sin = rope_table(torch.tensor([-distance], device=right.device), config.d_head, config.rope_theta)
    right = rotate(right.mT[:, None], cos.expand(config.d_model, -1), sin.expand(config.d_model, -1))[:, 0].mT
    if gains:
        left, right = left * _gain(layer.input_layernorm), right * _gain(layer.input_layernorm)
    return _factors("qk", layer, head, left.mT, right, gains, int(distance))


def _factors(
    kind: str, layer: Layer, head: int, left: Tensor, right: Tensor, gains: bool, distance: int | None = None
) -> FactoredMatrix:
    group = layer.self_attn.config.heads_per_kv
    kv_head = head // group
    sharing = tuple(h for h in range(kv_head * group, (kv_head + 1) * group) if h != head)
    return FactoredMatrix(kind, layer.index, head, kv_head, sharing, left, right, gains, distance)


def _require_values(layer: Layer) -> None:
    if layer.input_layernorm.weight.is_meta:
        raise DeviceError("the layer is on the meta device, which has shapes and no values: load the model on another one")


def _head_of(head: Any, config: GemmaConfig) -> int:
    """A query head as a number from 0, negative ones counted from the end. SiteError if the model has no such head."""
    n_heads = config.n_heads
    if not is_whole(head):
        raise SiteError(f"a head is a whole number, from 0 to {n_heads - 1}; given {quoted(head)}")
    number = int(head)
    if not -n_heads <= number < n_heads:
        raise SiteError(
            f"there is no head {quoted(number)}: query heads go from 0 to {n_heads - 1} (or from -1 to -{n_heads}, from the "
            f"end), and query head h reads kv head h // {config.heads_per_kv}"
        )
    return number % n_heads


def _rows(weight: Tensor, head: int, d_head: int) -> Tensor:
    return weight[head * d_head : (head + 1) * d_head].detach().float()


def _gain(norm: RMSNorm) -> Tensor:
    return 1.0 + norm.weight.detach().float()


def normed_tokens(model: Model, rows: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
    """Rows of the embedding as the first layer's norm makes them, before its gain."""
    rows = rows * model.config.d_model**0.5
    return rows * rms_scale(rows, model.config.norm_eps)


def _strengths(model: Model, vectors: Tensor, *, normed: bool) -> Float[Tensor, "token n"]:
    parts = (rows.float() for _, rows in model.network.model.embed_tokens.parts())
    return torch.cat([(normed_tokens(model, rows) if normed else rows) @ vectors for rows in parts])


def _top(model: Model, strengths: Tensor, k: int) -> str:
    return " ".join(shown(text) for text in model.texts(strengths.topk(min(k, len(strengths))).indices))

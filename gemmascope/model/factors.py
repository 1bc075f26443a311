"""Factors: a head's matrices as they are, products of two thin ones, so that no d_model x d_model matrix is made.

Rows multiply from the left: row @ left @ right. Source: Elhage et al., "A Mathematical Framework for Transformer Circuits"
(2021).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from gemmascope.errors import SiteError
from gemmascope.model.maths import rms_scale, rope_table, rotate
from gemmascope.tokens import shown

if TYPE_CHECKING:
    import pandas

    from gemmascope.model.gemma2 import Embedding, Layer, RMSNorm
    from gemmascope.model.model import Model

# Tokens whose embeddings are held at once.
TOKENS = 8192


@dataclass(frozen=True, repr=False, eq=False)
class Factors:
    """left [d_model, d_head] @ right [d_head, d_model], float32: the OV or QK matrix of one query head.

    kind: "ov": what a head writes for what stands where it reads: normed row @ left @ right. "qk": a score: query row @ left
    @ right @ key row. kv_head: the kv head that it reads with; shared_with: the other query heads that read with it.
    """

    kind: str
    layer: int
    head: int
    kv_head: int
    shared_with: tuple[int, ...]
    left: Float[Tensor, "d_model d_head"]
    right: Float[Tensor, "d_head d_model"]

    def matrix(self) -> Float[Tensor, "d_model d_model"]:
        """The whole matrix."""
        return self.left @ self.right

    def singular(self) -> tuple[Float[Tensor, "d_model n"], Float[Tensor, " n"], Float[Tensor, "n d_model"]]:
        """The singular value decomposition U, S, Vh of the matrix, its d_head largest values, the largest first."""
        q_left, r_left = torch.linalg.qr(self.left)
        q_right, r_right = torch.linalg.qr(self.right.mT)
        u, s, vh = torch.linalg.svd(r_left @ r_right.mT)
        return q_left @ u, s, vh @ q_right.mT

    def eigenvalues(self) -> Complex[Tensor, " d_head"]:
        """The eigenvalues of the matrix that are not 0 by its rank."""
        return torch.linalg.eigvals(self.right @ self.left)

    def norm(self) -> float:
        """The Frobenius norm of the matrix."""
        return float(product_norm(self.left, self.right))

    def read_out(self, model: Model, k: int = 5, n: int = 3) -> pandas.DataFrame:
        """The n strongest singular vectors in tokens: what the left side reads, and what the right side writes or reads.

        One row for each vector and sign. Tokens stand for themselves as they enter the first layer, each normed; what an OV
        matrix writes is read through the last norm's gain and the unembedding. k: tokens of each side, the strongest first.
        """
        import pandas

        u, s, vh = self.singular()
        rows = []
        left = _strengths(model, u[:, :n], normed=True)
        right = _strengths(model, self._as_written(model, vh[:n]).mT, normed=self.kind == "qk")
        names = ("queries", "keys") if self.kind == "qk" else ("reads", "writes")
        for i in range(min(n, len(s))):
            for sign, mark in ((1, "+"), (-1, "-")):
                sides = [_top(model, sign * side[:, i], k) for side in (left, right)]
                rows.append({"vector": i, "sign": mark, "value": float(s[i]), **dict(zip(names, sides, strict=True))})
        return pandas.DataFrame(rows)

    def _as_written(self, model: Model, rows: Tensor) -> Tensor:
        return rows if self.kind == "qk" else rows * (1 + model.network.model.norm.weight.detach().float())

    def __repr__(self) -> str:
        others = ", ".join(map(str, self.shared_with))
        shared = f", shared with query head{'s' if len(self.shared_with) > 1 else ''} {others}" if others else ""
        shape = f"{self.left.shape[0]} x {self.left.shape[0]}, rank {self.left.shape[1]}"
        return (
            f"Factors({self.kind} of layer {self.layer}, query head {self.head}, which reads kv head {self.kv_head}{shared}"
            f": {shape}, norm {self.norm():.4g})"
        )


def ov_of(layer: Layer, head: int, *, gains: bool) -> Factors:
    """The OV matrix of a layer's query head; see Layer.ov."""
    kv_head, columns = _heads_of(layer, head)
    attention = layer.self_attn
    left, right = _rows(attention.v_proj.weight, kv_head, attention.config.d_head).mT, attention.o_proj.weight[:, columns].mT
    left, right = left.detach().float(), right.detach().float()
    if gains:
        left, right = _gain(layer.input_layernorm) * left.mT, right * _gain(layer.post_attention_layernorm)
        left = left.mT
    return _factors("ov", layer, head, kv_head, left, right)


def qk_of(layer: Layer, head: int, distance: int, *, gains: bool) -> Factors:
    """The QK matrix of a layer's query head; see Layer.qk."""
    if isinstance(distance, bool) or not isinstance(distance, int) or distance < 0:
        raise SiteError(f"distance is how many positions before the query the key stands, 0 or more; given {distance!r}")
    kv_head, _ = _heads_of(layer, head)
    attention, config = layer.self_attn, layer.self_attn.config
    left = _rows(attention.q_proj.weight, head, config.d_head).detach().float() * attention.attend.scale
    right = _rows(attention.k_proj.weight, kv_head, config.d_head).detach().float()
    # A rotation by the query's angles and one by the key's leave the one by their difference.
    cos, sin = rope_table(torch.tensor([-distance], device=right.device), config.d_head, config.rope_theta)
    right = rotate(right.mT[:, None], cos.expand(config.d_model, -1), sin.expand(config.d_model, -1))[:, 0].mT
    if gains:
        left, right = left * _gain(layer.input_layernorm), right * _gain(layer.input_layernorm)
    return _factors("qk", layer, head, kv_head, left.mT, right)


def _factors(kind: str, layer: Layer, head: int, kv_head: int, left: Tensor, right: Tensor) -> Factors:
    group = layer.self_attn.config.heads_per_kv
    sharing = tuple(h for h in range(kv_head * group, (kv_head + 1) * group) if h != head)
    return Factors(kind, layer.index, head, kv_head, sharing, left, right)


def _heads_of(layer: Layer, head: int) -> tuple[int, slice]:
    """The kv head of a query head, and the columns of W_O that are its own."""
    config = layer.self_attn.config
    if isinstance(head, bool) or not isinstance(head, int) or not 0 <= head < config.n_heads:
        raise SiteError(
            f"there is no query head {head!r}: they go from 0 to {config.n_heads - 1}, and each {config.heads_per_kv} "
            f"share a kv head"
        )
    return head // config.heads_per_kv, slice(head * config.d_head, (head + 1) * config.d_head)


def _rows(weight: Tensor, head: int, d_head: int) -> Tensor:
    return weight[head * d_head : (head + 1) * d_head]


def _gain(norm: RMSNorm) -> Tensor:
    return 1.0 + norm.weight.detach().float()


def product_norm(left: Float[Tensor, "*heads d rank"], right: Float[Tensor, "*heads rank e"]) -> Float[Tensor, "*heads"]:
    """The Frobenius norm of left @ right, without making it."""
    squared = ((left.mT @ left) * (right @ right.mT)).sum((-2, -1))
    return squared.clamp(min=0).sqrt()


def embeddings(embedding: Embedding, vocab_size: int) -> Iterator[Float[Tensor, "token d_model"]]:
    """The table of tokens, TOKENS rows at a time, float32."""
    device = embedding.weight.device
    for start in range(0, vocab_size, TOKENS):
        ids = torch.arange(start, min(start + TOKENS, vocab_size), device=device)
        with torch.no_grad():
            yield embedding(ids).float()


def normed_tokens(model: Model, rows: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
    """Rows of the embedding as the first layer's norm makes them, before its gain."""
    rows = rows * model.config.d_model**0.5
    return rows * rms_scale(rows, model.config.norm_eps)


def _strengths(model: Model, vectors: Tensor, *, normed: bool) -> Float[Tensor, "token n"]:
    tables = embeddings(model.network.model.embed_tokens, model.config.vocab_size)
    return torch.cat([(normed_tokens(model, rows) if normed else rows) @ vectors for rows in tables])


def _top(model: Model, strengths: Tensor, k: int) -> str:
    return " ".join(shown(text) for text in model.texts(strengths.topk(min(k, len(strengths))).indices))

"""A head's OV and QK matrices as products of two thin matrices, so that no d_model x d_model matrix is needed.

Rows multiply from the left: row @ left @ right.

References: Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from gemmascope.arguments import is_whole, short_repr, whole_number
from gemmascope.config import GemmaConfig
from gemmascope.errors import DeviceError, GemmascopeError, SiteError
from gemmascope.legible import prints_legibly
from gemmascope.model.maths import rms_scale, rope_table, rotate
from gemmascope.model.modes import computes
from gemmascope.model.modules import Attention, Embedding, NoNorm, RMSNorm
from gemmascope.tokens.tokenizer import visible_text

if TYPE_CHECKING:
    import pandas


# The largest distance of a key from its query.
MAX_DISTANCE = 2**31


class _Torso(Protocol):
    @property
    def embed_tokens(self) -> Embedding: ...
    @property
    def norm(self) -> RMSNorm: ...


class EmbeddingNetwork(Protocol):
    """A network with an embedding and a last norm."""

    @property
    def model(self) -> _Torso: ...


class VocabularyModel(Protocol):
    """What is read of a Model to name tokens: its embedding, its last norm, and the texts of its tokens."""

    name: str

    @property
    def config(self) -> GemmaConfig: ...
    @property
    def network(self) -> EmbeddingNetwork: ...
    def texts(self, ids: Tensor) -> list[str]: ...


@dataclass(frozen=True, repr=False, eq=False)
class FactoredMatrix:
    """left [d_model, d_head] @ right [d_head, d_model], float32: the OV or QK matrix of one query head.

    Attributes:
        kind: "ov": what the head writes for a row that it reads, row @ left @ right. "qk": a score,
            query row @ left @ right @ key row.
        layer: The layer.
        head: The query head.
        kv_head: The kv head that it reads with.
        shared_with: The other query heads that read with that kv head.
        left: [d_model, d_head].
        right: [d_head, d_model].
        gains: Whether the gains of the norms are included.
        distance: For "qk", how many positions the key is before the query.
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
        """The singular value decomposition U, S, Vh of the matrix: its d_head largest values, the largest first."""
        q_left, r_left = torch.linalg.qr(self.left)
        q_right, r_right = torch.linalg.qr(self.right.mT)
        u, s, vh = torch.linalg.svd(r_left @ r_right.mT)
        return q_left @ u, s, vh @ q_right.mT

    @computes
    def eigenvalues(self) -> Complex[Tensor, " d_head"]:
        """The d_head eigenvalues that its rank allows to be nonzero."""
        values: Tensor = torch.linalg.eigvals(self.right @ self.left)
        return values

    @computes
    def norm(self) -> float:
        """The Frobenius norm of the matrix."""
        return float(((self.left.mT @ self.left) * (self.right @ self.right.mT)).sum().clamp(min=0).sqrt())

    @computes
    def read_out(self, model: VocabularyModel, k: int = 5, n: int = 3) -> pandas.DataFrame:
        """The strongest singular vectors as tokens: those that the left side reads, and the right side writes or reads.

        A token is read as the normed embedding that enters the first layer; what an OV matrix writes is read through
        the last norm's gain and the unembedding.

        Args:
            model: The model that the matrix is of.
            k: How many tokens of each side, the strongest first. Default 5.
            n: How many singular vectors. Default 3.

        Returns:
            A table with one row for each vector and sign.

        Raises:
            GemmascopeError: The model has another width.
            SiteError: k or n is out of range.
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

    def _check(self, model: VocabularyModel, k: int, n: int) -> None:
        width, d_model = len(self.left), getattr(getattr(model, "config", None), "d_model", None)
        if not isinstance(d_model, int) or d_model != width:
            given = type(model).__name__ if d_model is None else f"{model.name!r}, whose d_model is {d_model}"
            raise GemmascopeError(f"read_out takes the model that these factors are of, of d_model {width}; given {given}")
        for name, number, most in (("k", k, model.config.vocab_size), ("n", n, min(self.left.shape))):
            whole_number(number, name, least=1, most=most, error=SiteError)

    def _as_written(self, model: VocabularyModel, rows: Tensor) -> Tensor:
        return rows if self.kind == "qk" else rows * (1 + model.network.model.norm.weight.detach().float())

    @prints_legibly
    def __repr__(self) -> str:
        others = ", ".join(map(str, self.shared_with))
        shared = f", shared with query head{'s' if len(self.shared_with) > 1 else ''} {others}" if others else ""
        shape = f"{self.left.shape[0]} x {self.left.shape[0]}, rank {self.left.shape[1]}"
        at_distance = "" if self.distance is None else f" at distance {self.distance}"
        without_gains = "" if self.gains else ", without the norms' gains"
        return (
            f"Factors({self.kind}{at_distance} of layer {self.layer}, query head {self.head}, "
            f"which reads kv head {self.kv_head}{shared}: {shape}, norm {self.norm():.4g}{without_gains})"
        )


@computes
def ov_of(layer: int, attention: Attention, norms: tuple[RMSNorm, RMSNorm], head: int, *, gains: bool) -> FactoredMatrix:
    """The OV matrix of a query head; see Layer.ov. norms: those before and after the attention of the layer."""
    before, after = norms
    _require_values(before)
    config = attention.config
    head = _head_index(head, config)
    values, columns = head // config.heads_per_kv, slice(head * config.d_head, (head + 1) * config.d_head)
    left = _rows(attention.v_proj.weight, values, config.d_head)
    right = attention.o_proj.weight[:, columns].mT.detach().float()
    if gains:
        left, right = left * _gain(before), right * _gain(after)
    return _factors("ov", layer, config, head, left.mT, right, gains)


@computes
def qk_of(layer: int, attention: Attention, norm: RMSNorm, head: int, distance: int, *, gains: bool) -> FactoredMatrix:
    """The QK matrix of a query head; see Layer.qk. norm: that before the attention of the layer."""
    _require_values(norm)
    if not is_whole(distance) or not 0 <= int(distance) <= MAX_DISTANCE:
        raise SiteError(
            f"distance is how many positions before the query the key stands, 0 or more; given {short_repr(distance)}"
        )
    distance = int(distance)
    config = attention.config
    head = _head_index(head, config)
    left = _rows(attention.q_proj.weight, head, config.d_head) * attention.attend.scale * _gain_of_rows(attention.q_norm)
    right = _rows(attention.k_proj.weight, head // config.heads_per_kv, config.d_head) * _gain_of_rows(attention.k_norm)
    # The rotations of query and key combine to one by the difference of their positions.
    back = torch.tensor([-distance], device=right.device)
    cos, sin = rope_table(back, config.d_head, attention.rope_theta, attention.rope_factor)
    right = rotate(right.mT[:, None], cos.expand(config.d_model, -1), sin.expand(config.d_model, -1))[:, 0].mT
    if gains:
        left, right = left * _gain(norm), right * _gain(norm)
    return _factors("qk", layer, config, head, left.mT, right, gains, distance)


def _factors(
    kind: str,
    layer: int,
    config: GemmaConfig,
    head: int,
    left: Tensor,
    right: Tensor,
    gains: bool,
    distance: int | None = None,
) -> FactoredMatrix:
    group = config.heads_per_kv
    kv_head = head // group
    sharing = tuple(h for h in range(kv_head * group, (kv_head + 1) * group) if h != head)
    return FactoredMatrix(kind, layer, head, kv_head, sharing, left, right, gains, distance)


def _require_values(norm: RMSNorm) -> None:
    if norm.weight.is_meta:
        raise DeviceError("the layer is on the meta device, which has shapes and no values: load the model on another one")


def _head_index(head: object, config: GemmaConfig) -> int:
    """A query head as an index from 0; negative ones count from the end. SiteError if there is no such head."""
    n_heads = config.n_heads
    if not is_whole(head):
        raise SiteError(f"a head is a whole number, from 0 to {n_heads - 1}; given {short_repr(head)}")
    number = int(head)
    if not -n_heads <= number < n_heads:
        raise SiteError(
            f"there is no head {short_repr(number)}: query heads go from 0 to {n_heads - 1} (or from -1 to -{n_heads}, from "
            f"the end), and query head h reads kv head h // {config.heads_per_kv}"
        )
    return number % n_heads


def _rows(weight: Tensor, head: int, d_head: int) -> Tensor:
    return weight[head * d_head : (head + 1) * d_head].detach().float()


def _gain(norm: RMSNorm) -> Tensor:
    return 1.0 + norm.weight.detach().float()


def _gain_of_rows(norm: RMSNorm | NoNorm) -> Tensor | float:
    """What the norm of a head's queries or keys multiplies its rows by, [d_head, 1]; 1 where there is no norm."""
    return _gain(norm)[:, None] if isinstance(norm, RMSNorm) else 1.0


def normed_tokens(model: VocabularyModel, rows: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
    """Rows of the embedding after the first layer's norm, without its gain."""
    rows = rows * model.config.d_model**0.5
    return rows * rms_scale(rows, model.config.norm_eps)


def _strengths(model: VocabularyModel, vectors: Tensor, *, normed: bool) -> Float[Tensor, "token n"]:
    parts = (rows.float() for _, rows in model.network.model.embed_tokens.parts())
    return torch.cat([(normed_tokens(model, rows) if normed else rows) @ vectors for rows in parts])


def _top(model: VocabularyModel, strengths: Tensor, k: int) -> str:
    return " ".join(visible_text(text) for text in model.texts(strengths.topk(min(k, len(strengths))).indices))

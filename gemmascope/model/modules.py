"""The modules of Gemma 2 that have weights: linear maps, norms, attention, MLP and the tied embedding.

They have the checkpoint's names, so weights load without a name table.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gemmascope.config import GemmaConfig
from gemmascope.model.attention import attend_of
from gemmascope.model.digests import tensor_digest
from gemmascope.model.layout import Layout
from gemmascope.model.maths import gelu_gate, rms_norm, rms_scale, root_mean_square, rotate
from gemmascope.model.tap import BoundTap
from gemmascope.values import chunks

TOKENS = 8192  # rows of the embedding that parts() yields at once

# Up to this many rows a CPU's bfloat16 products are quicker with the weights as the left factor: as the right one they are
# packed first. Measured on a Xeon with AMX, 512 x 512 to 8192 x 512: 1.1 to 1.5 times. float32 gains too little.
FEW_ROWS = 48


class Linear(nn.Linear):
    """A linear map without bias. Its weight stays on the meta device until a checkpoint's tensor replaces it."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(d_in, d_out, bias=False, device="meta")

    def reset_parameters(self) -> None:
        """Does nothing: weights on the meta device have no memory."""

    def forward(self, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_out"]:
        return product(x, self.weight)


def product(x: Float[Tensor, "row d_in"], weight: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "row d_out"]:
    """The products of rows with a matrix, contiguous. How they are computed depends on the number of rows alone."""
    if x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.dim() == 2 and 0 < len(x) <= FEW_ROWS:
        return torch.mv(weight, x[0])[None] if len(x) == 1 else (weight @ x.T).T.contiguous()
    return F.linear(x, weight)


class RMSNorm(nn.Module):
    """x / rms(x) * (1 + weight), in float32."""

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(d_model, device="meta"))

    def forward(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        return rms_norm(x, self.weight, self.eps)

    def tapped(
        self, x: Float[Tensor, "row d_model"], site: str, tap: BoundTap
    ) -> tuple[Float[Tensor, "row d_model"], Float[Tensor, " row"] | None]:
        """Rows x normed, and the scale that a tap wrote at this site; None if each row has its own.

        Rows whose scale stays keep every bit, since dividing by it rounds otherwise than the norm does. Where a gradient is
        recorded all are divided: it must reach the scale.
        """
        if not tap.wants(site):
            return self(x), None
        own = root_mean_square(x, self.eps)
        scale = tap(site, own)
        if scale is own:
            return self(x), None
        divided = (x.float() / scale[:, None] * (1.0 + self.weight.float())).to(x.dtype)
        return divided if torch.is_grad_enabled() else torch.where((scale == own)[:, None], self(x), divided), scale

    def gain(
        self, x: Float[Tensor, "*rows d_model"], scale: Float[Tensor, "*rows"] | None = None
    ) -> Float[Tensor, "*rows d_model"]:
        """What this norm multiplies rows x by, with its scale for these rows or with a given one. Float32."""
        factor = rms_scale(x, self.eps) if scale is None else scale.float().reciprocal()[..., None]
        return factor * (1.0 + self.weight.float())


class NoNorm(nn.Identity):
    """Stands for the norms of queries and keys in a Gemma 2, which has none: its gain is 1."""


class Attention(nn.Module):
    """Grouped-query attention with RoPE and a soft cap; local layers see a window of keys."""

    def __init__(self, config: GemmaConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = Linear(config.d_model, d_q)
        self.k_proj = Linear(config.d_model, d_kv)
        self.v_proj = Linear(config.d_model, d_kv)
        self.o_proj = Linear(d_q, config.d_model)
        self.q_norm, self.k_norm = (RMSNorm(config.d_head, config.norm_eps) if config.qk_norms else NoNorm() for _ in "qk")
        self.rope_theta, self.rope_factor = config.rope_of(layer)
        self.attend = attend_of(config, layer)

    def forward(
        self, x: Float[Tensor, "row d_model"], layout: Layout, tap: BoundTap
    ) -> tuple[Float[Tensor, "query d_model"], Float[Tensor, "query head d_head"]]:
        q, k, v = self.queries_keys_values(x, layout, tap)
        z = tap("z", self.attend(q, k, v, layout, tap))
        return self.write(z), z

    def project(self, site: str, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d"]:
        """The queries, keys or values ("q", "k", "v") of rows, of all heads side by side."""
        projected: Tensor = getattr(self, f"{site}_proj")(rows)
        return projected

    def write(self, z: Float[Tensor, "row head d_head"]) -> Float[Tensor, "row d_model"]:
        """What the heads write together, before the post-norm."""
        written: Tensor = self.o_proj(z.flatten(1))
        return written

    def output_weights(self) -> Float[Tensor, "d_model d"]:
        """W_O of the heads that are here, side by side."""
        return self.o_proj.weight

    def queries_keys_values(
        self, x: Float[Tensor, "row d_model"], layout: Layout, tap: BoundTap
    ) -> tuple[Float[Tensor, "query head d_head"], Float[Tensor, "row kv_head d_head"], Float[Tensor, "row kv_head d_head"]]:
        """The queries and keys, after RoPE, and the values."""
        # Views: beside the products of one row, rearrange takes time.
        q, k, v = (
            tap(site, self.project(name, rows).view(len(rows), -1, self.config.d_head))
            for site, name, rows in (("q_raw", "q", layout.query_rows(x)), ("k_raw", "k", x), ("v", "v", x))
        )
        q, k = tap("q", self.q_norm(q)), tap("k", self.k_norm(k))
        cos, sin = layout.rope(self.config.d_head, self.rope_theta, self.rope_factor)
        q_rot = tap("q_rot", rotate(q, layout.query_rows(cos), layout.query_rows(sin)))
        return q_rot, tap("k_rot", rotate(k, cos, sin)), v

    def head_outputs(self, z: Float[Tensor, "row head d_head"]) -> Float[Tensor, "row head d_model"]:
        """What each head adds to the attention output, before the post-norm: they sum to it."""
        w_o = rearrange(self.output_weights(), "d_model (head d) -> head d d_model", d=self.config.d_head)
        return einsum(z, w_o, "row head d, head d d_model -> row head d_model")


class MLP(nn.Module):
    """GeGLU: down(gelu(gate) * up), with GELU's tanh form."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.d_model, config.d_mlp)
        self.up_proj = Linear(config.d_model, config.d_mlp)
        self.down_proj = Linear(config.d_mlp, config.d_model)

    def forward(self, x: Float[Tensor, "row d_model"], tap: BoundTap) -> Float[Tensor, "row d_model"]:
        gate, up = tap("mlp_gate", self.gate_proj(x)), tap("mlp_up", self.up_proj(x))
        return self.down_proj(tap("mlp_act", gelu_gate(gate, up)))  # type: ignore[no-any-return]


class Embedding(nn.Embedding):
    """The tied embedding: token ids to rows, and rows to logits."""

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__(vocab_size, d_model, device="meta")

    def reset_parameters(self) -> None:
        """Does nothing: weights on the meta device have no memory."""

    def logits(self, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
        """The products of rows with every token's embedding, before the soft cap."""
        return product(x, self.weight)

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """The table in parts: the tokens, and their rows, valid until the next part is requested."""
        for tokens in chunks(len(self.weight), TOKENS):
            yield tokens, self.weight.detach()[tokens]

    def digest(self) -> str:
        """The digest of the present table."""
        return tensor_digest(self.weight)

    def mark(self) -> str | None:
        """The stamp of the file that holds the table; None for a table in memory."""
        return None

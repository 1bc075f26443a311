"""The frozen network written out plainly, for tests of attribution graphs: autograd gives what it says of any writer.

Everything that is held comes from gs.trace; the rest is the formula, one position and one head at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gemmascope.model.model import Model
from gemmascope.run.trace import Trace

# What a sublayer gives in place of what it computes: (layer, its input) -> what joins the stream.
Mlp = Callable[[int, Tensor], Tensor]


@dataclass
class Stream:
    """The sites of a frozen run by name, each a list with an entry for each layer; final is the last stream."""

    resid_pre: list[Tensor]
    z: list[Tensor]
    attn_out: list[Tensor]
    resid_mid: list[Tensor]
    mlp_out: list[Tensor]
    resid_post: list[Tensor]


def frozen(
    trace: Trace, embed: Tensor, mlp: Mlp, replace: Callable[[str, int, Tensor], Tensor] = lambda site, index, x: x
) -> Stream:
    """The stream with patterns and scales of the run. replace: (site, layer, value) -> the value to go on with."""
    model, x = trace.model, embed
    sites = Stream([], [], [], [], [], [])
    for index in range(model.n_layers):
        sites.resid_pre.append(x)
        z = replace("z", index, heads(trace, index, x))
        sites.z.append(z)
        layer = model.layer(index)
        raw = z.flatten(1) @ layer.self_attn.o_proj.weight.float().T
        attn = normed(raw, layer.post_attention_layernorm, trace["attn_out_scale", index])
        attn = replace("attn_out", index, attn)
        sites.attn_out.append(attn)
        x = replace("resid_mid", index, x + attn)
        sites.resid_mid.append(x)
        out = replace("mlp_out", index, mlp(index, x))
        sites.mlp_out.append(out)
        x = replace("resid_post", index, x + out)
        sites.resid_post.append(x)
    return sites


def heads(trace: Trace, index: int, x: Tensor) -> Tensor:
    """What each head reads, with the pattern held: [pos, head, d_head]."""
    layer, config = trace.model.layer(index), trace.model.config
    attn_in = normed(x, layer.input_layernorm, trace["attn_in_scale", index])
    values = (attn_in @ layer.self_attn.v_proj.weight.float().T).view(len(x), config.n_kv_heads, config.d_head)
    pattern = trace["pattern", index].float()
    return torch.stack([pattern[h] @ values[:, h // config.heads_per_kv] for h in range(config.n_heads)], dim=1)


def normed(x: Tensor, norm: torch.nn.Module, scale: Tensor) -> Tensor:
    return x / scale[:, None] * (1 + norm.weight.float())


def relp(trace: Trace, index: int, x: Tensor, change: Callable[[Tensor], Tensor] = lambda a: a) -> Tensor:
    """The MLP with its gates held and each factor at half, of which the value is the run's."""
    layer = trace.model.layer(index)
    mlp_in = normed(x, layer.pre_feedforward_layernorm, trace["mlp_in_scale", index])
    gate, up = mlp_in @ layer.mlp.gate_proj.weight.float().T, mlp_in @ layer.mlp.up_proj.weight.float().T
    g, u = gate.detach(), up.detach()
    active = torch.nn.functional.gelu(g, approximate="tanh")
    act = change(active * up / 2 + active / g * u * gate / 2)
    return normed(
        act @ layer.mlp.down_proj.weight.float().T, layer.post_feedforward_layernorm, trace["mlp_out_scale", index]
    )


def logit_direction(model: Model, trace: Trace, token: int, pos: int) -> Tensor:
    """The direction of a token's logit in the last stream, less the vocabulary's mean."""
    table = model.network.model.embed_tokens.weight.float()
    rms = (trace.residuals[-1][pos].square().mean() + model.config.norm_eps).sqrt()
    return (table[token] - table.mean(0)) * (1 + model.network.model.norm.weight.float()) / rms

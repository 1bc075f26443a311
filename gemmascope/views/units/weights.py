"""What a unit reads and writes through the weights alone: tokens, earlier heads, and units whose writing is alike."""

from __future__ import annotations

from contextlib import closing
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gemmascope.analysis.composition import composition
from gemmascope.model.factored_matrix import FactoredMatrix, normed_tokens
from gemmascope.model.gemma2 import Layer
from gemmascope.model.model import Model
from gemmascope.sae.weights import DictionaryWeights
from gemmascope.values import moved

# How many of each are listed.
TOKENS, HEADS, ALIKE = 8, 6, 6

# Sites that a dictionary reads in the basis of the stream, and how many of its layer's sublayers come before it.
_STREAM = {"resid_pre": 0, "attn_in": 0, "resid_mid": 1, "mlp_in": 1, "resid_post": 1}


class Strong(NamedTuple):
    """What is listed of a unit: a name, a number, and for tokens and units the number of each."""

    name: str
    value: float
    number: int | None = None


def raised_by(model: Model, written: Float[Tensor, " d_model"]) -> tuple[list[Strong], list[Strong]]:
    """The tokens whose logits a row raises and lowers most when it is added to the last stream.

    Before the soft cap, less the vocabulary's mean, with the last norm's scale at 1.

    Args:
        model: The model.
        written: What is added to the stream.
    """
    with torch.no_grad():
        row = moved(written, model.device).float() * (1.0 + model.network.model.norm.weight.float())
        logits = torch.cat([moved(rows, model.device).float() @ row for _, rows in model.network.model.embed_tokens.parts()])
    logits = (logits - logits.mean()).cpu()
    return _strongest_tokens(model, logits), [
        Strong(one.name, -one.value, one.number) for one in _strongest_tokens(model, -logits)
    ]


def tokens_read(model: Model, reads: Float[Tensor, " d_model"]) -> list[Strong]:
    """The tokens whose embedding, as the first layer's norm gives it without its gain, a row reads most."""
    with torch.no_grad():
        row = moved(reads, model.device).float()
        parts = (moved(rows, model.device).float() for _, rows in model.network.model.embed_tokens.parts())
        strengths = torch.cat([normed_tokens(model, rows) @ row for rows in parts]).cpu()
    return _strongest_tokens(model, strengths)


def heads_read(model: Model, reads: Float[Tensor, " d_model"], layer: int, sublayers: int) -> list[Strong]:
    """The heads whose OV matrix a row reads most: |OV @ row| / (|OV| |row|), from 0 to 1.

    Args:
        model: The model.
        reads: The row, in the basis of the stream.
        layer: The layer where it reads.
        sublayers: 1 if that layer's own heads come before it, else 0.
    """
    found = []
    with torch.no_grad(), closing(model.layers()) as layers:
        for module in layers:
            if module.index >= layer + sublayers:
                break
            for head in range(model.config.n_heads):
                ov = module.ov(head)
                row = moved(reads, ov.right.device).float()
                value = float((ov.left @ (ov.right @ row)).norm() / (ov.norm() * row.norm()).clamp(min=1e-30))
                found.append(Strong(f"{module.index}.{head}", value))
    return sorted(found, key=lambda one: -one.value)[:HEADS]


def feature_reads(sae: DictionaryWeights, feature: int, model: Model) -> tuple[Tensor, int] | None:
    """What a feature reads, in the basis of the stream, and how many sublayers of its layer come before; None elsewhere."""
    site = "resid_mid" if sae.is_transcoder and sae.input_site is None else sae.read_from
    if site not in _STREAM or sae.layer is None:
        return None
    row = sae.W_enc[:, feature].detach().float()
    if site in ("attn_in", "mlp_in"):
        layer = model.layer(sae.layer)
        norm = layer.input_layernorm if site == "attn_in" else layer.pre_feedforward_layernorm
        row = row * (1.0 + moved(norm.weight.detach(), row.device).float())
    return row, _STREAM[site]


def alike(rows: Float[Tensor, "unit d"], unit: int) -> list[Strong]:
    """The units whose row has the largest cosine with one unit's."""
    units = rows.float() / rows.float().norm(dim=1, keepdim=True).clamp(min=1e-30)
    cosines = (units @ units[unit]).cpu()
    cosines[unit] = -2
    found = cosines.topk(min(ALIKE, len(cosines) - 1))
    return [Strong(str(i), value, i) for i, value in zip(found.indices.tolist(), found.values.tolist(), strict=True)]


def neuron_rows(layer: Layer, neuron: int) -> tuple[Tensor, Tensor]:
    """What a neuron's gate reads, in the basis of the stream, and what it adds for one unit of activation, [d_model] each.

    The scale of the post-norm differs from run to run, and counts as 1.
    """
    reads = layer.mlp.gate_proj.weight[neuron].detach().float() * (
        1.0 + layer.pre_feedforward_layernorm.weight.detach().float()
    )
    written = layer.mlp.down_proj.weight[:, neuron].detach().float()
    return reads, written * (1.0 + layer.post_feedforward_layernorm.weight.detach().float())


def heads_alike(model: Model, layer: int, head: int) -> list[Strong]:
    """The heads whose OV matrix has the largest cosine with one head's."""
    one = model.layer(layer).ov(head)
    left, right, size = one.left, one.right, one.norm()
    found = []
    with torch.no_grad(), closing(model.layers()) as layers:
        for module in layers:
            for other in range(model.config.n_heads):
                if (module.index, other) != (layer, head):
                    ov = module.ov(other)
                    found.append(Strong(f"{module.index}.{other}", _inner(ov, left, right) / max(size * ov.norm(), 1e-30)))
    return sorted(found, key=lambda one: -one.value)[:ALIKE]


def _inner(ov: FactoredMatrix, left: Tensor, right: Tensor) -> float:
    device = ov.left.device
    return float(((moved(left, device).mT @ ov.left) * (moved(right, device) @ ov.right.mT)).sum())


def composes_with(model: Model, layer: int, head: int) -> dict[str, list[Strong]]:
    """Of a head's queries, keys and values, the earlier heads that they read most: gs.composition."""
    if layer == 0:
        return {}
    found = {}
    for kind, name in (("q", "queries"), ("k", "keys"), ("v", "values")):
        scores = composition(model, kind, senders=list(range(layer)), receivers=[layer]).scores[:, :, 0, head].values
        each = [Strong(f"{i}.{j}", float(scores[i, j])) for i in range(scores.shape[0]) for j in range(scores.shape[1])]
        found[name] = sorted(each, key=lambda one: -one.value)[:HEADS]
    return found


def _strongest_tokens(model: Model, strengths: Tensor) -> list[Strong]:
    found = strengths.topk(min(TOKENS, len(strengths)))
    names = model.texts(found.indices)
    return [Strong(*one) for one in zip(names, found.values.tolist(), found.indices.tolist(), strict=True)]

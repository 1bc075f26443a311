"""Which heads copy, from the weights alone: what W_OV does to the logit of the token that is read.

Source: Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021), its summary of eigenvalues.
"""

from __future__ import annotations

from contextlib import closing

import torch
from jaxtyping import Float
from torch import Tensor

from gemmascope.model.factored_matrix import normed_tokens
from gemmascope.model.model import Model


def copying(model: Model) -> Float[Tensor, "layer head"]:
    """The copying score of every head: the sum of eigenvalues over the sum of their sizes, from -1 to 1.

    They are those of (tokens x tokens) embedding @ OV @ unembedding, tokens normed as they enter the first layer, through
    the gains of the head's norms and of the last; all that are not 0 are those of a d_head x d_head product. A head that
    writes nothing has 0. Float32, on the CPU.
    """
    final = 1 + model.network.model.norm.weight.detach().float()
    both = _tokens_read_and_written(model)
    scores = torch.zeros(model.n_layers, model.config.n_heads)
    with closing(model.layers()) as layers:
        for layer in layers:
            for head in range(model.config.n_heads):
                ov = layer.ov(head)
                # From what the head wrote to logits, from tokens to what it reads: the product the other way round.
                values = torch.linalg.eigvals((ov.right * final) @ both @ ov.left)
                size = values.abs().sum()
                scores[layer.index, head] = values.real.sum() / size if size > 0 else 0.0
    return scores


def _tokens_read_and_written(model: Model) -> Float[Tensor, "d_model d_model"]:
    """The sum over tokens of the outer product of its embedding with its normed embedding, the table part by part."""
    total = torch.zeros(model.config.d_model, model.config.d_model, device=model.device)
    for _, part in model.network.model.embed_tokens.parts():
        rows = part.float()
        total += rows.mT @ normed_tokens(model, rows)
    return total

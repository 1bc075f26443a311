"""The losses of training: the next token of the texts, and a teacher's soft answers beside it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from gemmascope.model.gemma2 import Gemma2
from gemmascope.model.layout import Layout
from gemmascope.nano.training.batches import IGNORED

Loss = Callable[[Gemma2, Tensor, Tensor], Tensor]  # of a network, on rows of ids and their targets, both [run, pos]
Rows = Callable[..., Tensor]  # of rows of logits


def logits_of(net: Gemma2, ids: Tensor) -> Tensor:
    """Float32 logits [run*pos, vocab] of rows of ids [run, pos], from products in bfloat16."""
    layout = Layout.of_lengths([ids.shape[1]] * len(ids), ids.device)
    with torch.autocast(ids.device.type, torch.bfloat16):
        return net.unembed(net(ids.reshape(-1), layout))


def text_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the next token, in nats, over the rows of logits [row, vocab] that have a target [row]."""
    return F.cross_entropy(logits, targets, ignore_index=IGNORED)


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence of the student's answers from the teacher's, in nats, [row, vocab] -> [row].

    Both logits are divided by the temperature first, and the result is multiplied by its square, so that the gradient's size
    does not depend on it (Hinton et al. 2015, arXiv:1503.02531).
    """
    soft = F.log_softmax(teacher / temperature, -1)
    answered = F.log_softmax(student / temperature, -1)
    return temperature**2 * (soft.exp() * (soft - answered)).sum(-1)


def soft_loss(logits: Tensor, teacher: Tensor, targets: Tensor, temperature: float, share: float) -> Tensor:
    """`share` of the mean divergence from a teacher, and the rest of `text_loss`, over the rows that have a target."""
    counted = targets != IGNORED
    apart = (divergence(logits, teacher, temperature) * counted).sum() / counted.sum()
    return share * apart + (1 - share) * text_loss(logits, targets)


def fused(loss: Rows) -> Rows:
    """A loss of logits in one pass over them, in place of one for each operation: they take most of a small model's step.

    It compiles, which needs a C++ compiler.
    """
    return torch.compile(loss, dynamic=False)


def on_texts(loss: Rows = text_loss) -> Loss:
    """What a network pays for the next tokens of the texts."""
    return lambda net, ids, targets: loss(logits_of(net, ids), targets.reshape(-1))


def on_teacher(teacher: Gemma2, temperature: float, share: float, loss: Rows = soft_loss) -> Loss:
    """What a network pays for the next tokens and for other answers than a teacher's, which is not trained."""

    def paid(net: Gemma2, ids: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            soft = logits_of(teacher, ids)
        return loss(logits_of(net, ids), soft, targets.reshape(-1), temperature, share)

    return paid

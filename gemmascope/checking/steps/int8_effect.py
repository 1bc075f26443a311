"""What int8 weights change: KL divergence and top answers, as gs.compare has them."""

from __future__ import annotations

import torch

from gemmascope.checking import ours
from gemmascope.checking.step import Figure
from gemmascope.checking.subject import Outcome, Skip, Subject
from gemmascope.loading.load import load
from gemmascope.model.maths import kl_divergence

# Means over positions. Measured: docs, guide/check.md.
MOST_KL, LEAST_AGREEMENT = 0.05, 0.9


def int8_effect(subject: Subject) -> Outcome:
    """The same prompts through the model with int8 weights."""
    source = subject.require_source()
    if subject.is_int8:
        raise Skip("the weights that are checked are int8 already")
    if not subject.logits:
        subject.logits = ours.logits_of(subject.model, subject.questions)
    subject.free_model()
    o = subject.options
    packed = load(source, device=o.device, dtype=subject.dtype, weights="int8", memory=o.memory)
    pairs = list(zip(subject.logits, ours.logits_of(packed, subject.questions), strict=True))
    log_probs = [(a.double().log_softmax(-1), b.double().log_softmax(-1)) for a, b in pairs]
    kl = torch.cat([kl_divergence(p, q) for p, q in log_probs]).clamp(min=0.0)  # negative only by rounding
    agree = torch.cat([a.argmax(-1) == b.argmax(-1) for a, b in pairs]).double()
    figures = (
        Figure("KL from the stored weights, mean over positions", float(kl.mean()), MOST_KL, "nats"),
        Figure("largest KL of a position", float(kl.max()), unit="nats"),
        Figure("positions with the same top answer", float(agree.mean()), LEAST_AGREEMENT, is_least=True),
    )
    return Outcome(f"int8 weights beside the stored ones at {len(kl)} positions", figures)

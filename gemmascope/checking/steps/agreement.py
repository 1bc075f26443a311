"""This package's answers beside transformers': logits, patterns, a long prompt, generation, and a sweep.

float32: the largest difference, as a fraction of the largest value, is at most FLOAT32; rounding in another order gives a
few millionths. bfloat16: both readers round every product to 8 bits, each in its own order, so that they differ from one
another as much as each does from float32. The root mean square distance of this package's numbers from float32 is therefore
at most FACTOR times that of transformers' own. docs: guide/check.md gives what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gemmascope.checking import ours
from gemmascope.checking.questions import LAST_POSITIONS, NEW_TOKENS
from gemmascope.checking.step import Figure
from gemmascope.checking.subject import Outcome, Skip, Subject
from gemmascope.run.tracing import trace

FLOAT32, FACTOR = 1e-5, 2.0
# A distance from float32 below this fraction of the values counts as none: of float32's own rounding.
_ROUNDING = 1e-6
# Where texts part, and in an effect of a patch, up to four logits count. In bfloat16 the sum of four errors is given five
# standard deviations, which are twice the error of one.
_LOGITS, _DEVIATIONS = 4, 10


def logits(subject: Subject) -> Outcome:
    """The soft-capped logits of every position of every prompt."""
    theirs = subject.require_theirs()
    subject.logits = ours.logits_of(subject.model, subject.questions)
    truth = None if subject.truth is None else subject.truth.logits
    n = sum(len(part) for part in subject.logits)
    return Outcome(
        f"the logits of {n} positions of {len(subject.logits)} prompts", _figures(subject.logits, theirs.logits, truth)
    )


def patterns(subject: Subject) -> Outcome:
    """The attention patterns of all layers and heads."""
    theirs = subject.require_theirs()
    own = ours.patterns_of(subject.model, subject.questions)
    found = []
    for layer in range(subject.shell.n_layers):
        truth = None if subject.truth is None else [pattern[layer] for pattern in subject.truth.patterns]
        each = _figures([p[layer] for p in own], [p[layer] for p in theirs.patterns], truth)
        found.append((each[0].value, layer, each[0]))
    value, layer, worst = max(found, key=lambda one: (one[0] != one[0], one[0]))
    figure = Figure(f"{worst.name}, in layer {layer}, the worst", value, worst.limit)
    return Outcome(f"the attention patterns of all {len(found)} layers in {len(own)} prompts", (figure,))


def long_prompt(subject: Subject) -> Outcome:
    """The last logits of a prompt that is longer than the window of the local layers."""
    theirs, questions = subject.require_theirs(), subject.questions
    if questions.long is None:
        raise Skip("the model's context is no longer than the window of its local layers")
    if theirs.long is None or (subject.truth is not None and subject.truth.long is None):
        raise Skip(f"transformers' attention over {len(questions.long):,} positions does not fit into memory")
    truth = None if subject.truth is None or subject.truth.long is None else [subject.truth.long]
    figures = _figures([ours.long_of(subject.model, questions)], [theirs.long], truth)
    window = subject.shell.config.window
    return Outcome(
        f"the last {LAST_POSITIONS} positions of a prompt of {len(questions.long):,}, beyond the window of {window:,}",
        figures,
    )


def generation(subject: Subject) -> Outcome:
    """Greedy text. Where it parts, the two tokens must be as good as equally likely."""
    theirs = subject.require_theirs()
    own = ours.generated_of(subject.model, subject.questions)
    figures = []
    for number, (ids, a, b) in enumerate(zip(subject.questions.prompts, own, theirs.generated, strict=False)):
        n_equal = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        figures.append(Figure(f"equal tokens after prompt {number + 1}, of {max(len(a), len(b))}", n_equal))
        if n_equal < min(len(a), len(b)):
            next_logits = trace([*ids, *a[:n_equal]], model=subject.model).next_logits
            gap = float((next_logits[a[n_equal]] - next_logits[b[n_equal]]).abs())
            figures.append(Figure("logits between the two tokens where the texts part", gap, _most_apart(subject)))
        elif len(a) != len(b):
            figures.append(Figure("difference of lengths", abs(len(a) - len(b)), 0))
    return Outcome(f"greedy generation of {NEW_TOKENS} tokens after {len(own)} prompts", tuple(figures))


def sweep(subject: Subject) -> Outcome:
    """A sample of a sweep's cells, each beside a run of transformers with a hook."""
    theirs = subject.require_theirs()
    own = ours.effects_of(subject.model, subject.questions)
    exact = theirs.effects if subject.truth is None else subject.truth.effects
    worst = max(abs(own[cell] - exact[cell]) for cell in own)
    if not all(value == value for value in own.values()):
        worst = float("nan")
    limit = _most_apart(subject)
    largest = max(abs(value) for value in exact.values())
    n_layers = len(subject.questions.layers)
    text = f"{len(own)} cells of sweeps of resid_pre and z in {n_layers} layers, beside a run with a hook for each"
    return Outcome(text, (Figure("largest difference of an effect", worst, limit), Figure("largest effect", largest)))


def _most_apart(subject: Subject) -> float:
    """How far a difference of logits may be off: by what is allowed in float32, by transformers' own errors in bfloat16."""
    theirs = subject.require_theirs()
    if subject.truth is None:
        return _LOGITS * FLOAT32 * theirs.largest_logit
    return _DEVIATIONS * _rms(theirs.logits, subject.truth.logits)


def _figures(own: Sequence[Tensor], theirs: Sequence[Tensor], truth: Sequence[Tensor] | None) -> tuple[Figure, ...]:
    """How far values are from transformers', the figure that is tested first. A NaN anywhere makes it NaN."""
    if truth is None:
        scale = max(float(b.abs().max()) for b in theirs)
        errors = torch.stack([(a - b).abs().max() for a, b in zip(own, theirs, strict=True)])
        return (Figure("largest difference, as a fraction of the largest value", float(errors.max()) / scale, FLOAT32),)
    size = _rms(truth, [torch.zeros_like(t) for t in truth])
    mine, other = _rms(own, truth) / size, _rms(theirs, truth) / size
    return (
        Figure("distance from float32, as a multiple of transformers' own", mine / max(other, _ROUNDING), FACTOR),
        Figure("distance from float32, as a fraction of the values", mine),
        Figure("transformers' own", other),
    )


def _rms(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Root mean square of differences, over all values."""
    total = sum(float((x - y).double().square().sum()) for x, y in zip(a, b, strict=True))
    return float((total / sum(x.numel() for x in a)) ** 0.5)

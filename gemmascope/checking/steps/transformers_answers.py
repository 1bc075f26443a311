"""transformers' answers, computed first and kept, so that its model is freed before this package's is loaded."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from gemmascope.checking import ours
from gemmascope.checking.questions import GENERATION, LONG, SWEEP
from gemmascope.checking.reference import Answers, ask_transformers, transformers_model
from gemmascope.checking.step import Figure
from gemmascope.checking.subject import Outcome, Skip, Subject
from gemmascope.loading.load import load
from gemmascope.memory.placement import free_bytes
from gemmascope.streaming.store import is_store

# A network takes its parameters, and while it is loaded and run some more.
_BESIDE = 1.2
_CPU = torch.device("cpu")


def ask(subject: Subject) -> Outcome:
    """Ask transformers, in the dtype that is checked; for bfloat16 also in float32, which both are compared with."""
    subject.require_source()
    assert subject.path is not None
    if is_store(subject.path):
        raise Skip("the weights are int8 already, which transformers does not read: check the checkpoint they came from")
    place = _place(subject, subject.dtype)
    if place is None:
        need, free = (n / 1e9 for n in (_need(subject, subject.dtype), free_bytes(_CPU)))
        raise Skip(f"transformers' model takes {need:.1f} GB, and {free:.1f} GB are free")
    with _network(subject, subject.dtype, place) as network:
        theirs = ask_transformers(network, subject.questions, _wanted(subject, place))
    subject.theirs = theirs
    text = f"transformers answered in {_name(subject.dtype)} on {place}"
    if subject.dtype != torch.float32:
        subject.truth, subject.truth_name = _truth(subject)
        text += f"; float32, which bfloat16 is held against, is {subject.truth_name}"
    return Outcome(text, (Figure("largest logit", theirs.largest_logit),))


def _truth(subject: Subject) -> tuple[Answers, str]:
    """Answers in float32: transformers' where they fit, else this package's, streamed through what memory is free."""
    assert subject.path is not None
    assert subject.source is not None
    place = _place(subject, torch.float32)
    if place is not None:
        with _network(subject, torch.float32, place) as network:
            wanted = _wanted(subject, place) - {GENERATION}
            return ask_transformers(network, subject.questions, wanted), f"transformers' on {place}"
    model = load(
        subject.source, device="cpu", dtype="float32", weights=subject.options.weights, memory=free_bytes(_CPU) // 2
    )
    questions, answers = subject.questions, Answers()
    answers.logits, answers.patterns = ours.logits_of(model, questions), ours.patterns_of(model, questions)
    if SWEEP in subject.wanted:
        answers.effects = ours.effects_of(model, questions)
    if LONG in subject.wanted and questions.long is not None:
        answers.long = ours.long_of(model, questions)
    return answers, "this package's own, streamed, since transformers' does not fit"


def _network(subject: Subject, dtype: torch.dtype, place: torch.device) -> AbstractContextManager[Any]:
    assert subject.path is not None
    return transformers_model(subject.path, subject.shell.config, dtype, place, int8=subject.is_int8)


def _need(subject: Subject, dtype: torch.dtype) -> int:
    return int(subject.shell.config.n_params * dtype.itemsize * _BESIDE)


def _place(subject: Subject, dtype: torch.dtype) -> torch.device | None:
    """Where transformers' network fits: the device that is checked, else the CPU; None for neither."""
    need = _need(subject, dtype)
    return next((place for place in (subject.device, _CPU) if need < free_bytes(place)), None)


def _wanted(subject: Subject, place: torch.device) -> frozenset[str]:
    """The questions to ask: the long prompt only if its attention fits, scores, their softmax in float32, and a copy."""
    n_pos = len(subject.questions.long or ())
    fits = subject.shell.config.n_heads * n_pos**2 * 16 < free_bytes(place)
    return subject.wanted if fits else subject.wanted - {LONG}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

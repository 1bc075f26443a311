"""gs.check: runs the steps one after another, and writes what was found after each."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from gemmascope.arguments import as_words, one_of, short_repr, true_or_false
from gemmascope.checking.machine import describe_machine
from gemmascope.checking.questions import GENERATION, LONG, SWEEP
from gemmascope.checking.result import CheckResult
from gemmascope.checking.step import DIFFERS, FAILED, INTERRUPTED, PASS, RUNNING, SKIPPED, StepResult
from gemmascope.checking.steps import agreement
from gemmascope.checking.steps.dictionaries import dictionaries
from gemmascope.checking.steps.int8_effect import int8_effect
from gemmascope.checking.steps.memory_use import memory_use
from gemmascope.checking.steps.published_heads import heads
from gemmascope.checking.steps.transformers_answers import ask
from gemmascope.checking.subject import Options, Outcome, Skip, Subject
from gemmascope.checkpoints.device import DeviceChoice
from gemmascope.errors import GemmascopeError
from gemmascope.legible import legible
from gemmascope.model.model import Model

TRANSFORMERS = "transformers"
STEPS: dict[str, Callable[[Subject], Outcome]] = {
    TRANSFORMERS: ask,
    "logits": agreement.logits,
    "patterns": agreement.patterns,
    LONG: agreement.long_prompt,
    GENERATION: agreement.generation,
    SWEEP: agreement.sweep,
    "heads": heads,
    "dictionaries": dictionaries,
    "int8": int8_effect,
    "memory": memory_use,
}
_BESIDE_TRANSFORMERS = ("logits", "patterns", LONG, GENERATION, SWEEP)


def check(
    model: Model | str | os.PathLike[str] | None = None,
    *,
    device: DeviceChoice = "auto",
    dtype: str | torch.dtype = "auto",
    weights: str = "auto",
    memory: int | str | None = None,
    steps: Sequence[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    show: bool = True,
) -> CheckResult:
    """Check that a model computes here what it should, beside transformers and what is published.

    The steps run one after another. transformers' answers come first and are kept, and its model is freed before this
    package's is loaded. A step that fails, for want of memory say, is reported, and the next one runs; an interrupt ends the
    check and keeps what there is.

    Args:
        model: What gs.load takes as a source: a hub id, a folder, a GGUF file, "nano"; None means nano. A model that is
            loaded already is compared with transformers' reading of its source.
        device: As in gs.load.
        dtype: As in gs.load. In float32 numbers agree with transformers to 1e-5 of their scale; in bfloat16 they are at most
            twice as far from float32 as transformers' own.
        weights: As in gs.load. With "int8" transformers' matrices are rounded in the same way.
        memory: As in gs.load, for this package's model.
        steps: Which steps to run: "logits", "patterns", "long prompt", "generation", "sweep" (all beside transformers),
            "heads", "dictionaries", "int8", "memory". None: all.
        out: A folder for check.html and check.json, which are written after each step. None: none.
        show: Whether to print each step's verdict when it is done.

    Returns:
        The verdict and figures of each step, with the versions of everything.

    Raises:
        CheckpointError: There is no such model.
        GemmascopeError: There is no such step.
        FileError: The folder cannot be written to.

    Examples:
        >>> result = gs.check("nano", steps=["patterns"], show=False)
        >>> result.verdict, len(result.steps)
        ('pass', 2)
    """
    names = _step_names(steps)
    show = true_or_false(show, "show", error=GemmascopeError)
    subject = _subject(model, Options(device, dtype, weights, memory))
    subject.wanted = frozenset(names)
    result = CheckResult(subject.describe(), describe_machine(subject.device))
    for name in names:
        done = result.steps
        result = replace(result, steps=(*done, StepResult(name, RUNNING, "this step had begun when the file was written")))
        _keep(result, out)
        if show and sys.stderr.isatty():  # a step may take minutes; its verdict is written over this
            print(f"{RUNNING:>11}  {name} ...", end="\r", file=sys.stderr, flush=True)
        step = run_step(name, STEPS[name], subject)
        result = replace(result, model=subject.describe(), steps=(*done, step))
        _keep(result, out)
        if show:
            print(legible("\n".join(step.lines())), file=sys.stdout, flush=True)
        if step.verdict == INTERRUPTED:
            break
    return result


def run_step(name: str, step: Callable[[Subject], Outcome], subject: Subject) -> StepResult:
    """Run one step; whatever goes wrong in it is its result."""
    started = time.perf_counter()

    def seconds() -> float:
        return time.perf_counter() - started

    try:
        outcome = step(subject)
    except Skip as skip:
        return StepResult(name, SKIPPED, str(skip), skip.figures, seconds())
    except KeyboardInterrupt:
        return StepResult(name, INTERRUPTED, "interrupted; the steps after it did not run", (), seconds())
    except Exception as error:  # of any library: the report is what this is for
        text = " ".join(str(error).split())
        what = "out of memory: " if isinstance(error, (torch.OutOfMemoryError, MemoryError)) else ""
        return StepResult(name, FAILED, f"{what}{type(error).__name__}: {text}"[:2000], (), seconds())
    verdict = PASS if all(figure.is_within for figure in outcome.figures) else DIFFERS
    return StepResult(name, verdict, outcome.text, outcome.figures, seconds())


def _step_names(steps: object) -> list[str]:
    """The steps to run, in their order, with transformers' answers in front where a step needs them."""
    if steps is None:
        return list(STEPS)
    words = as_words(steps)
    if not words:
        raise GemmascopeError(f"steps is a list of {', '.join(map(repr, STEPS))}; given {short_repr(steps)}")
    chosen = {one_of(word, "a step", STEPS, error=GemmascopeError) for word in words}
    if chosen & set(_BESIDE_TRANSFORMERS):
        chosen.add(TRANSFORMERS)
    return [name for name in STEPS if name in chosen]


def _subject(model: object, options: Options) -> Subject:
    if isinstance(model, Model):
        if options != Options():
            raise GemmascopeError(
                f"{model.name!r} is loaded already, and device, dtype, weights and memory are of loading: leave them out, "
                "or give its source"
            )
        model.require_values()
        return Subject.of_model(model)
    if model is not None and not isinstance(model, (str, os.PathLike)):
        raise GemmascopeError(f"model is what gs.load takes or returns; given {short_repr(model)}")
    return Subject.of_source("nano" if model is None else os.fspath(model), options)


def _keep(result: CheckResult, out: str | os.PathLike[str] | None) -> None:
    if out is not None:
        result.save(out)

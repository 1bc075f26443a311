"""The prompts and pairs that two models are given: read by one of them, and run as the same token ids by both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gemmascope.arguments import shown
from gemmascope.errors import PromptError, SweepError
from gemmascope.model.model import Model
from gemmascope.model.prompts import as_prompts, listed_prompts
from gemmascope.sweeps.metrics import logit_diff

# Two prompts as token ids, None for a corrupted one that there is not, and a metric.
Case = tuple[Tensor, Tensor | None, Any]


def shared_ids(prompts: Any, a: Model, b: Model) -> list[Tensor]:
    """The token ids of every prompt. PromptError where there is none, or one without a position beside the first."""
    prompts = as_prompts(prompts)
    if isinstance(prompts, Sequence) and not isinstance(prompts, str) and not prompts:
        raise PromptError("the list of prompts is empty: give at least one to compare the models on")
    listed, _ = listed_prompts(prompts)
    reader(a, b).each_ids(listed)  # an error says which prompt it is about
    ids = [_ids(prompt, a, b) for prompt in listed]
    for i, prompt in enumerate(ids):
        if len(prompt) < 2:
            raise PromptError(
                f"prompt {i} has a single token, {a.texts(prompt)[0]!r}, and the first position is left out of the stream's "
                "comparison: give prompts of two tokens or more, <bos> included"
            )
    return ids


def _ids(prompt: Any, a: Model, b: Model) -> Tensor:
    """The ids that both models run: those that a reads, or b if a has no tokenizer. PromptError if they read differently."""
    ids = reader(a, b).ids(prompt)
    if isinstance(prompt, str) and a.has_tokenizer and b.has_tokenizer:
        theirs = b.ids(prompt)
        if ids.tolist() != theirs.tolist():
            raise PromptError(
                f"the models' tokenizers read {prompt!r} differently: {a.name!r} as {a.texts(ids)}, {b.name!r} as "
                f"{b.texts(theirs)}. Give token ids to run the same ones through both"
            )
    return ids


def reader(a: Model, b: Model) -> Model:
    """The model whose tokenizer is used."""
    return a if a.has_tokenizer or not b.has_tokenizer else b


def shared_cases(pairs: Any, a: Model, b: Model) -> list[Case]:
    """The token ids of every pair, and its metric. SweepError for what is no list of pairs."""
    if isinstance(pairs, str) or not isinstance(pairs, Sequence) or not pairs:
        raise SweepError(
            "pairs is a list of (clean, corrupt, metric), or the prompts of a family, gs.prompts.ioi(8); given "
            f"{shown(pairs)}"
        )
    return [_case(pair, a, b) for pair in pairs]


def _case(pair: Any, a: Model, b: Model) -> Case:
    """One pair. That of a family is measured by the difference of its two answers."""
    if hasattr(pair, "against"):
        pair = (pair.clean, pair.corrupt, logit_diff(pair.answer, pair.against))
    if not isinstance(pair, (tuple, list)) or len(pair) != 3 or pair[1] is None:
        raise SweepError(f"each of pairs is (clean, corrupt, metric), two prompts of one length; given {shown(pair)}")
    clean, corrupt, metric = pair
    return _ids(clean, a, b), _ids(corrupt, a, b), metric

"""The prompts and pairs that gs.compare runs through two models, as token ids that both share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from gemmascope.arguments import short_repr
from gemmascope.errors import PromptError, SweepError
from gemmascope.model.model import Model, Prompt
from gemmascope.model.prompts import as_prompts, listed_prompts
from gemmascope.sweeps.metrics import logit_diff


@runtime_checkable
class FamilyPair(Protocol):
    """A pair of a prompt family, as gs.prompts.ioi(8) holds them."""

    clean: str
    corrupt: str
    answer: str
    against: str


# A pair as users write it: (clean, corrupt, metric), or one of a family.
PairLike = tuple[Prompt, Prompt, object] | FamilyPair


class Case(NamedTuple):
    """What both models run. clean, corrupt: token ids; without a corrupted prompt, heads are ablated in the clean one."""

    clean: Tensor
    corrupt: Tensor | None
    metric: object


def shared_ids(prompts: Prompt | Iterable[Prompt], a: Model, b: Model) -> list[Tensor]:
    """The token ids of every prompt. PromptError for an empty list, or a prompt of a single token."""
    prompts = as_prompts(prompts)
    if isinstance(prompts, Sequence) and not isinstance(prompts, str) and not prompts:
        raise PromptError("the list of prompts is empty: give at least one to compare the models on")
    listed, _ = listed_prompts(prompts)
    tokenizing_model(a, b).each_ids(listed)  # its errors give the number of the prompt
    ids = [_ids(prompt, a, b) for prompt in listed]
    for i, prompt in enumerate(ids):
        if len(prompt) < 2:
            raise PromptError(
                f"prompt {i} has a single token, {a.texts(prompt)[0]!r}, and the first position is left out of the stream's "
                "comparison: give prompts of two tokens or more, <bos> included"
            )
    return ids


def _ids(prompt: Prompt, a: Model, b: Model) -> Tensor:
    """The token ids of a prompt for both models. PromptError if their tokenizers differ on it."""
    ids = tokenizing_model(a, b).ids(prompt)
    if isinstance(prompt, str) and a.has_tokenizer and b.has_tokenizer:
        ids_of_b = b.ids(prompt)
        if ids.tolist() != ids_of_b.tolist():
            raise PromptError(
                f"the models' tokenizers read {prompt!r} differently: {a.name!r} as {a.texts(ids)}, {b.name!r} as "
                f"{b.texts(ids_of_b)}. Give token ids to run the same ones through both"
            )
    return ids


def tokenizing_model(a: Model, b: Model) -> Model:
    """The model whose tokenizer reads the prompts: a, or b if only b has one."""
    return a if a.has_tokenizer or not b.has_tokenizer else b


def shared_cases(pairs: object, a: Model, b: Model) -> list[Case]:
    """The token ids and the metric of every pair. SweepError for something that is not a list of pairs."""
    if isinstance(pairs, str) or not isinstance(pairs, Sequence) or not pairs:
        raise SweepError(
            "pairs is a list of (clean, corrupt, metric), or the prompts of a family, gs.prompts.ioi(8); given "
            f"{short_repr(pairs)}"
        )
    return [_case(pair, a, b) for pair in pairs]


def _case(pair: object, a: Model, b: Model) -> Case:
    """One pair. The metric of a family's pair is the difference of its two answers' logits."""
    if isinstance(pair, FamilyPair):
        pair = (pair.clean, pair.corrupt, logit_diff(pair.answer, pair.against))
    if not isinstance(pair, (tuple, list)) or len(pair) != 3 or pair[1] is None:
        raise SweepError(f"each of pairs is (clean, corrupt, metric), two prompts of one length; given {short_repr(pair)}")
    clean, corrupt, metric = pair
    return Case(_ids(clean, a, b), _ids(corrupt, a, b), metric)

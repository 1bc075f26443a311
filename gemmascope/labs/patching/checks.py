"""What is looked at before anything runs: whether two prompts and two answers can be patched, and what would mislead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch

from gemmascope.errors import GemmascopeError
from gemmascope.labs.patching.align_tokens import align, parting_block
from gemmascope.labs.patching.settings import Settings
from gemmascope.model.model import Model
from gemmascope.run.metric import answer_ids
from gemmascope.sweeps.remarks import Remark, answer_remarks, pair_remarks, prompt_remarks


def check(settings: Settings, model: Model) -> list[Remark]:
    """Every remark on these settings, errors first."""
    found = [*_of_prompts(settings, model), *_of_answers(settings, model)]
    return sorted(found, key=lambda remark: remark.level != "error")


def _of_prompts(settings: Settings, model: Model) -> Iterator[Remark]:
    ids: dict[str, list[int]] = {}
    for name in ("clean", "corrupt"):
        prompt = getattr(settings, name)
        try:
            ids[name] = model.ids(prompt).tolist()
        except GemmascopeError as error:
            yield Remark("error", name, str(error))
            continue
        yield from prompt_remarks(name, torch.tensor(ids[name]), model)
    if len(ids) == 2:
        yield from _of_pair(ids["clean"], ids["corrupt"], model)


def _of_pair(clean: list[int], corrupt: list[int], model: Model) -> Iterator[Remark]:
    yield from pair_remarks(torch.tensor(clean), torch.tensor(corrupt))
    if len(clean) != len(corrupt):
        yield Remark("error", "corrupt", _parting(clean, corrupt, model))


def _parting(clean: list[int], corrupt: list[int], model: Model) -> str:
    """Where two prompts of other lengths part, and the word that splits."""
    texts = [model.texts(torch.tensor(ids)) for ids in (clean, corrupt)]
    at, one, other = parting_block(align(clean, corrupt), *texts)
    said = f"the prompts have {len(clean)} and {len(corrupt)} tokens, and each position needs its partner. "
    if not one or not other:
        which, extra = ("clean", one) if one else ("corrupted", other)
        return said + f"From position {at} on the {which} prompt has {extra} more: add as much to the other, or take it out"
    longer, which = max((one, "clean"), (other, "corrupted"), key=lambda side: len(side[0]))
    shorter = min(one, other, key=len)
    return (
        said
        + f"At position {at} the {which} prompt's {''.join(longer)!r} splits into {len(longer)} tokens, {longer}, where "
        f"the other has {len(shorter)}, {shorter}: take a word with as many"
    )


def _of_answers(settings: Settings, model: Model) -> Iterator[Remark]:
    answers: dict[str, Any] = {}
    needed = ("answer", "against") if settings.metric == "logit_diff" else ("answer",)
    for name in needed:
        given = getattr(settings, name)
        try:
            answer_ids(given, model)
        except GemmascopeError as error:
            yield Remark("error", name, str(error))
            continue
        answers[name] = given
    yield from answer_remarks(answers, _ending(settings, model), model)


def _ending(settings: Settings, model: Model) -> torch.Tensor | None:
    """The ids of a prompt that the answers go on with; None where no prompt can be read."""
    for prompt in (settings.clean, settings.corrupt):
        with suppress(GemmascopeError):
            return model.ids(prompt)
    return None

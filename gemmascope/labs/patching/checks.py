"""Checks of a patching lab's settings before anything runs: errors that forbid a sweep, and warnings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import torch

from gemmascope.errors import GemmascopeError
from gemmascope.labs.patching.align_tokens import align, first_gap
from gemmascope.labs.patching.settings import Settings
from gemmascope.model.model import Model
from gemmascope.run.metric import answer_ids
from gemmascope.run.metric_names import METRICS
from gemmascope.sweeps.remarks import Remark, answer_remarks, pair_remarks, prompt_remarks


def check(settings: Settings, model: Model) -> list[Remark]:
    """Every remark on these settings, errors first."""
    remarks = [*_check_prompts(settings, model), *_check_answers(settings, model)]
    return sorted(remarks, key=lambda remark: remark.level != "error")


def _check_prompts(settings: Settings, model: Model) -> Iterator[Remark]:
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
        yield from _check_pair(ids["clean"], ids["corrupt"], model)


def _check_pair(clean: list[int], corrupt: list[int], model: Model) -> Iterator[Remark]:
    yield from pair_remarks(torch.tensor(clean), torch.tensor(corrupt))
    if len(clean) != len(corrupt):
        yield Remark("error", "corrupt", _length_text(clean, corrupt, model))


def _length_text(clean: list[int], corrupt: list[int], model: Model) -> str:
    """Where two prompts of different lengths differ, and the word that splits into more tokens."""
    texts = [model.texts(torch.tensor(ids)) for ids in (clean, corrupt)]
    position, clean_tokens, corrupt_tokens = first_gap(align(clean, corrupt), *texts)
    start = f"the prompts have {len(clean)} and {len(corrupt)} tokens, and each position needs its partner. "
    if not clean_tokens or not corrupt_tokens:
        which, extra = ("clean", clean_tokens) if clean_tokens else ("corrupted", corrupt_tokens)
        advice = f"From position {position} on the {which} prompt has {extra} more: add as much to the other, or take it out"
        return start + advice
    longer, which = max((clean_tokens, "clean"), (corrupt_tokens, "corrupted"), key=lambda side: len(side[0]))
    shorter = min(clean_tokens, corrupt_tokens, key=len)
    return (
        f"{start}At position {position} the {which} prompt's {''.join(longer)!r} splits into {len(longer)} tokens, {longer}"
        f", where the other has {len(shorter)}, {shorter}: take a word with as many"
    )


def _check_answers(settings: Settings, model: Model) -> Iterator[Remark]:
    answers: dict[str, object] = {}
    for name in ("answer", "against")[: METRICS[settings.metric].n_answers]:
        answer = getattr(settings, name)
        try:
            answer_ids(answer, model)
        except GemmascopeError as error:
            yield Remark("error", name, str(error))
            continue
        answers[name] = answer
    yield from answer_remarks(answers, _prompt_ids(settings, model), model)


def _prompt_ids(settings: Settings, model: Model) -> torch.Tensor | None:
    """The ids of a prompt that the answers follow; None if no prompt can be read."""
    for prompt in (settings.clean, settings.corrupt):
        with suppress(GemmascopeError):
            return model.ids(prompt)
    return None

"""What is looked at before anything runs: whether two prompts and two answers can be patched, and what would mislead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from gemmascope.analysis.metrics import answer_ids
from gemmascope.errors import GemmascopeError
from gemmascope.model.model import Model
from gemmascope.widgets.aligned import align, parting_block
from gemmascope.widgets.settings import Settings

Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Check:
    """Something to know before a lab runs. An error must be mended first. about: the setting that it is about."""

    level: Level
    about: str
    text: str


def check(settings: Settings, model: Model) -> list[Check]:
    """Every remark on these settings, errors first."""
    found = [*_of_prompts(settings, model), *_of_answers(settings, model)]
    return sorted(found, key=lambda remark: remark.level != "error")


def _of_prompts(settings: Settings, model: Model) -> Iterator[Check]:
    ids: dict[str, list[int]] = {}
    for name in ("clean", "corrupt"):
        prompt = getattr(settings, name)
        try:
            ids[name] = model.ids(prompt).tolist()
        except GemmascopeError as error:
            yield Check("error", name, str(error))
            continue
        if isinstance(prompt, str) and prompt != prompt.rstrip():
            yield Check(
                "warning", name, f"the prompt ends in {prompt[len(prompt.rstrip()) :]!r}: Gemma's words bring their space, "
                "so after it none can follow as usual. Remove it"
            )  # fmt: skip
    if len(ids) == 2:
        yield from _of_pair(ids["clean"], ids["corrupt"], model)


def _of_pair(clean: list[int], corrupt: list[int], model: Model) -> Iterator[Check]:
    if clean == corrupt:
        yield Check("warning", "corrupt", "the two prompts are the same: patching changes nothing. Change a word in one")
    if len(clean) != len(corrupt):
        yield Check("error", "corrupt", _parting(clean, corrupt, model))


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


def _of_answers(settings: Settings, model: Model) -> Iterator[Check]:
    ids: dict[str, list[int]] = {}
    needed = ("answer", "against") if settings.metric == "logit_diff" else ("answer",)
    for name in needed:
        given = getattr(settings, name)
        try:
            ids[name] = answer_ids(given, model)
        except GemmascopeError as error:
            yield Check("error", name, str(error))
            continue
        yield from _missing_space(name, given, settings, model)
    if len(ids) == 2 and set(ids["answer"]) & set(ids["against"]):
        yield Check("error", "against", "the two answers are the same token: their difference is 0 everywhere. Change one")


def _missing_space(name: str, given: Any, settings: Settings, model: Model) -> Iterator[Check]:
    """A remark on an answer that begins a text, where one that goes on with it was likely meant."""
    ends_in_space = isinstance(settings.clean, str) and settings.clean != settings.clean.rstrip()
    if not isinstance(given, str) or given.startswith(" ") or not given[:1].isalpha() or ends_in_space:
        return
    if len(model.tokenizer.encode(f" {given}")) == 1:
        spaced = f" {given}"
        yield Check(
            "warning", name, f"{given!r} has no space in front: after a word the model says {spaced!r}, another token"
        )

"""gs.plan_view: the memory planner with sliders: model, weights, context, card. Every number in it is gs.plan's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemmascope.arguments import as_list, whole_number
from gemmascope.errors import BudgetError
from gemmascope.memory.cards import CARDS, DRIVER, Card, Fit, memory_text
from gemmascope.memory.plan import Plan, plan
from gemmascope.memory.plan_report import gigabytes
from gemmascope.memory.sizes import GENERATE, TRACE
from gemmascope.views.page import View

CONTEXTS = (256, 512, 1024, 2048, 3072, 4096, 6144, 8192)
WEIGHTS = ("bf16", "int8")
SIZES = ("2b", "9b", "27b")


def plan_view(models: Sequence[Any] = SIZES, contexts: Sequence[int] = CONTEXTS) -> View:
    """The memory planner to play with, without a kernel: what a model takes on a card, and how it fits there.

    models: what gs.plan takes: "2b", "9b", "27b", hub ids of Google's, folders. contexts: positions of the prompt, at most
    what every model takes. Everything is computed beforehand by gs.plan, in bfloat16, with bfloat16 and int8 weights, on
    common cards; sizes are bytes in units of 10^9. Raises what gs.plan does, BudgetError for an empty list.
    """
    models = as_list(models, "models", error=BudgetError)
    listed = as_list(contexts, "contexts", error=BudgetError)
    contexts = [whole_number(one, "a context", least=1, error=BudgetError) for one in listed]
    if not models or not contexts:
        raise BudgetError("models and contexts are lists with one entry at least")
    cards = list({card.n_bytes: card for card in CARDS}.values())
    names: list[str] = []
    planned = [_planned(model, weights, context) for model in models for weights in WEIGHTS for context in contexts]
    cases = [_case(one, card, names) for one in planned for card in cards]
    sizes = [card.n_bytes for card in cards]
    spec = {
        "view": "plan",
        "title": "What a model takes in memory",
        "note": "Computed by gs.plan in bfloat16; 1 GB of a card is left to its driver. GB are 10^9 bytes.",
        "models": list(dict.fromkeys(one.whole.name for one in planned)),
        "weights": list(WEIGHTS),
        "contexts": list(contexts),
        "cards": [{"name": card.name, "bytes": card.n_bytes, "place": sizes.index(card.n_bytes)} for card in CARDS],
        "driver": DRIVER,
        "parts": names,
        "cases": cases,
    }
    summary = f"In bytes of 10^9, everything on the device, at {contexts[-1]:,} positions:"
    return View(spec, {}, summary, _rows(planned[len(contexts) - 1 :: len(contexts)]))


@dataclass(frozen=True)
class _Planned:
    """A plan with everything on the card, and what it was asked of."""

    model: Any
    weights: str
    context: int
    whole: Plan

    def within(self, memory: int) -> Plan:
        return _plan(self.model, self.weights, self.context, memory)


def _planned(model: Any, weights: str, context: int) -> _Planned:
    return _Planned(model, weights, context, _plan(model, weights, context))


def _plan(model: Any, weights: str, context: int, memory: int | None = None) -> Plan:
    return plan(model, weights=weights, context=context, memory=memory, device="cpu", dtype="bfloat16")


def _case(asked: _Planned, card: Card, names: list[str]) -> dict[str, Any]:
    """How a plan fits on a card: in words, what to do, and the parts that are there at once, by their places in names.

    Of what does not fit, the parts are those with everything on the card.
    """
    fit = asked.whole.fits(card)
    found = asked.whole if fit.memory is None else asked.within(fit.memory)
    task = max((TRACE, GENERATE), key=lambda one: found.peaks[one])
    parts = {part.name: part.n_bytes for part in found.parts if task in part.tasks and part.n_bytes}
    names += [name for name in parts if name not in names]
    return {
        "how": fit.how,
        "said": _said(fit, found.total, {TRACE: "a trace", GENERATE: "generating"}[task]),
        "do": _advice(asked) if fit.how == "no" else _load(asked, fit),
        "total": found.peaks[task],
        "parts": [[names.index(name), n_bytes] for name, n_bytes in parts.items()],
    }


def _said(fit: Fit, total: int, task: str) -> str:
    takes = f"{gigabytes(total)} at once, for {task}"
    if fit.how == "resident":
        return f"fits whole: {takes}"
    if fit.how == "streams":
        return f"fits, layers stream: {takes}; {fit.n_kept} of {fit.n_layers} layers stay"
    missing = f"even with all layers streaming {gigabytes(fit.missing)} are missing"
    return f"does not fit: {missing}; with none streaming it takes {takes}"


def _load(asked: _Planned, fit: Fit) -> str:
    """The call that loads it so."""
    weights = ", weights='int8'" if asked.weights == "int8" else ""
    memory = "" if fit.memory is None else f", memory={memory_text(fit.memory)!r}"
    return f"gs.load({_source(asked.whole.name)!r}, device='cuda'{weights}{memory})"


def _advice(asked: _Planned) -> str:
    smaller = "" if asked.weights == "int8" else "int8 weights, "
    return f"Take {smaller}a shorter context, or a larger card."


def _source(name: str) -> str:
    """What gs.load takes: a hub id for the short name of a preset, which gs.plan takes as well."""
    short = None if Path(name).is_dir() else re.fullmatch(r"(?:(?:google/)?gemma-2-)?((?:2b|9b|27b)(?:-it)?)", name.lower())
    return f"google/gemma-2-{short[1]}" if short else name


def _rows(planned: Sequence[_Planned]) -> list[list[str]]:
    rows = [["model", "weights", "takes", "fits whole on"]]
    for one in planned:
        whole = [fit.card.name for fit in one.whole.cards() if fit.how == "resident"]
        rows.append([one.whole.name, one.weights, gigabytes(one.whole.total), ", ".join(whole) or "none of these"])
    return rows

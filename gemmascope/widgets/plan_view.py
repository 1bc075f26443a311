"""gs.plan_view: the memory planner with sliders: model, weights, context, card. Every number in it is gs.plan's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gemmascope.errors import BudgetError
from gemmascope.weights.cards import CARDS, DRIVER, Card, memory_text
from gemmascope.weights.costs import GENERATE, TRACE
from gemmascope.weights.plan import Plan, plan
from gemmascope.weights.planned import gigabytes
from gemmascope.widgets.page import View

CONTEXTS = (256, 512, 1024, 2048, 3072, 4096, 6144, 8192)
WEIGHTS = ("bf16", "int8")
SIZES = ("2b", "9b", "27b")


def plan_view(models: Sequence[Any] = SIZES, contexts: Sequence[int] = CONTEXTS) -> View:
    """The memory planner to play with, without a kernel: what a model takes on a card, and how it fits there.

    models: what gs.plan takes: "2b", "9b", "27b", hub ids of Google's, folders. contexts: positions of the prompt, at most
    what every model takes. Everything is computed beforehand by gs.plan, in bfloat16, with bfloat16 and int8 weights, on
    common cards; sizes are bytes in units of 10^9. Raises what gs.plan does, BudgetError for an empty list.
    """
    if isinstance(models, str) or not models or not contexts:
        raise BudgetError(f"models and contexts are lists with one entry at least; given {models!r} and {contexts!r}")
    cards = list({card.n_bytes: card for card in CARDS}.values())
    names: list[str] = []
    cases = [
        _case(plan(model, weights=weights, context=context, device="cpu", dtype="bfloat16"), card, names)
        for model in models
        for weights in WEIGHTS
        for context in contexts
        for card in cards
    ]
    sizes = [card.n_bytes for card in cards]
    spec = {
        "view": "plan",
        "title": "What a model takes in memory",
        "note": "Computed by gs.plan in bfloat16; 1 GB of a card is left to its driver. GB are 10^9 bytes.",
        "models": [str(model) for model in models],
        "weights": list(WEIGHTS),
        "contexts": list(contexts),
        "cards": [{"name": card.name, "bytes": card.n_bytes, "place": sizes.index(card.n_bytes)} for card in CARDS],
        "driver": DRIVER,
        "parts": names,
        "cases": cases,
    }
    largest = f"{contexts[-1]:,} positions:"
    return View(spec, {}, f"In bytes of 10^9, everything on the device, at {largest}", _rows(models, contexts[-1]))


def _case(found: Plan, card: Card, names: list[str]) -> dict[str, Any]:
    """How a plan fits on a card: in words, what to call, and the parts that are there at once, by their places in names."""
    fit = found.fits(card)
    if fit.how == "streams":
        asked: dict[str, Any] = {"weights": _asked(found), "context": found.context, "memory": fit.memory}
        found = plan(found.name, **asked, device="cpu", dtype="bfloat16")
    task = max((TRACE, GENERATE), key=lambda one: found.peaks[one])
    parts = {part.name: part.n_bytes for part in found.parts if task in part.tasks and part.n_bytes}
    names += [name for name in parts if name not in names]
    memory = "" if fit.memory is None else f", memory={memory_text(fit.memory)!r}"
    weights = ", weights='int8'" if found.weights == "int8" else ""
    return {
        "how": fit.how,
        "said": str(fit),
        "load": "" if fit.how == "no" else f"gs.load({_source(found.name)!r}, device='cuda'{weights}{memory})",
        "task": {TRACE: "a trace", GENERATE: "generating"}[task],
        "total": found.peaks[task],
        "parts": [[names.index(name), n_bytes] for name, n_bytes in parts.items()],
    }


def _asked(found: Plan) -> str:
    return "int8" if found.weights == "int8" else "bf16"


def _source(name: str) -> str:
    return f"google/gemma-2-{name}" if name in SIZES else name


def _rows(models: Sequence[Any], context: int) -> list[list[str]]:
    rows = [["model", "weights", "takes", "fits whole on"]]
    for model in models:
        for weights in WEIGHTS:
            found = plan(model, weights=weights, context=context, device="cpu", dtype="bfloat16")
            whole = [fit.card.name for fit in found.cards() if fit.how == "resident"]
            rows.append([str(model), weights, gigabytes(found.total), ", ".join(whole) or "none of these"])
    return rows

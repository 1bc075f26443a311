"""gs.plan_view: the memory planner with sliders for model, weights, context and card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gemmascope.arguments import as_list, whole_number
from gemmascope.errors import BudgetError
from gemmascope.memory.cards import CARDS, DRIVER, Card, Fit, memory_text
from gemmascope.memory.plan import Plan
from gemmascope.memory.plan_tables import gigabytes
from gemmascope.memory.planned_model import PRESET_NAME
from gemmascope.memory.planning import plan
from gemmascope.memory.sizes import GENERATE, TRACE
from gemmascope.views.page import View

CONTEXTS = (256, 512, 1024, 2048, 3072, 4096, 6144, 8192)
WEIGHTS = ("bf16", "int8")
SIZES = ("2b", "9b", "27b")


def plan_view(models: Sequence[object] = SIZES, contexts: Sequence[int] = CONTEXTS) -> View:
    """The memory planner as a picture to play with: what a model takes on a card, and how it fits there.

    Everything is computed beforehand by `gs.plan`, in bfloat16, with bfloat16 and with int8 weights, for common cards. No
    model is loaded. Sizes are in units of 10^9 bytes.

    Args:
        models: What `gs.plan` takes: "2b", "9b", "27b", hub ids, folders or loaded models. All three sizes by default.
        contexts: Prompt lengths in positions, none longer than every model can read. Eight from 256 to 8,192 by default.

    Returns:
        The picture, self-contained.

    Raises:
        BudgetError: A list is empty, or a context is too long for a model.
        CheckpointError: A model is unknown.

    Examples:
        >>> view = gs.plan_view(["2b"], [1024])
        >>> view.rows[1][:3]
        ['2b', 'bf16', '5.43 GB']
    """
    models = as_list(models, "models", error=BudgetError)
    contexts = [
        whole_number(one, "a context", least=1, error=BudgetError)
        for one in as_list(contexts, "contexts", error=BudgetError)
    ]
    if not models or not contexts:
        raise BudgetError("models and contexts are lists with one entry at least")
    sizes = list({card.n_bytes: card for card in CARDS}.values())
    part_names: list[str] = []
    requests = [Request.of(model, weights, context) for model in models for weights in WEIGHTS for context in contexts]
    cases = [_case(request, card, part_names) for request in requests for card in sizes]
    size_index = {card.n_bytes: i for i, card in enumerate(sizes)}
    spec = {
        "view": "plan",
        "title": "What a model takes in memory",
        "note": "Computed by gs.plan in bfloat16; 1 GB of a card is left to its driver. GB are 10^9 bytes.",
        "models": list(dict.fromkeys(request.resident.name for request in requests)),
        "weights": list(WEIGHTS),
        "contexts": contexts,
        "cards": [{"name": card.name, "bytes": card.n_bytes, "size": size_index[card.n_bytes]} for card in CARDS],
        "driver": DRIVER,
        "parts": part_names,
        "cases": cases,
    }
    summary = f"In bytes of 10^9, everything on the device, at {contexts[-1]:,} positions:"
    return View(spec, {}, summary, _table(requests[len(contexts) - 1 :: len(contexts)]))


@dataclass(frozen=True)
class Request:
    """A model, its weights and a context, with the plan that keeps everything on the card."""

    model: object
    weights: str
    context: int
    resident: Plan

    @classmethod
    def of(cls, model: object, weights: str, context: int) -> Request:
        return cls(model, weights, context, _plan(model, weights, context))

    def within(self, memory: int) -> Plan:
        """The plan for a limited amount of memory, in bytes."""
        return _plan(self.model, self.weights, self.context, memory)


def _plan(model: object, weights: str, context: int, memory: int | None = None) -> Plan:
    return plan(model, weights=weights, context=context, memory=memory, device="cpu", dtype="bfloat16")


def _case(request: Request, card: Card, part_names: list[str]) -> dict[str, object]:
    """How a model fits on a card, in words, with advice, and the parts that take memory at the same time.

    Parts are pairs of an index into part_names, which grows as needed, and a number of bytes. If the model does not fit,
    the parts are those of the plan that keeps everything on the card.
    """
    fit = request.resident.fits(card)
    fitting = request.resident if fit.memory is None else request.within(fit.memory)
    task = max((TRACE, GENERATE), key=lambda one: fitting.peaks[one])
    parts = {part.name: part.n_bytes for part in fitting.parts if task in part.tasks and part.n_bytes}
    part_names += [name for name in parts if name not in part_names]
    return {
        "how": fit.how,
        "verdict": _verdict(fit, fitting.total, {TRACE: "a trace", GENERATE: "generating"}[task]),
        "advice": _smaller(request) if fit.how == "no" else _load_call(request, fit),
        "total": fitting.peaks[task],
        "parts": [[part_names.index(name), n_bytes] for name, n_bytes in parts.items()],
    }


def _verdict(fit: Fit, total: int, task: str) -> str:
    takes = f"{gigabytes(total)} at once, for {task}"
    if fit.how == "resident":
        return f"fits whole: {takes}"
    if fit.how == "streams":
        return f"fits, layers stream: {takes}; {fit.n_kept} of {fit.n_layers} layers stay"
    missing = f"even with all layers streaming {gigabytes(fit.missing)} are missing"
    return f"does not fit: {missing}; with none streaming it takes {takes}"


def _load_call(request: Request, fit: Fit) -> str:
    """The call that loads the model in the way that fits."""
    weights = ", weights='int8'" if request.weights == "int8" else ""
    memory = "" if fit.memory is None else f", memory={memory_text(fit.memory)!r}"
    return f"gs.load({_load_source(request.resident.name)!r}, device='cuda'{weights}{memory})"


def _smaller(request: Request) -> str:
    smaller = "" if request.weights == "int8" else "int8 weights, "
    return f"Take {smaller}a shorter context, or a larger card."


def _load_source(name: str) -> str:
    """What gs.load takes for this name: gs.plan also takes a preset's short name, which stands for a hub id."""
    short = None if Path(name).is_dir() else PRESET_NAME.fullmatch(name.lower())
    return f"google/gemma-2-{short['model']}" if short else name


def _table(requests: Sequence[Request]) -> list[list[str]]:
    rows = [["model", "weights", "takes", "fits whole on"]]
    for request in requests:
        plan = request.resident
        cards = [fit.card.name for fit in plan.cards() if fit.how == "resident"]
        rows.append([plan.name, request.weights, gigabytes(plan.total), ", ".join(cards) or "none of these"])
    return rows

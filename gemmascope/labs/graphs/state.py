"""The state of a graph lab as its page gets it: settings, menus, progress, what changes do, and the graphs that are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gemmascope.circuits.graph.bases.sources import BASES
from gemmascope.circuits.graph.result import AttributionGraph
from gemmascope.labs.graphs.session import GraphLabSession
from gemmascope.labs.graphs.settings import GraphSettings
from gemmascope.labs.graphs.shown import HOLD_WORDS, result_of
from gemmascope.labs.patching.settings import FAMILIES
from gemmascope.labs.typed import as_typed
from gemmascope.legible import legible_line
from gemmascope.tokens.tokenizer import visible_text

BASIS_WORDS = {"transcoder": "transcoder features", "neuron": "neurons", "sae": "autoencoder features"}


def state_of(lab: GraphLabSession) -> dict[str, object]:
    """Everything but the graph, and what is shared by all labs that compute anew."""
    with lab.guard:
        settings = lab._now
        kept = lab._kept[settings.key]
        graph, truth, detail = kept.graph, kept.truth, kept.details.get(lab._looked or "")
        runs = lab.runs()
    typed = {name: as_typed(value) for name, value in lab._typed_settings().items()}
    return {
        **kept.run.as_data(),
        "typed": typed,
        "explains": _explains(graph, settings),
        "basis": _menu(settings.basis, {name: (BASIS_WORDS[name], BASIS_WORDS[name]) for name in BASES}),
        "hold": _menu(settings.hold, HOLD_WORDS),
        "family": _menu(lab.family, {name: (name.replace("_", " "), name.replace("_", " ")) for name in FAMILIES}),
        "progress": None if lab.progress is None else list(lab.progress),
        "has_graph": graph is not None,
        "stopped": kept.is_stopped,
        "changes": dict(settings.changes),
        "groups": {name: list(ids) for name, ids in settings.groups},
        "labels": dict(settings.labels),
        "result": None if graph is None or truth is None else result_of(graph, truth, settings, lab.most),
        "detail": detail or {},
        "runs": [{**_run(one), "now": one is settings} for one in runs],
    }


def _explains(graph: AttributionGraph | None, settings: GraphSettings) -> str:
    """What an empty answer stands for: the likeliest tokens, or what was given in Python."""
    if settings.targets is None or graph is None:
        return "the likeliest tokens"
    return ", ".join(legible_line(one.label) if one.token is None else visible_text(one.label) for one in graph.outputs)


def _run(settings: GraphSettings) -> dict[str, object]:
    prompt, (answer, against) = as_typed(settings.prompt), settings.pair
    of = " − ".join(as_typed(one).strip() for one in (answer, against) if one is not None)
    n = len(settings.changes)
    changes = "no changes" if not n else f"{n} change{'s' if n > 1 else ''}"
    what = of or ("the likeliest tokens" if settings.targets is None else "targets of your own")
    return {"prompt": prompt, "explains": what, "says": f"{BASIS_WORDS[settings.basis]} · {changes}"}


def _menu(value: str, options: Mapping[str, Sequence[str]]) -> dict[str, object]:
    return {"value": value, "options": [{"value": name, "label": a, "word": b} for name, (a, b) in options.items()]}

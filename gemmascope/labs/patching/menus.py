"""The menus of the sentence on a patching lab's page, and what it may change with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypedDict

from gemmascope.labs.patching.picture import answer_text
from gemmascope.labs.patching.session import LabSession
from gemmascope.labs.patching.settings import FAMILIES, LAYERS, METRIC_LABELS, SITE_WORDS, grids_of
from gemmascope.labs.typed import read_typed
from gemmascope.sites import LAYER_SITES, SITES

if TYPE_CHECKING:
    from gemmascope.labs.widget import Handlers

TYPED = ("clean", "corrupt", "answer", "against")


class Option(TypedDict):
    """An entry of a menu. value: what the page sends. label: in the list. word: in the sentence."""

    value: str
    label: str
    word: str


class Menu(TypedDict):
    """A word of the sentence that is chosen from a list. value: the present one."""

    value: str
    options: list[Option]


def menus_of(lab: LabSession) -> dict[str, Menu]:
    """The menus of the sentence, by setting."""
    s = lab.settings
    into = {"corrupt": "corrupted", "clean": "clean"}
    grids = [*grids_of(s.site), *([] if s.by in grids_of(s.site) else [s.by])]
    metrics = {name: _metric_word(lab, name) for name in METRIC_LABELS}
    return {
        "site": _menu(
            s.site, {name: (f"{name}: {SITES[name].meaning}", SITE_WORDS.get(name, name)) for name in LAYER_SITES}
        ),
        "into": _menu(s.into, {name: (f"into the {word} run", word) for name, word in into.items()}),
        "by": _menu(",".join(s.by), {",".join(by): (_grid_word(by), _grid_word(by)) for by in grids}),
        "layers": _menu(s.layers, {name: (f"{name} layers", f"{name} layers") for name in LAYERS}),
        "metric": _menu(s.metric, {name: (METRIC_LABELS[name], word) for name, word in metrics.items()}),
        "family": _menu(lab.family, {name: (name.replace("_", " "), name.replace("_", " ")) for name in FAMILIES}),
    }


def late_handlers_of(lab: LabSession) -> Handlers:
    """What to do about messages that were on their way while the question changed."""
    return {
        "click": lambda m: lab.click_later(m["row"], m["column"]),
        "run": lambda m: lab.start(m["what"]) if m["what"] in ("all", "estimate") else None,
    }


def reader_of(lab: LabSession, name: str, text: str) -> Callable[[], object]:
    """What reads a setting that the page sent: typed, or chosen from a menu."""
    if name in TYPED:
        return lambda: read_typed(text, getattr(lab.settings, name), lab.model)
    return lambda: tuple(text.split(",")) if name == "by" else text


def _menu(value: str, options: dict[str, tuple[str, str]]) -> Menu:
    listed = [Option(value=name, label=label, word=word) for name, (label, word) in options.items()]
    return Menu(value=value, options=listed)


def _grid_word(by: tuple[str, ...]) -> str:
    words = {"pos": "position", "q_pos": "query position", "k_pos": "key position", "kv_head": "kv head"}
    return " × ".join(words.get(axis, axis) for axis in by)


def _metric_word(lab: LabSession, name: str) -> str:
    """A metric in the sentence, with the answers: the logit difference of these two, the probability of this one."""
    answer, against = (answer_text(each).strip() for each in (lab.settings.answer, lab.settings.against))
    words = {"logit_diff": f"{answer} − {against}", "answer_prob": f"probability of {answer}"}
    return words.get(name, f"log probability of {answer}")

"""Gemma Scope's dictionaries that are at hand, in the hub's cache: L0 beside the published, and variance explained."""

from __future__ import annotations

from dataclasses import dataclass

from gemmascope.checking.step import Figure
from gemmascope.checking.subject import Outcome, Skip, Subject
from gemmascope.checkpoints.at_hand.places import hub_cache
from gemmascope.checkpoints.source import NANO
from gemmascope.config import PRESETS
from gemmascope.run.tracing import trace
from gemmascope.sae.catalogue import PARAMS, Entry, Suite
from gemmascope.sae.load import load_sae

MOST = 4
# Of the dictionary inside the package, as the name of its folder gives it.
NANO_L0 = 10
# L0 here over the published average, which is over other and longer texts; and the variance that must be explained.
LARGEST_RATIO, LEAST_EXPLAINED = 2.0, 0.5


@dataclass(frozen=True)
class AtHand:
    """A dictionary on this machine. path: its folder in the repository. l0: the average that its name gives."""

    source: str
    path: str | None
    l0: int


def dictionaries(subject: Subject) -> Outcome:
    """Encode the prompts with up to MOST dictionaries, spread over layers."""
    if not subject.questions.in_words:
        raise Skip("the model has no tokenizer, so that there are no texts to encode")
    found = dictionaries_at_hand(subject)
    if not found:
        raise Skip("no dictionary of Gemma Scope for this model is in the hub's cache; gs.saes() lists what there is")
    chosen = found if len(found) <= MOST else [found[i * (len(found) - 1) // (MOST - 1)] for i in range(MOST)]
    figures: list[Figure] = []
    for one in chosen:
        figures += _figures(subject, one)
    return Outcome(
        f"{len(chosen)} of {len(found)} dictionaries at hand, on {len(subject.questions.prompts)} texts", tuple(figures)
    )


def _figures(subject: Subject, one: AtHand) -> list[Figure]:
    sae = load_sae(one.source, one.path, model=subject.model, any_model=True)  # whatever the dtype
    counts, explained = [], []
    for ids in subject.questions.prompts:
        features = sae.encode(trace(list(ids), model=subject.model))
        counts += features.l0.values[features.first :].tolist()
        explained.append(features.explained)
    name, l0 = one.path or one.source, sum(counts) / len(counts)
    ratio = max(l0 / one.l0, one.l0 / max(l0, 1e-9))
    return [
        Figure(f"{name}: L0, published {one.l0}", l0),
        Figure(f"{name}: factor between L0 and the published", ratio, LARGEST_RATIO),
        Figure(
            f"{name}: variance explained, the mean of texts", sum(explained) / len(explained), LEAST_EXPLAINED, is_least=True
        ),
    ]


def dictionaries_at_hand(subject: Subject) -> list[AtHand]:
    """Those for a model: nano's own, or what the hub's cache has for a Gemma 2 of its shape, ordered by layer."""
    if subject.path == NANO:
        return [AtHand("nano", None, NANO_L0)]
    config = subject.shell.config
    sizes = {
        name for name, preset in PRESETS.items() if (preset.n_layers, preset.d_model) == (config.n_layers, config.d_model)
    }
    entries = []
    for folder in sorted(hub_cache().glob("models--google--gemma-scope-*")):
        suite = Suite.of(folder.name.rpartition("--")[2])
        if suite is None or suite.size not in sizes or config.family != "Gemma 2":
            continue
        for path in folder.glob(f"snapshots/*/**/{PARAMS}"):
            inner = path.relative_to(folder / "snapshots").parts[1:]
            entry = Entry.of("/".join(inner))
            if entry is not None and isinstance(entry.l0, int) and isinstance(entry.layer, int):
                repository = f"google/{folder.name.rpartition('--')[2]}"
                entries.append((entry.layer, AtHand(repository, "/".join(inner[:-1]), entry.l0)))
    return [one for _, one in sorted(dict.fromkeys(entries), key=lambda pair: (pair[0], pair[1].source, pair[1].path or ""))]

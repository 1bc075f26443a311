"""Choosing another model in a lab: it becomes the lab that would be opened on that model, or stays what it was."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, checkpoint_3, model, model_of, prompt
from pieces import ODD, STORY, Pieces, worded

import gemmascope as gs
from gemmascope.checkpoints.at_hand.table import ModelTable
from gemmascope.errors import CheckpointError, EditError, LabError, PromptError, SweepError
from gemmascope.labs import choice
from gemmascope.labs.base import LabBase
from gemmascope.model.model import Model
from gemmascope.tokens.tokenizer import Tokenizer

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(0))


def shuffled(seed: int = 1) -> Model:
    """A model that reads the same texts as other ids."""
    pieces = [*STORY, *ODD][::-1]
    return Model(model_of(checkpoint("lg", seed)).network, Tokenizer(Pieces(pieces), bos_id=2), "shuffled")


def patching(m: Model, *prompts: Any) -> LabBase:
    clean, corrupt, answer, against = prompts or (CLEAN, CORRUPT, " Mary", " John")
    return gs.patching_lab(clean, corrupt, answer, against, model=m)


def heads(m: Model, *prompts: Any) -> LabBase:
    text, answer, against = prompts or (CLEAN, " Mary", " John")
    return gs.head_lab(text, answer, against, model=m, max_new_tokens=3)


def steering(m: Model, *prompts: Any) -> LabBase:
    lab = gs.steer_lab(*(prompts or (CLEAN,)), VECTOR, site="resid_post", layer=1, model=m, max_new_tokens=3)
    lab.set(strength=2.0)
    return lab


@dataclass
class Close:
    """Numbers, equal to others that differ in their last bits.

    How many rows ride in a pass of a patching lab depends on how long the last one took.
    """

    numbers: list[float]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Close) and self.numbers == pytest.approx(other.numbers, rel=1e-5, abs=1e-4, nan_ok=True)


def shown(lab: Any) -> Any:
    """What a lab holds, as numbers and texts, after everything was computed."""
    if isinstance(lab, (gs.HeadLab, gs.SteerLab)):
        lab.wait()
        state = {name: value for name, value in lab._state().items() if name != "code"}
        return state, lab.trace.logits.tolist(), [view.spec for view in getattr(lab, "views", ())]
    lab.wait()
    effects = lab.run("row", 1).effect
    numbers = [*effects.values.ravel(), *lab.experiment.baselines.values()]
    return effects.shape, Close(numbers), [vars(remark) for remark in lab.checks]


LABS: dict[str, Callable[..., LabBase]] = {"patching": patching, "heads": heads, "steering": steering}
IDS = {
    "patching": (prompt(7), prompt(7, seed=1), 5, 9),
    "heads": (prompt(7), 5, 9),
    "steering": (prompt(7),),
}
opened = pytest.mark.parametrize("kind", LABS)


@pytest.fixture(autouse=True)
def _no_warning_of_vectors() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr("gemmascope.labs.steering.lab.SteerLab._warn", lambda self, remarks: None)
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Gemma 3 on the disk, without a tokenizer and of the size of vocabulary that the tests' models have."""
    checkpoint_3("lgl", seed=3).save_pretrained(tmp_path / "three")
    return tmp_path / "three"


# -- the lab becomes one that is opened on the other model --


@opened
def test_texts_are_read_anew_by_the_other_model(kind: str) -> None:
    other = shuffled()
    with LABS[kind](worded()) as lab, LABS[kind](other) as fresh:
        before = shown(lab)
        lab.choose_model(other)
        assert lab.model is other
        after = shown(lab)
        assert after == shown(fresh)
        assert after != before
        lab.choose_model(worded())
        assert shown(lab) == before


@opened
def test_ids_go_with_a_model_of_the_same_vocabulary_from_the_disk(kind: str, folder: Path) -> None:
    with LABS[kind](model(), *IDS[kind]) as lab, LABS[kind](gs.load(folder), *IDS[kind]) as fresh:
        before = shown(lab)
        lab.choose_model(folder)
        assert lab.model.source == str(folder)
        assert shown(lab) == shown(fresh) != before


@opened
def test_a_page_chooses_without_waiting_and_settings_that_change_meanwhile_are_kept(kind: str, folder: Path) -> None:
    turned = {"patching": {"into": "clean"}, "heads": {"answer": 7}, "steering": {"strength": -1.0}}[kind]
    with LABS[kind](model(), *IDS[kind]) as lab, LABS[kind](gs.load(folder), *IDS[kind]) as fresh:
        lab.start_choosing(str(folder))
        lab.set(**turned)
        fresh.set(**turned)
        lab.wait()  # type: ignore[attr-defined]
        assert lab.model.source == str(folder)
        assert shown(lab) == shown(fresh)


def test_settings_are_changed_with_the_model() -> None:
    with patching(model(), *IDS["patching"]) as lab, patching(worded()) as fresh:
        lab.choose_model(worded(), clean=CLEAN, corrupt=CORRUPT, answer=" Mary", against=" John")
        assert shown(lab) == shown(fresh)


def test_heads_are_scaled_in_the_model_that_they_belong_to() -> None:
    with heads(worded()) as lab:
        lab.scale(1, 2, 0.0)  # type: ignore[attr-defined]
        lab.choose_model(shuffled())
        assert lab.factors == {}  # type: ignore[attr-defined]


@opened
def test_the_old_model_and_what_it_found_are_let_go_of(kind: str) -> None:
    old = shuffled(seed=5)
    with LABS[kind](old) as lab:
        shown(lab)
        if kind == "patching":
            lab.set(site="resid_mid")
            shown(lab)
            assert len(lab.experiments()) == 2  # type: ignore[attr-defined]
            lab.lay_beside(0)  # type: ignore[attr-defined]
        network = weakref.ref(old.network)
        del old
        lab.choose_model(worded())
        shown(lab)
        gc.collect()
        assert network() is None
        if kind == "patching":
            assert len(lab.experiments()) == 1  # type: ignore[attr-defined]


# -- a model that cannot be had changes nothing --


@opened
def test_an_unloadable_model_leaves_all_as_it_was(kind: str, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no weights")
    with LABS[kind](worded()) as lab:
        before = shown(lab)
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            lab.choose_model(folder)
        assert (lab.model, lab.loading) == (worded(), None)
        assert shown(lab) == before
        lab.start_choosing(str(folder))
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            lab.wait()  # type: ignore[attr-defined]
        assert "model.safetensors" in str(lab.error)
        assert lab.choice_data()["loading"] is None
        assert lab.model is worded()
        assert shown(lab) == before


@opened
def test_ids_do_not_go_with_another_vocabulary(kind: str) -> None:
    name = "prompt" if kind != "patching" else "clean"
    with LABS[kind](worded(), *IDS[kind]) as lab:
        before = shown(lab)
        with pytest.raises(PromptError, match=f"{name} is given as token ids .* 'shuffled' has another vocabulary"):
            lab.choose_model(shuffled())
        with pytest.raises(PromptError, match="'random' has no tokenizer"):
            lab.choose_model(model())
        assert lab.model is worded()
        assert shown(lab) == before
    with LABS[kind](model(), *IDS[kind]) as lab, pytest.raises(PromptError, match="of 97 tokens where there were 61"):
        lab.choose_model(model_of(checkpoint("lg", vocab_size=97)))


def test_a_vector_does_not_go_into_a_model_of_another_width() -> None:
    wide = model_of(checkpoint("lg", hidden_size=48))
    with steering(model(), prompt(7)) as lab:
        before = shown(lab)
        with pytest.raises(EditError, match=r"the vector that this lab adds does not go into 'random'.*gs\.direction"):
            lab.choose_model(wide)
        assert shown(lab) == before


def test_what_cannot_be_a_setting_changes_nothing() -> None:
    for kind, open_lab in LABS.items():
        with open_lab(worded()) as lab, pytest.raises(SweepError, match=r"has no (setting )?'colour'"):
            lab.choose_model(shuffled(), colour="red")
        assert lab.model is worded(), kind
    with pytest.raises(LabError, match="closed"):
        lab.choose_model("nano")


# -- loading --


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Loading waits until this is set."""
    event, load = threading.Event(), choice.load

    def slow(source: str) -> Model:
        assert event.wait(60)
        return load(source)

    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(choice, "load", slow)
        monkeypatch.setattr(choice, "_LOADER", pool)
        yield event
        event.set()


def test_a_lab_answers_while_another_model_loads_and_cancel_keeps_the_old_one(gate: threading.Event, folder: Path) -> None:
    with patching(model(), *IDS["patching"]) as lab:
        for end in (lab.keep_model, lab.cancel):
            job = lab.start_choosing(str(folder))
            assert lab.choice_data()["loading"] == str(folder)
            row, column = 1, 2 + (end == lab.cancel)
            exact = lab.run("cell", row, column).effect.values  # type: ignore[attr-defined]
            assert np.isfinite(exact[row, column])
            assert not job.over
            end()
            assert job.ended.wait(60)
            assert lab.choice_data()["loading"] is None
        gate.set()
        choice._LOADER.submit(lambda: None).result(60)
        assert lab.model is model()
        assert (lab.error, lab.is_busy) == (None, False)


def test_the_model_that_is_chosen_last_wins(gate: threading.Event, folder: Path) -> None:
    with patching(model(), *IDS["patching"]) as lab:
        first = lab.start_choosing("/nowhere")
        second = lab.start_choosing(str(folder))
        assert first.ended.wait(60)
        assert lab.choice_data()["loading"] == str(folder)
        gate.set()
        assert second.ended.wait(60)
        assert lab.model.source == str(folder)


# -- the list --


def test_the_list_has_the_models_at_hand_and_the_present_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[ModelTable] = []

    def models() -> ModelTable:
        looked.append(gs.models(folder.parent))
        return looked[-1]

    monkeypatch.setattr(choice, "models", models)
    with patching(model(), *IDS["patching"]) as lab:
        here = {"load": "", "label": "random (44K, the present model)"}
        assert lab.choice_data() == {"name": "random", "present": "", "options": [here], "looked": False, "loading": None}
        assert looked == []
        for _ in range(2):
            lab.find_models()
            lab.wait()  # type: ignore[attr-defined]
        assert len(looked) == 1
        data: Any = lab.choice_data()
        assert (data["present"], data["looked"]) == ("", True)
        assert data["options"][0] == here
        assert [option["load"] for option in data["options"][1:]] == [row.load for row in looked[0]]
        row = next(row for row in looked[0] if row.path == folder)
        label = next(option["label"] for option in data["options"] if option["load"] == row.load)
        assert label == f"three (Gemma 3 {row.size}, float32, {row.n_bytes / 1e6:.1f} MB, folder)"
        lab.start_choosing(row.load)
        lab.wait()  # type: ignore[attr-defined]
        data = lab.choice_data()
        assert data["present"] == row.load
        assert here["label"] not in [option["label"] for option in data["options"]]
        lab.choose_model(lab.model.edited([gs.ablate("z", layer=0, head=0)]))
        assert lab.choice_data()["present"] == ""

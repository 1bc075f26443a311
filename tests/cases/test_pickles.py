"""What can be pickled and copied, as joblib and multiprocessing do: it arrives with the same numbers, or says what to do."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import checkpoint, prompt
from torch import Tensor

import gemmascope as gs
from gemmascope.errors import CheckpointError, EditError, LabError, TraceError

IDS, OTHER = prompt(9), prompt(9, seed=1)
SPLIT = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}
TEXT = "When Mary and John went to the store, John gave a drink to"


def from_folder(folder: Path, **asked: Any) -> gs.Model:
    checkpoint("lg").save_pretrained(folder)
    return gs.load(folder, **asked)


MODELS: dict[str, Callable[[Path], gs.Model]] = {
    "in memory": lambda folder: gs.load(checkpoint("lg")),
    "in memory, bfloat16": lambda folder: gs.load(checkpoint("lg").to(torch.bfloat16)),
    "a folder": from_folder,
    "a folder in bfloat16": lambda folder: from_folder(folder, dtype="bfloat16"),
    "streamed": lambda folder: from_folder(folder, memory="1GiB"),
    "int8": lambda folder: from_folder(folder, weights="int8", cache=folder.parent / "q"),
}


@pytest.mark.parametrize("how", SPLIT)
@pytest.mark.parametrize("kind", MODELS)
def test_a_model_and_its_trace_arrive_with_the_same_numbers(kind: str, how: str, tmp_path: Path) -> None:
    model = MODELS[kind](tmp_path / "m")
    trace = gs.trace(IDS, model=model, edits=[gs.scale("z", 0.5, layer=1, head=2)])
    again, there = SPLIT[how]((model, trace)) if how != "copy" else (copy.copy(model), copy.copy(trace))
    assert again.fingerprint == model.fingerprint
    assert (again.name, again.asked, repr(again)) == (model.name, model.asked, repr(model))
    assert there.ids.tolist() == IDS
    assert there.edits == trace.edits
    for site in (("z", 1), ("pattern", 0), "logits", ("resid_post", 1)):
        assert torch.equal(there[site], trace[site])
    assert torch.equal(gs.trace(IDS, model=again).logits, gs.trace(IDS, model=model).logits)
    assert torch.equal(there.lens(), trace.lens()) if isinstance(trace.lens(), Tensor) else there.lens().equals(trace.lens())


def test_a_deep_copy_of_a_model_has_weights_of_its_own() -> None:
    source = checkpoint("lg")
    model = gs.load(source)
    made, before = copy.deepcopy(model), gs.trace(IDS, model=model).logits
    source.model.layers[0].mlp.up_proj.weight.data.mul_(2)
    source.half()  # what is done to the shared model is none of the copy's business
    assert torch.equal(gs.trace(IDS, model=made).logits, before)


def test_what_is_pickled_twice_is_loaded_once_and_is_one(tmp_path: Path) -> None:
    model = from_folder(tmp_path / "m")
    data = pickle.dumps([gs.trace(IDS, model=model), gs.trace(OTHER, model=model)])
    one, other = pickle.loads(data)
    (again, _) = pickle.loads(data)
    assert one.model is other.model is again.model
    assert pickle.loads(pickle.dumps(gs.trace(TEXT))).model is gs.trace(TEXT).model  # nano is nano


def test_a_model_whose_files_or_weights_changed_does_not_arrive_as_another(tmp_path: Path) -> None:
    model = from_folder(tmp_path / "m")
    data = pickle.dumps(model)
    checkpoint("lg", seed=3).save_pretrained(tmp_path / "m")
    with pytest.raises(CheckpointError, match="now gives another model"):
        pickle.loads(data)
    shutil.rmtree(tmp_path / "m")
    with pytest.raises(CheckpointError, match="no folder that exists"):
        pickle.loads(data)
    edited = from_folder(tmp_path / "n")
    edited.network.model.norm.weight.data.add_(1)
    with pytest.raises(CheckpointError, match="edited in memory"):
        pickle.loads(pickle.dumps(edited))


def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def test_an_edit_with_a_function_that_no_process_can_import_says_so() -> None:
    edit = gs.edit("resid_post", lambda x: x * 2, layer=1)
    trace = gs.trace(TEXT, edits=[edit])
    for thing in (edit, trace):
        with pytest.raises(EditError, match="cannot be pickled: another process cannot import its function, '<lambda>'"):
            pickle.dumps(thing)
        assert repr(copy.deepcopy(thing)) == repr(copy.copy(thing)) == repr(thing)
    named = gs.trace(TEXT, edits=[gs.edit("resid_post", doubled, layer=1)])
    assert torch.equal(pickle.loads(pickle.dumps(named)).logits, trace.logits)


def test_a_trace_whose_weights_changed_is_not_pickled() -> None:
    source = checkpoint("lg")
    trace = gs.trace(IDS, model=gs.load(source))
    source.model.norm.weight.data.add_(1)
    with pytest.raises(TraceError, match="changed since this run"):
        pickle.dumps(trace)


def first(logits: Tensor) -> Tensor:
    return logits[:, 5]


def halved(x: Tensor) -> Tensor:
    return x / 2


@cache
def things() -> dict[str, Any]:
    t, sae = gs.trace(TEXT), gs.load_sae()
    other = TEXT.replace("John gave", "Mary gave")
    return {
        "generation": gs.generate(TEXT, max_new_tokens=2),
        "sweep": gs.sweep(TEXT, other, gs.logit_diff(" Mary", " John"), site="resid_pre", by=("layer",), progress=False),
        "lens": gs.lens(t),
        "direct logits": gs.direct_logits(t, " Mary"),
        "dictionary": sae,
        "features": sae.encode(t),
        "patch of a trace": gs.patch("resid_pre", t, layer=1, pos=10),
        "patch": gs.patch("resid_pre", torch.ones(128), layer=1, pos=2),
        "mean": gs.ablate("z", layer=1, value="mean", reference=[t]),
        "splice": gs.splice(sae, {3: 0.5}),
        "edit": gs.edit("z", halved, layer=1),
        "trace with edits": gs.trace(TEXT, edits=[gs.edit("z", halved, layer=1), gs.splice(sae, {3: 0.5})]),
        "view": gs.attention_view(t),
        "tokenizer": t.model.tokenizer,
        "metric": gs.logit_diff(" Mary", " John"),
        "kl_from": gs.kl_from(t),
        "config": t.model.config,
    }


@pytest.mark.nano
@pytest.mark.parametrize("how", SPLIT)
def test_results_edits_and_metrics_arrive_as_they_were(how: str) -> None:
    found = {name: SPLIT[how](thing) for name, thing in things().items()}
    for name, thing in things().items():
        there = found[name]
        assert type(there) is type(thing), name
        if name not in ("tokenizer", "view", "features"):
            assert repr(there) == repr(thing), name
    assert found["dictionary"].fingerprint == gs.load_sae().fingerprint
    assert found["generation"].trace().top(1) == things()["generation"].trace().top(1)
    assert (found["sweep"].values == things()["sweep"].values).all()
    assert torch.equal(found["trace with edits"]["z", 1], things()["trace with edits"]["z", 1])
    assert found["tokenizer"].ids(TEXT) == things()["tokenizer"].ids(TEXT)
    logits = gs.trace(TEXT).logits
    for name in ("metric", "kl_from"):
        model = gs.load()
        assert torch.equal(found[name].bind(model)(logits), things()[name].bind(model)(logits))
    for name in ("patch of a trace", "patch", "mean", "splice", "edit"):
        edits = [gs.trace(TEXT.replace("John gave", "Mary gave"), edits=[one[name]]).logits for one in (found, things())]
        assert torch.equal(*edits), name


@pytest.mark.nano
@pytest.mark.parametrize("how", SPLIT)
@pytest.mark.parametrize("lab", ["patching", "heads", "steering"])
def test_a_lab_says_that_it_stays_where_it_is(how: str, lab: str) -> None:
    made: Any = {
        "patching": lambda: gs.patching_lab(TEXT, TEXT.replace("John gave", "Mary gave"), " Mary", " John"),
        "heads": lambda: gs.head_lab(TEXT),
        "steering": lambda: gs.steer_lab(TEXT, torch.ones(128), site="resid_post", layer=2),
    }[lab]()
    with made, pytest.raises(LabError, match="cannot be pickled or copied"):
        SPLIT[how](made)


@pytest.mark.nano
def test_a_new_process_gets_the_same_run() -> None:
    t = gs.trace(TEXT)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(gs.Trace.top, (t, 3)) == t.top(3)
        assert torch.equal(pool.apply(gs.Model.run, (t.model, TEXT)), t.model.run(TEXT))

"""Objects pickled and copied, as joblib and multiprocessing do, have the same numbers; others refuse and say what to do."""

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


def from_folder(folder: Path, **options: Any) -> gs.Model:
    checkpoint("lg").save_pretrained(folder)
    return gs.load(folder, **options)


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
def test_a_pickled_model_and_its_trace_have_the_same_numbers(kind: str, how: str, tmp_path: Path) -> None:
    model = MODELS[kind](tmp_path / "m")
    trace = gs.trace(IDS, model=model, edits=[gs.scale("z", 0.5, layer=1, head=2)])
    unpickled, unpickled_trace = SPLIT[how]((model, trace)) if how != "copy" else (copy.copy(model), copy.copy(trace))
    assert unpickled.fingerprint == model.fingerprint
    assert (unpickled.name, unpickled.asked, repr(unpickled)) == (model.name, model.asked, repr(model))
    assert unpickled_trace.ids.tolist() == IDS
    assert unpickled_trace.edits == trace.edits
    for site in (("z", 1), ("pattern", 0), "logits", ("resid_post", 1)):
        assert torch.equal(unpickled_trace[site], trace[site])
    assert torch.equal(gs.trace(IDS, model=unpickled).logits, gs.trace(IDS, model=model).logits)
    assert (
        torch.equal(unpickled_trace.lens(), trace.lens())
        if isinstance(trace.lens(), Tensor)
        else unpickled_trace.lens().equals(trace.lens())
    )


def test_a_deep_copy_of_a_model_has_weights_of_its_own() -> None:
    source = checkpoint("lg")
    model = gs.load(source)
    copied, before = copy.deepcopy(model), gs.trace(IDS, model=model).logits
    source.model.layers[0].mlp.up_proj.weight.data.mul_(2)
    source.half()  # changes of the shared model do not reach the copy
    assert torch.equal(gs.trace(IDS, model=copied).logits, before)


def test_traces_pickled_together_share_one_loaded_model(tmp_path: Path) -> None:
    model = from_folder(tmp_path / "m")
    data = pickle.dumps([gs.trace(IDS, model=model), gs.trace(OTHER, model=model)])
    first, second = pickle.loads(data)
    (again, _) = pickle.loads(data)
    assert first.model is second.model is again.model
    assert pickle.loads(pickle.dumps(gs.trace(TEXT))).model is gs.trace(TEXT).model  # nano is nano


def test_unpickling_a_model_whose_files_or_weights_changed_is_refused(tmp_path: Path) -> None:
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
    for pickled in (edit, trace):
        with pytest.raises(EditError, match="cannot be pickled: another process cannot import its function, '<lambda>'"):
            pickle.dumps(pickled)
        assert repr(copy.deepcopy(pickled)) == repr(copy.copy(pickled)) == repr(pickled)
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
def results_by_name() -> dict[str, Any]:
    t, sae = gs.trace(TEXT), gs.load_sae()
    corrupt = TEXT.replace("John gave", "Mary gave")
    return {
        "generation": gs.generate(TEXT, max_new_tokens=2),
        "sweep": gs.sweep(TEXT, corrupt, gs.logit_diff(" Mary", " John"), site="resid_pre", by=("layer",), progress=False),
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
def test_results_edits_and_metrics_survive_pickling(how: str) -> None:
    unpickled = {name: SPLIT[how](original) for name, original in results_by_name().items()}
    for name, original in results_by_name().items():
        copied = unpickled[name]
        assert type(copied) is type(original), name
        if name not in ("tokenizer", "view", "features"):
            assert repr(copied) == repr(original), name
    assert unpickled["dictionary"].fingerprint == gs.load_sae().fingerprint
    assert unpickled["generation"].trace().top(1) == results_by_name()["generation"].trace().top(1)
    assert (unpickled["sweep"].values == results_by_name()["sweep"].values).all()
    assert torch.equal(unpickled["trace with edits"]["z", 1], results_by_name()["trace with edits"]["z", 1])
    assert unpickled["tokenizer"].ids(TEXT) == results_by_name()["tokenizer"].ids(TEXT)
    logits = gs.trace(TEXT).logits
    for name in ("metric", "kl_from"):
        model = gs.load()
        assert torch.equal(unpickled[name].bind(model)(logits), results_by_name()[name].bind(model)(logits))
    for name in ("patch of a trace", "patch", "mean", "splice", "edit"):
        edits = [
            gs.trace(TEXT.replace("John gave", "Mary gave"), edits=[results[name]]).logits
            for results in (unpickled, results_by_name())
        ]
        assert torch.equal(*edits), name


@pytest.mark.nano
@pytest.mark.parametrize("how", SPLIT)
@pytest.mark.parametrize("lab", ["patching", "heads", "steering", "graphs"])
def test_a_lab_refuses_to_be_pickled_or_copied(how: str, lab: str) -> None:
    opened: Any = {
        "patching": lambda: gs.patching_lab(TEXT, TEXT.replace("John gave", "Mary gave"), " Mary", " John"),
        "heads": lambda: gs.head_lab(TEXT),
        "steering": lambda: gs.steer_lab(TEXT, torch.ones(128), site="resid_post", layer=2),
        "graphs": lambda: gs.graph_lab(TEXT, max_nodes=5),
    }[lab]()
    with opened, pytest.raises(LabError, match="cannot be pickled or copied"):
        SPLIT[how](opened)


@pytest.mark.nano
def test_a_new_process_gets_the_same_run() -> None:
    t = gs.trace(TEXT)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(gs.Trace.top, (t, 3)) == t.top(3)
        assert torch.equal(pool.apply(gs.Model.run, (t.model, TEXT)), t.model.run(TEXT))

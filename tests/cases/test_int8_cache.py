"""The int8 cache: a load with weights="int8" follows the folder's present files, and quantises only changed numbers."""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import checkpoint, prompt
from safetensors.torch import load_file, save_file

import gemmascope as gs
from gemmascope.checkpoints.source import NANO
from gemmascope.errors import CheckpointError
from gemmascope.streaming import convert as convert_module

IDS = prompt(12)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GEMMASCOPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "int8"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    checkpoint("lg").save_pretrained(tmp_path / "m")
    return tmp_path / "m"


@pytest.fixture
def quantised(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the matrices that were quantised so far."""
    names: list[str] = []
    quantise = convert_module.quantise

    def noted(weight: Any, q: Any, scale: Any, name: str) -> None:
        names.append(name)
        quantise(weight, q, scale, name)

    monkeypatch.setattr(convert_module, "quantise", noted)
    return names


def logits(model: gs.Model) -> torch.Tensor:
    return gs.trace(IDS, model=model).logits


def write_json(path: Path, **changes: Any) -> None:
    about = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**about, **changes}))


CONFIG: dict[str, Any] = {
    "sliding_window": 3, "final_logit_softcapping": None, "attn_logit_softcapping": 20.0, "query_pre_attn_scalar": 7,
    "rms_norm_eps": 1e-5, "eos_token_id": [1, 9], "bos_token_id": 3,
}  # fmt: skip


@pytest.mark.parametrize("memory", [None, "1GiB"])
@pytest.mark.parametrize("field", CONFIG)
def test_a_changed_configuration_is_read_with_and_without_int8_alike(
    field: str, memory: str | None, source: Path, cache: Path, quantised: list[str]
) -> None:
    (source / "generation_config.json").unlink()
    before = gs.load(source, weights="int8", memory=memory)
    n = len(quantised)
    write_json(source / "config.json", **{field: CONFIG[field]})
    model, plain = gs.load(source, weights="int8", memory=memory), gs.load(source)
    assert model.config == plain.config != before.config
    assert len(quantised) == n > 0
    fresh = gs.load(gs.quantize(source, cache.parent / "fresh"))
    assert torch.equal(logits(model), logits(fresh))
    assert logits(gs.load(next(cache.iterdir()))).equal(logits(model))  # the copies beside the weights are new, too


def test_adding_or_removing_a_generation_config_takes_effect(source: Path, cache: Path) -> None:
    (source / "generation_config.json").unlink()
    eos_ids = [gs.load(source, weights="int8").config.eos_ids]
    (source / "generation_config.json").write_text('{"eos_token_id": [1, 5]}')
    eos_ids.append(gs.load(source, weights="int8").config.eos_ids)
    (source / "generation_config.json").unlink()
    eos_ids.append(gs.load(source, weights="int8").config.eos_ids)
    assert eos_ids == [eos_ids[0], (1, 5), eos_ids[0]]


@pytest.mark.nano
def test_a_tokenizer_that_is_added_or_changed_later_is_read(tmp_path: Path, cache: Path, quantised: list[str]) -> None:
    folder = tmp_path / "nano"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(NANO / name, folder)
    assert not gs.load(folder, weights="int8").has_tokenizer
    n = len(quantised)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(NANO / name, folder)
    first = gs.load(folder, weights="int8").tokenizer
    assert first.ids("Mary went") == gs.load(NANO).tokenizer.ids("Mary went")
    about = json.loads((folder / "tokenizer.json").read_text())
    about["model"]["merges"] = about["model"]["merges"][:50]
    (folder / "tokenizer.json").write_text(json.dumps(about))
    assert gs.load(folder, weights="int8").tokenizer.ids("Mary went") == gs.load(folder).tokenizer.ids("Mary went")
    assert gs.load(folder, weights="int8").tokenizer.ids("Mary went") != first.ids("Mary went")
    (folder / "tokenizer.json").unlink()
    assert not gs.load(folder, weights="int8").has_tokenizer
    assert len(quantised) == n > 0


def test_a_configuration_of_another_shape_is_refused_with_and_without_int8_alike(source: Path, cache: Path) -> None:
    gs.load(source, weights="int8")
    write_json(source / "config.json", intermediate_size=96)
    messages = []
    for weights in ("auto", "int8"):
        with pytest.raises(CheckpointError, match=r"config\.json asks for") as error:
            gs.load(source, weights=weights)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def touch(folder: Path) -> Path:
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    return folder


def copied(folder: Path) -> Path:
    return Path(shutil.copytree(folder, folder.with_name("copy"), copy_function=shutil.copyfile))


def moved(folder: Path) -> Path:
    return folder.rename(folder.with_name("moved"))


def linked(folder: Path) -> Path:
    (folder.with_name("link")).symlink_to(folder)
    return folder.with_name("link")


def cut_otherwise(folder: Path) -> Path:
    checkpoint("lg").save_pretrained(folder.with_name("shards"), max_shard_size="20KB")
    return folder.with_name("shards")


@pytest.mark.parametrize("change", [touch, copied, moved, linked, cut_otherwise])
def test_equal_numbers_are_not_quantised_again(
    change: Callable[[Path], Path], source: Path, cache: Path, quantised: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = logits(gs.load(source, weights="int8"))
    n = len(quantised)
    folder = change(source)
    assert torch.equal(logits(gs.load(folder, weights="int8")), before)
    monkeypatch.setattr("gemmascope.streaming.store_cache.identity_of", None)  # and from then on, its files are not read
    assert torch.equal(logits(gs.load(folder, weights="int8")), before)
    assert len(quantised) == n > 0
    assert len(list(cache.iterdir())) == 1


def change_weight(folder: Path, by: float = 1.0, keep_time: bool = False) -> None:
    path = folder / "model.safetensors"
    stamp = path.stat()
    values = load_file(path)
    values["model.layers.1.input_layernorm.weight"][3] += by
    save_file(values, path, metadata={"format": "pt"})
    if keep_time:
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


@pytest.mark.parametrize("keep_time", [True, False])
def test_one_changed_number_makes_a_new_store_and_removes_the_old_one(source: Path, cache: Path, keep_time: bool) -> None:
    for i in range(4):
        gain = gs.load(source, weights="int8").layer(1).input_layernorm.weight[3].item()
        assert gain == gs.load(source).layer(1).input_layernorm.weight[3].item()
        assert len(list(cache.iterdir())) == 1, i
        gc.collect()
        change_weight(source, keep_time=keep_time)


def test_a_store_that_a_model_or_another_folder_still_needs_stays(source: Path, cache: Path, quantised: list[str]) -> None:
    copy_of_source = copied(source)
    model, shared = gs.load(source, weights="int8", memory="1GiB"), gs.load(copy_of_source, weights="int8")
    before = logits(model)
    del shared
    n = len(quantised)
    change_weight(source)
    assert not torch.equal(logits(gs.load(source, weights="int8")), before)
    assert torch.equal(logits(gs.load(copy_of_source, weights="int8")), before)
    assert len(quantised) == 2 * n
    change_weight(copy_of_source, 2.0)
    gs.load(copy_of_source, weights="int8")
    assert torch.equal(logits(model), before)
    model.fingerprint  # noqa: B018 (reads its files again)
    assert len(list(cache.iterdir())) == 3
    del model
    gc.collect()
    change_weight(source, 5.0)  # only stores of this folder are removed
    gs.load(source, weights="int8")
    assert len(list(cache.iterdir())) <= 3


def test_a_folder_that_is_named_takes_no_other_numbers(source: Path, tmp_path: Path) -> None:
    gs.load(source, weights="int8", cache=tmp_path / "q")
    touch(source)
    gs.load(source, weights="int8", cache=tmp_path / "q")
    change_weight(source)
    with pytest.raises(CheckpointError, match="another checkpoint"):
        gs.load(source, weights="int8", cache=tmp_path / "q")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 3}', "\x00"])
def test_a_damaged_list_of_sources_only_costs_time(text: str, source: Path, cache: Path, quantised: list[str]) -> None:
    before = logits(gs.load(source, weights="int8"))
    n = len(quantised)
    (next(cache.iterdir()) / ".sources.json").write_text(text)
    assert torch.equal(logits(gs.load(source, weights="int8")), before)
    assert len(quantised) == n > 0

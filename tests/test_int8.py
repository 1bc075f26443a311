"""int8 weights: no weight is off by more than half a step; a store is complete and of this source, or refused."""

from __future__ import annotations

import json
import os
import shutil
import threading
import weakref
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import checkpoint, prompt
from reference import error
from safetensors.torch import load_file, save_file
from torch import Tensor

import gemmascope as gs
import gemmascope.checkpoints.folder as folder_module
import gemmascope.streaming.convert as convert_module
from gemmascope.checkpoints.folder import Checkpoint
from gemmascope.errors import BudgetError, CheckpointError, DeviceError
from gemmascope.streaming.int8 import GROUP, dequantise, n_groups, quantise
from gemmascope.streaming.packed import MATRICES
from gemmascope.streaming.store import MANIFEST, OUTER, layer_file


def int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    q = torch.empty(weight.shape, dtype=torch.int8)
    scale = torch.empty(len(weight), n_groups(weight.shape[1]), dtype=torch.float16)
    quantise(weight, q, scale, "w")
    return q, scale


def dequantised(q: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    weight = torch.empty(q.shape, dtype=dtype)
    dequantise(q, scale, weight)
    return weight


def draw(kind: str, rows: int, columns: int, seed: int) -> Tensor:
    torch.manual_seed(seed)
    weight = torch.randn(rows, columns)
    if kind == "heavy":
        weight = weight / torch.rand(rows, columns).clamp_min(1e-4)
    if kind == "tiny":  # scales near float16's smallest numbers
        weight = weight * 1e-6
    if kind == "zeros":
        weight[:, ::2] = 0
        weight[::3] = 0
    return weight


@pytest.mark.parametrize("kind", ["plain", "heavy", "tiny", "zeros"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 128), (70, 300), (130, 256), (64, 127)])
def test_no_weight_is_off_by_more_than_half_a_step(kind: str, rows: int, columns: int) -> None:
    for seed in range(5):
        weight = draw(kind, rows, columns, seed)
        q, scale = int8(weight)
        step = scale.double().repeat_interleave(GROUP, 1)[:, :columns]
        assert bool(((weight.double() - q.double() * step).abs() <= step / 2 * (1 + 1e-6)).all())
        assert int(q.max()) <= 127
        assert int(q.min()) >= -127


@pytest.mark.parametrize("columns", [128, 300, 7])
def test_the_weight_of_a_pass_is_the_scale_times_the_stored_number(columns: int) -> None:
    q, scale = int8(draw("plain", 70, columns, 0))
    exact = q.float() * scale.float().repeat_interleave(GROUP, 1)[:, :columns]
    assert torch.equal(dequantised(q, scale), exact)
    assert torch.equal(dequantised(q, scale, torch.bfloat16), exact.bfloat16())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e8])
def test_weights_that_cannot_be_quantised_are_refused(value: float) -> None:
    weight = torch.randn(3, 200)
    weight[1, 150] = value
    with pytest.raises(CheckpointError, match="'w'"):
        int8(weight)


# -- stores --


@pytest.fixture
def source(tmp_path: Path) -> Path:
    checkpoint("lgl", head_dim=16, hidden_size=160).save_pretrained(tmp_path / "source", max_shard_size="120KB")
    return tmp_path / "source"


def test_a_store_holds_what_its_format_says(source: Path, tmp_path: Path) -> None:
    gs.quantize(source, tmp_path / "q")
    source_weights = {k: v for path in source.glob("*.safetensors") for k, v in load_file(path).items()}
    outer = load_file(tmp_path / "q" / OUTER)
    assert all(torch.equal(outer[name], source_weights[name]) for name in outer)
    for index in range(3):
        layer = load_file(tmp_path / "q" / layer_file(index))  # safetensors itself reads it
        for name, value in layer.items():
            if name in MATRICES:
                q, scale = int8(source_weights[f"model.layers.{index}.{name}"])
                assert torch.equal(value, q)
                assert torch.equal(layer[f"{name}.scale"], scale)
            elif not name.endswith(".scale"):
                assert torch.equal(value, source_weights[f"model.layers.{index}.{name}"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_is_gemma_with_the_rounded_weights(source: Path, tmp_path: Path, dtype: str) -> None:
    model = gs.load(source, weights="int8", cache=tmp_path / "q", dtype=dtype)
    reference = checkpoint("lgl", head_dim=16, hidden_size=160).to(getattr(torch, dtype))
    for index in range(3):
        for name, parameter in model.layer(index).named_parameters():
            weight = reference.get_parameter(f"model.layers.{index}.{name}")
            if name in MATRICES:
                exact = checkpoint("lgl", head_dim=16, hidden_size=160).get_parameter(f"model.layers.{index}.{name}")
                assert torch.equal(parameter, dequantised(*int8(exact.detach()), getattr(torch, dtype)))
            else:
                assert torch.equal(parameter, weight)
            weight.data.copy_(parameter)
    ids = prompt(20)
    with torch.no_grad():
        expected = reference(torch.tensor([ids])).logits[0].float()
    assert error(model.run(ids), expected) <= (1e-5 if dtype == "float32" else 0.05)


def test_int8_weights_are_made_once_and_then_read(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMASCOPE_CACHE", str(tmp_path / "cache"))
    first = gs.load(source, weights="int8").run(prompt(9))
    monkeypatch.setattr(convert_module, "quantise", None)
    assert torch.equal(gs.load(source, weights="int8").run(prompt(9)), first)
    assert len(list((tmp_path / "cache" / "int8").iterdir())) == 1


def test_an_interrupted_conversion_resumes(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gs.quantize(source, tmp_path / "whole")
    calls = 0
    fill = convert_module._Writer._fill

    def impatient(self: Any, index: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        fill(self, index)

    monkeypatch.setattr(convert_module._Writer, "_fill", impatient)
    with pytest.raises(KeyboardInterrupt):
        gs.quantize(source, tmp_path / "q")
    with pytest.raises(CheckpointError, match="not finished"):
        gs.load(tmp_path / "q")
    gs.quantize(source, tmp_path / "q")
    assert calls == 2 + 2  # layer 0 was kept; layer 1 was begun anew
    for path in (tmp_path / "whole").glob("[!.]*"):
        assert path.read_bytes() == (tmp_path / "q" / path.name).read_bytes()
    assert not list((tmp_path / "q").glob(".*.part"))


def test_a_conversion_holds_one_tensor_of_the_source_at_a_time(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Tensor]] = []
    read = Checkpoint.read
    most = 0

    def watched(self: Checkpoint, name: str) -> Tensor:
        nonlocal most
        tensor = read(self, name)
        alive.append(weakref.ref(tensor))
        most = max(most, sum(ref() is not None for ref in alive))
        return tensor

    monkeypatch.setattr(Checkpoint, "read", watched)
    gs.quantize(source, tmp_path / "q")
    assert most <= 2


Damage = Callable[[Path], object]


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 5)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def _note(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


DAMAGE: list[tuple[Damage, str]] = [
    (lambda q: _cut(q / layer_file(1)), r"layer-01.safetensors is damaged: it should have"),
    (lambda q: _flip(q / layer_file(1)), r"layer-01.safetensors is damaged: its checksum"),
    (lambda q: _flip(q / OUTER), r"outer.safetensors is damaged: its checksum"),
    (lambda q: (q / layer_file(2)).unlink(), r"layer-02.safetensors is damaged"),
    (lambda q: _note(q / MANIFEST, format="gemmascope.int8.0"), "another version.*int8.0"),
    (lambda q: (q / MANIFEST).write_text("[]"), "JSON list"),
    (lambda q: shutil.copyfile(q / layer_file(0), q / layer_file(1)), "layer-01.safetensors is damaged: its checksum"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_damaged_store_is_named_and_refused(damage: Damage, message: str, source: Path, tmp_path: Path) -> None:
    gs.quantize(source, tmp_path / "q")
    damage(tmp_path / "q")
    with pytest.raises(CheckpointError, match=message):
        gs.load(tmp_path / "q").run(prompt(5))


def test_a_folder_of_something_else_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("all of it")
    with pytest.raises(CheckpointError, match="not empty"):
        gs.quantize(source, tmp_path / "full")
    gs.quantize(source, tmp_path / "q")
    checkpoint("lgl", 1, head_dim=16, hidden_size=160).save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="another checkpoint"):
        gs.quantize(tmp_path / "other", tmp_path / "q")
    with pytest.raises(CheckpointError, match="int8 already"):
        gs.quantize(tmp_path / "q", tmp_path / "p")


def test_a_source_that_changes_is_refused(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill = convert_module._Writer._fill

    def changing(self: Any, index: int) -> None:
        fill(self, index)
        path = sorted(source.glob("*.safetensors"))[0]
        save_file({k: v.clone() for k, v in load_file(path).items()}, path)

    monkeypatch.setattr(convert_module._Writer, "_fill", changing)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        gs.quantize(source, tmp_path / "q")


def test_a_full_disk_is_found_before_writing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(convert_module.shutil, "disk_usage", lambda _: usage(0, 0, 1000))
    with pytest.raises(BudgetError, match=r"needs [\d,]+ bytes and the disk has 1,000 free: nothing was written"):
        gs.quantize(source, tmp_path / "q")
    assert [path.name for path in (tmp_path / "q").iterdir()] == [".lock"]


@pytest.mark.parametrize(("weights", "message"), [("int4", "4 bits are not offered"), ("fp8", "give 'auto'")])
def test_unknown_values_of_weights_are_refused(weights: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        gs.load(weights=weights)


def test_a_model_in_memory_is_shared_as_it_is() -> None:
    for options in ({"weights": "int8"}, {"memory": "1GiB"}):
        with pytest.raises(DeviceError, match="save_pretrained"):
            gs.load(checkpoint("lg"), **options)


def test_a_head_that_is_not_the_embedding_is_refused(source: Path, tmp_path: Path) -> None:
    weights = {k: v for path in source.glob("*.safetensors") for k, v in load_file(path).items()}
    for path in source.glob("model*"):
        path.unlink()
    weights["lm_head.weight"] = 2 * weights["model.embed_tokens.weight"]
    save_file(weights, source / "model.safetensors")
    with pytest.raises(CheckpointError, match="differs from the embedding"):
        gs.load(source, weights="int8", cache=tmp_path / "q")
    with pytest.raises(CheckpointError, match="differs from the embedding"):
        gs.quantize(source, tmp_path / "p")


def test_quantising_again_mends_a_damaged_file(source: Path, tmp_path: Path) -> None:
    gs.quantize(source, tmp_path / "q")
    expected = gs.load(tmp_path / "q").run(prompt(5))
    _flip(tmp_path / "q" / layer_file(1))
    (tmp_path / "q" / layer_file(2)).unlink()
    gs.quantize(source, tmp_path / "q")
    assert torch.equal(gs.load(tmp_path / "q").run(prompt(5)), expected)


def test_concurrent_loads_give_equal_numbers_and_do_not_rewrite_a_finished_cache(source: Path, tmp_path: Path) -> None:
    def load(logits: list[Tensor]) -> None:
        logits.extend(gs.load(source, weights="int8", cache=tmp_path / "q").run(prompt(5)) for _ in range(5))

    logits_of_threads: list[list[Tensor]] = [[] for _ in range(4)]
    threads = [threading.Thread(target=load, args=(logits_of_thread,)) for logits_of_thread in logits_of_threads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert all(
        len(logits_of_thread) == 5 and all(torch.equal(one, logits_of_threads[0][0]) for one in logits_of_thread)
        for logits_of_thread in logits_of_threads
    )
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "q").glob("[!.]*")}
    load([])
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "q").glob("[!.]*")}


def test_a_changed_source_is_quantised_again(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMASCOPE_CACHE", str(tmp_path / "cache"))
    before = gs.load(source, weights="int8").layer(1).input_layernorm.weight.clone()
    for path in source.glob("*.safetensors"):
        values = load_file(path)
        if "model.layers.1.input_layernorm.weight" in values:
            values["model.layers.1.input_layernorm.weight"] += 1
            save_file(values, path, metadata={"format": "pt"})
    assert torch.equal(gs.load(source, weights="int8").layer(1).input_layernorm.weight, before + 1)


BAD_CALLS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"device": "meta"}, DeviceError, "stream on a CPU or a CUDA device"),
    ({"dtype": "float16"}, DeviceError, "float16"),
    ({"memory": 10}, BudgetError, "too little: this model needs"),
    ({"memory": "lots"}, BudgetError, "lots"),
]


@pytest.mark.parametrize(("options", "kind", "message"), BAD_CALLS)
def test_a_bad_call_is_refused_before_anything_is_quantised(
    options: dict[str, Any], kind: type[Exception], message: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message):
        gs.load(source, weights="int8", cache=tmp_path / "q", **options)
    assert not (tmp_path / "q").exists()


def test_a_conversion_interrupted_before_its_first_file_resumes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def impatient(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "read_bytes", impatient)
        with pytest.raises(KeyboardInterrupt):
            gs.quantize(source, tmp_path / "q")
    gs.quantize(source, tmp_path / "q")
    assert gs.load(tmp_path / "q").config.eos_ids == gs.load(source).config.eos_ids


def test_a_quantised_models_repr_and_code_say_int8(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMASCOPE_CACHE", str(tmp_path / "cache"))
    model = gs.load(source, weights="int8", memory="1GiB")
    assert "weights='int8', memory='1GiB'" in repr(model)
    assert "weights" not in repr(gs.load(source))
    options: dict[str, Any] = {"site": "z", "by": ("layer", "head"), "progress": False}
    s = gs.sweep(prompt(9), prompt(9, seed=1), gs.logit_diff(5, 9), model=model, **options)
    names: dict[str, Any] = {}
    exec(s.code(), names)
    assert (names["result"].values == s.values).all()

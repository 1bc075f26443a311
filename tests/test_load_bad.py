"""Damaged checkpoints: each gives an error that names what is wrong and where, and leaves nothing open."""

from __future__ import annotations

import gc
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import checkpoint
from safetensors.torch import load_file, save_file

from gemmascope.errors import CheckpointError, ConfigError, GemmascopeError
from gemmascope.loading.load import load
from gemmascope.model.gemma2 import Gemma2

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoint("lgl").save_pretrained(tmp_path / "model", max_shard_size="16KB")
    return tmp_path / "model"


def index_of(folder: Path) -> dict[str, str]:
    names: dict[str, str] = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    return names


def shard_of(folder: Path, name: str = UP) -> Path:
    return folder / index_of(folder)[name]


def edit_shard(folder: Path, change: Callable[[dict[str, torch.Tensor]], object], name: str = UP) -> None:
    """Rewrites the shard that holds a tensor, after a change of its tensors."""
    tensors = load_file(shard_of(folder, name))
    change(tensors)
    save_file(tensors, shard_of(folder, name))


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_config(folder: Path, **changes: object) -> None:
    edit_json(folder / "config.json", **changes)


def cut(path: Path, size: int) -> None:
    os.truncate(path, size)


def drop_index(folder: Path) -> None:
    names = index_of(folder)
    del names[UP]
    edit_shard(folder, lambda tensors: tensors.pop(UP))
    edit_json(folder / "model.safetensors.index.json", weight_map=names)


def set_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[UP][5, 7] = torch.nan


def only_bin(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model-00001-of-00002.bin").write_bytes(b"")


def own_head(folder: Path) -> None:
    name = "model.embed_tokens.weight"
    edit_shard(folder, lambda tensors: tensors.update({"lm_head.weight": tensors[name] + 1}), name)


def no_weights(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()


def write_index(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a missing tensor": (
        lambda f: edit_shard(f, lambda tensors: tensors.pop(UP)),
        f"tensor '{UP}' is missing; the index says it is in SHARD, and it is not",
    ),
    "a tensor that index and shards lack": (drop_index, f"tensor '{UP}' is missing; there are 34 tensors in model-00001"),
    "an extra tensor": (
        lambda f: edit_shard(f, lambda tensors: tensors.update({"model.layers.7.extra": torch.ones(1)})),
        "tensor 'model.layers.7.extra' is unknown to Gemma 2 of this config; it is in SHARD",
    ),
    "more layers than the config says": (
        lambda f: edit_config(f, num_hidden_layers=2, layer_types=None),
        "(and 10 more: ",
    ),
    "a wrongly shaped tensor": (
        lambda f: edit_shard(f, lambda tensors: tensors.update({UP: tensors[UP][:, :-1].contiguous()})),
        f"tensor '{UP}' of SHARD has shape [48, 31]; config.json asks for [48, 32]",
    ),
    "a truncated shard": (
        lambda f: cut(shard_of(f), shard_of(f).stat().st_size - 5),
        "SHARD cannot be read: it is cut short",
    ),
    "a shard cut in its header": (lambda f: cut(shard_of(f), 40), "SHARD cannot be read: it is no safetensors file, or cut"),
    "an empty shard": (lambda f: cut(shard_of(f), 0), "SHARD cannot be read: it is cut short: 0 bytes are there"),
    "a git-lfs pointer": (
        lambda f: shard_of(f).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"),
        "SHARD cannot be read: it is a git-lfs pointer, not the weights: run `git lfs pull`",
    ),
    "an absent shard": (lambda f: shard_of(f).unlink(), "the shard SHARD is not in FOLDER: fetch it again"),
    "a tensor in two shards": (
        lambda f: edit_shard(f, lambda tensors: tensors.update({UP: torch.ones(48, 32)}), "model.embed_tokens.weight"),
        f"tensor '{UP}' lies in two files: ",
    ),
    "integers for weights": (
        lambda f: edit_shard(f, lambda tensors: tensors.update({UP: tensors[UP].to(torch.int8)})),
        f"tensor '{UP}' of FOLDER/SHARD is stored as I8; known are F32, BF16, F16. A quantised checkpoint",
    ),
    "an index that is no JSON": (lambda f: write_index(f, "{"), "index.json cannot be read as JSON"),
    "an index without a map": (lambda f: write_index(f, "{}"), "index.json has no weight_map"),
    "an index that is a list": (lambda f: write_index(f, "[]"), "index.json holds a JSON list, not an object"),
    "an index that leaves the folder": (
        lambda f: write_index(f, '{"weight_map": {"a": "../b.safetensors"}}'),
        "names a shard outside its folder: '../b.safetensors'",
    ),
    "pickled weights only": (only_bin, "only as pytorch_model-00001-of-00002.bin, a pickle"),
    "no weights": (no_weights, "has a config.json and no weights. Expected: config.json, model.safetensors"),
    "no config": (lambda f: (f / "config.json").unlink(), "FOLDER is no checkpoint: it has no config.json. Expected: "),
    "a config that is no JSON": (lambda f: (f / "config.json").write_text("nonsense"), "config.json cannot be read as JSON"),
    "a config in another encoding": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{"), "cannot be read as JSON"),
    "a head of its own": (own_head, "'lm_head.weight' of FOLDER/SHARD0 differs from the embedding"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_checkpoint_is_refused(what: str, folder: Path) -> None:
    damage, message = DAMAGE[what]
    shard, first = shard_of(folder).name, shard_of(folder, "model.embed_tokens.weight").name
    assert load(folder).n_layers == 3  # whole before the damage
    damage(folder)
    expected = message.replace("SHARD0", first).replace("SHARD", shard).replace("FOLDER", str(folder))
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        load(folder)


def test_a_truncated_shard_names_its_first_broken_tensor(tmp_path: Path) -> None:
    checkpoint("lgl").save_pretrained(tmp_path)  # one file, of many tensors
    path = tmp_path / "model.safetensors"
    header_size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + header_size])
    starts = sorted((entry["data_offsets"][0], name) for name, entry in header.items() if name != "__metadata__")
    size, (start, name) = path.stat().st_size, starts[5]
    cut(path, 8 + header_size + start + 1)
    expected = f"{size:,} are needed, so tensor {name!r} and {len(starts) - 6} more are not whole"
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        load(tmp_path)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_check_finds_nan_and_infinity_in_a_file(value: float, dtype: torch.dtype, folder: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[UP] = tensors[UP].to(dtype)
        tensors[UP][5, 7] = tensors[UP][9, 2] = value

    load(folder, check=True)
    edit_shard(folder, spoil)
    load(folder)
    expected = f"tensor {UP!r} of {shard_of(folder)} holds {value} at [5, 7], and 1 more NaN or infinite values"
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        load(folder, check=True)


def test_check_finds_nan_and_infinity_in_memory() -> None:
    source = checkpoint("lg")
    load(source, check=True)
    source.model.norm.weight.data[3] = torch.nan
    with pytest.raises(CheckpointError, match=re.escape("parameter 'model.norm.weight' holds nan at [3]")):
        load(source, check=True)


def test_another_architecture_is_named(folder: Path) -> None:
    edit_config(folder, model_type="llama", architectures=["LlamaForCausalLM"])
    with pytest.raises(
        ConfigError, match=r"config\.json: this is not a Gemma 2 .*'llama' \(LlamaForCausalLM\), not 'gemma2'"
    ):
        load(folder)


def test_paths_that_are_no_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    cases = {
        tmp_path / "empty": "is no checkpoint: it has no config.json. Expected: config.json, model.safetensors (or",
        tmp_path / "absent": "is no folder that exists and no hub id. A source is a folder",
        folder / "config.json": "is a file; give the folder that holds it",
        "./gemma-2-2b-it": "is no folder that exists and no hub id. Did you mean 'google/gemma-2-2b-it'?",
        "gemma2-9b": "is no folder that exists and no hub id. Did you mean 'google/gemma-2-9b'?",
        "": "is no folder that exists and no hub id",
    }
    for source, expected in cases.items():
        with pytest.raises(CheckpointError, match=re.escape(expected)):
            load(source)


def test_a_gguf_file_that_is_not_there_is_named_with_those_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    cases = {
        tmp_path / "absent" / "gemma.gguf": "Its folder does not exist either: ",
        "gemma.GGUF": "Its folder holds no GGUF file",
    }
    for source, expected in cases.items():
        with pytest.raises(CheckpointError, match=re.escape(f"there is no file {str(source)!r}. {expected}")):
            load(source)
    for n in range(6):
        (tmp_path / "models" / f"gemma-{n}.gguf").write_bytes(b"")
    five = ", ".join(f"gemma-{n}.gguf" for n in range(5))
    # Its path has the form of a hub id: the hub is not asked for it.
    with pytest.raises(CheckpointError, match=re.escape(f"'models/gemma.gguf'. GGUF files in its folder: {five} and more.")):
        load("models/gemma.gguf")


def test_the_home_folder_may_be_written_as_a_tilde(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load("~/model").n_layers == 3


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
@pytest.mark.parametrize("what", ["a missing tensor", "a truncated shard", "NaN", "nothing"])
def test_a_failed_load_leaves_no_open_file_and_no_network(what: str, folder: Path) -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    def networks() -> int:
        gc.collect()
        return sum(type(object_) is Gemma2 for object_ in gc.get_objects())

    damage = {"NaN": lambda f: edit_shard(f, set_nan), "nothing": lambda f: None}.get(what) or DAMAGE[what][0]
    damage(folder)
    before = open_files(), networks()
    try:
        load(folder, check=True)
    except GemmascopeError:
        assert what != "nothing"
        assert open_files() == before[0]  # at once, however long the error is kept
    assert (open_files(), networks()) == before

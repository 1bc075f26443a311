"""gs.models: what is found where programs keep models, what is left out, and what an unknown model's error names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import checkpoint, checkpoint_3
from gguf_files import write_gguf
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

import gemmascope as gs
from gemmascope.__main__ import main
from gemmascope.checkpoints.at_hand import search
from gemmascope.checkpoints.at_hand.places import Machine, llama_cpp_folders, lm_studio_folders, ollama_folders

HASH = "a" * 40
# Q8_0 has blocks of 32 numbers.
WIDTHS = {"intermediate_size": 64, "head_dim": 16}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of each family in a folder of its own, and a GGUF file of each."""
    root = tmp_path_factory.mktemp("made")
    for name, model in (("two", checkpoint("lg", **WIDTHS)), ("three", checkpoint_3("lg"))):
        model.save_pretrained(root / name)
        write_gguf(root / f"{name}.gguf", model, "Q8_0" if name == "two" else "F32")
    return root


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder, an empty hub's cache in it, and a current folder in it."""
    for name in ("OLLAMA_MODELS", "LLAMA_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Machine, "this", classmethod(lambda cls: cls("linux", {}, tmp_path)))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def copy(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    return target


def in_hub(home: Path, repo: str, source: Path, revision: str = HASH, *, main: bool = True) -> Path:
    """Put a checkpoint into the hub's cache as a snapshot."""
    folder = home / "hub" / f"models--{repo.replace('/', '--')}"
    if main:
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text(revision)
    return copy(source, folder / "snapshots" / revision)


def in_ollama(models: Path, name: str, source: Path, media: str = "model") -> Path:
    """Put a GGUF file into Ollama's folder under a name such as registry.ollama.ai/library/gemma2/2b."""
    blob = copy(source, models / "blobs" / f"sha256-{name.replace('/', '')}")
    layers = [{"mediaType": f"application/vnd.ollama.image.{media}", "digest": f"sha256:{name.replace('/', '')}"}]
    manifest = models / "manifests" / name
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"layers": layers}))
    return blob


@pytest.mark.usefixtures("home")
def test_nano_is_always_at_hand() -> None:
    table = gs.models()
    assert [(row.name, row.where, row.load) for row in table] == [("nano", "package", "nano")]
    assert table.broken == table.left_out == table.notes == ()


def test_each_place_is_found_and_each_row_loads(home: Path, made: Path) -> None:
    copy(made / "two", home / "here" / "mine")
    copy(made / "three.gguf", home / "here" / "deep" / "down" / "three.gguf")
    in_hub(home, "google/gemma-2-2b", made / "two")
    copy(made / "two.gguf", home / ".lmstudio" / "models" / "publisher" / "repository" / "lm.gguf")
    in_ollama(home / ".ollama" / "models", "registry.ollama.ai/library/gemma2/2b", made / "two.gguf")
    in_ollama(home / ".ollama" / "models", "hf.co/someone/gemma-3/Q8_0", made / "three.gguf")
    copy(made / "three.gguf", home / ".cache" / "llama.cpp" / "someone_gemma.gguf")
    table = gs.models()
    found = {(row.name, row.family, row.weights, row.where) for row in table if row.where != "package"}
    assert found == {
        ("mine", "Gemma 2", "float32", "folder"),
        ("three", "Gemma 3", "F32", "folder"),
        ("google/gemma-2-2b", "Gemma 2", "float32", "Hugging Face"),
        ("lm", "Gemma 2", "Q8_0", "LM Studio"),
        ("gemma2:2b", "Gemma 2", "Q8_0", "Ollama"),
        ("hf.co/someone/gemma-3:Q8_0", "Gemma 3", "F32", "Ollama"),
        ("someone_gemma", "Gemma 3", "F32", "llama.cpp"),
    }
    assert table.broken == table.left_out == table.notes == ()
    for row in table:
        if row.where != "Hugging Face":  # loading by a hub id would ask the hub
            model = gs.load(row.load)
            assert model.config.family == row.family
    frame = table.to_dataframe()
    assert frame["load"].tolist() == [row.load for row in table]
    assert all(row.n_bytes > 10_000 for row in table)
    assert {row.load for row in table} >= {"mine", str(Path("deep") / "down" / "three.gguf"), "google/gemma-2-2b"}


def test_a_folder_that_is_given_is_looked_into(home: Path, made: Path) -> None:
    copy(made / "two", home / "elsewhere" / "a" / "b" / "two")
    assert [row.load for row in gs.models(home / "elsewhere")] == ["nano", str(home / "elsewhere" / "a" / "b" / "two")]
    with pytest.raises(gs.GemmascopeError, match="is no folder: give one"):
        gs.models(home / "absent")


def test_int8_folders_are_models_and_unfinished_ones_are_not(home: Path, made: Path) -> None:
    gs.quantize(made / "two", home / "here" / "packed")
    [_, row] = gs.models()
    assert (row.weights, row.load, row.problem) == ("int8", "packed", "")
    manifest = home / "here" / "packed" / "gemmascope.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "complete": False}))
    table = gs.models()
    assert len(table) == 1
    assert "interrupted conversion to int8" in table.broken[0].problem


def test_other_architectures_are_counted_and_not_offered(home: Path, made: Path) -> None:
    for name in ("llama", "gemma", "gemma3n"):
        copy(made / "two", home / "here" / name)
        config = home / "here" / name / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": name}))
    write_gguf(home / "here" / "other.gguf", checkpoint("lg"), architecture="llama")
    (home / "here" / "web").mkdir()
    (home / "here" / "web" / "config.json").write_text('{"name": "no model at all"}')
    table = gs.models()
    assert [row.name for row in table] == ["nano"]
    assert sorted(one.architecture for one in table.left_out) == ["gemma", "gemma3n", "llama", "llama"]
    assert "left out, of other architectures: gemma, gemma3n, llama (2)" in repr(table)


def damage(kind: str, folder: Path) -> None:
    """Damage a checkpoint in a folder."""
    shard = folder / "model.safetensors"
    if kind == "cut":
        shard.write_bytes(shard.read_bytes()[:-1000])
    elif kind == "absent":
        shard.unlink()
    elif kind == "lacks":
        tensors = load_file(shard)
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, shard)
    elif kind == "shape":
        save_file({**load_file(shard), "model.norm.weight": torch.zeros(7)}, shard)
    elif kind == "link":
        shard.unlink()
        shard.symlink_to(folder / "nowhere")
    else:
        config = folder / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "head_dim": -1}))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("cut", "it is cut short"),
        ("absent", "has a config.json and no weights"),
        ("lacks", "'model.layers.1.mlp.up_proj.weight' is missing"),
        ("shape", "has shape [7]"),
        ("link", "which is not there or no file"),
        ("config", "d_head"),
    ],
)
def test_broken_checkpoints_are_listed_with_the_reason(kind: str, reason: str, home: Path, made: Path) -> None:
    damage(kind, copy(made / "two", home / "here" / "mine"))
    table = gs.models()
    assert [row.name for row in table] == ["nano"]
    [row] = table.broken
    assert reason in row.problem
    assert f"mine (folder) cannot be loaded: {row.problem}" in repr(table)
    assert table.to_dataframe()["problem"].tolist() == ["", row.problem]
    with pytest.raises(gs.GemmascopeError):
        gs.load("mine")


@pytest.mark.parametrize("n_bytes", [3, 20, 400, 20_000])
def test_a_gguf_file_that_is_cut_short_is_no_offer(n_bytes: int, home: Path, made: Path) -> None:
    content = (made / "two.gguf").read_bytes()
    (home / "here" / "cut.gguf").write_bytes(content[:n_bytes])
    table = gs.models()
    assert [row.name for row in table] == ["nano"]
    assert [row.name for row in table.broken] == ([] if n_bytes < 4 else ["cut"])  # 3 bytes could be anything


def test_a_change_is_seen(home: Path, made: Path) -> None:
    folder = copy(made / "two", home / "here" / "mine")
    assert len(gs.models()) == 2
    damage("lacks", folder)
    assert len(gs.models()) == 1


def test_snapshots_other_than_main_are_loaded_by_their_path(home: Path, made: Path) -> None:
    in_hub(home, "google/gemma-2-2b", made / "two")
    other = in_hub(home, "google/gemma-2-2b", made / "three", "b" * 40, main=False)
    table = gs.models()
    assert [(row.name, row.load) for row in table][1:] == [
        ("google/gemma-2-2b", "google/gemma-2-2b"),
        ("google/gemma-2-2b@bbbbbbb", str(other)),
    ]


def test_a_folder_of_the_name_of_a_hub_id_hides_it(home: Path, made: Path) -> None:
    snapshot = in_hub(home, "google/gemma-2-2b", made / "two")
    (home / "here" / "google" / "gemma-2-2b").mkdir(parents=True)
    assert gs.models()[1].load == str(snapshot)


def test_split_files_count_once(home: Path, made: Path) -> None:
    write_gguf(home / "here" / "parts.gguf", checkpoint("lg"), split=8)
    n_parts = len(list((home / "here").glob("*.gguf")))
    assert n_parts > 2
    [_, row] = gs.models()
    assert row.n_bytes == pytest.approx(sum(p.stat().st_size for p in (home / "here").glob("*.gguf")), rel=0.01)
    next((home / "here").glob(f"*-{n_parts:05}-of-*")).unlink()
    assert "fetch it again" in gs.models().broken[0].problem


def test_what_ollama_left_incomplete_is_noted(home: Path, made: Path) -> None:
    models = home / ".ollama" / "models"
    in_ollama(models, "registry.ollama.ai/library/gemma2/9b", made / "two.gguf").unlink()
    in_ollama(models, "registry.ollama.ai/library/embed/latest", made / "two.gguf", media="projector")
    (models / "manifests" / "registry.ollama.ai" / "library" / "gemma2" / "odd").write_text("no JSON")
    table = gs.models()
    assert [row.name for row in table] == ["nano"]
    assert len(table.notes) == 2
    assert any("the blob of gemma2:9b is not in" in note for note in table.notes)


def test_variables_and_systems_move_the_folders(tmp_path: Path) -> None:
    home = Path("/home/anna")
    linux = Machine("linux", {}, home)
    assert llama_cpp_folders(linux) == [home / ".cache" / "llama.cpp"]
    assert llama_cpp_folders(Machine("linux", {"XDG_CACHE_HOME": "/x"}, home)) == [Path("/x/llama.cpp")]
    assert llama_cpp_folders(Machine("darwin", {"XDG_CACHE_HOME": "/x"}, home)) == [
        home / "Library" / "Caches" / "llama.cpp"
    ]
    assert llama_cpp_folders(Machine("win32", {"LOCALAPPDATA": "/local"}, home)) == [Path("/local/llama.cpp")]
    assert llama_cpp_folders(Machine("win32", {"LLAMA_CACHE": "~/l"}, home)) == [home / "l"]
    assert ollama_folders(linux)[:2] == [home / ".ollama" / "models", Path("/usr/share/ollama/.ollama/models")]
    assert ollama_folders(Machine("darwin", {}, home)) == [home / ".ollama" / "models"]
    assert ollama_folders(Machine("linux", {"OLLAMA_MODELS": "/o"}, home)) == [Path("/o")]
    assert lm_studio_folders(linux) == [home / ".lmstudio" / "models", home / ".cache" / "lm-studio" / "models"]
    (tmp_path / ".lmstudio-home-pointer").write_text(str(tmp_path / "lm"))
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "settings.json").write_text(json.dumps({"downloadsFolder": "/models"}))
    moved = lm_studio_folders(Machine("win32", {}, tmp_path))
    assert moved[:2] == [Path("/models"), tmp_path / "lm" / "models"]


def test_a_search_of_many_folders_ends_with_a_note(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MOST_FOLDERS", 5)
    for number in range(10):
        (home / "here" / f"f{number}").mkdir()
    assert "the rest was not looked at" in gs.models().notes[0]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
def test_errors_about_unknown_models_name_what_is_at_hand(
    home: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(gs.GemmascopeError) as nothing:
        gs.load("gemma-2-2b-it")
    assert "At hand" not in str(nothing.value)
    copy(made / "two", home / "here" / "aaa")
    in_ollama(home / ".ollama" / "models", "registry.ollama.ai/library/gemma2/2b-it", made / "two.gguf")
    for call in (
        lambda: gs.load("gemma2-2b-it"),
        lambda: gs.load("google/gemma-2-2b-it"),
        lambda: gs.plan("gemma2-2b-itt"),
        lambda: gs.trace("x", model="gemma2-2b-it"),  # type: ignore[arg-type]
        lambda: gs.head_lab("x", model="gemma2-2b-it"),  # type: ignore[arg-type]
    ):
        with pytest.raises(gs.GemmascopeError, match=r"At hand are '[^']*' \(gemma2:2b-it\), 'aaa'"):
            call()
    assert main(["trace", "x", "--model", "gemma2-2b-it"]) == 2
    assert "(gemma2:2b-it), 'aaa'; gs.models() lists what can be loaded" in capsys.readouterr().err


def test_the_command_prints_the_table(home: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy(made / "two", home / "here" / "mine")
    assert main(["models"]) == 0
    assert capsys.readouterr().out == f"{gs.models()!r}\n"
    assert main(["models", str(made), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data == gs.models(made).to_dict()
    assert {row["name"] for row in data["models"]} == {"nano", "mine", "two", "three"}


def test_names_are_escaped(home: Path, made: Path) -> None:
    copy(made / "two", home / "here" / "<b>\x1b[31m")
    table = gs.models()
    assert "\x1b" not in repr(table)
    assert "<b>" not in table._repr_html_()
    assert "&lt;b&gt;" in table._repr_html_()

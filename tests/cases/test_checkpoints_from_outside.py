"""Checkpoints that transformers reads load here with its numbers; for others an error says what was found and what to do."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2ForSequenceClassification, Gemma2ForTokenClassification

import gemmascope as gs
from gemmascope.errors import BudgetError, CheckpointError, ConfigError

IDS = [2, 5, 9, 11, 4]
TRANSFORMERS = int(transformers.__version__.split(".")[0])
Tensors = dict[str, Tensor]


def source() -> Any:
    return checkpoint("lg")


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0]


def rewritten(change: Callable[[Tensors], Tensors]) -> Callable[[Path], object]:
    def save(folder: Path) -> None:
        source().save_pretrained(folder)
        save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})

    return save


def renamed(rename: Callable[[str], str]) -> Callable[[Path], object]:
    return rewritten(lambda tensors: {rename(name): tensor for name, tensor in tensors.items()})


def headed(kind: Any) -> Any:
    body = source()
    model = kind(body.config)
    model.model.load_state_dict(body.model.state_dict())
    return model.eval()


def heads() -> dict[str, Any]:
    return {"reward": headed(Gemma2ForSequenceClassification), "tags": headed(Gemma2ForTokenClassification)}


FOLDERS: dict[str, Callable[[Path], object]] = {
    "as it is": lambda folder: source().save_pretrained(folder),
    "Gemma2Model, no prefix": lambda folder: source().model.save_pretrained(folder),
    "a reward model": lambda folder: headed(Gemma2ForSequenceClassification).save_pretrained(folder),
    "a tagger": lambda folder: headed(Gemma2ForTokenClassification).save_pretrained(folder),
    "lm_head alone": renamed(lambda name: "lm_head.weight" if "embed" in name else name),
    "lm_head as well": rewritten(lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"].clone()}),
    "float64": rewritten(lambda t: {name: tensor.double() for name, tensor in t.items()}),
    "RoPE's frequencies": rewritten(lambda t: {**t, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)}),
}
# Folders that transformers does not read and that can be read without losing anything.
WRAPPED: dict[str, Callable[[Path], object]] = {
    "compiled": renamed(lambda name: f"_orig_mod.{name}"),
    "a compiled part": renamed(lambda name: name.replace("layers.0.", "layers.0._orig_mod.")),
    "DataParallel": renamed(lambda name: f"module.{name}"),
    "FSDP": renamed(lambda name: f"_fsdp_wrapped_module.{name}".replace("layers.1.", "layers.1._fsdp_wrapped_module.")),
    "peft": renamed(lambda name: f"base_model.model.{name}"),
}


@pytest.mark.parametrize("what", [*FOLDERS, *WRAPPED])
@pytest.mark.parametrize("streams", [False, True])
def test_a_folder_loads_with_the_numbers_of_transformers(what: str, streams: bool, tmp_path: Path) -> None:
    expected = logits(source())
    {**FOLDERS, **WRAPPED}[what](tmp_path)
    if what in FOLDERS and (what != "lm_head alone" or TRANSFORMERS >= 5):  # 4 leaves the embedding of that one empty
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval().float()
        assert torch.equal(logits(theirs), expected)
    ours = gs.trace(IDS, model=gs.load(tmp_path, memory=least(tmp_path) if streams else None)).logits
    assert (ours - expected).abs().max() < 1e-4
    assert torch.equal(ours, gs.trace(IDS, model=gs.load(source())).logits)


def least(folder: Path) -> int:
    """The least memory with which a folder loads; its layers then stream."""
    with pytest.raises(BudgetError) as refused:
        gs.load(folder, memory=1)
    match = re.search(r"needs ([\d,]+)", str(refused.value))
    assert match
    return int(match[1].replace(",", ""))


def quantised(name: str) -> Callable[[Path], object]:
    return rewritten(lambda t: {**t, f"model.layers.0.mlp.up_proj{name}": torch.ones(3)})


def with_config(**fields: Any) -> Callable[[Path], object]:
    def save(folder: Path) -> None:
        source().save_pretrained(folder)
        change(folder / "config.json", **fields)

    return save


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def adapter(folder: Path, *, alone: bool = False, config: bool = True) -> None:
    if not alone:
        source().save_pretrained(folder)
    save_file({"a": torch.ones(1)}, folder / "adapter_model.safetensors")
    if config:
        (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "google/gemma-2-2b", "peft_type": "LORA"}')


def only(name: str) -> Callable[[Path], object]:
    def save(folder: Path) -> None:
        source().config.save_pretrained(folder)
        (folder / name).write_bytes(b"GGUF")

    return save


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "an adapter beside it": (adapter, r"holds an adapter .* beside a model. Merge it into its base \(google/gemma-2-2b\)"),
    "an adapter's weights": (
        lambda folder: adapter(folder, config=False),
        "holds an adapter .adapter_model.safetensors. beside",
    ),
    "an adapter alone": (lambda folder: adapter(folder, alone=True), "holds an adapter .* and no model. Merge it"),
    "an adapter's names": (
        renamed(lambda name: name.replace("q_proj.weight", "q_proj.lora_A.default.weight")),
        "holds parameters of an adapter .*merge_and_unload",
    ),
    "a base layer": (
        renamed(lambda name: name.replace("q_proj.weight", "q_proj.base_layer.weight")),
        "holds parameters of an adapter",
    ),
    "bitsandbytes": (quantised(".weight.absmax"), "holds quantised weights .*give the original checkpoint"),
    "gptq": (quantised(".qweight"), "holds quantised weights"),
    "fp8": (quantised(".weight_scale_inv"), "holds quantised weights"),
    "a quantised config": (
        with_config(quantization_config={"quant_method": "awq"}),
        r"config.json: the checkpoint is quantised \('awq'\)",
    ),
    "two of one name": (
        rewritten(lambda t: {**t, "module.model.norm.weight": t["model.norm.weight"].clone()}),
        "both stand for 'model.norm.weight'",
    ),
    "float64 beyond float32": (
        rewritten(lambda t: {**t, "model.norm.weight": t["model.norm.weight"].double() * 1e300}),
        "holds .*e.299 in float64, which torch.float32 cannot hold",
    ),
    "a GGUF only": (only("gemma.gguf"), r"only as gemma.gguf. A GGUF file is loaded by its own path"),
    "shards without their index": (only("model-00001-of-00002.safetensors"), "and no model.safetensors.index.json"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_folder_that_is_no_checkpoint_is_refused_with_what_it_holds(what: str, tmp_path: Path) -> None:
    save, message = REFUSED[what]
    save(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        gs.load(tmp_path)


def test_a_text_model_within_another_is_named(tmp_path: Path) -> None:
    config = source().config.to_dict()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "paligemma", "text_config": config}))
    with pytest.raises(ConfigError, match=r"'paligemma', which is PaliGemma .*Its text model is a Gemma 2"):
        gs.load(tmp_path)


def test_a_source_that_is_no_folder_is_refused_with_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "params.npz").write_bytes(b"PK")
    (tmp_path / "outer").mkdir()
    source().save_pretrained(tmp_path / "outer" / "inner")
    for path, message in {
        "m.gguf": "cut short or damaged",
        "params.npz": "a dictionary of features is loaded by gs.load_sae",
        "outer": "outer/inner: was that meant",
        "outer/inner/model.safetensors": "is a file; give the folder that holds it",
        "a" * 5000: "no folder that exists and no hub id",
        "a\0b": "no folder that exists and no hub id",
        "~nobody-here/x": "no folder that exists and no hub id",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            gs.load(f"{tmp_path}/{path}" if path[0] not in "a~" else path)


def test_a_folder_of_the_hubs_cache_means_its_snapshot(tmp_path: Path) -> None:
    cache = tmp_path / "models--google--gemma-2-2b"
    for commit in ("1" * 40, "2" * 40):
        source().save_pretrained(cache / "snapshots" / commit)
    with pytest.raises(CheckpointError, match=r"is a folder of the hub's cache; give one of its snapshots: .*1111"):
        gs.load(cache)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("2" * 40)
    change(cache / "snapshots" / ("2" * 40) / "config.json", sliding_window=7)
    model = gs.load(cache)
    assert (model.config.window, model.source) == (7, str(cache))
    shutil.rmtree(cache / "snapshots")
    (cache / "snapshots").mkdir()
    with pytest.raises(CheckpointError, match="it holds no snapshot"):
        gs.load(cache)


IN_MEMORY: dict[str, Callable[[Any], Any]] = {
    "Gemma2Model": lambda whole: whole.model,
    "compiled": torch.compile,
    "a compiled body": lambda whole: torch.compile(whole.model),
    "DataParallel": torch.nn.DataParallel,
}


@pytest.mark.parametrize("what", [*IN_MEMORY, "reward", "tags"])
def test_a_model_in_memory_is_shared_through_any_wrapper(what: str) -> None:
    body = source()
    expected = logits(body)
    wrapped = IN_MEMORY[what](body) if what in IN_MEMORY else heads()[what]
    model = gs.load(wrapped)
    assert (gs.trace(IDS, model=model).logits - expected).abs().max() < 1e-4
    theirs = {p.data_ptr() for p in wrapped.parameters()}
    assert {p.data_ptr() for p in model.network.parameters()} <= theirs


def test_a_model_with_adapters_in_memory_says_what_to_do() -> None:
    class PeftModel(torch.nn.Module):
        pass

    with pytest.raises(CheckpointError, match="a model with adapters: give model\\.merge_and_unload"):
        gs.load(PeftModel())


def test_a_model_quantised_in_memory_is_refused_with_what_to_do() -> None:
    quantised = source()
    quantised.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(
        torch.ones(4, 1, dtype=torch.uint8), requires_grad=False
    )
    with pytest.raises(CheckpointError, match=r"quantised in memory: parameter '.*up_proj.weight'.*model\.dequantize"):
        gs.load(quantised)


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"]
)
@pytest.mark.parametrize("instead", ["is a folder", "is a link to ", "is a git-lfs pointer"])
def test_something_else_in_the_place_of_a_file_is_an_error(name: str, instead: str, tmp_path: Path) -> None:
    sharded = {"max_shard_size": "12KB"} if name.endswith("index.json") else {}
    source().save_pretrained(tmp_path, **sharded)
    assert (tmp_path / name).is_file()
    (tmp_path / name).unlink()
    if instead == "is a folder":
        (tmp_path / name).mkdir()
    elif instead == "is a link to ":
        (tmp_path / name).symlink_to("../../blobs/absent")
    else:
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    with pytest.raises(
        CheckpointError, match=f"{name}.* {'it ' if name.endswith('rs') and 'lfs' in instead else ''}{instead}"
    ):
        gs.load(tmp_path)

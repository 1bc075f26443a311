"""gs.load of folders and of models in memory gives the numbers of transformers."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import sparse
import torch
from checkpoints import checkpoint, prompt
from safetensors.torch import load_file, save_file
from transformers import Gemma2ForCausalLM

from gemmascope.config import PRESETS
from gemmascope.errors import CheckpointError, DeviceError
from gemmascope.loading.load import load

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture(scope="module")
def source() -> Gemma2ForCausalLM:
    return checkpoint("lgl")


@pytest.fixture
def folder(source: Gemma2ForCausalLM, tmp_path: Path) -> Path:
    """A checkpoint of several shards, in float32."""
    source.save_pretrained(tmp_path / "model", max_shard_size="12KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    return tmp_path / "model"


def edit_config(folder: Path, **changes: object) -> None:
    """Changes fields of config.json; None takes a field out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def agrees(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= 1e-5 * theirs.abs().max())


@torch.no_grad()
def test_the_logits_are_those_of_transformers(source: Gemma2ForCausalLM, folder: Path) -> None:
    ids = prompt(20)
    assert agrees(load(folder).run(ids), source(torch.tensor([ids])).logits[0])


@pytest.mark.parametrize("max_shard_size", ["12KB", "1GB"])
@pytest.mark.parametrize("stored", DTYPES)
def test_every_stored_dtype_in_shards_and_in_one_file(stored: str, max_shard_size: str, tmp_path: Path) -> None:
    source = checkpoint("lg").to(DTYPES[stored])
    source.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    model = load(str(tmp_path))
    assert model.dtype == (torch.float32 if stored == "float16" else DTYPES[stored])
    weights = dict(model.network.named_parameters())
    theirs = {name: p for name, p in source.named_parameters() if name != "lm_head.weight"}
    assert weights.keys() == theirs.keys()
    for name, p in theirs.items():
        assert torch.equal(weights[name], p.to(model.dtype)), name
    assert not any(p.requires_grad for p in weights.values())
    assert not model.network.training
    assert model.name == str(tmp_path)
    assert model.n_params == model.config.n_params


@pytest.mark.parametrize(
    ("named", "stored", "chosen"),
    [
        ("bfloat16", "float32", "bfloat16"),  # config.json decides ...
        ("float32", "bfloat16", "float32"),
        (None, "bfloat16", "bfloat16"),  # ... or else the tensors
        (None, "float32", "float32"),
        ("float16", "bfloat16", "bfloat16"),
        ("float16", "float32", "float32"),
        ("bfloat16", "float16", "float32"),  # bfloat16 cannot hold what float16 does
    ],
)
def test_auto_takes_the_stored_dtype(named: str | None, stored: str, chosen: str, tmp_path: Path) -> None:
    checkpoint("l").to(DTYPES[stored]).save_pretrained(tmp_path)
    edit_config(tmp_path, dtype=None, torch_dtype=named)
    assert load(tmp_path).dtype == DTYPES[chosen]


def test_the_wider_of_two_stored_dtypes_is_kept(tmp_path: Path) -> None:
    checkpoint("l").bfloat16().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, tmp_path / "model.safetensors")
    edit_config(tmp_path, dtype=None, torch_dtype=None)
    assert load(tmp_path).dtype == torch.float32


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, "float32", torch.float32])
def test_a_given_dtype_is_taken(dtype: str | torch.dtype, folder: Path) -> None:
    assert load(folder, dtype=dtype).dtype == (DTYPES[dtype] if isinstance(dtype, str) else dtype)


@pytest.mark.parametrize("dtype", ["float16", torch.float16, "half"])
def test_float16_is_refused_with_the_reason(dtype: str | torch.dtype, folder: Path) -> None:
    with pytest.raises(DeviceError, match=r"cannot compute in float16.*65504.*'bfloat16'"):
        load(folder, dtype=dtype)


@pytest.mark.parametrize("dtype", ["int8", "float64", torch.int32, "nonsense"])
def test_another_dtype_is_refused(dtype: str | torch.dtype, folder: Path) -> None:
    with pytest.raises(DeviceError, match="not offered; give 'auto', 'bfloat16' or 'float32'"):
        load(folder, dtype=dtype)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_auto_device_without_cuda_is_the_cpu_and_cuda_is_refused(folder: Path) -> None:
    assert load(folder).device == torch.device("cpu")
    with pytest.raises(DeviceError, match=r"device='cuda' was asked for and .*; give 'auto' or 'cpu'"):
        load(folder, device="cuda")


@pytest.mark.parametrize("device", ["quantum", "xla"])
def test_an_unknown_device_is_refused(device: str, folder: Path) -> None:
    with pytest.raises(DeviceError, match=f"device='{device}' is"):
        load(folder, device=device)


@torch.no_grad()
def test_a_config_of_transformers_4_is_read(source: Gemma2ForCausalLM, folder: Path) -> None:
    new = json.loads((folder / "config.json").read_text())
    assert new["layer_types"] == ["sliding_attention", "full_attention", "sliding_attention"]
    edit_config(folder, layer_types=None, rope_parameters=None, rope_theta=10000.0, dtype=None, torch_dtype="float32",
                cache_implementation="hybrid", transformers_version="4.42.4")  # fmt: skip
    ids = prompt(20)
    assert agrees(load(folder).run(ids), source(torch.tensor([ids])).logits[0])


def test_end_tokens_are_read_from_the_generation_config(folder: Path) -> None:
    assert load(folder).config.eos_ids == (1,)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 57]}')
    assert load(folder).config.eos_ids == (1, 57)


def test_a_copy_of_the_embedding_as_lm_head_is_accepted(source: Gemma2ForCausalLM, tmp_path: Path) -> None:
    source.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, tmp_path / "model.safetensors")
    assert load(tmp_path).n_params == sum(p.numel() for p in source.parameters())


# The configurations as published, but for fields that say nothing about the shape.
COMMON = {
    "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
    "final_logit_softcapping": 30.0, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
    "initializer_range": 0.02, "max_position_embeddings": 8192, "model_type": "gemma2", "pad_token_id": 0,
    "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096, "sliding_window_size": 4096,
    "torch_dtype": "bfloat16", "transformers_version": "4.42.4", "use_cache": True, "vocab_size": 256000,
}  # fmt: skip
FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
          "query_pre_attn_scalar")  # fmt: skip
RELEASED = {
    "2b": (2_614_341_888, (2304, 26, 8, 4, 256, 9216, 256)),
    "9b": (9_241_705_984, (3584, 42, 16, 8, 256, 14336, 256)),
    "27b": (27_227_128_320, (4608, 46, 32, 16, 128, 36864, 144)),
}


@pytest.mark.parametrize("size", RELEASED)
def test_the_released_models_load_on_the_meta_device(size: str, tmp_path: Path) -> None:
    n_params, shape = RELEASED[size]
    model = load(sparse.write(tmp_path / size, {**COMMON, **dict(zip(FIELDS, shape, strict=True))}), device="meta")
    assert model.n_params == model.config.n_params == n_params
    assert model.config == PRESETS[size]
    assert (model.device.type, model.dtype) == ("meta", torch.bfloat16)
    assert [layer.kind for layer in model.layers()][:3] == ["local", "global", "local"]


def test_check_and_meta_contradict_each_other(folder: Path) -> None:
    with pytest.raises(DeviceError, match="reads none"):
        load(folder, device="meta", check=True)


MEASURED = """
    import sys, torch
    from gemmascope.loading.load import load

    def status(field):  # in bytes; VmHWM is the highest resident size since exec, unlike ru_maxrss, which a child inherits
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) << 10

    load(sys.argv[1])  # a tiny one, so that everything is imported
    before = status("VmRSS")
    model = load(sys.argv[2], dtype=sys.argv[3], check=True)
    size = [p.numel() * p.element_size() for p in model.network.parameters()]
    print(status("VmHWM") - before, sum(size), max(size))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_peak_memory_is_the_model_and_one_tensor(dtype: str, folder: Path, tmp_path: Path) -> None:
    config = {**COMMON, **dict(zip(FIELDS, (1024, 6, 8, 4, 128, 4096, 256), strict=True)), "vocab_size": 16384}
    big = sparse.write(tmp_path / "big", config, n_shards=2)
    command = [sys.executable, "-c", textwrap.dedent(MEASURED), str(folder), str(big), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, size, largest = map(int, done.stdout.split())
    assert size > 200e6
    assert peak > 0.95 * size, "what was measured is not the loading"
    slack = 12 << 20  # the allocator's own
    assert peak <= size + largest + slack, f"{peak / 2**20:.0f} MiB for a model of {size / 2**20:.0f} MiB"
    assert size + largest + slack < 1.5 * size, "the bound would not notice a second copy"


LEAN = """
    import sys
    from gemmascope.loading.load import load
    load(sys.argv[1])
    slow = ("transformers", "huggingface_hub", "torch._dynamo", "plotly", "ipywidgets")
    print([name for name in slow if name in sys.modules])
"""


def test_a_folder_is_loaded_without_what_is_slow_to_import(folder: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(LEAN), str(folder)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


@torch.no_grad()
def test_a_model_in_memory_is_shared() -> None:
    source = checkpoint("lg")
    model = load(source)
    theirs = dict(source.named_parameters())
    for name, parameter in model.network.named_parameters():
        assert parameter is theirs[name], name
    ids = prompt(9)
    before = model.run(ids)
    source.model.layers[1].mlp.down_proj.weight.mul_(0.5)
    assert not torch.equal(model.run(ids), before)
    assert agrees(model.run(ids), source(torch.tensor([ids])).logits[0])
    assert model.name == "Gemma2ForCausalLM"
    assert not model.has_tokenizer


def test_a_model_in_memory_that_cannot_be_shared_is_refused() -> None:
    source = checkpoint("lg")
    with torch.device("meta"):
        on_meta = Gemma2ForCausalLM(source.config)
    with pytest.raises(CheckpointError, match=r"'model\.embed_tokens\.weight' .* is on the meta device"):
        load(on_meta)
    with pytest.raises(DeviceError, match="cannot compute in float16"):
        load(checkpoint("lg").half())
    with pytest.raises(DeviceError, match=r"in torch\.float32 and is shared.*model\.to\(torch\.bfloat16\)"):
        load(source, dtype="bfloat16")
    with pytest.raises(DeviceError, match="on cpu and is shared"):
        load(source, device="meta")
    source.model.layers[0].mlp.up_proj.bfloat16()
    with pytest.raises(CheckpointError, match="bfloat16, float32; it must be"):
        load(source)


def test_a_model_in_memory_with_an_untied_head_is_refused() -> None:
    source = checkpoint("lg")
    source.lm_head.weight = torch.nn.Parameter(source.lm_head.weight.detach().clone())
    assert load(source).n_params == load(checkpoint("lg")).n_params
    source.lm_head.weight.data[3, 3] += 1
    with pytest.raises(CheckpointError, match="lm_head differs from its embedding"):
        load(source)


def test_other_objects_are_refused() -> None:
    source = checkpoint("lg")
    for wrong in (source.model.norm, 3, ["google/gemma-2-2b"]):
        with pytest.raises(CheckpointError, match=f"cannot load a {type(wrong).__name__}; a source is a folder"):
            load(wrong)

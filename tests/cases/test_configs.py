"""Damaged and hostile configurations give a package error that names the file, or the numbers of transformers."""

from __future__ import annotations

import json
import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import checkpoint
from torch import Tensor
from transformers import AutoModelForCausalLM

import gemmascope as gs
from gemmascope.checkpoints.source import NANO
from gemmascope.errors import CheckpointError, ConfigError, GemmascopeError

IDS = [2, 5, 9, 11, 4]
FIELDS = {
    "hidden_size": "d_model", "num_attention_heads": "n_heads", "num_key_value_heads": "n_kv_heads", "head_dim": "d_head",
    "intermediate_size": "d_mlp", "vocab_size": "vocab_size", "sliding_window": "window",
    "max_position_embeddings": "context", "query_pre_attn_scalar": "query_scalar", "rms_norm_eps": "norm_eps",
    "attn_logit_softcapping": "attn_cap", "final_logit_softcapping": "final_cap", "num_hidden_layers": "num_hidden_layers",
}  # fmt: skip
ODD = [-1, 0, 1.5e308, 2**62, 10**400, True, False, "3", "", [], [3], {}, {"a": 1}, "x" * 100_000, 1e-320, None]


@pytest.fixture(scope="module")
def saved_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole")
    checkpoint("lg").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def expected(saved_folder: Path) -> Tensor:
    return gs.trace(IDS, model=gs.load(saved_folder)).logits


@pytest.fixture
def folder(saved_folder: Path, tmp_path: Path) -> Path:
    for path in saved_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def transformers_logits(folder: Path) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval().float()
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0]


def refusal_of(folder: Path, expected: Tensor, file: str) -> str | None:
    """The message of the error, which names the file; None if the folder loads with the right numbers."""
    message = None
    try:
        logits = gs.trace(IDS, model=gs.load(folder)).logits
    except GemmascopeError as raised:
        message = str(raised)
    if message is not None:
        assert file in message or str(folder) in message
        assert len(message) < 2000
        return message
    if not torch.equal(logits, expected):
        assert (logits - transformers_logits(folder)).abs().max() < 1e-4
    return None


@pytest.mark.parametrize("field", FIELDS)
def test_a_bad_value_of_a_field_is_refused_with_the_fields_name(field: str, folder: Path, expected: Tensor) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("layer_types")
    n_refused = 0
    for value in ODD:
        path.write_text(json.dumps({**config, field: value}))
        message = refusal_of(folder, expected, "config.json")
        n_refused += message is not None
        if message is not None and not isinstance(value, (int, float)) and value is not None:
            assert field in message, (value, message)
    assert n_refused >= len(ODD) - 4


@pytest.mark.parametrize("layers", [1000, 20_000, 10**6, 10**9, 2**62])
@pytest.mark.parametrize("listed", [False, True])
def test_far_too_many_layers_are_refused_before_any_is_made(layers: int, listed: bool, folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    types = ["full_attention"] * layers if listed and layers <= 10**6 else None
    path.write_text(json.dumps({**config, "num_hidden_layers": layers, "layer_types": types}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(GemmascopeError, match=r"config\.json"):
        gs.load(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kilobytes


DEEP = "[" * 200_000 + "]" * 200_000
TEXTS: dict[str, tuple[bytes, str]] = {
    "nested": (DEEP.encode(), "nested too deeply"),
    "nested in a field": (f'{{"model_type": {"[" * 900}{"]" * 900}}}'.encode(), "nested too deeply"),
    "a long number": (b'{"vocab_size": ' + b"1" * 5000 + b"}", "cannot be read as JSON"),
    "Infinity": (b'{"final_logit_softcapping": Infinity}', "it holds Infinity"),
    "-Infinity": (b'{"a": -Infinity}', "it holds -Infinity"),
    "NaN": (b'{"a": NaN}', "it holds NaN"),
    "too large": (b'{"a": 1e999}', "it holds 1e999, which is too large"),
    "named twice": (b'{"vocab_size": 1, "vocab_size": 2}', "it names 'vocab_size' twice"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "byte order mark"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "it is not UTF-8"),
    "Latin-1": ('{"a": "é"}'.encode("latin-1"), "it is not UTF-8"),
    "nothing": (b"", "cannot be read as JSON"),
    "a list": (b"[]", "holds a JSON list, not an object"),
    "half": (b'{"model_type": "gem', "cannot be read as JSON"),
}
# Every file of JSON that loading reads.
FILES = ["config.json", "generation_config.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json",
         "adapter_config.json", "model.safetensors.index.json", "gemmascope.json"]  # fmt: skip


@pytest.mark.parametrize("what", TEXTS)
@pytest.mark.parametrize("file", FILES)
def test_bad_json_is_refused_with_the_files_name(file: str, what: str, folder: Path) -> None:
    content, message = TEXTS[what]
    if "token" in file:
        tokenizer = NANO / "tokenizer.json"
        (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    if "index" in file:
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as refused:
        gs.load(folder)
    assert str(folder / file) in str(refused.value)


@pytest.mark.parametrize("what", ["nested", "NaN", "named twice", "UTF-16", "a list"])
def test_bad_json_beside_a_dictionary_is_refused_with_the_files_name(what: str, tmp_path: Path) -> None:
    from random_dictionaries import arrays, write

    write(tmp_path, arrays(8))
    (tmp_path / "about.json").write_bytes(TEXTS[what][0])
    with pytest.raises(gs.errors.DictionaryError, match=r"about\.json is not what training writes"):
        gs.load_sae(tmp_path, layer=1, site="resid_post")


@pytest.mark.parametrize("concepts", [3, [3], [{}], {"a": 1}, [{"feature": "x", "concept": "c", "above": 1, "precision": 1,
                                                               "recall": 1}], None])  # fmt: skip
def test_bad_concepts_are_refused_with_the_files_name(concepts: Any, tmp_path: Path) -> None:
    from random_dictionaries import arrays, write

    write(tmp_path, arrays(8))
    (tmp_path / "about.json").write_text(json.dumps({"concepts": concepts}))
    with pytest.raises(gs.errors.DictionaryError, match=r"about\.json"):
        gs.load_sae(tmp_path, layer=1, site="resid_post")


def test_a_dictionary_beyond_float32_is_refused_with_its_files_name(tmp_path: Path) -> None:
    from random_dictionaries import arrays, write

    params = {name: array.astype("float64") for name, array in arrays(8).items()}
    params["W_enc"][1, 2] = 1e300
    path = write(tmp_path, params)
    with pytest.raises(gs.errors.DictionaryError, match=f"{path}: W_enc holds numbers in float64"):
        gs.load_sae(tmp_path, layer=1, site="resid_post")


@pytest.mark.parametrize("eos", ["1", [1, "2"], -1, True, {}, 1.5, 2**70])
def test_bad_end_tokens_are_refused_with_the_generation_configs_name(eos: Any, folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    with pytest.raises(ConfigError, match=r"generation_config\.json: eos_token_id"):
        gs.load(folder)


@pytest.mark.parametrize("rope", [{"rope_theta": value} for value in ("1", 0, -1, True, 1e300, [], {})])
def test_a_bad_rope_theta_is_refused(rope: dict[str, Any], folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rope_parameters": rope}))
    with pytest.raises(ConfigError, match=r"config\.json"):
        gs.load(folder)


def flipped(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]


def cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


@pytest.mark.parametrize("change", [flipped, cut])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_damage_anywhere_in_a_configuration_is_refused_or_harmless(
    file: str, change: Callable[[bytes, random.Random], bytes], folder: Path, expected: Tensor
) -> None:
    intact, draw = (folder / file).read_bytes(), random.Random(0)
    n_refused = 0
    for _ in range(40):
        (folder / file).write_bytes(change(intact, draw))
        n_refused += refusal_of(folder, expected, file) is not None
    assert n_refused > 10


@pytest.mark.parametrize("change", [flipped, cut])
def test_damage_in_the_header_of_a_shard_is_refused_or_read_as_transformers_reads_it(
    change: Callable[[bytes, random.Random], bytes], folder: Path, expected: Tensor
) -> None:
    path, draw = folder / "model.safetensors", random.Random(0)
    intact = path.read_bytes()
    end = 8 + int.from_bytes(intact[:8], "little")
    n_refused = 0
    for _ in range(40):
        head = change(intact[:end], draw)
        path.write_bytes(head + intact[end:])
        n_refused += refusal_of(folder, expected, "model.safetensors") is not None
    assert n_refused > 20

"""The code of a result loads the same model and gives the same numbers, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint

import gemmascope as gs

NANO = Path(gs.__file__).parent / "nano" / "checkpoint"
CLEAN = "Mary and John went. John told"
CORRUPT = "Mary and John went. Mary told"
NAMES = gs.logit_diff(" Mary", " John")
LOADS: dict[str, tuple[Any, dict[str, Any]]] = {
    "nano": ("nano", {}),
    "bfloat16": ("nano", {"dtype": torch.bfloat16}),
    "a device": ("nano", {"device": "cpu"}),
    "a folder": (NANO, {}),
    "int8 in a cache": (NANO, {"weights": "int8"}),
    "streamed": (NANO, {"weights": "int8", "memory": "24MiB"}),
    "another tokenizer": (NANO, {"tokenizer": NANO, "dtype": "float32"}),
}


def again(code: str, **names: Any) -> Any:
    exec(code, names)
    return names["result"]


@pytest.mark.parametrize("name", LOADS)
def test_the_code_of_a_result_gives_the_same_numbers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMASCOPE_CACHE", str(tmp_path))
    source, options = LOADS[name]
    model = gs.load(source, **options)
    for result in (
        gs.sweep(CLEAN, CORRUPT, NAMES, site="resid_pre", by="layer", pos=-1, model=model, progress=False),
        gs.attribute(CLEAN, CORRUPT, NAMES, site="z", by=("layer", "head"), model=model),
        gs.path_sweep(CLEAN, CORRUPT, NAMES, layer=4, mlps="frozen", model=model, progress=False),
    ):
        repeated = again(result.code())
        assert np.array_equal(repeated.values, result.values, equal_nan=True)
        assert repeated.question == result.question


def test_a_lab_and_its_script_load_the_same_model() -> None:
    model = gs.load(dtype="bfloat16")
    lab = gs.patching_lab(CLEAN, CORRUPT, " Mary", " John", model=model)
    assert "gs.load('nano', dtype='bfloat16')" in lab.code()
    assert "gs.load('nano', dtype='bfloat16')" in gs.head_lab(CLEAN, " Mary", model=model).code()


def test_a_model_in_memory_is_a_comment_in_the_code() -> None:
    model = gs.load(checkpoint("l"))
    result = gs.sweep([2, 5, 6], [2, 8, 6], gs.logit_diff(5, 6), site="resid_pre", progress=False, model=model)
    assert "gs.load(" not in result.code()
    assert "# model: 'Gemma2ForCausalLM', which was given in memory" in result.code()
    assert np.array_equal(again(result.code(), model=model).values, result.values)


def test_a_tokenizer_that_was_an_object_is_named_in_a_comment() -> None:
    words = gs.load().tokenizer
    result = gs.sweep(
        CLEAN, CORRUPT, NAMES, site="resid_pre", by="layer", model=gs.load(NANO, tokenizer=words), progress=False
    )
    assert "# value_1: the Tokenizer in memory, which is not printed here" in result.code()
    assert np.array_equal(again(result.code(), value_1=words).values, result.values)


def test_what_is_too_large_to_print_is_named_in_a_comment() -> None:
    vector, double = torch.linspace(0, 1, 128), lambda x: 2 * x
    edits = [gs.add("resid_pre", vector, layer=1, pos=-1), gs.edit("mlp_out", double, layer=2)]
    result = gs.sweep(CLEAN, CORRUPT, lambda x: x[:, 5], site="resid_post", by="layer", edits=edits, progress=False)
    for line in (
        "# tensor_2: the tensor [128], which",
        "# function_3: a function without a name",
        "# function_1: a function",
    ):
        assert line in result.code()
    repeated = again(result.code(), tensor_2=vector, function_3=double, function_1=lambda x: x[:, 5])
    assert np.array_equal(repeated.values, result.values)


ODD = ["'", '"', "\\", "\n", "\r", "\t", "\u202e", "\u2028", "\x00", "\x1b[31m", "{x}", "#", "<tensor [3]>", "é", "😀"]


@pytest.mark.parametrize("odd", ODD, ids=ascii)
def test_odd_text_survives_the_round_trip(odd: str) -> None:
    result = gs.sweep(f"{odd} Mary went", f"{odd} John went", NAMES, site="resid_pre", by="layer", progress=False)
    repeated = again(result.code())
    assert np.array_equal(repeated.values, result.values)
    assert result.code().isascii() or odd in ("é", "😀")


@pytest.mark.parametrize(
    "text",
    [np.str_(CLEAN), np.array(CLEAN), type("Text", (str,), {"__repr__": lambda self: "Text()"})(CLEAN)],
    ids=["numpy's text", "an array", "a class of one's own"],
)
def test_texts_of_other_classes_are_printed_as_texts(text: Any) -> None:
    result = gs.sweep(text, CORRUPT, NAMES, site="resid_pre", by="layer", pos=slice(np.int64(3), None), progress=False)
    assert repr(CLEAN) in result.code()
    assert np.array_equal(again(result.code()).values, result.values)

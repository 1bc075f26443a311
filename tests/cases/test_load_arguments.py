"""A model keeps the arguments of gs.load, so that they load the same model again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import checkpoint

import gemmascope as gs

NANO = Path(gs.__file__).parent / "nano" / "checkpoint"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, {}),
        ({"device": "auto", "dtype": "auto", "weights": "auto", "check": True}, {}),
        ({"dtype": torch.bfloat16}, {"dtype": "bfloat16"}),
        ({"dtype": "float32", "device": torch.device("cpu")}, {"dtype": "float32", "device": "cpu"}),
        ({"memory": "16MiB", "dtype": "bfloat16"}, {"memory": "16MiB", "dtype": "bfloat16"}),
        ({"tokenizer": NANO}, {"tokenizer": str(NANO)}),
        ({"weights": "int8", "memory": 2**25}, {"weights": "int8", "memory": 2**25}),
    ],
)
def test_a_loaded_model_keeps_the_arguments_of_load(
    arguments: dict[str, Any], expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMMASCOPE_CACHE", str(tmp_path))
    model = gs.load(NANO, **arguments)
    assert model.asked == expected
    assert model.source == model.name == str(NANO)
    again = gs.load(model.source, **model.asked)
    assert (again.dtype, again.device, again.asked) == (model.dtype, model.device, expected)
    assert all(f"{name}={value!r}" in repr(model) for name, value in expected.items())


def test_a_model_from_memory_has_no_source() -> None:
    model = gs.load(checkpoint("lg"), device="cpu")
    assert (model.source, model.asked) == (None, {"device": "cpu"})


def test_a_tokenizer_that_was_an_object_is_named_by_its_class() -> None:
    model = gs.load(NANO, tokenizer=gs.load().tokenizer)
    assert repr(model.asked["tokenizer"]) == "<Tokenizer in memory>"


def test_only_a_hub_id_has_revisions() -> None:
    with pytest.raises(gs.errors.CheckpointError, match="only a hub id has revisions"):
        gs.load(NANO, revision="main")
    with pytest.raises(gs.errors.CheckpointError, match="only a hub id has revisions"):
        gs.load(revision="main")
    with pytest.raises(gs.errors.CheckpointError, match="in memory has none"):
        gs.load(checkpoint("lg"), revision="main")

"""gs.check on other formats (bfloat16, int8, streamed layers, Gemma 3, GGUF files), and its measure of memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from check_models import SHAPE, small_folder
from checkpoints import checkpoint, checkpoint_3
from gguf_files import write_gguf

import gemmascope as gs
from gemmascope.checking.result import CheckResult
from gemmascope.checking.steps import memory_use as memory_module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("check"))


def check(model: Any, steps: list[str], **options: Any) -> CheckResult:
    return gs.check(model, steps=steps, show=False, **options)


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"weights": "int8"}, {"memory": "8MB"}])
def test_other_formats_pass_as_well(options: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("GEMMASCOPE_CACHE", str(tmp_path))
    result = check(str(folder), ["logits", "patterns"], **options)
    assert {step.verdict for step in result.steps} == {"pass"}, result
    if "dtype" in options:
        assert result["logits"].figures[0].limit == 2.0
        assert "transformers' on cpu" in result["transformers"].text


def test_gemma_3_and_gguf_files_pass(tmp_path: Path) -> None:
    checkpoint_3("lg", **SHAPE).save_pretrained(tmp_path / "three")
    assert check(str(tmp_path / "three"), ["logits", "patterns"]).passed
    path = write_gguf(tmp_path / "two.gguf", checkpoint("lg", **SHAPE))
    assert check(str(path), ["logits"]).passed


def test_memory_is_measured_beside_the_plan(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = check(str(folder), ["memory"])["memory"]
    assert step.verdict == "pass"
    assert step.figures[1].value == pytest.approx(gs.plan(folder, context=128).peaks["trace"] / 1e9)
    monkeypatch.setattr(memory_module, "_measure", lambda _: (10**10, 10**10, "a made-up counter"))
    assert check(str(folder), ["memory"])["memory"].verdict == "differs"


def test_a_process_that_fails_to_measure_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "_SCRIPT", "raise SystemExit('no room at all')")
    step = check(str(folder), ["memory"])["memory"]
    assert step.verdict == "failed"
    assert "out of memory" in step.text
    assert "no room at all" in step.text

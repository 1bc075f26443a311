"""Variations of reported cases at other places, each with the message that a user gets."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import checkpoint
from safetensors.torch import load_file, save_file

import gemmascope as gs
from gemmascope.errors import (
    BudgetError,
    CheckpointError,
    EditError,
    GemmascopeWarning,
    MetricError,
    PromptError,
    SweepError,
)

NANO = Path(gs.__file__).parent / "nano/checkpoint"
CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
METRIC = gs.logit_diff(" Mary", " John")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of nano's checkpoint, to change."""
    return Path(shutil.copytree(NANO, tmp_path / "m"))


# -- numbers that are none, or whose squares are none --


@pytest.mark.parametrize("size", [1e20, 3e38])
@pytest.mark.parametrize(
    "edit_of",
    [
        lambda size: gs.add("resid_post", torch.full((128,), size), layer=1),
        lambda size: gs.patch("attn_raw", torch.full((128,), size), layer=1),
        lambda size: gs.ablate("z", layer=1, value=size),
        lambda size: gs.edit("resid_pre", lambda x: x * 0 + size, layer=2),
        lambda size: gs.scale("mlp_raw", size, layer=2),
    ],
    ids=["add", "patch", "ablate", "edit", "scale"],
)
def test_numbers_whose_squares_overflow_in_a_norm_are_refused(edit_of: Callable[[float], Any], size: float) -> None:
    with pytest.raises(EditError, match=r"squares are infinite|no run can go on|holds NaN or infinity, first at"):
        gs.trace(CLEAN, edits=[edit_of(size)])
    with pytest.raises(EditError, match=r"squares are infinite|no run can go on|holds NaN or infinity, first at"):
        gs.generate(CLEAN, edits=[edit_of(size)], max_new_tokens=2)


def test_large_numbers_within_the_range_of_a_norm_run() -> None:
    run = gs.trace(CLEAN, edits=[gs.add("resid_post", torch.full((128,), 1e15), layer=1)])
    assert run.logits.isfinite().all()
    assert run.next_logits.std() > 0


def test_an_ablation_to_a_number_beyond_float32_is_refused() -> None:
    with pytest.raises(EditError, match="too large"):
        gs.trace(CLEAN, edits=[gs.ablate("resid_post", layer=1, value=1e39)])


def _damaged(folder: Path) -> gs.Model:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.2.mlp.down_proj.weight"][0, 0] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return gs.load(folder)


@pytest.mark.parametrize("metric", [METRIC, gs.rank(" Mary"), lambda logits: logits.nan_to_num()[:, 0]])
def test_a_sweep_of_damaged_weights_says_that_it_is_not_the_metric(folder: Path, metric: Any) -> None:
    model = _damaged(folder)
    with pytest.raises(CheckpointError, match=r"first at 'layers\.2\.mlp_raw'.*its weights are damaged.*check=True"):
        gs.sweep(CLEAN, CORRUPT, metric, site="resid_pre", by=("layer",), pos=-1, model=model, progress=False)


@pytest.mark.parametrize(
    "ask",
    [lambda model: gs.head_scores(model), lambda model: gs.direction([CLEAN], [CORRUPT], layer=3, model=model)],
    ids=["head_scores", "direction"],
)
def test_damaged_weights_are_named_and_give_no_scores(folder: Path, ask: Callable[[gs.Model], Any]) -> None:
    with pytest.raises(CheckpointError, match="its weights are damaged"):
        ask(_damaged(folder))


# -- questions --


def test_a_metric_that_mixes_runs_has_no_gradient() -> None:
    with pytest.raises(MetricError, match="mixes runs"):
        gs.trace(CLEAN).grad(lambda x: x[:, 5] - x[:, 5].mean(), ("resid_pre", 1))


@pytest.mark.parametrize("call", [gs.sweep, gs.attribute])
def test_a_grid_that_cannot_reach_the_metrics_position_is_warned_about(call: Any) -> None:
    with pytest.warns(GemmascopeWarning, match="the metric reads position 14: every effect is 0"):
        result = call(CLEAN, CORRUPT, METRIC, site="mlp_out", layer=5, pos=[10, 11])
    assert float(abs(result.effect).max()) < 1e-4


def test_a_grid_that_reaches_the_metrics_position_gives_no_warning() -> None:
    result = gs.sweep(CLEAN, CORRUPT, METRIC, site="mlp_out", layer=5, pos=[13, 14], progress=False)
    assert float(abs(result.effect).max()) > 0.1


@pytest.mark.parametrize("ask", [gs.sweep, gs.attribute])
@pytest.mark.parametrize("site", ["pattern", "scores"])
def test_a_grid_of_hidden_edges_alone_is_an_error(ask: Any, site: str) -> None:
    with pytest.raises(SweepError, match="the mask hides every edge"):
        ask(CLEAN, CORRUPT, METRIC, site=site, by=("layer",), q_pos=11, k_pos=13)


def test_the_command_line_prints_a_warning_on_one_line() -> None:
    call = [sys.executable, "-m", "gemmascope", "patch", CLEAN, CLEAN, "--answer", " Mary", "--against", " John"]
    stderr = subprocess.run(call, capture_output=True, text=True, check=True).stderr
    assert stderr == "gemmascope: warning: the two prompts are the same: patching changes nothing. Change a word in one\n"


# -- what is shared, and what lies in folders --


def _other_eps(source: Any) -> None:
    source.model.norm.eps = 1e-2


def _other_frequencies(source: Any) -> None:
    source.model.rotary_emb.inv_freq.mul_(2)


@pytest.mark.parametrize("change", [_other_eps, _other_frequencies])
def test_nan_outside_the_layers_of_a_shared_model_is_found(change: Callable[[Any], None]) -> None:
    source = checkpoint()
    change(source)
    with pytest.raises(CheckpointError, match="its configuration makes it"):
        gs.load(source)
    source = checkpoint()
    model = gs.load(source)
    gs.trace([2, 5, 9], model=model)
    change(source)
    with pytest.raises(CheckpointError, match="its configuration makes it"):
        gs.trace([2, 5, 9], model=model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_shared_model_that_was_converted_is_still_run(dtype: torch.dtype) -> None:
    source = checkpoint()
    assert gs.trace([2, 5, 9], model=gs.load(source.to(dtype))).logits.isfinite().all()


def test_a_chat_template_that_git_lfs_left_out_is_no_prompt(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(CheckpointError, match="git-lfs pointer"):
        gs.load(folder)


@pytest.mark.parametrize("kind", ["PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"])
def test_an_error_about_unmergeable_adapters_does_not_advise_merging(folder: Path, kind: str) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
    with pytest.raises(CheckpointError, match=f"{kind} beside a model.*cannot be merged"):
        gs.load(folder)


def test_the_value_head_of_a_policy_is_left_out(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights |= {"v_head.summary.weight": torch.ones(1, 128), "v_head.summary.bias": torch.ones(1)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(gs.trace(CLEAN, model=gs.load(folder)).logits, gs.trace(CLEAN).logits)


class _Processor:
    def __init__(self) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(NANO)
        self.tokenizer([CLEAN], truncation=True, max_length=6)


def test_a_processor_gives_its_tokenizer_without_its_truncation() -> None:
    assert len(gs.trace(CLEAN, model=gs.load(tokenizer=_Processor()))) == 15


class _Slow:
    def save_pretrained(self, folder: str) -> None:
        """Does what tokenizers' save_pretrained does."""


def test_a_slow_tokenizer_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(PromptError, match="save it with save_pretrained"):
        gs.load(tokenizer=_Slow())


@pytest.mark.parametrize("value", [None, "x", 5, gs.load()])
def test_views_of_other_objects_raise_package_errors(value: Any) -> None:
    with pytest.raises(SweepError, match=r"takes what gs\.sweep"):
        gs.sweep_view(value)
    with pytest.raises(BudgetError, match="models is a list"):
        gs.plan_view(value)
    assert "<" in repr(gs.kl_from(value))

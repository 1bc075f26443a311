"""gs.check: a right model passes, a model that is broken on purpose differs, and whatever fails is reported."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray
from check_models import small_folder
from checkpoints import checkpoint

import gemmascope as gs
from gemmascope.__main__ import main
from gemmascope.checking import check as check_module
from gemmascope.checking import ours
from gemmascope.checking.result import CheckResult
from gemmascope.checking.step import Figure, StepResult
from gemmascope.checking.steps import dictionaries as dictionaries_module
from gemmascope.checking.steps import int8_effect as int8_module
from gemmascope.checking.steps.dictionaries import AtHand
from gemmascope.checking.steps.published_heads import PUBLISHED, figures_of
from gemmascope.checking.subject import Outcome, Subject

BESIDE = ["logits", "patterns", "long prompt", "generation", "sweep"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("check"))


@pytest.fixture(autouse=True, scope="module")
def each_answer_once() -> Iterator[None]:
    """transformers answers once for each file and format, so that the tests of the steps after it take little."""
    right, kept = check_module.STEPS["transformers"], {}

    def ask(subject: Subject) -> Outcome:
        key = subject.path, subject.dtype, subject.is_int8
        if subject.path is None or subject.path.name != "model":
            return right(subject)
        if key not in kept:
            subject.wanted = frozenset(BESIDE)
            kept[key] = right(subject), subject.theirs, subject.truth
        outcome, subject.theirs, subject.truth = kept[key]
        return outcome

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(check_module.STEPS, "transformers", ask)
        yield


def check(model: Any, steps: list[str], **options: Any) -> CheckResult:
    return gs.check(model, steps=steps, show=False, **options)


def broken(folder: Path, name: str, **options: Any) -> gs.Model:
    """The model with half of the rows of one weight multiplied, as a reader that reads one wrong would have it."""
    model = gs.load(folder, **options)
    with torch.no_grad():
        weight = dict(model.network.named_parameters())[name]
        weight[: len(weight) // 2] *= 2  # the whole of it would be undone by the norm behind it
    return model


def test_a_right_model_passes_every_step_beside_transformers(folder: Path) -> None:
    result = check(str(folder), BESIDE)
    assert {step.name: step.verdict for step in result.steps} == dict.fromkeys(["transformers", *BESIDE], "pass")
    assert result.passed
    for name in BESIDE:
        assert any(figure.limit is not None for figure in result[name].figures) or name == "generation"
    assert result["logits"].figures[0].limit == 1e-5
    assert "beyond the window of 4" in result["long prompt"].text


@pytest.mark.parametrize(
    ("name", "differ"),
    [
        ("model.layers.1.mlp.down_proj.weight", {"logits", "sweep"}),
        ("model.layers.1.self_attn.q_proj.weight", {"logits", "patterns", "sweep"}),
        ("model.norm.weight", {"logits", "sweep"}),
    ],
)
def test_one_changed_weight_is_found(name: str, differ: set[str], folder: Path) -> None:
    result = check(broken(folder, name), ["logits", "patterns", "sweep"])
    assert {step.name for step in result.steps if step.verdict == "differs"} == differ
    assert result.verdict == "differs"
    if "patterns" in differ:
        assert "in layer 1, the worst" in result["patterns"].figures[0].name


def test_one_changed_weight_is_found_in_bfloat16(folder: Path) -> None:
    model = broken(folder, "model.layers.1.self_attn.q_proj.weight", dtype="bfloat16")
    assert check(model, ["patterns"])["patterns"].verdict == "differs"
    model = broken(folder, "model.embed_tokens.weight", dtype="bfloat16")
    assert check(model, ["logits"])["logits"].verdict == "differs"


def test_another_window_is_found_by_the_long_prompt(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    config = json.loads((folder / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "sliding_window": 8}))
    (other / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    model = gs.load(other)
    model.source = str(folder)
    assert check(model, ["long prompt"])["long prompt"].verdict == "differs"


def test_other_text_and_other_effects_are_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ours.generated_of
    monkeypatch.setattr(ours, "generated_of", lambda m, q: [[*ids[:3], (ids[3] + 1) % 60, *ids[4:]] for ids in right(m, q)])
    step = check(str(folder), ["generation"])["generation"]
    assert step.verdict == "differs"
    assert [figure.value for figure in step.figures if figure.limit is None] == [3, 3]
    effects = ours.effects_of
    monkeypatch.setattr(ours, "effects_of", lambda m, q: {cell: value + 0.1 for cell, value in effects(m, q).items()})
    step = check(str(folder), ["sweep"])["sweep"]
    assert step.verdict == "differs"
    assert step.figures[0].value == pytest.approx(0.1, rel=0.01)
    monkeypatch.setattr(ours, "effects_of", lambda m, q: dict.fromkeys(q.cells, float("nan")))
    assert check(str(folder), ["sweep"])["sweep"].verdict == "differs"


def test_int8_that_changes_much_differs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMASCOPE_CACHE", str(tmp_path))
    right = check(str(folder), ["int8"])["int8"]
    same = gs.compare(gs.load(folder), gs.load(folder, weights="int8"), [[2, 5, 9], [2, 7, 7]])
    assert 0 < right.figures[0].value < 10 * same.kl_mean + 0.01
    monkeypatch.setattr(int8_module, "load", lambda *_, **__: broken(folder, "model.embed_tokens.weight"))
    step = check(str(folder), ["int8"])["int8"]
    assert step.verdict == "differs"
    assert [figure.is_within for figure in step.figures] == [False, True, False]
    assert check(str(folder), ["int8"], weights="int8")["int8"].verdict == "skipped"


@pytest.mark.nano
def test_nano_passes_with_its_dictionary_and_names_its_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    result = check("nano", ["heads", "dictionaries"])
    assert result["dictionaries"].verdict == "pass"
    l0, ratio, explained = result["dictionaries"].figures
    assert ratio.value == pytest.approx(max(l0.value / 10, 10 / l0.value))
    assert 0.5 < explained.value < 1
    assert result["heads"].verdict == "skipped"
    best = gs.head_scores(kind="induction").best(1)[0]
    assert f"induction {best[0]}.{best[1]} ({best[2]:.2f})" in result["heads"].text
    monkeypatch.setattr(dictionaries_module, "dictionaries_at_hand", lambda _: [AtHand("nano", None, 100)])
    assert check("nano", ["dictionaries"])["dictionaries"].verdict == "differs"
    monkeypatch.setattr(dictionaries_module, "dictionaries_at_hand", lambda _: [])
    assert check("nano", ["dictionaries"])["dictionaries"].verdict == "skipped"


def test_dictionaries_of_the_model_in_the_cache_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dictionaries_module, "hub_cache", lambda: tmp_path)
    for repository, size in (("gemma-scope-2b-pt-res", "layer_20"), ("gemma-scope-9b-pt-res", "layer_9")):
        path = tmp_path / f"models--google--{repository}" / "snapshots" / "abc" / size / "width_16k" / "average_l0_71"
        path.mkdir(parents=True)
        (path / "params.npz").write_bytes(b"")
    config = SimpleNamespace(n_layers=26, d_model=2304, family="Gemma 2")
    subject: Any = SimpleNamespace(path=tmp_path, shell=SimpleNamespace(config=config))
    expected = AtHand("google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71", 71)
    assert dictionaries_module.dictionaries_at_hand(subject) == [expected]


def test_published_heads_must_be_among_the_strongest() -> None:
    def scores(raised: bool) -> Any:
        made = {}
        for kind, heads in PUBLISHED.items():
            values = np.random.default_rng(0).uniform(0, 0.1, (26, 8))
            for layer, head, score in heads:
                values[layer, head] = score if raised else 0.0
            made[kind] = SimpleNamespace(scores=xarray.DataArray(values, dims=("layer", "head")))
        return made

    tested = [figure for figure in figures_of(scores(True)) if figure.limit is not None]
    assert [figure.value for figure in tested] == [1.0, 1.0, 1.0]
    assert not any(figure.is_within for figure in figures_of(scores(False)) if figure.limit is not None)


@pytest.mark.parametrize(
    ("error", "verdict", "text"),
    [
        (MemoryError("1 TB"), "failed", "out of memory: MemoryError: 1 TB"),
        (torch.OutOfMemoryError("CUDA"), "failed", "out of memory: OutOfMemoryError: CUDA"),
        (ValueError("odd"), "failed", "ValueError: odd"),
        (KeyboardInterrupt(), "interrupted", "the steps after it did not run"),
    ],
)
def test_what_goes_wrong_in_a_step_is_kept(
    error: BaseException, verdict: str, text: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def fails(_: Subject) -> Any:
        seen.append(json.loads((tmp_path / "out" / "check.json").read_text()))
        raise error

    monkeypatch.setitem(check_module.STEPS, "patterns", fails)
    result = check(str(folder), ["logits", "patterns", "sweep"], out=tmp_path / "out")
    assert result["patterns"].verdict == result.verdict == verdict
    assert text in result["patterns"].text
    names = [step.name for step in result.steps]
    assert names == ["transformers", "logits", "patterns", *(["sweep"] if verdict == "failed" else [])]
    assert [step["verdict"] for step in seen[0]["steps"]] == ["pass", "pass", "running"]
    assert json.loads((tmp_path / "out" / "check.json").read_text()) == result.to_dict()


def test_without_transformers_answers_the_steps_beside_them_are_skipped(folder: Path, tmp_path: Path) -> None:
    gs.quantize(folder, tmp_path / "packed")
    result = check(str(tmp_path / "packed"), BESIDE)
    assert {step.verdict for step in result.steps} == {"skipped"} == {result.verdict}
    assert "transformers does not read" in result["transformers"].text
    assert not result.passed
    model = gs.load(checkpoint("lg"))
    assert "built in memory" in check(model, ["logits", "int8", "memory"])["transformers"].text


def is_figure(data: Any) -> bool:
    return (
        set(data) == {"name", "value", "limit", "is_least", "unit", "within"}
        and isinstance(data["name"], str)
        and isinstance(data["value"], (int, float, str))
        and isinstance(data["limit"], (int, float, type(None)))
        and isinstance(data["within"], bool)
    )


def test_the_files_say_what_was_measured_on_what(folder: Path, tmp_path: Path) -> None:
    result = check(str(folder), ["logits"], out=tmp_path / "out")
    data = json.loads((tmp_path / "out" / "check.json").read_text())
    assert set(data) == {"format", "verdict", "model", "environment", "steps"}
    assert (data["format"], data["verdict"]) == ("gemmascope.check.1", "pass")
    assert data["model"]["fingerprint"] == gs.load(folder).fingerprint
    assert (data["model"]["dtype"], data["model"]["family"], data["model"]["n_layers"]) == ("float32", "Gemma 2", 2)
    assert {"python", "torch", "transformers", "gemmascope", "system", "device", "cores"} <= set(data["environment"])
    assert data["environment"]["torch"] == torch.__version__
    for step in data["steps"]:
        assert set(step) == {"name", "verdict", "text", "seconds", "figures"}
        assert all(map(is_figure, step["figures"]))
    assert sum(len(step["figures"]) for step in data["steps"]) == len(result.to_dataframe())
    page = (tmp_path / "out" / "check.html").read_text()
    assert page == result.to_html()
    assert "default-src 'none'" in page
    assert not any(word in page for word in ("<script", "http:", "https:", "src="))


def test_numbers_that_are_none_and_odd_names_can_be_written(tmp_path: Path) -> None:
    figure = Figure("<b>\x1b[31m", float("nan"), 1.0)
    assert not figure.is_within
    result = CheckResult({"name": "<i>"}, {}, (StepResult("logits", "differs", "<u>", (figure,)),))
    result.save(tmp_path / "a" / "b")
    assert json.loads((tmp_path / "a" / "b" / "check.json").read_text())["steps"][0]["figures"][0]["value"] == "nan"
    assert not any(tag in result.to_html() for tag in ("<b>", "<i>", "<u>", "\x1b"))
    assert "\x1b" not in repr(result)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda f: gs.check(str(f), steps=["logit"]), "a step is one of 'transformers', 'logits'"),
        (lambda f: gs.check(str(f), steps=[]), "steps is a list of"),
        (lambda f: gs.check(gs.load(f), dtype="bfloat16"), "is loaded already"),
        (lambda f: gs.check(3), "model is what gs.load takes or returns; given 3"),
        (lambda f: gs.check(str(f / "absent")), "is no folder that exists"),
    ],
)
def test_bad_input_is_refused(call: Callable[[Path], object], text: str, folder: Path) -> None:
    with pytest.raises(gs.GemmascopeError, match=text):
        call(folder)


def test_the_command_ends_with_the_verdict(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check", str(folder), "--steps", "logits"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines() if not line.startswith("  " * 6)] == ["pass", "pass", f"{folder}:"]
    assert "at most 1e-05" in out
    assert err.splitlines()[-1] == f"wrote {Path('check-model') / 'check.json'}"
    assert (tmp_path / "check-model" / "check.html").is_file()
    monkeypatch.setattr(ours, "effects_of", lambda m, q: dict.fromkeys(q.cells, 1e3))
    assert main(["check", str(folder), "--steps", "sweep", "--out", "o", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["verdict"] == "differs"

    def interrupt(_: Subject) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setitem(check_module.STEPS, "int8", interrupt)
    assert main(["check", str(folder), "--steps", "int8,memory", "--out", "o"]) == 130
    assert main(["check", "absent"]) == 2

"""What a sweep hands back: labelled numbers, their shares of the gap, a text, and the code that repeats it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import model, prompt
from pieces import worded
from torch import Tensor

import gemmascope as gs
from gemmascope.errors import GemmascopeWarning, SweepError
from gemmascope.sweeps.result import SweepResult

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
METRIC = gs.logit_diff(" Mary", " John")


@cache
def patched(into: str = "corrupt") -> SweepResult:
    return gs.sweep(CLEAN, CORRUPT, METRIC, site="resid_post", by=("layer", "pos"), into=into, model=worded())


def difference(text: str) -> float:
    logits = gs.trace(text, model=worded()).next_logits
    return float(logits[4] - logits[6])  # the ids of " Mary" and " John"


# -- labels and numbers --


def test_an_effect_has_named_axes_with_layers_and_tokens() -> None:
    effect = patched().effect
    assert effect.dims == ("layer", "pos")
    assert effect.coords["layer"].values.tolist() == [0, 1, 2]
    assert effect.coords["kind"].values.tolist() == ["local", "global", "local"]
    assert effect.coords["pos"].values.tolist() == list(range(15))
    assert effect.coords["token"].values.tolist() == gs.trace(CORRUPT, model=worded()).tokens
    assert effect.attrs["long_name"] == "change of gs.logit_diff(' Mary', ' John')"
    assert float(effect.sel(layer=2, pos=14)) == effect.values[2, 14]
    assert not np.isnan(effect.values).any()


@pytest.mark.parametrize("into", ["corrupt", "clean"])
def test_effects_are_changes_of_the_run_that_is_patched(into: str) -> None:
    s = patched(into)
    assert s.clean == pytest.approx(difference(CLEAN), rel=1e-4)
    assert s.corrupt == pytest.approx(difference(CORRUPT), rel=1e-4)
    base, source = (s.corrupt, s.clean) if into == "corrupt" else (s.clean, s.corrupt)
    assert np.allclose(s.effect.values, s.values[0] - base)
    assert np.abs(s.effect.values[:, :10]).max() <= 1e-4  # the prompts are the same so far
    # The last row of the last layer decides the answer: patched, the run is as good as its source.
    assert float(s.effect.sel(layer=2, pos=14)) == pytest.approx(source - base, rel=1e-3)
    assert float(s.normalized.sel(layer=2, pos=14)) == pytest.approx(1, rel=1e-3)
    assert np.allclose(s.normalized.values, s.effect.values / (source - base))


def test_the_tokens_are_those_of_the_run_that_is_patched() -> None:
    assert patched("corrupt").effect.coords["token"].values[10] == " Mary"
    assert patched("clean").effect.coords["token"].values[10] == " John"


def test_edges_are_labelled_by_query_and_key() -> None:
    s = gs.sweep(CLEAN, CORRUPT, METRIC, site="pattern", by=("q_pos", "k_pos"), q_pos=[14, 11], layer=1, model=worded())
    assert s.effect.dims == ("q_pos", "k_pos")
    assert s.effect.coords["q_token"].values.tolist() == [" to", " gave"]
    assert s.effect.coords["k_token"].values[10] == " Mary"
    frame = s.to_dataframe()
    assert len(frame) == 30
    assert frame["effect"].isna().tolist() == (frame["k_pos"] > frame["q_pos"]).tolist()


def test_a_dataframe_has_a_row_a_cell() -> None:
    s = patched()
    frame = s.to_dataframe()
    assert list(frame.columns) == ["layer", "pos", "kind", "token", "effect", "metric"]
    assert len(frame) == 45
    for _, row in frame.iterrows():
        cell = s.effect.sel(layer=row["layer"], pos=row["pos"])
        assert row["effect"] == float(cell)
        assert row["metric"] == s.values[0, row["layer"], row["pos"]]
        assert (row["kind"], row["token"]) == (cell.coords["kind"].item(), cell.coords["token"].item())


def test_an_ablation_has_one_baseline() -> None:
    s = gs.sweep(CLEAN, None, METRIC, site="z", by=("layer", "head"), ablate=0.0, model=worded())
    assert s.clean == pytest.approx(difference(CLEAN), rel=1e-4)
    assert np.allclose(s.effect.values, s.values[0] - s.clean)
    for read, message in [
        (lambda: s.corrupt, "an ablation has no corrupted run: its baseline is .clean"),
        (lambda: s.normalized, "an ablation has no second baseline to normalise by: use .effect"),
        (lambda: s.stderr, "a standard error needs at least two pairs; this sweep has one"),
    ]:
        with pytest.raises(SweepError, match=message):
            read()


def test_without_a_gap_there_is_no_share() -> None:
    with pytest.warns(GemmascopeWarning, match="the two prompts are the same"):
        s = gs.sweep(CLEAN, CLEAN, METRIC, site="resid_pre", model=worded())
    with pytest.raises(
        SweepError, match=r"the same metric \(.* and .*\): there is no gap to explain. Choose prompts or ans"
    ):
        s.normalized  # noqa: B018
    assert np.abs(s.effect.values).max() <= 1e-4
    constant = gs.sweep(CLEAN, CORRUPT, lambda logits: logits[:, 0] * 0 + 1e6, site="resid_pre", by="layer", model=worded())
    with pytest.raises(SweepError, match=r"1e\+06 and 1e\+06"):
        constant.normalized  # noqa: B018


# -- as text --


def test_a_result_prints_its_question_and_its_strongest_cells() -> None:
    s = patched()
    lines = repr(s).splitlines()
    title = "sweep of resid_post in random: 3 layer x 15 pos, gs.logit_diff(' Mary', ' John'), 45 of 45 cells finished"
    assert lines[0] == title
    assert lines[1] == f"clean {s.clean:.4g}, corrupt {s.corrupt:.4g}; patched: corrupt"
    frame = s.to_dataframe()
    strongest = frame.reindex(frame["effect"].abs().sort_values(ascending=False).index).iloc[0]
    token = strongest["token"].replace(" ", "·")
    assert lines[2] == f"  {strongest['effect']:+.4g}  layer {strongest['layer']}, pos {strongest['pos']} ({token})"
    assert len(lines) == 2 + 5


def test_a_result_over_heads_prints_whole_numbers() -> None:
    s = gs.sweep(CLEAN, None, METRIC, site="v", by="head", ablate=0, model=worded())
    lines = repr(s).splitlines()
    assert lines[1] == f"clean {s.clean:.4g}"
    assert sorted(line.split("  ")[2] for line in lines[2:]) == [f"kv_head {head}" for head in range(4)]


# -- as code --

NEWER = gs.trace(CLEAN, model=worded())
EDITED = gs.trace([4, 5, 6], model=worded(), edits=[gs.scale("z", 0.5, layer=0)])
CALLS: list[tuple[Any, Any, Any, dict[str, Any]]] = [
    (CLEAN, CORRUPT, METRIC, {"site": "resid_pre", "by": ("layer", "pos")}),
    (CLEAN, CORRUPT, gs.answer_prob([" Mary", 6]), {"site": "z", "by": ["layer", "head"], "into": "clean", "window": 2}),
    (CLEAN, None, gs.rank(" Mary"), {"site": "k", "by": "head", "ablate": 0.0, "layer": range(1, 3), "pos": " Mary"}),
    (CLEAN, CORRUPT, gs.kl_from(NEWER), {"site": "mlp_act", "by": ("layer",), "pos": slice(3, None)}),
    ([CLEAN, CLEAN], [CORRUPT, CORRUPT.replace("drink", "store")], [METRIC, gs.answer_logprob(" a")],
     {"site": "attn_out", "by": ("layer",)}),
    ([1, 2, 3], torch.tensor([4, 2, 3]), gs.logit_diff(1, 2),
     {"site": "pattern", "by": ("q_pos", "k_pos"), "layer": np.int64(1), "head": np.array([0, 3]),
      "q_pos": torch.tensor([1, 2])}),
    (np.array([1, 2, 3]), (4, 2, 3), gs.logit_diff(1, np.int64(2)), {"site": "resid_pre", "by": "layer"}),  # type: ignore[arg-type]
    (CLEAN, CORRUPT, METRIC, {"site": "resid_mid", "by": "layer", "edits": [
        gs.add("z", torch.linspace(0, 1, 12), layer=0, pos=[3, 4], scale=2.0),
        gs.knockout(layer=1, head=2, q_pos=-1, k_pos=" went"),
        gs.ablate("mlp_out", layer=1, pos=-1, value="mean", reference=[NEWER]),
    ]}),
    (CLEAN, None, METRIC, {"site": "z", "by": ("layer", "head"), "ablate": "mean", "reference": [NEWER, EDITED]}),
]  # fmt: skip


@pytest.mark.parametrize(("clean", "corrupt", "metric", "arguments"), CALLS, ids=[str(i) for i in range(len(CALLS))])
def test_the_code_of_a_sweep_repeats_it(
    clean: Any, corrupt: Any, metric: Any, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    s = gs.sweep(clean, corrupt, metric, model=worded(), **arguments)
    loaded: list[str] = []
    monkeypatch.setattr(gs, "load", lambda name: loaded.append(name) or worded(), raising=False)
    names: dict[str, Any] = {}
    exec(s.code(), names)
    again = names["result"]
    assert loaded == ["random"]
    assert again.question == s.question
    assert np.array_equal(again.values, s.values, equal_nan=True)


def test_code_names_only_the_arguments_that_were_given() -> None:
    assert patched().code() == (
        "import gemmascope as gs\n\nmodel = gs.load('random')\nresult = gs.sweep(\n"
        f"    {CLEAN!r},\n    {CORRUPT!r},\n    gs.logit_diff(' Mary', ' John'),\n"
        "    site='resid_post',\n    by=('layer', 'pos'),\n    model=model,\n)\n"
    )


def test_code_names_a_users_function() -> None:
    def third(logits: Tensor) -> Tensor:
        return logits[:, 3]

    s = gs.sweep(prompt(3), prompt(3, seed=1), third, site="resid_pre", by="pos", model=model())
    assert "    third,\n" in s.code()


# -- the bar --


def test_progress_is_shown_unless_it_is_turned_off(bars: list[Any]) -> None:
    arguments: dict[str, Any] = {"site": "resid_pre", "by": ("layer", "pos"), "model": model()}
    gs.sweep(prompt(5), prompt(5, seed=1), gs.rank(3), **arguments)
    gs.sweep(prompt(5), prompt(5, seed=1), gs.rank(3), **arguments, progress=False)
    assert [bar.options["disable"] for bar in bars] == [False, True]
    assert all(bar.total == bar.done == 15 for bar in bars)

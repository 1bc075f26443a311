"""Several metrics and several sites in one sweep: the numbers of single sweeps, from one pass."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, model_of, prompt
from reference import error
from torch import Tensor

import gemmascope as gs
from gemmascope.__main__ import main
from gemmascope.errors import GemmascopeError, MetricError, SiteError, SweepError
from gemmascope.memory import limits as memory_module
from gemmascope.model.gemma2 import Gemma2, Layer
from gemmascope.model.model import Model
from gemmascope.sweeps import sweep as sweep_module
from gemmascope.sweeps import variants as variants_module
from gemmascope.sweeps.result import SweepResult
from gemmascope.sweeps.running import runner as runner_module

pytestmark = pytest.mark.filterwarnings("ignore:.*every effect is 0.*:gemmascope.GemmascopeWarning")

CLOSE = 1e-5
N_POS = 7
CLEAN, CORRUPT = prompt(N_POS), [*prompt(N_POS)[:2], *prompt(N_POS, seed=1)[2:]]
HEADS = ["q", "k", "v", "z", "pattern"]


@cache
def model(kv: int = 4) -> Model:
    return model_of(checkpoint("lgl", num_key_value_heads=kv))


def spread(logits: Tensor) -> Tensor:
    return logits.std(-1).sum(-1)


def metrics() -> dict[str, Any]:
    return {
        "diff": gs.logit_diff(5, 9),
        "middle": gs.answer_logprob(7, pos=3),
        "loss": gs.loss(),
        "spread": gs.metric(spread, pos=[2, -1]),
    }


def ask(metric: Any, site: Any = "resid_pre", clean: Any = CLEAN, corrupt: Any = CORRUPT, **more: Any) -> Any:
    return gs.sweep(clean, corrupt, metric, site=site, **{"model": model(), "progress": False, **more})


def assert_single(grid: SweepResult, single: SweepResult) -> None:
    """A grid of a set is the result of a sweep of its own."""
    assert grid.question.axes == single.question.axes
    assert (grid.question.site, grid.question.metric) == (single.question.site, single.question.metric)
    assert grid.question.n_cells == single.question.n_cells
    assert (np.isnan(grid.values) == np.isnan(single.values)).all()
    assert error(np.nan_to_num(grid.values), np.nan_to_num(single.values)) <= CLOSE
    assert error(grid.base_metric, single.base_metric) <= CLOSE
    if single.question.has_source:
        assert error(grid.source_metric, single.source_metric) <= CLOSE


# -- numbers --


def test_several_metrics_are_single_sweeps() -> None:
    several = ask(metrics())
    assert list(several) == ["diff", "middle", "loss", "spread"]
    assert several.effect.dims == ("metric", "layer", "pos")
    for name, metric in metrics().items():
        single = ask(metric)
        assert_single(several[name], single)
        assert several.effect.sel(metric=name).values.tolist() == several[name].effect.values.tolist()
        assert several.clean[name] == several[name].clean
        assert several.corrupt[name] == pytest.approx(single.corrupt, rel=CLOSE)
        assert error(several.normalized.sel(metric=name), single.normalized) <= 1e-4


def test_metrics_of_one_position_are_single_sweeps_bit_for_bit() -> None:
    one, other = gs.logit_diff(5, 9), gs.answer_prob(7)
    several = ask([one, other])
    assert list(several) == ["logit_diff", "answer_prob"]
    for name, metric in (("logit_diff", one), ("answer_prob", other)):
        single = ask(metric)
        assert np.array_equal(several[name].values, single.values)
        assert np.array_equal(several[name].base_metric, single.base_metric)
        assert np.array_equal(several[name].source_metric, single.source_metric)


def test_several_sites_are_single_sweeps() -> None:
    sites = ["resid_pre", "attn_out", "mlp_out"]
    several = ask(gs.loss(), sites)
    assert list(several) == sites
    assert several.effect.dims == ("site", "layer", "pos")
    for site in sites:
        single = ask(gs.loss(), site)
        assert_single(several[site], single)
        assert several.effect.sel(site=site).values.tolist() == several[site].effect.values.tolist()
        assert several.effect.sel(site=site).kind.values.tolist() == single.effect.kind.values.tolist()


@pytest.mark.parametrize("kv", [4, 8])
def test_heads_of_all_kinds_come_in_one_call(kv: int) -> None:
    several = ask(gs.logit_diff(5, 9), HEADS, by=("layer", "head"), model=model(kv))
    for site in HEADS:
        assert_single(several[site], ask(gs.logit_diff(5, 9), site, by=("layer", "head"), model=model(kv)))
    assert set(several.to_dataframe()["site"]) == set(HEADS)
    with pytest.raises(
        SweepError, match=r"the sites have unlike grids.*q: 3 layer x 8 head; k: 3 layer x . kv_head.*result\['q'\]"
    ):
        _ = several.effect


def test_sites_and_metrics_together() -> None:
    several = ask(metrics(), ["z", "mlp_out"], by=["layer"])
    assert list(several) == [(site, name) for site in ("z", "mlp_out") for name in metrics()]
    assert several.effect.dims == ("site", "metric", "layer")
    for (site, name), grid in several.items():
        assert_single(grid, ask(metrics()[name], site, by=["layer"]))
        assert several.effect.sel(site=site, metric=name).values.tolist() == grid.effect.values.tolist()
    frame = several.to_dataframe()
    assert len(frame) == 2 * 4 * 3
    row = frame[(frame.site == "z") & (frame.metric_name == "loss") & (frame.layer == 1)]
    assert row["effect"].item() == float(several["z", "loss"].effect[1])


@pytest.mark.parametrize(("ablate", "edits"), [(None, True), (0.0, False), (0.5, True)])
def test_edits_and_ablations_go_with_sets(ablate: float | None, edits: bool) -> None:
    base = [gs.scale("resid_pre", 1.5, layer=1, pos=1), gs.scale("logits", 0.5, pos=3)] if edits else []
    more: dict[str, Any] = {"edits": base, "by": "layer", "ablate": ablate}
    several = ask(metrics(), ["z", "mlp_out"], corrupt=None if ablate is not None else CORRUPT, **more)
    for (site, name), grid in several.items():
        single = ask(metrics()[name], site, corrupt=None if ablate is not None else CORRUPT, **more)
        assert_single(grid, single)


def test_pairs_of_unequal_lengths_have_metrics_of_their_own() -> None:
    cleans, corrupts = [prompt(5), prompt(8, seed=2)], [prompt(5, seed=1), prompt(8, seed=3)]
    each = {"diff": [gs.logit_diff(5, 9), gs.logit_diff(7, 8)], "loss": gs.loss()}
    several = ask(each, ["z", "mlp_out"], cleans, corrupts, by="layer")
    assert several["z", "diff"].values.shape == (2, 3)
    for i in range(2):
        for site in ("z", "mlp_out"):
            for name, metric in each.items():
                one = metric[i] if isinstance(metric, list) else metric
                alone = ask(one, site, cleans[i], corrupts[i], by="layer")
                assert error(several[site, name].values[i], alone.values[0]) <= CLOSE
    assert several.stderr.dims == ("site", "metric", "layer")
    assert several.per_pair.dims == ("site", "metric", "pair", "layer")
    assert several.effect.values.tolist() == several.per_pair.values.mean(2).tolist()


def test_estimates_come_in_sets() -> None:
    both = gs.attribute(
        CLEAN, CORRUPT, {"diff": gs.logit_diff(5, 9), "loss": gs.loss()}, site=["z", "mlp_out"], model=model()
    )
    for (site, name), grid in both.items():
        metric = gs.loss() if name == "loss" else gs.logit_diff(5, 9)
        assert_single(grid, gs.attribute(CLEAN, CORRUPT, metric, site=site, model=model()))
        assert grid.question.estimate == "gradient"


@pytest.mark.parametrize("mlps", ["live", "frozen"])
def test_paths_take_several_metrics(mlps: str) -> None:
    several = gs.path_sweep(CLEAN, CORRUPT, metrics(), mlps=mlps, model=model(), progress=False)
    for name, metric in metrics().items():
        single = gs.path_sweep(CLEAN, CORRUPT, metric, mlps=mlps, model=model(), progress=False)
        assert_single(several[name], single)


# -- one pass --


class Work:
    """The passes of a sweep, and what went through them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[tuple[int, int, int]] = []  # bases, variants, sources
        self.rows: dict[int, int] = {}  # of each layer
        self.unembedded = 0
        final_residuals, forward, unembed = variants_module.final_residuals, Layer.forward, Gemma2.unembed

        def counting(m: Model, bases: Any, variants: Sequence[Any], sources: Any, *rest: Any) -> Any:
            self.runs.append((len(bases), len(variants), len(sources)))
            return final_residuals(m, bases, variants, sources, *rest)

        def rows(layer: Layer, x: Tensor, *rest: Any) -> Tensor:
            self.rows[layer.index] = self.rows.get(layer.index, 0) + len(x)
            return forward(layer, x, *rest)

        def unembedding(network: Gemma2, x: Tensor, *rest: Any) -> Tensor:
            self.unembedded += len(x)
            return unembed(network, x, *rest)

        monkeypatch.setattr(runner_module, "final_residuals", counting)
        monkeypatch.setattr(Layer, "forward", rows)
        monkeypatch.setattr(Gemma2, "unembed", unembedding)


def test_several_metrics_cost_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(monkeypatch)
    ask(gs.logit_diff(5, 9))
    single = work.rows.copy(), work.unembedded
    work.rows, work.unembedded = {}, 0
    ask([gs.logit_diff(5, 9), gs.answer_prob(5), gs.rank(5), gs.answer_logprob(5)])
    assert work.runs == [(1, 21, 1)] * 2
    assert work.rows == single[0]
    assert work.unembedded - 4 * 2 == single[1] - 2  # but for the stand-ins on which each metric is tried


def test_several_sites_run_the_prompts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    work, sites = Work(monkeypatch), ["resid_pre", "attn_out", "mlp_out"]
    for site in sites:
        ask(gs.logit_diff(5, 9), site)
    single, work.rows = work.rows, {}
    ask(gs.logit_diff(5, 9), sites)
    assert work.runs == [(1, 21, 1)] * 3 + [(1, 63, 1)]
    assert single == {layer: n + 2 * 2 * N_POS for layer, n in work.rows.items()}


def test_a_set_does_not_depend_on_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    cleans, corrupts = [CLEAN, prompt(N_POS, seed=4)], [CORRUPT, prompt(N_POS, seed=5)]
    whole = ask(metrics(), ["z", "mlp_out"], cleans, corrupts)
    work = Work(monkeypatch)
    monkeypatch.setattr(memory_module, "RESIDENT_ROWS", 40)
    parts = ask(metrics(), ["z", "mlp_out"], cleans, corrupts)
    assert len(work.runs) > 3
    assert sum(n for _, n, _ in work.runs) == 2 * 2 * 21
    for key, grid in whole.items():
        assert_single(parts[key], grid)


# -- files --


def test_a_set_is_saved_and_read(tmp_path: Path) -> None:
    for several in (
        ask(metrics()),
        ask(gs.loss(), HEADS, by=("layer", "head")),
        ask(metrics(), ["z", "mlp_out"], by="layer"),
    ):
        several.save(tmp_path / "s.json")
        again = gs.open_sweep(tmp_path / "s.json")
        assert isinstance(again, gs.SweepSet)
        assert list(again) == list(several)
        for key, grid in several.items():
            assert np.array_equal(again[key].values, grid.values, equal_nan=True)
            assert np.array_equal(again[key].base_metric, grid.base_metric)
            assert np.array_equal(again[key].source_metric, grid.source_metric)
            assert again[key].question == grid.question
        assert repr(again) == repr(several)


def test_a_set_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ask(metrics(), ["k", "mlp_out"], by=("layer", "pos"))
    monkeypatch.setattr(memory_module, "RESIDENT_ROWS", 30)
    path = tmp_path / "s"
    work = Work(monkeypatch)
    ask(metrics(), ["k", "mlp_out"], out=path)
    n_passes = len(work.runs)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == n_passes + 1 > 3
    path.write_bytes(b"".join(lines[:-2]) + lines[-2][:40])  # the last two chunks are lost
    with pytest.warns(gs.GemmascopeWarning, match="the end of .* is missing"):
        partial = gs.open_sweep(path)
    assert 0 < int(np.isnan(partial["k", "loss"].values).sum() + np.isnan(partial["mlp_out", "loss"].values).sum()) < 42
    work.runs.clear()
    again = ask(metrics(), ["k", "mlp_out"], out=path)
    assert len(work.runs) == 2
    for key, grid in whole.items():
        assert_single(again[key], grid)
        assert np.array_equal(gs.open_sweep(path)[key].values, again[key].values)


OTHERS = [
    (
        {"diff": gs.logit_diff(5, 9), "loss": gs.loss(pos=3)},
        ["z", "mlp_out"],
        "metric: 'gs.loss.*' there, 'gs.loss.pos=3.' here",
    ),
    ({"diff": gs.logit_diff(5, 9), "loss": gs.loss()}, ["z", "v"], "sites: .*'z', 'mlp_out'.* there, .*'z', 'v'.* here"),
    (gs.loss(), "z", "several grids there, one here"),
]


@pytest.mark.parametrize(("metric", "site", "message"), OTHERS)
def test_another_set_is_refused(metric: Any, site: Any, message: str, tmp_path: Path) -> None:
    ask({"diff": gs.logit_diff(5, 9), "loss": gs.loss()}, ["z", "mlp_out"], out=tmp_path / "s", by="layer")
    with pytest.raises(SweepError, match=f"holds another sweep .{message}"):
        ask(metric, site, out=tmp_path / "s", by="layer")
    ask(gs.loss(), "z", out=tmp_path / "one", by="layer")
    with pytest.raises(SweepError, match="one grid there, several here"):
        ask(gs.loss(), ["z"], out=tmp_path / "one", by="layer")


@pytest.mark.parametrize("damage", [b'"sites": ["z"', b'"metrics": [3', b'"grids": []'])
def test_a_damaged_set_is_refused(damage: bytes, tmp_path: Path) -> None:
    from gemmascope.sweeps.journal_lines import opened, sealed

    path = tmp_path / "s"
    ask({"diff": gs.logit_diff(5, 9), "loss": gs.loss()}, ["z", "mlp_out"], by="layer").save(path)
    head, *_ = path.read_bytes().splitlines()
    content: Any = opened(head, "", "line 1")[0]
    name = damage.split(b'"')[1].decode()
    content["question"][name] = {"sites": ["z"], "metrics": [3], "grids": []}[name]
    path.write_bytes(sealed(content, "")[0])
    with pytest.raises(SweepError, match="is not a sweep that can be read: "):
        gs.open_sweep(path)


# -- one as today; text; pictures --


def test_one_metric_in_a_list_and_one_site_are_a_single_sweep() -> None:
    assert isinstance(ask([gs.loss()]), SweepResult)
    assert isinstance(ask({"loss": gs.loss()}), gs.SweepSet)
    assert isinstance(ask(gs.loss(), ["z"]), gs.SweepSet)
    assert ask(gs.loss(), ["z"]).effect.dims == ("site", "layer", "pos")


def test_the_code_repeats_the_call() -> None:
    several = ask(metrics(), ["z", "mlp_out"], by=("layer",))
    code = several.code()
    assert "site=['z', 'mlp_out']" in code
    assert "'middle': gs.answer_logprob(7, pos=3)" in code
    scope: dict[str, Any] = {"gs": gs, "model": model(), "spread": spread}
    exec(code, scope)
    assert np.array_equal(scope["result"].effect.values, several.effect.values)


def test_each_grid_has_its_text_and_picture() -> None:
    several = ask(metrics(), ["z", "mlp_out"], by=("layer", "pos"))
    assert "['z', 'loss'] sweep of z" in repr(several)
    assert several.progress_text() == f"{8 * 21} of {8 * 21} cells finished"
    assert several["z", "loss"].plot().layout.title.text.startswith("z patched into")
    assert gs.sweep_view(several["z", "loss"]).title == "z patched into the corrupt run, random"
    grids: Any = several.to_dict()["grids"]
    assert [(grid["site"], grid["metric_name"]) for grid in grids] == list(several)


# -- bad input --


def bad() -> Iterator[tuple[dict[str, Any], type[GemmascopeError], str]]:
    diff = gs.logit_diff(5, 9)
    yield (
        {"metric": [diff, gs.logit_diff(7, 8)]},
        MetricError,
        "two metrics are named 'logit_diff': give a mapping",
    )
    yield {"metric": {}}, MetricError, "metric is an empty mapping"
    yield {"metric": {3: diff}}, MetricError, "the names of metrics are texts; given 3"
    yield {"metric": {"one": diff, "two": 3}}, MetricError, "a metric is a function of soft-capped logits .* given 3"
    yield {"metric": {"one": diff, "two": [diff, diff]}}, SweepError, "2 metrics named 'two'"
    yield {"metric": {"one": lambda x: x}}, MetricError, "one number per run"
    yield {"metric": diff, "site": []}, SweepError, "site is the name of a site, or a list of names"
    yield {"metric": diff, "site": ["z", 3]}, SweepError, "site is the name of a site, or a list of names"
    yield {"metric": diff, "site": ["z", "blocks.1.attn.hook_z"]}, SweepError, "site names 'z' twice"
    yield {"metric": diff, "site": ["z", "zz"]}, SiteError, "zz"
    yield (
        {"metric": diff, "site": ["z", "pattern"], "by": ("layer", "pos")},
        SweepError,
        "by names axes of 'pattern'.*The sites of one sweep share by and the places: sweep 'pattern' in a call of its own",
    )
    yield (
        {"metric": diff, "site": ["z", "mlp_out"], "head": 3, "by": "layer"},
        SiteError,
        "'mlp_out' has no heads.*of its own",
    )


@pytest.mark.parametrize(("arguments", "kind", "message"), list(bad()), ids=[message[:40] for *_, message in bad()])
def test_bad_sets_are_refused_before_anything_runs(
    arguments: dict[str, Any], kind: type[GemmascopeError], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Layer, "forward", lambda *_: pytest.fail("a layer ran"))
    with pytest.raises(kind, match=message):
        ask(**arguments)


def test_several_pairs_and_several_metrics_are_told_apart() -> None:
    both = [CLEAN, prompt(N_POS, seed=4)], [CORRUPT, prompt(N_POS, seed=5)]
    with pytest.raises(SweepError, match=r"2 corrupted ones and 3 metrics\. For several metrics of every pair"):
        ask([gs.loss(), gs.loss(), gs.loss()], "z", *both)


def test_a_grid_that_is_not_there_is_named() -> None:
    several = ask(gs.loss(), ["z", "mlp_out"], by="layer")
    assert "z" in several
    assert "v" not in several
    with pytest.raises(SweepError, match=r"no grid 'mlp_outt'\. Did you mean 'mlp_out'.* It has 'z', 'mlp_out'"):
        several["mlp_outt"]


def test_a_prompt_that_is_a_tensor_takes_several_metrics() -> None:
    several = ask([gs.loss(), gs.rank(5)], "z", torch.tensor(CLEAN), torch.tensor(CORRUPT), by="layer")
    assert list(several) == ["loss", "rank"]


# -- the command line --

STORE = "When Mary and John went to the store, {} gave a drink to"
COMMAND = ["patch", STORE.format("John"), STORE.format("Mary"), "--answer", " Mary", "--against", " John", "--by", "layer"]


def test_the_command_line_takes_several_sites(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = [*COMMAND, "--site", "z, mlp_out"]
    assert main([*arguments, "--json", "--csv", str(tmp_path / "cells.csv")]) == 0
    grids = json.loads(capsys.readouterr().out)["grids"]
    both = gs.sweep(COMMAND[1], COMMAND[2], gs.logit_diff(" Mary", " John"), site=["z", "mlp_out"], by="layer")
    for grid in grids:
        assert [cell["effect"] for cell in grid["cells"]] == pytest.approx(both[grid["site"]].effect.values.tolist())
    assert (tmp_path / "cells.csv").read_text(encoding="utf-8").count("mlp_out") == 6
    assert main([*arguments, "--estimate"]) == 0
    said = capsys.readouterr().out
    assert "['mlp_out'] estimate (gradient) of mlp_out in nano" in said


@pytest.mark.parametrize("sites", ["resid_pre", "z, mlp_out"])
def test_the_command_line_takes_several_metrics_in_one_pass(
    sites: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[object] = []
    run_all = sweep_module.run_all

    def counted(runner: sweep_module.SweepRunner, *rest: Any) -> None:
        passes.append(runner)
        run_all(runner, *rest)

    monkeypatch.setattr(sweep_module, "run_all", counted)
    arguments = [*COMMAND, "--site", sites, "--metric", "logit_diff, rank"]
    assert main([*arguments, "--json", "--csv", str(tmp_path / "cells.csv")]) == 0
    assert len(passes) == 1
    grids = json.loads(capsys.readouterr().out)["grids"]
    names = [name.strip() for name in sites.split(",")]
    assert [(grid["site"], grid["metric_name"]) for grid in grids] == [(n, m) for n in names for m in ("logit_diff", "rank")]
    for grid in grids:
        metric = gs.rank(" Mary") if grid["metric_name"] == "rank" else gs.logit_diff(" Mary", " John")
        alone = gs.sweep(COMMAND[1], COMMAND[2], metric, site=grid["site"], by="layer", progress=False)
        assert [cell["effect"] for cell in grid["cells"]] == pytest.approx(alone.effect.values.tolist(), abs=1e-4)
        assert (grid["clean"], grid["corrupt"]) == pytest.approx((alone.clean, alone.corrupt))
    with (tmp_path / "cells.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["site"], row["metric_name"]) for row in rows[::6]] == [(g["site"], g["metric_name"]) for g in grids]
    assert main(arguments) == 0
    assert "'rank'] sweep of" in capsys.readouterr().out


def test_a_page_of_the_command_line_shows_every_grid(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    arguments = [*COMMAND, "--by", "layer,pos", "--html", str(path), "--site", "z,mlp_out", "--metric", "logit_diff,rank"]
    assert main(arguments) == 0
    text = path.read_text(encoding="utf-8")
    assert text.count("data-gs=") == 2 * 4  # the element, and the script that draws it
    for site in ("z", "mlp_out"):
        for metric in ("gs.logit_diff(&#x27; Mary&#x27;, &#x27; John&#x27;)", "gs.rank(&#x27; Mary&#x27;)"):
            assert f"<b>{site} patched into the corrupt run, nano: {metric}</b>" in text


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            ["--metric", "logit_dif"],
            "there is no metric 'logit_dif'. Did you mean 'logit_diff'? The metrics are: logit_diff, ",
        ),
        (["--metric", "rank,"], "there is no metric ''. The metrics are: "),
        (["--metric", "rank,logit_diff,rank"], "--metric rank,logit_diff,rank has rank twice"),
        (["--metric", "logit_diff,rank", "--estimate"], "--metric rank has no gradient to estimate by"),
        (["--metric", "rank,answer_prob"], "--metric rank,answer_prob takes no --against: leave it out"),
        (["--site", "z,mlp_ou"], "there is no site 'mlp_ou'. Did you mean 'mlp_out_scale' or 'mlp_out'"),
        (["--site", "z,"], "there is no site ''"),
        (["--site", "z,pattern", "--by", "layer,pos"], "by names axes of 'pattern', each once"),
    ],
)
def test_wrong_names_on_the_command_line(extra: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, *extra]) == 2
    assert message in capsys.readouterr().err


def test_a_metric_of_two_answers_among_others_needs_both(capsys: pytest.CaptureFixture[str]) -> None:
    command = [part for part in COMMAND if part not in ("--against", " John")]
    assert main([*command, "--metric", "rank,logit_diff"]) == 2
    assert "--metric logit_diff takes two answers: give --against" in capsys.readouterr().err
    assert main([*command, "--metric", "rank,answer_prob"]) == 0

"""What the benchmarks rest on: floors that no run can beat, rivals that patch what we patch, and a script that goes on."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import checkpoint, config_of, model_of, prompt

import gemmascope as gs

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "benchmarks"))

import agreement  # noqa: E402
import floors  # noqa: E402
import measuring  # noqa: E402
import rivals  # noqa: E402
import side_by_side  # noqa: E402
from steps import Steps  # noqa: E402

N = 11


@pytest.fixture(scope="module")
def source() -> Any:
    return checkpoint("lglgl")


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(prompt(N, seed=1)), torch.tensor(prompt(N, seed=2))


@torch.no_grad()
def streams(source: Any, ids: torch.Tensor, cell: tuple[int, int] | None = None, value: Any = None) -> list[torch.Tensor]:
    """transformers' stream at the entry of every layer; at the cell another value."""
    seen: list[torch.Tensor] = []

    def hook(layer: int) -> Any:
        def see(_: Any, args: Any) -> None:
            if cell is not None and cell[0] == layer:
                args[0][0, cell[1]] = value
            seen.append(args[0][0].clone())

        return see

    with rivals.hooked([(module, hook(layer)) for layer, module in enumerate(source.model.layers)]):
        source(ids[None], use_cache=False)
    return seen


@pytest.mark.parametrize("cell", [(0, 0), (0, 4), (1, 4), (2, 0), (3, 9), (4, 10)])
def test_the_floor_counts_the_rows_that_a_patch_changes(source: Any, pair: Any, cell: tuple[int, int]) -> None:
    clean, corrupt = (streams(source, ids) for ids in pair)
    patched = streams(source, pair[1], cell, clean[cell[0]][cell[1]])
    counted = list(floors.changed_rows(config_of(source), N, *cell))
    assert len(counted) == 5 - cell[0]
    for layer, (before, _) in enumerate(counted, cell[0]):
        assert torch.equal((patched[layer] != corrupt[layer]).any(1), torch.tensor(before)), f"layer {layer}"


def test_the_floor_of_the_last_cell_is_one_row_of_one_layer(source: Any) -> None:
    config = config_of(source)
    cost = floors.Costs.of(config)
    window = config.window_of(4)
    assert window is not None
    one = cost.output + cost.mlp + window * cost.edge + 2 * cost.token
    assert floors.patch_flops(config, N, 4, N - 1) == one
    assert floors.patch_flops(config, N, 3, N - 1) > 2 * (one - 2 * cost.token)


def test_a_floor_is_at_most_what_whole_runs_take(source: Any) -> None:
    config = config_of(source)
    whole = floors.forward_flops(config, N)
    for site, n_places in (("resid_pre", N), ("z", config.n_heads)):
        floor = floors.sweep_flops(config, N, site)
        assert 0 < floor < 5 * n_places * whole
    least = [floors.patch_flops(config, N, layer, 3) for layer in range(5)]
    assert least == sorted(least, reverse=True)
    assert floors.head_patch_flops(config, N, 4) < floors.head_patch_flops(config, N, 3) < whole


def test_the_weights_that_a_token_reads_are_all_but_the_norms(source: Any) -> None:
    matrices = sum(p.numel() for p in source.parameters() if p.dim() == 2)
    assert floors.read_weights(config_of(source)) == matrices


def test_one_row_of_a_forward_multiplies_every_matrix_once(source: Any) -> None:
    config = replace(config_of(source))
    cost = floors.Costs.of(config)
    assert floors.forward_flops(config, 1) == 2 * floors.read_weights(config) + 5 * cost.edge


@pytest.mark.parametrize("site", ["resid_pre", "z"])
def test_the_batched_rival_patches_what_a_sweep_patches(source: Any, pair: Any, site: str) -> None:
    runs = rivals.PatchedRuns(source, *pair, site, (5, 9))
    found = gs.sweep(
        *pair, gs.logit_diff(5, 9), site=site, by=side_by_side.AXES[site], model=model_of(source), progress=False
    )
    for size in (1, 7, len(runs.cells)):
        got = runs.run(runs.cells, size)
        assert measuring.spread(got, found.values[0].ravel().tolist()) <= 1e-4
    assert len(set(runs.sample(10**6))) == len(runs.cells)


def test_hooks_edit_what_edits_edit(source: Any) -> None:
    ids, vector = torch.tensor(prompt(N)), torch.linspace(-1, 1, 32)
    edits = [gs.ablate("z", layer=1, head=3), gs.add("resid_pre", vector, layer=2)]
    with torch.no_grad(), rivals.hooked(rivals.edit_hooks(source, 1, 3, vector)):
        wanted = source(ids[None], use_cache=False).logits[0]
    got = gs.trace(ids, model=model_of(source), edits=edits).logits
    assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert (wanted - source(ids[None]).logits[0]).abs().max() > 1e-2


def test_a_token_that_is_not_the_likeliest_is_short_of_it(source: Any) -> None:
    ids = torch.tensor([prompt(N)])
    greedy = rivals.greedy(source, ids, 4).clone()
    assert rivals.short_of_the_likeliest(source, greedy, N) == 0
    greedy[0, -1] = (greedy[0, -1] + 1) % 61
    assert rivals.short_of_the_likeliest(source, greedy, N) > 1e-3


@pytest.mark.parametrize(
    "row",
    [
        {"dtype": "float32", "apart": 2e-3, "rival_apart": 1.0},
        {"dtype": "bfloat16", "apart": 0.07, "rival_apart": 0.02},
        {"dtype": "float32", "apart": float("nan"), "rival_apart": 0.0},
        {"dtype": "float32", "same": "no", "short": 0.0},
        {"dtype": "bfloat16", "same": "no", "short": 0.2},
    ],
)
def test_rows_that_disagree_are_refused(row: Any) -> None:
    with pytest.raises(measuring.DisagreementError):
        side_by_side.hold(row)


def test_turns_alternate_and_ratios_are_of_the_same_round() -> None:
    order: list[str] = []
    turns = {name: measuring.Turn(lambda name=name: order.append(name)) for name in "ab"}  # type: ignore[misc]
    measuring.in_turn(turns, 3)
    assert "".join(order) == "abbaab"
    took = measuring.Rounds({"a": [1.0, 10.0, 3.0], "b": [2.0, 20.0, 3.0]})
    assert took.ratio("a", "b") == 0.5
    assert took.less("c", "b", "a", 0.5).median("c") == 0.5


def test_rows_stand_beside_the_rivals_and_agree(source: Any) -> None:
    model = model_of(source)
    rows = [
        side_by_side.measure_sweep(source, source, model, 4, "resid_pre", 1),
        side_by_side.measure_trace(source, source, model, 2, 4, 1),
        side_by_side.measure_tokens(source, model, 2, 4, 3, True, 1),
    ]
    for row in rows:
        side_by_side.hold(row)
        assert all(number > 0 for name, number in row.items() if name.endswith(("_s", "_ms", "floor", "ours", "batched")))


class Watched:
    """The package, and the names that were asked of it."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.names.add(name)
        return getattr(gs, name)


def test_agreement_calls_every_public_function(tmp_path: Path) -> None:
    watched = Watched()
    model = gs.load("nano", device="cpu", dtype="float32")
    called = [name for name, _ in agreement.cases(watched, model, tmp_path)]
    assert len(set(called)) == len(called)
    # What is only called inside a case is found by its name there.
    text = inspect.getsource(agreement)
    functions = {name for name in gs.__all__ if inspect.isfunction(getattr(gs, name))}
    # load_parallel needs several processes: test_parallel.py compares its numbers; check compares by itself, models lists.
    # evaluate and ray need packages of others, and have tests of their own.
    functions -= {"load_parallel", "check", "models", "evaluate", "ray"}
    assert {name for name in functions - watched.names if f"gs.{name}(" not in text} == set()


def test_cases_that_fail_or_differ_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def some(package: Any, model: Any, folder: Path) -> Iterator[tuple[str, Any]]:
        number = model[0]
        yield "same", lambda: torch.tensor([1.0, float("-inf")])
        yield "apart", lambda: torch.tensor([1.0, number])
        yield "fails", lambda: 1 / (number - 1)
        yield "shapes", lambda: torch.zeros(int(number) + 1)

    class Package:
        each = iter((1.0, 0.0))

        def load(self, *_: Any, **__: Any) -> Any:
            return [next(self.each)]

    monkeypatch.setattr(agreement, "cases", some)
    found = agreement.summary(list(agreement.compare(Package(), torch.device("cpu"))))
    assert (found["cases"], found["worst"]) == (4, 1.0)
    assert set(found["failed"]) == {"apart", "fails", "shapes"}
    assert "ZeroDivisionError" in found["failed"]["fails"]


def test_a_step_that_fails_is_recorded_and_the_next_one_runs(tmp_path: Path) -> None:
    steps = Steps(tmp_path / "out.jsonl", 100)
    steps.run("bad", 0, lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    steps.run("long", 1000, lambda: steps.say("never"))
    steps.run("good", 0, lambda: steps.say("here", number=3))
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert [line["step"] for line in lines] == ["bad", "bad: end", "long", "here", "good: end"]
    assert "ZeroDivisionError" in lines[0]["error"]
    assert "left_out" in lines[2]
    assert steps.failed == 2


# What the image of a rented GPU lacks.
BLOCKED = ("plotly", "ipywidgets", "anywidget", "beartype", "IPython", "hypothesis", "playwright", "jupyterlab")
RUN = f"""
import runpy, sys
for name in {BLOCKED!r}:
    sys.modules[name] = None
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_script_for_a_gpu_runs_on_a_cpu_without_what_such_a_machine_lacks(tmp_path: Path) -> None:
    script, out = ROOT / "tests" / "benchmarks" / "gpu.py", tmp_path / "out.jsonl"
    command = [sys.executable, "-c", RUN, str(script), "links", "27b", "--small", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert done.returncode == 0, [line for line in lines if "error" in line] or done.stderr[-2000:]
    assert lines[-1]["failed"] == 0
    assert {"links", "27b in 14MB: trace of 8", "27b in 14MB: gradients"} <= {line["step"] for line in lines}

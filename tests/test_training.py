"""gs.train_sae: gradients of thresholds, what is kept of a row, resuming, what is written, and known features recovered."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import model
from known_features import KnownFeatures
from torch.nn.functional import normalize

import gemmascope as gs
from gemmascope.errors import DictionaryError, GemmascopeWarning, SiteError, StoreError
from gemmascope.sae.loss import LossRecovered
from gemmascope.sae.weights import DictionaryWeights
from gemmascope.training import checkpoint as checkpoint_module
from gemmascope.training import loop
from gemmascope.training.activation import batch_cut, jump_relu, step, top_k
from gemmascope.training.network import Network, first_weights
from gemmascope.training.recipe import Recipe
from gemmascope.training.scaling import Scaling, folded

IDS = [[2, *(3 + (7 * n + 5 * i * i) % 55 for i in range(4 + n % 5))] for n in range(40)]
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "jumprelu": {"l0": 4}, "jumprelu by a coefficient": {"sparsity": 0.01}, "topk": {"l0": 4}, "batchtopk": {"l0": 4.5},
    "relu": {"sparsity": 0.1},
}  # fmt: skip
SMALL = {"features": 48, "steps": 30, "batch_size": 32, "rate": 3e-3, "dead_after": 64, "held_out": 0.2, "progress": False}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> gs.Store:
    sites = ["resid_mid", "mlp_in", "mlp_out", "mlp_raw", "z", "embed"]
    return gs.harvest(model("lg"), IDS, sites, out=tmp_path_factory.mktemp("acts"), dtype="float32", progress=False)


def train(store: Any, out: Path, name: str = "topk", site: Any = "mlp_out", layer: Any = 1, **more: Any) -> gs.TrainedSAE:
    asked = {**SMALL, **ARCHITECTURES[name], **more}
    return gs.train_sae(store, site, layer, out=out, architecture=name.split()[0], **asked)


def same(a: DictionaryWeights, b: DictionaryWeights) -> bool:
    names = ["W_enc", "W_dec", "b_enc", "b_dec", "threshold"] + ["W_skip"] * (a.W_skip is not None)
    about = [(d.k, d.site, d.layer, d.input_site, d.output_site) for d in (a, b)]
    return about[0] == about[1] and all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


# -- activations and their gradients --


@pytest.mark.parametrize("seed", range(5))
def test_thresholds_learn_by_the_derivative_of_a_kernel_estimate(seed: int) -> None:
    """Smoothed over the bandwidth, a step is a ramp, whose derivative a finite difference gives; and JumpReLU's is it times
    the threshold.
    """
    rng = torch.Generator().manual_seed(seed)
    pre = torch.rand(400, 7, generator=rng, dtype=torch.float64)
    threshold, weight = 0.2 + 0.5 * torch.rand(7, generator=rng, dtype=torch.float64), torch.randn(400, 7, generator=rng)
    bandwidth, h = 0.13, 1e-9

    def ramp(at: torch.Tensor) -> torch.Tensor:
        return (((pre - at) / bandwidth + 0.5).clamp(0, 1) * weight).sum(0)

    difference = (ramp(threshold + h) - ramp(threshold - h)) / (2 * h)
    for function, factor in ((step, 1.0), (jump_relu, threshold)):
        at, x = threshold.clone().requires_grad_(), pre.clone().requires_grad_()
        out = function(x, at, bandwidth)
        (out * weight).sum().backward()
        assert torch.allclose(at.grad, factor * difference, rtol=1e-4), function
        assert torch.equal(out > 0, pre > threshold)
        expected = weight.double() * (pre > threshold) if function is jump_relu else None
        assert x.grad is None if expected is None else torch.equal(x.grad, expected)


@pytest.mark.parametrize("seed", range(5))
def test_the_largest_are_those_of_a_sort(seed: int) -> None:
    pre = torch.randn(9, 13, generator=torch.Generator().manual_seed(seed)).relu()
    kept = top_k(pre, 4)
    for row, found in zip(pre.tolist(), kept.tolist(), strict=True):
        largest = sorted(row)[-4:]
        assert found == [x if x in largest else 0.0 for x in row]
    cut = batch_cut(pre, 3.5)
    assert float(cut) == sorted(pre.flatten().tolist())[-31]  # int(3.5 x 9)
    assert batch_cut(torch.zeros(3, 4), 2) > 0  # nothing that is 0 is active


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_the_loss_is_what_its_parts_say(name: str) -> None:
    torch.manual_seed(4)
    x = torch.randn(64, 12)
    recipe = recipe_of(name, n_rows=64, features=20, dead_after=0, steps=10)
    network = Network(recipe, first_weights(recipe, x, x))
    network.asleep[:5] = 100.0
    network.weights["b_enc"].data[:5] = -100.0  # they stay asleep, with activations of 0
    found, w = network.loss(x, x, 9), network.weights
    pre = (x @ w["W_enc"] + w["b_enc"]).relu()
    kind = name.split()[0]
    cut = w["log_threshold"].exp() if kind == "jumprelu" else batch_cut(pre, 4.5) - 1e-7 if kind == "batchtopk" else 0.0
    acts = top_k(pre, 4) if kind == "topk" else pre * (pre > cut)
    residual = x - acts @ w["W_dec"] - w["b_dec"]
    n_active = (acts > 0).sum(1).float().mean()
    penalty = {
        "jumprelu": (n_active / 4 - 1) ** 2, "jumprelu by a coefficient": 0.01 * n_active, "relu": 0.1 * pre.sum(1).mean(),
    }.get(name, torch.zeros(()))  # fmt: skip
    dead = network.asleep > 0
    left = residual - top_k(pre[:, dead], min(int(dead.sum()), 6)) @ w["W_dec"][dead]
    revived = left.square().sum() / residual.square().sum() / 32
    expected = residual.square().sum(1).mean() + penalty + revived
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert found.l0 == pytest.approx(float(n_active))
    assert (network.asleep[:5] == 164).all()


def recipe_of(name: str, n_rows: int = 1000, **more: Any) -> Recipe:
    asked: dict[str, Any] = {
        "site": "mlp_out", "layer": 1, "architecture": name.split()[0], "l0": None, "sparsity": None, "skip": False,
        "input_site": None, "output_site": "mlp_out", "centre": False, "rate": None, "bandwidth": 0.001, "revive": 1 / 32,
        "seed": 0, "batch_size": 32, **ARCHITECTURES[name], **more,
    }  # fmt: skip
    return Recipe.of(asked, n_rows)


@pytest.mark.parametrize("centre", [False, True])
def test_the_scales_go_into_the_weights(centre: bool) -> None:
    torch.manual_seed(1)
    x, target = 3 * torch.randn(50, 6) + 2, 0.1 * torch.randn(50, 4) - 1
    read, written = Scaling.of(x, centre), Scaling.of(target, centre)
    assert float(read.apply(x).square().sum(1).mean()) == pytest.approx(1, rel=1e-5)
    w = {"W_enc": torch.randn(6, 9), "b_enc": torch.randn(9), "W_dec": normalize(torch.randn(9, 4)), "b_dec": torch.randn(4)}
    w["W_skip"], threshold = torch.randn(6, 4), torch.rand(9)
    s = read.apply(x)
    pre = s @ w["W_enc"] + w["b_enc"]
    scaled = (pre * (pre > threshold)) @ w["W_dec"] + w["b_dec"] + s @ w["W_skip"]
    expected = scaled * written.size + written.mean
    one = gs.Dictionary.from_arrays(folded(w, threshold, read, written), site="transcoder", layer=0)
    assert torch.allclose(one.encode(x).reconstruction, expected, rtol=1e-4, atol=1e-4)


# -- a training --


@pytest.mark.parametrize("name", list(ARCHITECTURES))
@pytest.mark.parametrize("of", ["autoencoder", "transcoder with a skip"])
def test_a_killed_training_comes_to_the_same_numbers(
    store: gs.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, of: str
) -> None:
    more: dict[str, Any] = {} if of == "autoencoder" else {"site": "transcoder", "skip": True, "centre": True}
    straight = train(store, tmp_path / "straight", name, **more)
    assert any(straight.history.sel(measure="dead") > 0) or name != "topk"
    real, n_steps = loop.Training._one_step, 0

    def killed(self: Any, x: Any, target: Any) -> Any:
        nonlocal n_steps
        n_steps += 1
        if n_steps in (12, 22):
            raise SystemExit
        return real(self, x, target)

    monkeypatch.setattr(loop.Training, "_one_step", killed)
    for _ in range(2):
        with pytest.raises(SystemExit):
            train(store, tmp_path / "killed", name, save_every=7, **more)
    resumed = train(store, tmp_path / "killed", name, save_every=7, **more)
    assert n_steps == 30 + 2 + (11 - 7) + (16 - 14)  # two steps that were cut off, and those after their checkpoints again
    assert same(straight.dictionary, resumed.dictionary)
    assert straight.history.equals(resumed.history)
    again = train(store, tmp_path / "killed", name, save_every=7, **more)  # finished: nothing is trained
    assert n_steps == 38
    assert same(again.dictionary, resumed.dictionary)


def test_a_kill_while_a_checkpoint_is_written_loses_no_more_than_its_steps(
    store: gs.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train(store, tmp_path / "straight").dictionary
    real, n_writes = checkpoint_module.write_file, 0

    def cut_off(path: Any, content: Any, **more: Any) -> None:
        nonlocal n_writes
        n_writes += 1
        if n_writes == 3:
            raise SystemExit
        real(path, content, **more)

    monkeypatch.setattr(checkpoint_module, "write_file", cut_off)
    with pytest.raises(SystemExit):
        train(store, tmp_path / "killed", save_every=4)
    assert loop.read_checkpoint(tmp_path / "killed").about["step"] == 8  # type: ignore[union-attr]
    assert same(train(store, tmp_path / "killed", save_every=5).dictionary, expected)


def test_ctrl_c_says_how_to_go_on(store: gs.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.Training, "_one_step", interrupted)
    with (
        pytest.warns(GemmascopeWarning, match="interrupted after 0 of 30 steps.*same call"),
        pytest.raises(KeyboardInterrupt),
    ):
        train(store, tmp_path / "sae")


@pytest.mark.parametrize("site", ["mlp_out", "z", "embed"])
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_what_is_written_is_read_back(store: gs.Store, tmp_path: Path, name: str, site: str) -> None:
    trained = train(store, tmp_path, name, site, None if site == "embed" else 1, model=model("lg"))
    assert same(gs.load_sae(tmp_path, model=model("lg")), trained.dictionary)
    d = trained.dictionary
    assert (d.site, d.layer, d.n_features) == (site, None if site == "embed" else 1, 48)
    assert torch.allclose(d.W_dec.norm(dim=1), torch.ones(48), atol=1e-5)
    assert (d.k == 4) == (name == "topk")
    assert trained.path.relative_to(tmp_path).parts[1] == "width_48"
    about = json.loads((trained.path / "about.json").read_text(encoding="utf-8"))
    assert about["recipe"]["features"] == 48
    assert trained.measures.loss is not None
    assert about["measured"]["loss recovered"] == round(trained.measures.loss.recovered, 4)
    with pytest.raises(DictionaryError, match="trained for"):
        gs.load_sae(tmp_path, model=gs.load())


@pytest.mark.parametrize(("reads", "writes"), [(None, "mlp_out"), ("mlp_in", "mlp_raw"), ("resid_mid", "mlp_out")])
def test_a_transcoder_reads_and_writes_its_sites(store: gs.Store, tmp_path: Path, reads: Any, writes: str) -> None:
    more = {"input_site": reads, "output_site": writes, "skip": True}
    trained = train(store, tmp_path, "jumprelu", "transcoder", model=model("lg"), **more)
    d = gs.load_sae(tmp_path)
    assert same(d, trained.dictionary)
    assert (d.input_site, d.output_site) == (reads, writes)
    trace = gs.trace(IDS[-1], model=model("lg"))
    x = d.input_of(trace[reads or "resid_mid", 1])
    assert torch.allclose(d.encode(trace).reconstruction, d.decode(d.activations(x), x), atol=1e-5)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_measures_are_those_of_a_plain_computation(store: gs.Store, tmp_path: Path, name: str) -> None:
    trained = train(store, tmp_path, name, site="transcoder", skip=True)
    first = store.rows(text=32)[0]  # 32 of 40 texts are trained on
    x = trained.dictionary.input_of(store.read("resid_mid", 1, slice(int(first), None)))
    y = store.read("mlp_out", 1, slice(int(first), None)).double()
    acts = trained.dictionary.activations(x)
    left = y - trained.dictionary.decode(acts, x)
    found = trained.measures
    assert found.n_rows == len(x)
    assert found.l0 == pytest.approx(float((acts > 0).sum(1).double().mean()))
    assert found.explained == pytest.approx(1 - float(left.square().sum() / (y - y.mean(0)).square().sum()), abs=1e-6)
    assert torch.allclose(found.density, (acts > 0).double().mean(0).float())
    assert found.n_dead == int((~(acts > 0).any(0)).sum())


def test_held_out_texts_are_not_trained_on(store: gs.Store) -> None:
    seen = [rows for rows, _ in store.batches("mlp_out", 1, batch_size=16, texts=32, with_rows=True)]  # type: ignore[misc]
    assert sorted(np.concatenate(seen)) == list(range(int(store.rows(text=32)[0])))


def test_seeds_tell_trainings_apart(store: gs.Store, tmp_path: Path) -> None:
    one, two, other = (train(store, tmp_path / n, seed=seed).dictionary for n, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert same(one, two)
    assert not same(one, other)


def test_a_file_with_a_part_of_a_feature_is_refused(store: gs.Store, tmp_path: Path) -> None:
    path = train(store, tmp_path).path / "params.npz"
    with np.load(path) as file:
        arrays = dict(file)
    for k in (2.5, 0.0, 49.0):
        np.savez(path, **{**arrays, "k": np.array(k, dtype=np.float32)})
        with pytest.raises(DictionaryError, match="k is how many features are kept of each row, from 1 to 48"):
            gs.load_sae(tmp_path)


# -- known features --


@pytest.mark.parametrize("name", ["jumprelu", "topk", "batchtopk", "relu"])
def test_known_features_are_recovered(tmp_path: Path, name: str) -> None:
    known = KnownFeatures.random(32, 24, n_active=2.0, seed=0)
    asked: dict[str, Any] = {"sparsity": 0.1} if name == "relu" else {"l0": 2}
    trained = gs.train_sae(
        known.rows(20_000, seed=1), "resid_post", 0, out=tmp_path, architecture=name, features=32, steps=600, batch_size=256,
        rate=3e-3, bandwidth=0.05, progress=False, **asked,
    )  # fmt: skip
    score = known.recovered(trained.dictionary.W_dec)
    untrained = known.recovered(torch.randn(32, 24, generator=torch.Generator().manual_seed(5)))
    assert untrained < 0.7
    assert score >= 0.93, score
    assert trained.measures.explained >= 0.8


# -- bad input --


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"architecture": "gated"}, "architecture is one of 'jumprelu', 'topk', 'batchtopk', 'relu'; given 'gated'"),
        ({"l0": None}, "'topk' takes l0, how many features are active at a position; given neither"),
        ({"sparsity": 1.0}, "'topk' takes l0, .*; given l0 and sparsity"),
        ({"architecture": "relu"}, "'relu' takes sparsity, the coefficient of its penalty; given l0"),
        ({"l0": 2.5}, "l0 is a whole number of features above 0, and at most 48; given 2.5"),
        ({"l0": 49}, "at most 48; given 49"),
        ({"features": 0}, "features is a whole number"),
        ({"rate": -1.0}, "rate is above 0; given -1"),
        ({"skip": True}, "skip, input_site and output_site are of transcoders; this is of 'mlp_out'"),
        ({"held_out": 1.0}, "held_out is the share of rows .* given 1"),
        ({"site": "transcoder", "input_site": "z"}, "input_site is one of 'resid_mid', 'mlp_in'; given 'z'"),
        ({"site": None}, "the store holds embed, .*: say which site and layer"),
        ({"save_every": 0}, "save_every is a whole number"),
        ({"batch_size": 4096}, r"batch_size=4,096 rows of a step, and there are \d+ to train on: give a smaller batch_size"),
    ],
)
def test_what_does_not_fit_is_said_at_the_door(store: gs.Store, tmp_path: Path, asked: Any, message: str) -> None:
    with pytest.raises(DictionaryError, match=message):
        gs.train_sae(
            store,
            **{"site": "mlp_out", "layer": 1, "out": tmp_path / "sae", "architecture": "topk", "l0": 4, **SMALL, **asked},
        )
    assert not (tmp_path / "sae").exists()


def test_another_store_site_or_model_is_said_at_the_door(store: gs.Store, tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=r"does not hold resid_post\.1; it holds"):
        train(store, tmp_path, site="resid_post")
    few = gs.harvest(model("lg"), IDS, "mlp_out", layers=1, out=tmp_path / "few", progress=False)
    with pytest.raises(SiteError, match=r"a transcoder of layer 1 reads 'resid_mid' and writes 'mlp_out'.*Harvest both"):
        train(few, tmp_path / "sae", site="transcoder")
    with pytest.raises(StoreError, match="was harvested from"):
        train(few, tmp_path / "sae", model=gs.load())
    with pytest.raises(DictionaryError, match="are of no model that could be checked"):
        train(torch.randn(99, 8), tmp_path / "sae", model=gs.load())
    assert train(few, tmp_path / "sae", site=None, layer=None).dictionary.site == "mlp_out"  # the only one


def test_a_folder_of_another_training_is_not_taken(store: gs.Store, tmp_path: Path) -> None:
    train(store, tmp_path / "sae")
    with pytest.raises(
        DictionaryError, match=r"of another training \(features: 48 there, 40 here\): give the same arguments"
    ):
        train(store, tmp_path / "sae", features=40)
    with pytest.raises(DictionaryError, match=r"of another training \(other rows\)"):
        train(store, tmp_path / "sae", held_out=0.3)
    path = tmp_path / "sae" / "training.safetensors"
    for content in (b"", path.read_bytes()[:-40], b"x" * 300):
        shutil.rmtree(tmp_path / "sae")
        path.parent.mkdir()
        path.write_bytes(content)
        with pytest.raises(DictionaryError, match="Remove it to begin anew"):
            train(store, tmp_path / "sae")


def test_rows_in_memory_are_checked(tmp_path: Path) -> None:
    good = torch.randn(100, 8)
    for rows, site, message in (
        (good, None, "say what they are of"), (torch.zeros(100, 8), "resid_post", "zeros alone"),
        (good * float("nan"), "resid_post", "NaN or infinity"), (good[0], "resid_post", r"a tensor \[row, d\]"),
        (good, "transcoder", r"two of them, \(inputs, outputs\)"), ((good, good), "resid_post", "for a transcoder two"),
        ((good, good[1:]), "transcoder", "given 100 and 99"), (good[:1], "resid_post", "too few"),
    ):  # fmt: skip
        with pytest.raises(DictionaryError, match=message):
            train(rows, tmp_path / "sae", site=site, layer=0)
    train(good, tmp_path / "held", site="resid_post", layer=0)
    with pytest.raises(DictionaryError, match=r"of another training \(other rows\)"):
        train(good, tmp_path / "held", site="resid_post", layer=0, held_out=0.4)
    trained = train((good, good @ torch.randn(8, 3)), tmp_path / "ok", site="transcoder", layer=0, skip=True)
    assert (trained.dictionary.d_in, trained.dictionary.d_out) == (8, 3)
    assert trained.measures.loss is None


def test_one_row_that_is_held_out_tells_no_variance(tmp_path: Path) -> None:
    trained = train(torch.randn(20, 8), tmp_path, site="resid_post", layer=0, held_out=0.05, batch_size=8)
    assert trained.measures.n_rows == 1
    assert np.isnan(trained.measures.explained)
    assert same(gs.load_sae(tmp_path), trained.dictionary)
    assert np.isnan(LossRecovered(clean=2.0, spliced=2.0, zeroed=2.0, n_tokens=9).recovered)


def test_a_loss_that_is_no_number_stops(tmp_path: Path) -> None:
    with pytest.raises(DictionaryError, match=r"the loss of step .* is (nan|inf): a smaller rate than"):
        train(torch.randn(500, 8), tmp_path, "relu", "resid_post", 0, rate=1e30)


def test_results_are_shown(store: gs.Store, tmp_path: Path) -> None:
    trained = train(store, tmp_path, "batchtopk")
    assert repr(trained).startswith(
        "TrainedSAE: an autoencoder of 'mlp_out' of layer 1, batchtopk, 48 features; 30 steps of 32"
    )
    frame = trained.to_dataframe()
    assert list(frame) == ["step", "loss", "explained", "l0", "dead"]
    assert frame["step"].tolist() == list(range(1, 31))
    figure = trained.plot()
    assert [trace.name for trace in figure.data] == ["variance explained", "L0", "dead features"]
    assert figure.data[1].y[-1] == frame["l0"].iloc[-1]

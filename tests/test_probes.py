"""gs.probe: texts are held out whole, probes equal plain computations, baselines and control tasks, and bad labels."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import model
from random_dictionaries import dictionary

import gemmascope as gs
from gemmascope.errors import ProbeError, SiteError
from gemmascope.probes import probe as probe_module
from gemmascope.probes import scores as scores_module
from gemmascope.probes.fits import fit, strongest
from gemmascope.probes.scores import Bootstrap, by_token, majority
from gemmascope.probes.tasks import deal_folds, task_of

IDS = [[2, *(3 + (7 * n + 5 * i * i + i) % 20 for i in range(4 + n % 5))] for n in range(60)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> gs.Store:
    out = tmp_path_factory.mktemp("acts")
    return gs.harvest(model("lg"), IDS, ["resid_post", "embed"], out=out, dtype="float32", progress=False)


def even(store: gs.Store) -> list[bool]:
    return [bool(one % 2) for one in store.places(slice(None)).id.tolist()]


# -- the classifiers --


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n_classes", [2, 4])
def test_classifiers_are_those_of_plain_computations(seed: int, n_classes: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = 5 + 3 * rng.normal(size=(90, 6)), np.arange(90) % n_classes
    x[:, 0] += y
    tensors = torch.from_numpy(x), torch.from_numpy(y)
    means = np.stack([x[y == c].mean(0) for c in range(n_classes)])
    nearest = np.square(x[:, None] - means).sum(-1).argmin(1)
    assert np.array_equal(fit("mass_mean", *tensors, n_classes, 0.01).classes(tensors[0]).numpy(), nearest)
    # Ridge by least squares on rows with the penalty's rows below them.
    centred = x - x.mean(0)
    scaled = centred / np.sqrt(np.square(centred).sum(1).mean())
    target = np.eye(n_classes)[y]
    more = np.sqrt(90 * 0.01) * np.eye(6)
    weight = np.linalg.lstsq(np.vstack([scaled, more]), np.vstack([target - target.mean(0), np.zeros((6, n_classes))]))[0]
    found = fit("ridge", *tensors, n_classes, 0.01)
    scores = tensors[0] @ found.weight + found.bias
    assert np.allclose(scores, scaled @ weight + target.mean(0), atol=1e-10)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_logistic_probe_is_at_the_minimum_of_its_loss(n_classes: int) -> None:
    pytest.importorskip("sklearn")
    torch.manual_seed(n_classes)
    x, y = torch.randn(80, 5, dtype=torch.float64), torch.arange(80) % n_classes
    x[:, 1] += y
    found = fit("logistic", x, y, n_classes, 0.01)
    centred = x - x.mean(0)
    size = centred.square().sum(1).mean().sqrt()
    weight = (found.weight * size).requires_grad_()
    bias = (found.bias + x.mean(0) @ found.weight).detach().requires_grad_()
    scores = centred / size @ weight + bias
    # Of two classes the penalty is on the difference of the columns.
    squares = (weight[:, 1] - weight[:, 0]).square().sum() if n_classes == 2 else weight.square().sum()
    loss = torch.nn.functional.cross_entropy(scores, y) + 0.01 / 2 * squares
    loss.backward()
    assert float(weight.grad.abs().max()) <= 1e-4  # type: ignore[union-attr]
    assert float(bias.grad.abs().max()) <= 1e-4  # type: ignore[union-attr]


def test_a_logistic_probe_without_scikit_learn_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(gs.errors.MissingPackageError, match=r'scikit-learn: pip install "gemmascope\[probes\]"'):
        fit("logistic", torch.randn(9, 2, dtype=torch.float64), torch.arange(9) % 2, 2, 0.1)


def test_the_strongest_columns_are_those_whose_means_differ_most() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(400, 9, dtype=torch.float64), torch.arange(400) % 3
    x[:, 4] += 2.0 * (y == 1)
    x[:, 7] *= 100  # large, and of all classes alike
    x[:, 2] += 1.0 * (y == 2)
    x[:, 5] = 0
    assert strongest(x, y, 3, 2).tolist() == [2, 4]
    assert len(strongest(x, y, 3, 9)) == 9


# -- folds, baselines, control --


@pytest.mark.parametrize("seed", range(5))
def test_texts_are_held_out_whole_and_folds_are_alike(store: gs.Store, seed: int) -> None:
    task = task_of(store, even(store), None, None)
    fold_of = deal_folds(task, 5, seed)
    assert all(len(set(fold_of[task.groups == group])) == 1 for group in np.unique(task.groups))
    assert sorted(set(fold_of)) == [0, 1, 2, 3, 4]
    by_ids: dict[bytes, set[int]] = {}
    for row, fold in enumerate(fold_of):
        by_ids.setdefault(store.ids(int(store.places(row).text[0])).tobytes(), set()).add(int(fold))
    assert all(len(folds) == 1 for folds in by_ids.values())
    assert len(by_ids) < store.n_texts  # some texts are the same


def test_pieces_of_a_text_and_texts_like_them_stay_together(tmp_path: Path) -> None:
    long = [2, *range(3, 19)]
    texts = [long, [2, *long[5:9]], [2, 30, 31], [2, 40, 41]]
    store = gs.harvest(model("lg"), texts, "embed", out=tmp_path, max_tokens=5, long="split", progress=False)
    groups = task_of(store, [bool(n % 2) for n in range(store.n_rows)], None, None).groups
    places = store.places(slice(None)).text
    assert len(np.unique(groups)) == 3
    assert len(np.unique(groups[places < 5])) == 1  # four pieces, and the text that is like the second


def test_baselines_are_plain_counts(store: gs.Store) -> None:
    task = task_of(store, [int(i) % 3 for i in store.places(slice(None)).text], None, None)
    fold_of = deal_folds(task, 4, 1)
    right = {"majority": majority(task, fold_of), "token": by_token(task, fold_of)}
    for row in range(store.n_rows):
        seen = [(int(task.tokens[r]), int(task.y[r])) for r in range(store.n_rows) if fold_of[r] != fold_of[row]]
        counts = Counter(label for _, label in seen)
        common = min(counts, key=lambda c: (-counts[c], c))
        assert bool(right["majority"][row]) == (common == int(task.y[row]))
        of_token = Counter(label for token, label in seen if token == int(task.tokens[row]))
        best = {label for label in of_token if of_token[label] == max(of_token.values())} or {common}
        if len(best) == 1:
            assert bool(right["token"][row]) == (int(task.y[row]) in best)


def test_a_control_task_has_one_class_for_each_token(store: gs.Store) -> None:
    task = task_of(store, even(store), None, None)
    control = task.control(3)
    assert control is not None
    of_token = {int(token): set(control.y[task.tokens == token].tolist()) for token in np.unique(task.tokens)}
    assert all(len(classes) == 1 for classes in of_token.values())
    assert len({next(iter(c)) for c in of_token.values()}) == 2
    assert not torch.equal(control.y, task.control(4).y)  # type: ignore[union-attr]


def test_rows_of_one_token_have_no_control_task(tmp_path: Path) -> None:
    texts = [[2, 3 + n, 5 + n % 7, 9] for n in range(20)]
    store = gs.harvest(model("lg"), texts, "resid_post", layers=1, out=tmp_path, dtype="float32", progress=False)
    found = gs.probe(store, [n % 2 for n in range(20)], progress=False)
    assert np.isnan(found.scores[["control", "selectivity", "selectivity_low", "selectivity_high"]].to_array()).all()
    assert 0 <= float(found.scores["low"][0]) <= float(found.scores["accuracy"][0])
    assert "all of one token, no control task; commonest" in repr(found)
    assert len(found.plot().data) > 0


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng, covered = np.random.default_rng(0), 0
    groups = np.repeat(np.arange(40), 5)
    for trial in range(200):
        values = rng.random(200) < np.repeat(rng.beta(7, 3, size=40), 5)  # rows of a text are alike
        low, high = Bootstrap(groups, trial).interval(values)
        covered += low <= 0.7 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_intervals_of_many_texts_take_bounded_memory_and_are_the_same_for_every_quantity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scores_module, "N_RESAMPLES", 200)
    groups = np.repeat(np.arange(20_000), 2)
    values = np.random.default_rng(0).random(40_000) < 0.3
    tracemalloc.start()
    bootstrap = Bootstrap(groups, 5)
    found = bootstrap.interval(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30_000_000  # all resamples at once take 32 MB an array
    error = np.sqrt(0.3 * 0.7 / 40_000)
    assert found[0] == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert found[1] == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)
    assert bootstrap.interval(values) == found
    assert bootstrap.interval(1 - values.astype(float)) == pytest.approx((1 - found[1], 1 - found[0]))


# -- the call --


@pytest.mark.parametrize("method", ["ridge", "mass_mean", "logistic"])
def test_what_tokens_say_is_found_in_the_embedding(store: gs.Store, method: str) -> None:
    if method == "logistic":
        pytest.importorskip("sklearn")
    found = gs.probe(store, even(store), method=method, progress=False)
    assert found.scores["array"].values.tolist() == ["embed", "resid_post.0", "resid_post.1"]
    assert found.by_token == 1.0
    embedding = found.scores.sel(array="embed")
    assert embedding["accuracy"] >= (0.7 if method == "mass_mean" else 0.95)
    assert (found.scores["low"] <= found.scores["accuracy"]).all()
    assert (found.scores["accuracy"] <= found.scores["high"]).all()
    assert np.allclose(found.scores["selectivity"], found.scores["accuracy"] - found.scores["control"])
    assert found.scores.equals(gs.probe(store, even(store), method=method, progress=False).scores)


def test_noise_is_not_found(store: gs.Store) -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, store.n_texts)  # of texts
    found = gs.probe(store, labels, pos=-1, progress=False)
    assert found.n_rows == store.n_texts
    assert (found.scores["accuracy"] < 0.75).all()


def test_a_sparse_probe_reads_the_features_that_carry_it(store: gs.Store) -> None:
    sae = dictionary(32, "resid_post", 1)
    acts = sae.activations(store.read("resid_post", 1, slice(None)))
    feature = int((acts > 0).double().mean(0).sub(0.5).abs().argmin())  # active at about half of the rows
    labels = (acts[:, feature] > 0).tolist()
    found = gs.probe(store, labels, dictionary=sae, k=1, progress=False)
    assert found.at("resid_post", 1).features == (feature,)
    assert float(found.scores["accuracy"][0]) > found.majority
    with pytest.raises(ProbeError, match="reads features of a dictionary"):
        found.at("resid_post", 1).when()
    sparse = gs.probe(store, even(store), [("resid_post", 1)], k=3, progress=False).at("resid_post", 1)
    assert len(sparse.features or ()) == 3
    assert int((sparse.weight.abs().sum(1) > 0).sum()) == 3


def test_a_probe_is_a_condition_and_an_edit(store: gs.Store) -> None:
    one = gs.probe(store, even(store), progress=False).at("resid_post", 1)
    clean = gs.trace(IDS[7], model=model("lg"))
    rows = clean["resid_post", 1]
    hit = (rows.double() @ one.weight + one.bias).diff(dim=1)[:, 0] > 0
    assert 0 < int(hit.sum()) < len(hit)
    changed = gs.trace(IDS[7], model=model("lg"), edits=[gs.ablate("resid_post", layer=1, when=one.when())])
    assert torch.equal((changed["resid_post", 1] == 0).all(1), hit)
    moved = gs.trace(IDS[7], model=model("lg"), edits=[one.add(3.0)])["resid_post", 1] - rows
    assert torch.allclose(moved.norm(dim=1), torch.full((len(rows),), 3.0), atol=1e-4)
    assert float(moved[0] @ one.vector) > 0


def test_memory_is_asked_for_the_products_of_columns_too(store: gs.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(probe_module, "require_free_memory", lambda n_bytes, *_: asked.append(n_bytes))
    for more in ({}, {"method": "mass_mean"}, {"k": 2}):
        gs.probe(store, even(store), [("embed", None)], progress=False, **more)  # type: ignore[arg-type]
    assert asked[0] - asked[1] == asked[0] - asked[2] == 2 * 8 * 32**2


def test_three_classes_have_no_one_vector(store: gs.Store) -> None:
    labels = [int(one) % 3 for one in store.places(slice(None)).id]
    found = gs.probe(store, labels, progress=False)
    assert found.classes == (0, 1, 2)
    with pytest.raises(ProbeError, match="3 classes"):
        found.at("embed").when()
    with pytest.raises(ProbeError, match=r"there is no probe at 'z', layer 1; there are embed, resid_post\.0"):
        found.at("z", 1)


def test_rows_without_a_label_are_left_out(store: gs.Store) -> None:
    labels: list[Any] = even(store)
    labels[:9] = [None] * 8 + [float("nan")]
    found = gs.probe(store, labels, [("embed", None)], progress=False)
    assert found.n_rows == store.n_rows - 9
    few = gs.probe(store, labels[9:], [("embed", None)], rows=range(9, store.n_rows), progress=False)
    assert few.scores.equals(found.scores)


def test_results_are_shown(store: gs.Store) -> None:
    found = gs.probe(store, even(store), progress=False)
    assert repr(found).startswith("ProbeScores: ridge, 2 classes, ")
    assert list(found.to_dataframe())[:3] == ["array", "accuracy", "low"]
    assert repr(found.at("embed")) == "FittedProbe of 'embed': False, True"
    names = [trace.name for trace in found.plot().data]
    assert names == ["embed", "embed, control task", "resid_post", "resid_post, control task"]


@pytest.mark.parametrize(
    ("labels", "asked", "message"),
    [
        ([True, False], {}, "labels are one for each row of the store"),
        ("text", {}, "labels are a list or an array"),
        (np.zeros((3, 3)), {}, "labels are on one axis"),
        ([1] * 60, {}, "labels are of 2 to 1,000 classes; given 1: 1"),
        ([0] * 59 + [1], {}, r"the class 1 occurs in 1 text alone"),
        ([[1]] * 60, {}, "labels are numbers, texts or booleans"),
        ([0, 1] * 30, {"method": "svm"}, "method is one of 'ridge', 'mass_mean', 'logistic'; given 'svm'"),
        ([0, 1] * 30, {"l2": 0}, "l2 is above 0"),
        ([0, 1] * 30, {"sites": []}, "the list of sites is empty"),
        ([0, 1] * 30, {"sites": [("resid_post", 1), ("blocks.1.hook_resid_post", None)]}, r"resid_post\.1 twice"),
        ([0, 1] * 30, {"folds": 1}, "folds is a whole number"),
        ([0, 1] * 30, {"k": 99}, "k is a whole number from 1 to 32"),
        ([0, 1], {"rows": [0, 0]}, "holds a row twice"),
        ([0, 1], {"rows": [0, 1], "pos": 1}, "give one of them"),
        ([0, 1] * 30, {"dictionary": 3}, "dictionary is what gs.load_sae returns"),
    ],
)
def test_bad_input_is_said_at_the_door(store: gs.Store, labels: Any, asked: Any, message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        gs.probe(store, labels, progress=False, **asked)
    with pytest.raises(ProbeError, match=r"store is what gs\.harvest"):
        gs.probe([], labels)  # type: ignore[arg-type]
    with pytest.raises(SiteError, match="does not hold"):
        gs.probe(store, [0, 1] * 30, [("z", 1)])

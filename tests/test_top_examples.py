"""Top examples are those of a brute force over traces, whatever they are read from; ties go to the earlier token."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, checkpoint_3, model, model_of
from random_dictionaries import dictionary
from safetensors.numpy import load_file, save_file

import gemmascope as gs
from gemmascope.errors import BudgetError, DictionaryError, ExamplesError, SiteError, StoreError
from gemmascope.examples import find as find_module
from gemmascope.examples import statistics as statistics_module
from gemmascope.examples.blocks import Block, BlockText
from gemmascope.examples.keeping import Keeper
from gemmascope.examples.running import keys_of, priorities, values_of
from gemmascope.examples.statistics import BINS, CoActivity, Histograms
from gemmascope.examples.units import SaeFeatures

D_MODEL = 32  # of the random models


def random_texts(rng: Random, n: int, most: int = 24) -> list[list[int]]:
    """Token ids; some texts come twice, so that values are equal."""
    texts = [[2, *(rng.randrange(3, 61) for _ in range(rng.randint(1, most)))] for _ in range(n)]
    return [*texts, *texts[: n // 3]]


def find(texts: Any, units: Any, **options: Any) -> gs.TopExamples:
    return gs.top_examples(texts, units, progress=False, **options)


def plain_values(traces: Any, group: gs.UnitExamples, sae: Any, vectors: Any) -> list[np.ndarray[Any, Any]]:
    """The values of a group's units at all tokens after <bos>, a text at a time, [pos, unit]."""
    found = []
    for t in traces:
        if group.kind == "head":
            values = t["head_out", group.layer].norm(dim=-1)
        elif group.kind == "neuron":
            values = t["mlp_act", group.layer]
        elif group.kind == "feature":
            values = sae.activations(sae.input_of(t[sae.read_from, sae.layer]))
        else:
            values = t["resid_post", group.layer] @ vectors.T
        found.append(values[1:].float().numpy()[:, group.units])
    return found


def brute_force(values: list[np.ndarray[Any, Any]], unit: int, k: int, one_per_text: bool) -> list[tuple[float, int, int]]:
    """(value, text, pos) of the k largest, of equal ones the earliest."""
    rows = [(-float(v[pos, unit]), text, pos + 1) for text, v in enumerate(values) for pos in range(len(v))]
    rows.sort()
    if one_per_text:
        seen: set[int] = set()
        rows = [row for row in rows if not (row[1] in seen or seen.add(row[1]))]  # type: ignore[func-returns-value]
    return [(-value, text, pos) for value, text, pos in rows[:k]]


def require_same(group: gs.UnitExamples, values: list[np.ndarray[Any, Any]], settings: Any, exact: bool) -> None:
    """exact: whether every value has the bits of the trace's; else those of equal texts may differ in their last bits."""
    tolerance = 2e-5
    data, k, flat = group.data, settings.k, np.concatenate(values).astype(np.float64)
    lengths = [len(v) for v in values]
    for unit in range(len(group)):
        for part, sign in (("top", 1), ("bottom", -1)):
            if f"{part}_value" not in data:
                assert sign == -1
                assert group.kind in ("head", "feature")
                continue
            wanted = brute_force([sign * v for v in values], unit, k, settings.one_per_text)
            if group.kind == "feature":
                wanted = [row for row in wanted if row[0] > 0]
            texts, pos = data[f"{part}_text"].values[unit], data[f"{part}_pos"].values[unit]
            found = list(zip(texts.tolist(), pos.tolist(), strict=True))
            n = len(wanted)
            assert [text >= 0 for text, _ in found] == [rank < n for rank in range(k)]
            for (text, at), (value, *place) in zip(found, wanted, strict=False):
                assert [text, at] == place or (
                    not exact and sign * values[text][at - 1, unit] == pytest.approx(value, abs=tolerance, rel=tolerance)
                )
            np.testing.assert_allclose(
                sign * data[f"{part}_value"].values[unit, :n], [row[0] for row in wanted], atol=tolerance, rtol=tolerance
            )
            around, offsets = data[f"{part}_around"].values[unit], data["offset"].values
            for rank, (text, at) in enumerate(found[:n]):
                for offset, value in zip(offsets.tolist(), around[rank].tolist(), strict=True):
                    row = at + offset - 1
                    if 0 <= row < lengths[text]:
                        assert value == pytest.approx(float(values[text][row, unit]), abs=tolerance, rel=tolerance)
                    else:
                        assert np.isnan(value)
        column = flat[:, unit]
        for name, wanted_number in (
            ("density", (column > 0).mean()), ("mean", column.mean()), ("std", column.std()), ("low", column.min()),
            ("high", column.max()),
        ):  # fmt: skip
            assert float(data[name][unit]) == pytest.approx(wanted_number, abs=1e-5, rel=1e-5)
        active = column[column > 0] if group.kind == "feature" else column
        counts = np.histogram(active.astype(np.float32), data["edges"].values[unit])[0]
        assert np.abs(counts - data["histogram"].values[unit]).sum() <= (0 if exact else 4)
        assert int(data["histogram"].values[unit].sum()) == len(active)


# -- the numbers --


@pytest.mark.parametrize("seed", range(6))
def test_top_examples_are_those_of_a_brute_force(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = Random(seed)
    of = model(rng.choice(["lgl", "lg"]))
    texts = random_texts(rng, 9)
    layer = rng.randrange(of.n_layers)
    site = rng.choice(["resid_post", "transcoder", "mlp_out"])
    sae = dictionary(D_MODEL, site, layer, seed=seed)
    if rng.random() < 0.5:
        sae = dictionary(D_MODEL, site, layer, seed=seed, k=5)
    vectors = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, D_MODEL)).astype(np.float32))
    units = ["head", ("neuron", layer, sorted(rng.sample(range(48), 9))), sae, ("resid_post", layer, vectors)]
    options: dict[str, Any] = {
        "k": rng.randint(1, 7), "sample": 4, "around": (rng.randrange(6), rng.randrange(4)),
        "one_per_text": rng.random() < 0.5,
    }  # fmt: skip
    monkeypatch.setattr(find_module, "BLOCK_ELEMENTS", rng.choice([1, 700, 2**24]))
    monkeypatch.setattr(find_module, "_ROWS_PER_CHUNK", rng.choice([1, 50, 32768]))
    sites = ["head_out", ("mlp_act", layer), (sae.read_from, layer), ("resid_post", layer)]
    store = gs.harvest(of, texts, sites, layers=None, out=tmp_path / "a", dtype="float32", progress=False)
    from_z = gs.harvest(of, texts, "z", out=tmp_path / "z", dtype="float32", progress=False)
    cases = [
        find(texts, units, model=of, **options),
        find(texts, units, model=of, exact=False, **options),
        find(store, units, **options),
        find(from_z, "head", model=of, **options),
    ]
    traces = [gs.trace(text, model=of) for text in texts]
    for number, examples in enumerate(cases):
        exact_kinds = ("neuron", "head") if number != 3 else ()  # read from z, heads round as the rows of a block do
        for group in examples.each:
            values = plain_values(traces, group, sae, vectors)
            require_same(group, values, examples.settings, number != 1 and group.kind in exact_kinds)


@pytest.mark.parametrize("kind", ["gemma3", "int8"])
def test_other_models_too(kind: str, tmp_path: Path) -> None:
    if kind == "gemma3":
        of = model_of(checkpoint_3("lgl"))
    else:
        checkpoint("lg").save_pretrained(tmp_path / "source")
        of = gs.load(tmp_path / "source", weights="int8", dtype="float32")
    texts = random_texts(Random(5), 6)
    examples = find(texts, ["head", "neuron"], model=of, k=3)
    traces = [gs.trace(text, model=of) for text in texts]
    for group in examples.each:
        require_same(group, plain_values(traces, group, None, None), examples.settings, True)


def test_values_of_traces_are_kept_bit_for_bit() -> None:
    texts = [pair.clean for pair in gs.prompts.ioi(5)]
    group = find(texts, ("neuron", 2), k=2, around=0)["neuron"]
    for unit in (0, 100, 511):
        text, pos = (int(group.data[f"top_{name}"][unit, 0]) for name in ("text", "pos"))
        assert float(group.data["top_value"][unit, 0]) == float(gs.trace(texts[text])["mlp_act", 2][pos, unit])


def test_equal_values_come_in_the_order_of_their_texts_and_positions() -> None:
    vector = torch.zeros(D_MODEL)  # every value is the same
    texts = random_texts(Random(0), 6)
    data = find(texts, ("resid_post", 0, vector), model=model("lg"), k=5)["direction"].data
    assert data["top_text"].values.tolist() == [[0, 1, 2, 3, 4]] == data["bottom_text"].values.tolist()
    assert data["top_pos"].values.tolist() == [[1] * 5]
    data = find([texts[0] * 3], ("resid_post", 0, vector), model=model("lg"), k=5, one_per_text=False)["direction"].data
    assert data["top_pos"].values.tolist() == [[1, 2, 3, 4, 5]]


def test_rows_of_bos_are_left_out_of_a_store_that_has_them(tmp_path: Path) -> None:
    of, texts = model("lg"), [*random_texts(Random(1), 8), [7, 8, 2, 9], [2]]
    store = gs.harvest(
        of, texts, "head_out", layers=1, bos=True, outliers=3.0, out=tmp_path, dtype="float32", empty="skip", progress=False
    )
    ids, places = [store.ids(text) for text in range(store.n_texts)], store.places(slice(None))
    values = store.read("head_out", 1, slice(None)).norm(dim=-1)[:, 2].numpy()
    is_bos = (places.pos == 0) & np.array([ids[text][0] == 2 for text in places.text])
    assert is_bos.any()
    assert not is_bos[places.pos == 0].all()
    for size in (1, 2**24):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(find_module, "BLOCK_ELEMENTS", size)
            data = find(store, "head", model=of, k=6, one_per_text=False)["head"].data.sel(unit=2)
        assert data["top_value"].values.tolist() == sorted(values[~is_bos], reverse=True)[:6]
        assert int(data["histogram"].sum()) == (~is_bos).sum()
    with pytest.raises(ExamplesError, match=r"has rows of <bos> \(bos=True\), which top examples leave out: give model="):
        find(store, "head")


def test_keys_keep_the_order_of_values_and_the_values() -> None:
    values = torch.tensor([-np.inf, -3.5, -1e-30, -0.0, 0.0, 1e-45, 2.0, 2.0, np.inf])
    places = torch.tensor([0, 1, 2, 3, 4, 5, 7, 6, 2**32 - 1])
    keys = keys_of(values, places).numpy()
    assert np.argsort(keys).tolist() == [0, 1, 2, 4, 3, 5, 6, 7, 8]
    assert values_of(keys).tolist() == values.tolist()


@pytest.mark.parametrize("signed", [False, True])
def test_histograms_do_not_depend_on_the_order_of_values(signed: bool) -> None:
    draw = np.random.default_rng(int(signed))
    values = (draw.normal(size=(300, 3)) * np.exp(draw.normal(size=(300, 3)) * 4)).astype(np.float32)
    values = values if signed else np.abs(values)
    values[:40] = 0
    for _ in range(4):
        order = draw.permutation(300)
        histograms = Histograms(3, signed)
        for part in np.array_split(values[order], 7):
            histograms.make_room(np.abs(part).max(0))
            histograms.add(torch.from_numpy(part))
        edges = histograms.edges
        assert edges.shape == (3, BINS + 1)
        for unit in range(3):
            assert histograms.counts[unit].tolist() == np.histogram(values[:, unit], edges[unit])[0].tolist()
            assert edges[unit, -1] / 2 <= np.abs(values[:, unit]).max() < edges[unit, -1]


@pytest.mark.parametrize("at_once", [1, 130, 2**22])
def test_features_that_are_active_together_are_counted(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics_module, "_ELEMENTS", at_once)
    of, texts = model("lgl"), random_texts(Random(3), 8)
    sae = dictionary(D_MODEL, "resid_post", 1)
    acts = np.concatenate([sae.activations(gs.trace(text, model=of)["resid_post", 1])[1:].numpy() for text in texts]) > 0
    for units, numbers in ((sae, range(40)), ((sae, [30, 4, 9]), [4, 9, 30])):
        examples = find(texts, units, model=of, co_active=6)
        for feature in numbers:
            both = (acts[:, [feature]] & acts).sum(0)
            share = both / np.maximum(1, (acts[:, [feature]] | acts).sum(0))
            share[feature] = 0
            wanted = [int(one) for one in np.argsort(-share, kind="stable")[:6] if share[one] > 0]
            frame = examples.co_active(("feature", feature))
            assert frame["feature"].tolist() == wanted
            assert frame["rows"].tolist() == both[wanted].tolist()
            assert frame["share"].tolist() == pytest.approx(share[wanted].tolist())


def test_pairs_of_a_dense_dictionary_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics_module, "_ELEMENTS", 2000)
    active = np.random.default_rng(0).random((100, 128)) < 0.5
    counted = CoActivity(np.arange(128), 128)
    tracemalloc.start()
    counted.add(*np.nonzero(active))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000  # 400,000 pairs at once take 16 MB
    assert np.array_equal(counted.together.numpy(), active.T.astype(int) @ active.astype(int))


def test_a_sample_is_random_rows_that_are_not_zero_and_the_same_however_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    of, texts = model("lgl"), random_texts(Random(3), 8)
    sae = dictionary(D_MODEL, "resid_post", 1)
    units = [sae, ("neuron", 1)]
    whole = find(texts, units, model=of, sample=5, seed=3)
    monkeypatch.setattr(find_module, "BLOCK_ELEMENTS", 1)
    parts = find(texts, units, model=of, sample=5, seed=3)
    for one, other in zip(whole.each, parts.each, strict=True):
        for name in ("sample_text", "sample_pos"):
            assert np.array_equal(one.data[name].values, other.data[name].values)
        assert not (one.data["sample_value"].values == 0).any()
    assert not np.array_equal(
        whole.each[0].data["sample_pos"].values,
        find(texts, units, model=of, sample=5, seed=4).each[0].data["sample_pos"].values,
    )
    every = find(texts, units, model=of, sample=1000)
    for feature in range(40):
        frame = every.sample(("feature", feature))
        n = int(every["feature"].data["histogram"].sel(unit=feature).sum())
        assert len(frame) == n
        assert frame["value"].is_monotonic_decreasing
        assert frame["quantile"].is_monotonic_decreasing
        assert set(frame["quantile"]) <= {1, 2, 3, 4}


def test_every_row_is_as_likely_in_a_sample_as_any_other() -> None:
    counts = np.zeros(200)
    for seed in range(400):
        counts[np.argsort(-priorities(np.arange(200), seed))[:20]] += 1
    assert abs(counts.mean() - 40) < 1e-9
    assert (np.abs(counts - 40) < 5 * 36**0.5).all()


def test_memory_does_not_grow_with_the_texts() -> None:
    few, many = (find([[2, 5, 6, 7]] * n, "head", model=model("lg"), k=2) for n in (3, 60))
    for one, other in zip(few.each, many.each, strict=True):
        assert one.data.nbytes == other.data.nbytes
        assert one.texts.keys() == other.texts.keys() == {0, 1}


# -- the result --


def test_a_unit_is_addressed_by_its_kind_layer_and_number() -> None:
    examples = find(["The cat sat on the mat"], ["head", gs.load_sae()], layers=[2, 3], k=1)
    assert examples["head", 2] is examples.each[0]
    assert examples["features of gs.load_sae('nano')"] is examples["feature"] is examples[gs.load_sae()]
    assert examples.locate(("head", 3, 1)) == (examples.each[1], 1)
    assert len(examples.stats()) == 4 + 4 + 1024
    assert examples.top(("head", 2, 0)).iloc[0]["token"] in [" cat", "The", " sat", " on", " the", " mat"]
    for key in ("head", ("head", 4), "heads", 7):
        with pytest.raises(ExamplesError, match="of the groups of units here: heads of layer 2, heads of layer 3, features"):
            examples[key]
    with pytest.raises(ExamplesError, match=r"heads of layer 2 here are 0, 1, 2, 3; given 4"):
        examples.top(("head", 2, 4))
    with pytest.raises(ExamplesError, match="a number alone, 3, could be of heads of layer 2"):
        examples.top(3)
    with pytest.raises(ExamplesError, match="have no bottom examples: neurons and directions have them"):
        examples.bottom(("head", 2, 1))
    with pytest.raises(ExamplesError, match="pairs of heads of layer 2 were not counted: features have them"):
        examples.co_active(("head", 2, 1))
    assert len(find(["The cat sat"], ("neuron", 3, [7, 9]), k=1).bottom(7)) == 1


def test_a_file_gives_back_all_of_it(tmp_path: Path) -> None:
    texts = [pair.clean for pair in gs.prompts.ioi(4)]
    examples = find(texts, [gs.load_sae(), "head", ("neuron", 2)], layers=2, k=3)
    path = tmp_path / "a.safetensors"
    examples.save(path)
    opened = gs.open_examples(path, model=gs.load())
    assert repr(opened) == repr(examples)
    for unit, title in ((("feature", 987), "Feature 987 of gs.load_sae"), (("head", 2, 1), "Head 1 of layer 2")):
        assert examples.plot(unit).layout.title.text.startswith(title)
    for one, other in zip(examples.each, opened.each, strict=True):
        assert one.data.identical(other.data)
        assert one.texts.keys() == other.texts.keys()
        assert all(np.array_equal(one.texts[text], other.texts[text]) for text in one.texts)
    assert opened.top(("feature", 987)).equals(examples.top(("feature", 987)))
    with pytest.raises(ExamplesError, match="holds examples of 'nano'"):
        gs.open_examples(path, model=model("lg"))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    find(["The cat sat"], ("neuron", 3, [7]), k=1).save(path)
    arrays = load_file(path)
    with pytest.raises(ExamplesError, match="there is no file"):
        gs.open_examples(tmp_path / "b")
    save_file(arrays, tmp_path / "c")
    with pytest.raises(ExamplesError, match=r"holds no top examples: TopExamples.save writes such a file"):
        gs.open_examples(tmp_path / "c")
    (tmp_path / "d").write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ExamplesError, match="cannot be read as top examples"):
        gs.open_examples(tmp_path / "d")
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    (tmp_path / "e").write_bytes(data)
    with pytest.raises(ExamplesError, match="is damaged: its checksum"):
        gs.open_examples(tmp_path / "e")


# -- what is refused --


@pytest.mark.parametrize(
    ("units", "options", "match"),
    [
        ("headds", {}, "units are 'head', 'neuron', .*given 'headds'"),
        ([], {}, "the list of units is empty"),
        (7, {}, "units are 'head'.*given 7"),
        (("head", 3, [4]), {}, "heads of layer 3 go from 0 to 3; given .4."),
        (("neuron", 3, []), {}, "neurons of layer 3 go from 0 to 511"),
        (["head", ("head", 3)], {}, "units names heads of layer 3 twice"),
        ([("resid_post", 3, torch.zeros(128))] * 2, {}, r"twice: .* several of one place as \(site, layer, vectors"),
        (("head", 3), {"layers": 3}, "layers=3 goes with 'head' or 'neuron'"),
        ("head", {"layers": []}, "layers is a number or a list of them"),
        (("resid_post", 3, torch.zeros(5)), {}, "rows have 128 numbers, and the vectors 5"),
        (("resid_post", 3, torch.full((128,), torch.nan)), {}, "vectors are finite numbers"),
        ("head", {"k": 0}, "k is a whole number from 1"),
        ("head", {"sample": -1}, "sample is a whole number from 0"),
        ("head", {"around": (1, 2, 3)}, "around is how many tokens before and after"),
        ("head", {"around": -1}, "around is a whole number"),
        ("head", {"one_per_text": 1}, "one_per_text is True or False"),
        ("head", {"seed": -1}, "seed is a whole number"),
        ("head", {"co_active": 1.5}, "co_active is a whole number"),
    ],
)
def test_what_does_not_fit_is_refused(units: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ExamplesError, match=match):
        find(["The cat sat"], units, **options)


def test_places_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="layer"):
        find(["The cat"], ("head", 9))
    with pytest.raises(SiteError, match="pair of positions"):
        find(["The cat"], ("pattern", 3, torch.zeros(4)))
    with pytest.raises(DictionaryError, match="trained for"):
        find([[2, 3]], gs.load_sae(), model=model("lg"))
    with pytest.raises(StoreError, match="no text has a row"):
        find(["", ""], "head", empty="skip")
    store = gs.harvest(None, ["The cat", "A dog"], ["z", "mlp_in"], layers=3, out=tmp_path, progress=False)
    with pytest.raises(SiteError, match=r"holds no layer of mlp_act, from which neurons are read; it holds z .layer 3"):
        find(store, "neuron")
    with pytest.raises(SiteError, match=r"does not hold resid_post.3; it holds"):
        find(store, gs.load_sae())
    with pytest.raises(
        ExamplesError, match="are read from z, which this store holds, with the weights of nano: give model="
    ):
        find(store, "head")
    with pytest.raises(ExamplesError, match="max_tokens=9 is of texts that are run, and a store is read"):
        find(store, "head", max_tokens=9)
    with pytest.raises(StoreError, match="harvested from 'nano'"):
        find(store, "head", model=model("lg"))
    with pytest.raises(ExamplesError, match=r"reads 5 numbers, and mlp_in.3 of nano has 128"):
        find(store, dictionary(5, "mlp_in", 3))
    assert len(find(store, "head", model=gs.load())["head", 3]) == 4


def test_values_that_have_no_order_are_refused_with_their_place() -> None:
    texts = [[2, 5, 6], [2, 5, 7, 8]]
    with pytest.raises(ExamplesError, match=r"directions at .*: NaN or infinity at token 1 of text 0\. Leave that"):
        find(texts, ("resid_post", 0, torch.full((D_MODEL,), 3e38)), model=model("lg"))
    ids = np.array(texts[1])
    rows = torch.randn(3, D_MODEL)
    rows[1, 4] = torch.nan
    sae = dictionary(D_MODEL, "resid_post", 0)
    group = SaeFeatures(np.arange(40), "resid_post", 0, "features", sae=sae)
    keeper = Keeper(group, find(texts, "head", model=model("lg")).settings, False)
    with pytest.raises(ExamplesError, match="features: NaN or infinity at token 2 of text 7"):
        keeper.add(Block(group.key, rows, [BlockText(7, 30, ids, np.arange(1, 4))]))


def test_what_does_not_fit_into_memory_is_refused() -> None:
    with pytest.raises(BudgetError, match="name fewer units or layers, or give a smaller k, sample or around"):
        find(["The cat"], "neuron", k=10_000, around=4096)
    with pytest.raises(BudgetError, match="memory of 1,000 bytes is too little for a pass of 'nano'"):
        find(["The cat"], "head", memory="1KB")


def test_pairs_of_too_many_features_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find_module, "PAIR_BYTES", 1000)
    sae = gs.load_sae()
    with pytest.raises(ExamplesError, match=r"were not counted: give fewer features, \(dictionary, .987"):
        find(["The cat sat"], sae).co_active(("feature", 987))
    assert len(find(["Mary and John"], (sae, [987])).co_active(987)) == 10

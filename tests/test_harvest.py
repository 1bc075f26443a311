"""Stores hold what traces hold, bit for bit, however they are harvested; what cannot be harvested is refused at the door."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, model

import gemmascope as gs
from gemmascope.__main__ import main
from gemmascope.errors import BudgetError, GemmascopeWarning, PromptError, SiteError, StoreError
from gemmascope.model.model import Model
from gemmascope.sites import SITES
from gemmascope.stores.spec import ROW_SITES
from gemmascope.stores.writing import journal

TEXTS = [
    "When Mary and John went to the store, John gave a drink to", "The cat sat on the mat", "Mary and John",
    "The boys ate, and the girl slept.", "Cats", "John gave Mary a drink, and Mary gave John a drink in the store",
]  # fmt: skip


def random_ids(rng: Random, n: int, most: int = 30) -> list[list[int]]:
    return [[2, *(rng.randrange(3, 61) for _ in range(rng.randint(1, most)))] for _ in range(n)]


def harvest(of: Model | None, texts: Any, sites: Any, out: Path, **options: Any) -> gs.Store:
    return gs.harvest(of, texts, sites, out=out, progress=False, **options)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def of_text(store: gs.Store, key: tuple[str, int | None], text: int) -> torch.Tensor:
    return store.read(*key, store.rows(text=text))


# -- the numbers --


@pytest.mark.parametrize("seed", range(6))
def test_a_store_holds_what_traces_hold_bit_for_bit(seed: int, tmp_path: Path) -> None:
    rng = Random(seed)
    of = model(rng.choice(["lgl", "lg"]))
    texts, bos = random_ids(rng, 7), rng.random() < 0.5
    sites = rng.sample(ROW_SITES, 5)
    layers = rng.sample(range(of.n_layers), rng.randint(1, of.n_layers))
    if not any(SITES[site].in_layer for site in sites):
        sites[0] = "z"
    exact = {"float32": None, "bfloat16": torch.bfloat16}
    for dtype, rounded in exact.items():
        store = harvest(
            of, texts, sites, tmp_path / dtype, layers=layers, dtype=dtype, bos=bos, rows_per_shard=rng.randint(1, 90)
        )
        assert store.n_texts == len(texts)
        assert {layer for _, layer in store.keys if layer is not None} == set(layers)
        assert {site for site, _ in store.keys} == set(sites)
        for number, text in enumerate(texts):
            t = gs.trace(text, model=of)
            for key in store.keys:
                expected = t[key][0 if bos else 1 :]
                assert torch.equal(
                    of_text(store, key, number), expected if rounded is None else expected.to(rounded).float()
                )


def test_int8_rows_are_in_steps_of_a_127th_of_their_largest_number(tmp_path: Path) -> None:
    store = harvest(None, TEXTS, ["z", "mlp_out"], tmp_path, layers=[1, 4], dtype="int8")
    for number, text in enumerate(TEXTS):
        t = gs.trace(text)
        for key in store.keys:
            expected = t[key][1:].reshape(len(t) - 1, -1)
            step = expected.abs().amax(1, keepdim=True) / 127
            found = of_text(store, key, number).reshape(expected.shape)
            assert ((found - expected).abs() <= step * 0.5001).all()
            assert ((found / step).round() - found / step).abs().max() < 1e-3


@pytest.mark.parametrize("weights", ["auto", "int8"])
def test_a_streamed_model_reads_its_layers_once_for_all_texts_of_a_shard(
    weights: str, tmp_path: Path, layers_read: list[int]
) -> None:
    checkpoint("lgl").save_pretrained(tmp_path / "model")
    streamed = gs.load(tmp_path / "model", memory="1GiB", weights=weights)
    texts = random_ids(Random(0), 9)
    layers_read.clear()
    store = harvest(streamed, texts, ["resid_post", "z"], tmp_path / "streamed", dtype="float32")
    assert layers_read == [0, 1, 2]
    resident = gs.load(tmp_path / "model", weights=weights)
    same = harvest(resident, texts, ["resid_post", "z"], tmp_path / "resident", dtype="float32")
    for key in store.keys:
        assert torch.equal(store.read(*key, slice(None)), same.read(*key, slice(None)))


def test_layers_after_the_last_one_asked_for_do_not_run(tmp_path: Path, layers_read: list[int]) -> None:
    harvest(model("lglg"), random_ids(Random(0), 3), "mlp_act", tmp_path / "a", layers=1)
    assert layers_read == [0, 1]
    harvest(model("lglg"), random_ids(Random(0), 3), "embed", tmp_path / "b")
    assert layers_read == [0, 1]


def test_memory_changes_no_number(tmp_path: Path) -> None:
    texts = random_ids(Random(1), 60, most=60)
    for exact in (True, False):
        whole = harvest(model("lg"), texts, ["resid_post", "final"], tmp_path / f"whole{exact}", exact=exact)
        parts = harvest(model("lg"), texts, ["resid_post", "final"], tmp_path / f"parts{exact}", exact=exact, memory="3MB")
        assert files(whole.path) == files(parts.path)


def test_texts_that_share_products_agree_but_for_rounding(tmp_path: Path) -> None:
    texts = random_ids(Random(2), 40)
    apart = harvest(model("lgl"), texts, ["z", "logits"], tmp_path / "apart", dtype="float32", rows_per_shard=200)
    together = harvest(
        model("lgl"), texts, ["z", "logits"], tmp_path / "together", dtype="float32", rows_per_shard=200, exact=False
    )
    for key in apart.keys:
        a, b = (store.read(*key, slice(None)) for store in (apart, together))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=5e-5)  # 1.3e-5 on one processor
    assert np.array_equal(apart.places(slice(None)).id, together.places(slice(None)).id)


def test_edits_that_the_model_keeps_are_part_of_every_run(tmp_path: Path) -> None:
    edited = gs.load().edited([gs.ablate("z", layer=2, head=1), gs.knockout(layer=3, head=0, q_pos=-1, k_pos=[0])])
    for exact in (True, False):
        store = harvest(edited, TEXTS, ["z", "resid_post"], tmp_path / str(exact), dtype="float32", exact=exact)
        for number, text in enumerate(TEXTS):
            t = gs.trace(text, model=edited)
            for key in store.keys:
                torch.testing.assert_close(
                    of_text(store, key, number), t[key][1:], rtol=0 if exact else 1e-4, atol=0 if exact else 1e-4
                )


def test_outliers_are_the_rows_whose_norm_is_many_times_the_median(tmp_path: Path) -> None:
    whole = harvest(None, TEXTS, ["z", "resid_post"], tmp_path / "whole", layers=[1, 3], dtype="float32", rows_per_shard=20)
    less = harvest(
        None, TEXTS, ["z", "resid_post"], tmp_path / "less", layers=[1, 3], dtype="float32", rows_per_shard=20, outliers=1.5
    )
    kept = []
    for line, first in zip(whole.shards.lines, whole.shards.row_starts, strict=False):
        keep = torch.ones(line.n_rows, dtype=torch.bool)
        for key in whole.keys:
            norms = whole.read(*key, np.arange(first, first + line.n_rows)).flatten(1).norm(dim=1)
            keep &= norms <= 1.5 * norms.median()
        kept += [int(first) + row for row in keep.nonzero()[:, 0].tolist()]
    assert 0 < len(kept) < whole.n_rows
    assert sum(line.n_outliers for line in less.shards.lines) == whole.n_rows - len(kept)
    for key in whole.keys:
        assert torch.equal(less.read(*key, slice(None)), whole.read(*key, kept))
    for ours, theirs in zip(less.places(slice(None)), whole.places(kept), strict=True):
        assert np.array_equal(ours, theirs)
    left_out = sorted(set(range(whole.n_rows)) - set(kept))[0]
    text, pos = whole.places(left_out).text[0], whole.places(left_out).pos[0]
    with pytest.raises(SiteError, match="left out as an outlier"):
        less.rows(text=text, pos=pos)
    less.verify()


# -- long texts, and those without tokens --


def test_long_texts_are_refused_cut_or_split_as_asked(tmp_path: Path) -> None:
    texts = [[2, 5, 6, 7, 8, 9, 10, 11], [2, 20, 21], [30, 31, 32, 33, 34]]
    with pytest.raises(StoreError, match=r"text 0 has 8 tokens, and max_tokens is 4: give long='cut'.*or long='split'"):
        harvest(model("lg"), texts, "z", tmp_path / "refused", max_tokens=4)
    cut = harvest(model("lg"), texts, "z", tmp_path / "cut", max_tokens=4, long="cut")
    assert [cut.ids(i).tolist() for i in range(3)] == [[2, 5, 6, 7], [2, 20, 21], [30, 31, 32, 33]]
    split = harvest(model("lg"), texts, "z", tmp_path / "split", max_tokens=4, long="split", dtype="float32")
    pieces = [[2, 5, 6, 7], [2, 8, 9, 10], [2, 11], [2, 20, 21], [30, 31, 32, 33], [34]]
    assert [split.ids(i).tolist() for i in range(split.n_texts)] == pieces
    assert [split.source(i) for i in range(split.n_texts)] == [(0, 0), (0, 3), (0, 6), (1, 0), (2, 0), (2, 4)]
    for number, ids in enumerate(pieces):
        source, first = split.source(number)
        skipped = ids[0] == 2
        assert texts[source][first + skipped : first + len(ids)] == ids[skipped:]
        assert torch.equal(of_text(split, ("z", 1), number), gs.trace(ids, model=model("lg"))["z", 1][skipped:])


def test_texts_without_tokens_are_refused_or_skipped_and_counted(tmp_path: Path) -> None:
    for empty in ("", [], [2]):
        with pytest.raises(StoreError, match=r"text 1 has no tokens.*empty='skip'"):
            harvest(None, ["Mary", empty], "z", tmp_path / "refused", layers=0)
    store = harvest(None, ["", "Mary", "", "John", ""], "z", tmp_path / "skipped", layers=0, empty="skip")
    assert list(store.texts) == ["Mary", "John"]
    assert [store.source(i) for i in range(2)] == [(1, 0), (3, 0)]
    with pytest.raises(StoreError, match="no text has a row to store"):
        harvest(None, ["", ""], "z", tmp_path / "none", layers=0, empty="skip")


# -- where texts come from --


def test_lists_iterators_files_and_data_sets_give_the_same_store(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(TEXTS[:3]) + "\n\n  \n" + "\r\n".join(TEXTS[3:]), encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"n": 1, "text": text}) for text in TEXTS), encoding="utf-8")
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"body": text}) for text in TEXTS) + "\n\n", encoding="utf-8")
    (tmp_path / "one.txt").write_text("\n".join(TEXTS[:2]), encoding="utf-8")
    (tmp_path / "two.txt").write_text("\n".join(TEXTS[2:]), encoding="utf-8")

    class Stream:
        """As a streaming data set of Hugging Face: no length, and new texts each time it is gone through."""

        def __iter__(self) -> Iterator[dict[str, Any]]:
            return ({"id": 7, "text": text} for text in TEXTS)

    given: dict[str, tuple[Any, dict[str, Any]]] = {
        "list": (TEXTS, {}), "iterator": (iter(TEXTS), {}), "generator": ((text for text in TEXTS), {}),
        "txt": (tmp_path / "a.txt", {}), "jsonl": (str(tmp_path / "a.jsonl"), {}),
        "field": (tmp_path / "b.jsonl", {"field": "body"}),
        "several": ([tmp_path / "one.txt", tmp_path / "two.txt"], {}), "data set": (Stream(), {}),
        "array": (np.array(TEXTS), {}), "rows": ([{"text": text} for text in TEXTS], {}),
    }  # fmt: skip
    stores = {
        name: harvest(None, texts, ["z", "resid_post"], tmp_path / name, layers=2, rows_per_shard=20, **options)
        for name, (texts, options) in given.items()
    }
    for name, store in stores.items():
        assert files(store.path) == files(stores["list"].path), name
        assert list(store.texts) == TEXTS


def test_parquet_gives_the_same_store(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"n": range(6), "text": TEXTS}), tmp_path / "a.parquet", row_group_size=2)
    expected = harvest(None, TEXTS, "z", tmp_path / "list", layers=2, rows_per_shard=20)
    assert files(harvest(None, tmp_path / "a.parquet", "z", tmp_path / "p", layers=2, rows_per_shard=20).path) == files(
        expected.path
    )
    with pytest.raises(StoreError, match="has no column 'body'; it has 'n', 'text'"):
        harvest(None, tmp_path / "a.parquet", "z", tmp_path / "q", field="body")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(StoreError, match="cannot be read as Parquet"):
        harvest(None, tmp_path / "b.parquet", "z", tmp_path / "q")


# -- what is refused --


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "the list of texts is empty"),
        ("no such.txt", r"there is no file no such.txt. Texts themselves are given as a list"),
        ("The cat sat", r"a file is .txt .*; given 'The cat sat'. Texts themselves are given as a list"),
        ("a.csv", r"a file is .txt"),
        ({"train": ["a"]}, r"texts is a list or another iterable of texts"),
        (7, r"texts is a list or another iterable"),
        (b"abc", r"texts is a list or another iterable"),
        ([{"body": "a"}], "a text is a mapping without 'text'; it has 'body'"),
        (["a", None], "text 1: a prompt is text, token ids or chat messages"),
        ([[5, 10**7]], "text 0: token id 10000000 is outside"),
    ],
)
def test_texts_that_are_none_are_refused(texts: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((StoreError, PromptError), match=message):
        harvest(None, texts, "z", tmp_path / "out", layers=0)


def test_damaged_files_of_texts_are_named_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "Mary"}\n{"text": \n', encoding="utf-8")
    with pytest.raises(StoreError, match=r"line 2 of .*a.jsonl cannot be read as JSON"):
        harvest(None, tmp_path / "a.jsonl", "z", tmp_path / "out", layers=0)
    (tmp_path / "b.jsonl").write_text('{"text": "Mary"}\n{"body": "John"}\n', encoding="utf-8")
    with pytest.raises(StoreError, match=r"line 2 of .*b.jsonl has no field 'text'; it is an object with 'body'"):
        harvest(None, tmp_path / "b.jsonl", "z", tmp_path / "out", layers=0)
    (tmp_path / "c.txt").write_bytes(b"Mary\nJohn \xff\n")
    with pytest.raises(StoreError, match=r"c.txt cannot be read as text in UTF-8"):
        harvest(None, tmp_path / "c.txt", "z", tmp_path / "out", layers=0)


@pytest.mark.parametrize(
    ("sites", "layers", "message"),
    [
        ("pattern", None, "'pattern' has a value for each pair of positions, and a store holds a row for each position"),
        (["z", ("scores", 2)], None, "'scores' has a value for each pair"),
        ("resid_prev", None, "there is no site 'resid_prev'. Did you mean 'resid_pre'"),
        ("z", 6, "there is no layer 6"),
        ("z", [], r"layers is a number or a list of them"),
        (("final", 2), None, "'final' is outside the layers"),
        ("final", 2, "layers=2 goes with no site"),
        ([("z", 1)], [2], "goes with no site"),
        ([], None, "the list of sites is empty"),
        (None, None, "sites is a site or a list of them"),
    ],
)
def test_sites_without_rows_are_refused(sites: Any, layers: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=message):
        harvest(None, TEXTS, sites, tmp_path / "out", layers=layers)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"dtype": "float16"}, "dtype is one of 'bfloat16', 'float32', 'int8'; given 'float16'"),
        ({"max_tokens": 1}, "max_tokens is a whole number from 2 to 512"),
        ({"max_tokens": 513}, "max_tokens is a whole number from 2 to 512"),
        ({"long": "drop"}, "long is one of 'error', 'cut', 'split'"),
        ({"empty": True}, "empty is one of 'error', 'skip'"),
        ({"bos": 1}, "bos is True or False"),
        ({"outliers": 1}, "outliers is more than 1"),
        ({"outliers": "10"}, "outliers is a finite number"),
        ({"exact": None}, "exact is True or False"),
        ({"rows_per_shard": 0}, "rows_per_shard is a whole number from 1 to 2147483648"),
        ({"memory": 1000}, "memory of 1,000 bytes is too little"),
        ({"out": ""}, "the path of a store is empty"),
    ],
)
def test_arguments_out_of_range_are_refused(option: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((StoreError, BudgetError), match=message):
        gs.harvest(None, TEXTS, "z", **{"out": tmp_path / "out", "progress": False, **option})


def test_a_store_that_does_not_fit_the_disk_is_refused_before_the_first_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "free_on_disk", lambda folder: 10_000)
    needed = r"a store of \d+ rows would take [\d,]+ bytes, and 10,000 are free on the disk"
    with pytest.raises(BudgetError, match=needed):
        harvest(None, TEXTS, "resid_post", tmp_path / "list")

    class DataSet:
        def __len__(self) -> int:
            return 10**6

        def __iter__(self) -> Iterator[dict[str, str]]:
            return ({"text": "Mary and John"} for _ in range(10**6))

    with pytest.raises(BudgetError, match=r"a store of about 3,000,000 rows would take"):
        harvest(None, DataSet(), "resid_post", tmp_path / "sized", layers=0, rows_per_shard=9)
    with pytest.raises(BudgetError, match=r"the next shard, of \d+ rows, would take"):
        harvest(None, iter(TEXTS), "resid_post", tmp_path / "endless")
    for name in ("list", "sized", "endless"):
        assert not list((tmp_path / name).glob("shard-*"))


def test_a_model_whose_run_is_not_finite_is_refused(tmp_path: Path) -> None:
    broken = checkpoint("lg")
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight[3, 5] = float("inf")
    of = gs.load(broken)
    with pytest.raises(gs.GemmascopeError, match="NaN or infinity"):
        harvest(of, random_ids(Random(0), 3), "z", tmp_path / "out")
    assert gs.open_store(tmp_path / "out").n_rows == 0


# -- progress --


def test_the_bar_counts_tokens_of_all_texts(tmp_path: Path, bars: list[Any]) -> None:
    gs.harvest(None, TEXTS, "z", out=tmp_path / "a", layers=[1, 3], rows_per_shard=20)
    store = gs.open_store(tmp_path / "a")
    assert bars[0].total == store.n_rows
    assert bars[0].done == pytest.approx(store.n_rows)
    gs.harvest(None, iter(TEXTS), "z", out=tmp_path / "b", layers=[1, 3])
    assert bars[1].total is None


def test_ctrl_c_gives_a_warning_and_what_is_finished(tmp_path: Path) -> None:
    def texts() -> Iterator[str]:
        yield from TEXTS[:4]
        raise KeyboardInterrupt

    with pytest.warns(GemmascopeWarning, match=r"interrupted: \d+ shards with [\d,]+ rows are finished.*goes on after them"):
        store = harvest(None, texts(), "z", tmp_path / "a", layers=1, rows_per_shard=10)
    assert not store.finished
    assert 0 < store.n_texts < 4 + 1
    assert "not finished" in repr(store)
    whole = harvest(None, TEXTS, "z", tmp_path / "b", layers=1, rows_per_shard=10)
    assert files(harvest(None, TEXTS, "z", tmp_path / "a", layers=1, rows_per_shard=10).path) == files(whole.path)


# -- the command line --


def test_the_command_line_writes_the_same_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    out = tmp_path / "acts"
    asked = ["harvest", str(tmp_path / "a.txt"), "--site", "z,final", "--layers", "1,3", "--out", str(out)]
    assert main([*asked, "--dtype", "float32"]) == 0
    expected = harvest(None, TEXTS, ["z", "final"], tmp_path / "expected", layers=[1, 3], dtype="float32")
    assert capsys.readouterr().out == f"{expected} in {out}\n"
    assert files(out) == files(expected.path)
    assert main(asked) == 2
    assert "holds another store (dtype: 'float32' there, 'bfloat16' here)" in capsys.readouterr().err
    assert main([*asked[:-3], "one", *asked[-2:]]) == 2
    assert "--layers takes whole numbers with commas between" in capsys.readouterr().err

"""A harvest that is killed loses nothing; readers give every row, once an epoch, and say what is wrong with a store."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import model
from safetensors.torch import load_file

import gemmascope as gs
from gemmascope.errors import BudgetError, SiteError, StoreError
from gemmascope.stores.reading import batches as batches_module
from gemmascope.stores.reading.batches import Shuffle
from gemmascope.stores.writing import journal, parts, shard_writer

IDS = [[2, *(Random(n).randrange(3, 61) for _ in range(1 + n % 7))] for n in range(23)]


def harvest(out: Path, texts: Any = IDS, **options: Any) -> gs.Store:
    asked = {"sites": ["z", "resid_post"], "rows_per_shard": 16, "outliers": 1.9, "progress": False, **options}
    return gs.harvest(model("lg"), texts, out=out, **asked)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> gs.Store:
    return harvest(tmp_path_factory.mktemp("whole"))


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing to the disk takes most of the time of so small stores, and no test here pulls a plug."""
    monkeypatch.setattr(os, "fsync", lambda number: None)


# -- kills --


class Killed(BaseException):
    """Ends a harvest as a kill does: what was written stays as it is."""


class Kills:
    """Counts the steps of a harvest, and at one of them copies the folder, as a kill would leave it, and raises."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.n_steps, self.at = folder, 0, -1
        for module, name in [
            (shard_writer, "_write"), (shard_writer, "sync"), (shard_writer, "sync_folder"), (shard_writer, "digest_of"),
            (shard_writer.os, "replace"), (journal, "sync"), (journal.StoreJournal, "append"), (parts, "encode"),
        ]:  # fmt: skip
            monkeypatch.setattr(module, name, self._before(getattr(module, name)))

    def _before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            self.step()
            return function(*args, **kwargs)

        return called

    def step(self) -> None:
        self.n_steps += 1
        if self.n_steps == self.at:
            shutil.copytree(self.folder, f"{self.folder}.killed")
            raise Killed


def test_a_hundred_kills_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, few = tmp_path / "store", {"texts": IDS[:7], "layers": 0, "rows_per_shard": 6}
    kills = Kills(out, monkeypatch)
    harvest(out, **few)
    n_steps, rng, expected = kills.n_steps, Random(0), files(out)
    assert n_steps > 80
    n_kept = []
    for _ in range(100):
        shutil.rmtree(out)
        kills.n_steps, kills.at = 0, rng.randint(1, n_steps)
        with pytest.raises(Killed):
            harvest(out, **few)
        shutil.rmtree(out)
        Path(f"{out}.killed").rename(out)
        kills.at = -1
        if (out / "manifest.json").exists():
            partial = gs.open_store(out)  # what is finished can be read
            partial.verify()
            n_kept.append(len(partial.shards.lines))
        kills.n_steps = 0
        assert harvest(out, **few).finished
        assert files(out) == expected
    assert len(set(n_kept)) > 2  # kills came early and late


def test_a_line_that_was_cut_off_is_written_again(whole: gs.Store, tmp_path: Path) -> None:
    expected = files(whole.path)
    lines = expected["shards.jsonl"]
    for size in range(0, len(lines), 311):
        out = tmp_path / str(size)
        shutil.copytree(whole.path, out)
        (out / "shards.jsonl").write_bytes(lines[:size])
        harvest(out)
        assert files(out) == expected


CHILD = """
import sys
import gemmascope as gs

def texts():
    for number in range(20):
        print(number, flush=True)
        sys.stdin.readline()
        yield "Mary and John went to the store" + " and Mary" * (number % 5)

gs.harvest(None, texts(), ["z", "final"], layers=1, rows_per_shard=16, out=sys.argv[1], progress=False)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_processes_that_are_killed_lose_nothing(tmp_path: Path) -> None:
    out, n_finished = tmp_path / "store", []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    for stop in (9, 14):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(out)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        with child:
            while int(child.stdout.readline()) < stop:
                child.stdin.write("\n")
                child.stdin.flush()
            child.kill()
        n_finished.append(len(gs.open_store(out).shards.lines))
    assert 0 < n_finished[0] < n_finished[1]
    texts = ["Mary and John went to the store" + " and Mary" * (number % 5) for number in range(20)]
    for folder in (out, tmp_path / "whole"):
        gs.harvest(None, texts, ["z", "final"], layers=1, rows_per_shard=16, out=folder, progress=False)
    assert files(out) == files(tmp_path / "whole")


def test_other_texts_or_another_question_do_not_continue_a_store(whole: gs.Store, tmp_path: Path) -> None:
    out = tmp_path / "store"
    shutil.copytree(whole.path, out)
    for texts, message in [
        (IDS[::-1], r"holds other texts: texts 0 to \d+ are not those of shard-00000.safetensors"),
        (IDS[:-1], r"holds 23 texts or more, and 22 are given"),
        ([*IDS, [5]], r"is finished with 23 texts, and the texts that are given go on"),
    ]:
        with pytest.raises(StoreError, match=message):
            harvest(out, texts)
    for options, message in [
        ({"dtype": "float32"}, "dtype: 'bfloat16' there, 'float32' here"),
        ({"sites": "z"}, r"arrays: 'z.0, resid_post.0, z.1, resid_post.1' there, 'z.0, z.1' here"),
        ({"rows_per_shard": 17}, "rows_per_shard: 16 there, 17 here"),
        ({"outliers": None}, "outliers: 1.9 there, None here"),
    ]:
        with pytest.raises(StoreError, match="holds another store .*" + message):
            harvest(out, **options)
    with pytest.raises(StoreError, match=r"model: .* there, 'nano' here"):
        gs.harvest(None, IDS, "z", out=out)
    assert files(out) == files(whole.path)
    assert harvest(out, long="cut", empty="skip").finished  # no text was longer, or empty


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(StoreError, match=r"holds other files, such as 'notes.txt', and no manifest.json"):
        harvest(tmp_path)
    with pytest.raises(StoreError, match=r"notes.txt is a file; give a folder"):
        harvest(tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_two_harvests_do_not_write_to_one_folder(tmp_path: Path) -> None:
    def texts() -> Iterator[list[int]]:
        yield IDS[0]
        with pytest.raises(StoreError, match="another harvest is writing to"):
            harvest(tmp_path / "store")
        yield IDS[1]

    assert harvest(tmp_path / "store", texts()).n_texts == 2


def test_a_disk_that_fills_up_keeps_what_is_finished(
    whole: gs.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, left = shard_writer._write, [sum(len(content) for content in files(whole.path).values()) // 2]

    def fills(file: FileIO, offset: int, data: memoryview) -> None:
        left[0] -= len(data)
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        write(file, offset, data)

    monkeypatch.setattr(shard_writer, "_write", fills)
    out = tmp_path / "store"
    with pytest.raises(
        StoreError, match=r"the disk is full: make room on it. [1-9] shards, \d+ rows, are finished and stay"
    ):
        harvest(out)
    assert not list(out.glob("*.part"))
    monkeypatch.setattr(shard_writer, "_write", write)
    harvest(out)
    assert files(out) == files(whole.path)


# -- readers --


@pytest.fixture(scope="module", params=["bfloat16", "float32", "int8"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> gs.Store:
    return harvest(tmp_path_factory.mktemp("store"), dtype=request.param, sites=["z", "mlp_in_scale", "resid_post"])


def test_shuffled_batches_cover_each_row_once_an_epoch(store: gs.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "LEAST_BLOCK", 500)
    rng = Random(0)
    values = {key: store.read(*key, slice(None)) for key in store.keys}
    orders = []
    for buffer in (1, 1500, 4000, "64MiB"):
        size, keys = rng.randint(1, 30), rng.sample(list(store.keys), 2)
        batches = list(store.batches(keys, batch_size=size, seed=3, epochs=3, with_rows=True, buffer=buffer))
        n_batches = -(-store.n_rows // size)
        assert len(batches) == 3 * n_batches
        for epoch in range(3):
            of_epoch = batches[epoch * n_batches : (epoch + 1) * n_batches]
            assert all(len(rows) == size for rows, _ in of_epoch[:-1])
            order = np.concatenate([rows for rows, _ in of_epoch])
            assert sorted(order) == list(range(store.n_rows))
            orders.append(order.tolist())
        for rows, given in batches:
            for key, of_key in zip(keys, given, strict=True):
                assert torch.equal(of_key, values[key][torch.from_numpy(rows)])
    assert len({tuple(order) for order in orders}) == len(orders)
    assert list(range(store.n_rows)) not in orders


def test_a_reader_goes_on_at_any_batch(store: gs.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "LEAST_BLOCK", 500)
    for buffer in (2000, "64MiB"):
        asked: dict[str, Any] = {"batch_size": 7, "seed": 5, "epochs": 2, "with_rows": True, "buffer": buffer}
        batches = list(store.batches("z", 1, **asked))
        for start in range(len(batches) + 2):
            later = list(store.batches("z", 1, start=start, **asked))
            assert len(later) == max(0, len(batches) - start)
            for (rows, values), (expected_rows, expected) in zip(later, batches[start:], strict=True):
                assert np.array_equal(rows, expected_rows)
                assert torch.equal(values, expected)


def test_a_batch_mixes_rows_of_many_shards() -> None:
    asked = Shuffle([1000] * 50, 64, 500, 64 * 10_000, seed=0, epochs=1)
    pools = asked.pools(np.random.default_rng(0))
    assert len(pools) > 3
    assert all(len({block.shard for block in pool}) >= 8 for pool in pools[:-1])


def test_labelled_arrays_read_as_numpy_does(store: gs.Store) -> None:
    rng = Random(1)
    for key in store.keys:
        array, values = store[key], store.read(*key, slice(None)).numpy()
        assert array.shape == values.shape
        assert array.dims[0] == "row"
        for _ in range(12):
            start = rng.randrange(store.n_rows)
            choices: list[Any] = [
                rng.randrange(store.n_rows), -1, slice(start, start + 5), slice(None, None, -7),
                [rng.randrange(store.n_rows) for _ in range(6)], np.array([3, 3, 0]),
            ]  # fmt: skip
            row = rng.choice(choices)
            part = array.isel(row=row)
            assert np.array_equal(part.values, values[row])
            assert np.array_equal(part["pos"].values, store.places(slice(None)).pos[row])
            if values.ndim == 3:
                at = rng.choice([0, -1, slice(1, 3), [2, 0]])
                assert np.array_equal(
                    array.isel(row=row, head=at, d_head=slice(0, 4)).values,
                    values[row][..., at, :4] if isinstance(row, int) else values[row][:, at][..., :4],
                )


def test_rows_are_found_by_text_and_position(store: gs.Store) -> None:
    places = store.places(slice(None))
    for text in range(store.n_texts):
        rows = store.rows(text=text)
        assert (places.text[rows] == text).all()
        assert (np.diff(rows) == 1).all()
        for row in rows.tolist():
            assert store.rows(text=text, pos=int(places.pos[row])).tolist() == [row]
            assert store.rows(text=text, pos=int(places.pos[row]) - len(IDS[text])).tolist() == [row]
            assert IDS[text][places.pos[row]] == places.id[row]
            assert store.tokens[row] == str(places.id[row])  # of a model without a tokenizer
        assert store.ids(text).tolist() == IDS[text]
        assert store.texts[text] == " ".join(map(str, IDS[text]))
    assert store.texts[-2:] == [store.texts[21], store.texts[22]]
    with pytest.raises(SiteError, match="position 0 of text 3 has no row: <bos> was left out"):
        store.rows(text=3, pos=0)
    for wrong in (23, -1, "a", 1.0):
        with pytest.raises(SiteError, match="text is"):
            store.rows(text=wrong)
    with pytest.raises(SiteError, match="there is no row 10000"):
        store.read("z", 1, [0, 10_000])
    with pytest.raises(SiteError, match=r"does not hold q.1; it holds z.0"):
        store["q", 1]
    scanned = list(store.scan("z", 1, rows=7))
    assert [first for first, _ in scanned] == list(range(0, store.n_rows, 7))
    assert torch.equal(torch.cat([rows for _, rows in scanned]), store.read("z", 1, slice(None)))


def test_more_rows_than_fit_the_memory_are_an_error(store: gs.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from gemmascope.memory import placement

    monkeypatch.setattr(placement, "free_bytes", lambda device: 100)
    with pytest.raises(BudgetError, match=r"rows of z.1 would take .*store.scan"):
        _ = store["z", 1].values


def test_shards_are_plain_safetensors(store: gs.Store) -> None:
    first = 0
    for line in store.shards.lines:
        tensors = load_file(store.path / line.file)
        rows = np.arange(first, first + line.n_rows)
        stored = tensors["resid_post.1"]
        assert (
            stored.dtype
            == {"bfloat16": torch.bfloat16, "float32": torch.float32, "int8": torch.int8}[store.manifest.spec.dtype]
        )
        scale = tensors["resid_post.1.scale"][:, None] if "resid_post.1.scale" in tensors else 1
        assert torch.equal(stored.float() * scale, store.read("resid_post", 1, rows))
        assert np.array_equal(tensors["rows.text"].numpy(), store.places(rows).text)
        first += line.n_rows
    assert first == store.n_rows


# -- damage --


def test_damaged_shards_are_named(whole: gs.Store, tmp_path: Path) -> None:
    name = whole.shards.lines[1].file
    content = (whole.path / name).read_bytes()
    for number, (damaged, message) in enumerate(
        [
            (content[:-1], "its header names"), (content + b"\0", "its header names"), (b"", "does not begin as a shard"),
            (b"\xff" * 100, "does not begin as a shard"),
            (content.replace(b"resid_post.1", b"resid_post.7"), "resid_post.1 should be"),
            (None, "cannot be read: No such file"),
        ]
    ):  # fmt: skip
        out = tmp_path / str(number)
        shutil.copytree(whole.path, out)
        (out / name).unlink() if damaged is None else (out / name).write_bytes(damaged)
        store = gs.open_store(out)
        with pytest.raises(StoreError, match=rf"{name} .*{message}"):
            store.read("resid_post", 1, slice(None))
        with pytest.raises(StoreError, match=name):
            store.verify()
        with pytest.raises(StoreError, match=name):
            list(store.batches("resid_post", 1))
    for byte in (len(content) // 2, len(content) - 1):
        changed = bytearray(content)
        changed[byte] ^= 1
        (tmp_path / "0" / name).write_bytes(changed)
        with pytest.raises(StoreError, match=f"{name} is damaged: its SHA-256 is"):
            gs.open_store(tmp_path / "0").verify()
    whole.verify()


def test_damaged_lists_and_manifests_are_named(whole: gs.Store, tmp_path: Path) -> None:
    lines = (whole.path / "shards.jsonl").read_text("utf-8").splitlines()
    manifest = json.loads((whole.path / "manifest.json").read_text("utf-8"))
    for number, (name, text, message) in enumerate([
        ("shards.jsonl", "\n".join([lines[1], lines[0], *lines[2:]]) + "\n", "line 1 of .*shards.jsonl is damaged"),
        ("shards.jsonl", "\n".join([lines[0], *lines[2:]]) + "\n", "line 2 of .*shards.jsonl is damaged"),
        ("shards.jsonl", "\n".join(lines).replace('"n_rows": 1', '"n_rows": 2') + "\n", "its checksum does not fit"),
        ("manifest.json", "{", "manifest.json cannot be read as JSON"),
        ("manifest.json", json.dumps({**manifest, "format": "other"}), "not of a store that this version"),
        ("manifest.json", json.dumps({**manifest, "spec": {}}), "manifest.json is damaged: KeyError"),
    ]):  # fmt: skip
        out = tmp_path / str(number)
        shutil.copytree(whole.path, out)
        (out / name).write_text(text, encoding="utf-8")
        with pytest.raises(StoreError, match=message):
            gs.open_store(out)


def test_what_is_no_store_is_not_opened(whole: gs.Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no such folder"):
        gs.open_store(tmp_path / "none")
    with pytest.raises(StoreError, match=r"has no manifest.json"):
        gs.open_store(tmp_path)
    with pytest.raises(StoreError, match="it is a file"):
        gs.open_store(Path(__file__))
    with pytest.raises(StoreError, match=r"was harvested from .* and not from 'nano': give that model"):
        gs.open_store(whole.path, model=gs.load())
    assert gs.open_store(whole.path, model=model("lg")).n_rows == whole.n_rows
    with pytest.raises(StoreError, match="with other weights, another tokenizer or other edits"):
        gs.open_store(whole.path, model=model("lg").edited([gs.ablate("z", layer=0, head=1)]))

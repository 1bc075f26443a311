"""The same rows in a store, as an Arrow file and in zarr: bytes, and CPU seconds to read all rows and rows at random.

    python tests/benchmarks/store_formats.py [--rows 16384] [--width 2304] [--rounds 5]

Rows are bfloat16. Arrow and zarr hold its bits as uint16 here, and rows come back as float32, as the store's do. One thread,
files in the page cache; the least of some rounds, in turns. Formats that are not installed are left out.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from checkpoints import checkpoint

import gemmascope as gs

# Reads all rows, and some rows by their numbers.
Readers = tuple[Callable[[], Tensor], Callable[[np.ndarray], Tensor]]


def from_bits(bits: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(bits)).view(torch.bfloat16).float()


def arrow(bits: np.ndarray, path: Path) -> Readers:
    import pyarrow as pa
    from pyarrow import feather

    column = pa.FixedSizeListArray.from_arrays(pa.array(bits.reshape(-1)), bits.shape[1])
    feather.write_feather(pa.table({"rows": column}), path, compression="uncompressed", chunksize=8192)
    shape = (-1, bits.shape[1])

    def whole() -> Tensor:
        chunks = feather.read_table(path, memory_map=True)["rows"].chunks
        return from_bits(np.concatenate([chunk.flatten().to_numpy().reshape(shape) for chunk in chunks]))

    def some(rows: np.ndarray) -> Tensor:
        taken = feather.read_table(path, memory_map=True)["rows"].take(pa.array(rows)).combine_chunks()
        return from_bits(taken.flatten().to_numpy().reshape(shape))

    return whole, some


def zarr(bits: np.ndarray, path: Path, compressors: str | None, n_rows: int = 1024) -> Readers:
    import zarr as library

    array = library.create_array(
        str(path), shape=bits.shape, chunks=(n_rows, bits.shape[1]), dtype="uint16", compressors=compressors
    )
    array[:] = bits
    opened = library.open_array(str(path), mode="r")
    return lambda: from_bits(opened[:]), lambda rows: from_bits(opened.oindex[rows])


def size(path: Path) -> int:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(os.path.getsize(one) for one in files)


def least(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            call()
            taken[name].append(time.process_time() - start)
    return {name: min(times) for name, times in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16_384)
    parser.add_argument("--width", type=int, default=2304)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder, rng = Path(tempfile.mkdtemp()), Random(0)
    try:
        model = gs.load(checkpoint("l", hidden_size=given.width, intermediate_size=8, max_position_embeddings=256))
        texts = [[2, *(rng.randrange(3, 61) for _ in range(255))] for _ in range(-(-given.rows // 255))]
        store = gs.harvest(model, texts, "resid_post", layers=0, out=folder / "store", exact=False, progress=False)
        all_rows = store.read("resid_post", 0, slice(None))
        bits = all_rows.to(torch.bfloat16).view(torch.uint16).numpy()
        readers: dict[str, tuple[Path, Readers]] = {
            "a store": (
                store.path,
                (lambda: store.read("resid_post", 0, slice(None)), lambda rows: store.read("resid_post", 0, rows)),
            )
        }
        makers: dict[str, Callable[[Path], Readers]] = {
            "Arrow, as Feather": lambda path: arrow(bits, path),
            "zarr, chunks of 1,024 rows, zstd": lambda path: zarr(bits, path, "auto"),
            "zarr, chunks of 1,024 rows": lambda path: zarr(bits, path, None),
            "zarr, chunks of 16 rows": lambda path: zarr(bits, path, None, 16),
        }
        for name, make in makers.items():
            path = folder / name.replace(" ", "_")
            try:
                readers[name] = path, make(path)
            except ImportError as error:
                print(f"{name} is left out: {error}")
        rows = np.random.default_rng(0).permutation(store.n_rows)[:1024]
        for name, (_, (whole, some)) in readers.items():
            assert torch.equal(whole(), all_rows), name
            assert torch.equal(some(rows), all_rows[torch.from_numpy(rows)]), name
        scans = least({name: whole for name, (_, (whole, _)) in readers.items()}, given.rounds)
        picks = least({name: partial(some, rows) for name, (_, (_, some)) in readers.items()}, given.rounds)
        print(f"{store.n_rows:,} rows of {given.width:,} numbers; CPU milliseconds of one thread")
        for name, (path, _) in readers.items():
            times = f"all {1e3 * scans[name]:7.1f}  1,024 at random {1e3 * picks[name]:7.1f}"
            print(f"{name:34} {size(path) / 1e6:6.1f} MB  {times}")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()

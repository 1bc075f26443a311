"""Tokens a second of gs.harvest beside transformers with a hook in padded batches, and the shuffled reader beside the disk.

    python tests/benchmarks/harvest.py [--layers 8] [--width 256] [--texts 64] [--rounds 3] [--part harvest|reader]

CPU seconds of one thread, in turns. The model is a random Gemma 2 in float32; texts have 16 to 256 tokens. All keep the
stream after the last layer in bfloat16, so that no layer is left out of any of them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from checkpoints import checkpoint
from transformers import Gemma2ForCausalLM

import gemmascope as gs


def padded(source: Gemma2ForCausalLM, texts: list[list[int]], batch: int, folder: Path) -> None:
    """A hook after the last layer; texts in padded batches, in their order; real rows to a file of each batch."""
    kept: list[torch.Tensor] = []
    torso = source.model
    hook = torso.layers[-1].register_forward_hook(
        lambda module, given, output: kept.append(output[0] if isinstance(output, tuple) else output)
    )
    for start in range(0, len(texts), batch):
        of_batch = texts[start : start + batch]
        longest = max(map(len, of_batch))
        ids = torch.tensor([text + [0] * (longest - len(text)) for text in of_batch])
        mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in of_batch])
        with torch.no_grad():
            torso(input_ids=ids, attention_mask=mask, use_cache=False)
        rows = kept.pop()[mask.bool()]
        torch.save(rows.to(torch.bfloat16), folder / f"{start}.pt")
    hook.remove()


def seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def best(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The least CPU seconds of each, in turns."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken[name].append(seconds(call))
    return {name: min(times) for name, times in taken.items()}


def harvests(given: argparse.Namespace, folder: Path) -> None:
    width = given.width
    source = checkpoint(
        "lg" * (given.layers // 2), vocab_size=4096, hidden_size=width, intermediate_size=4 * width, num_attention_heads=4,
        num_key_value_heads=2, head_dim=width // 4, query_pre_attn_scalar=width // 4, sliding_window=128,
        max_position_embeddings=512,
    )  # fmt: skip
    model, rng = gs.load(source), Random(0)
    texts = [[2, *(rng.randrange(3, 4096) for _ in range(rng.randint(15, 255)))] for _ in range(given.texts)]
    n_tokens = sum(map(len, texts))

    def ours(exact: bool) -> None:
        out = tempfile.mkdtemp(dir=folder)
        gs.harvest(model, texts, "resid_post", layers=-1, out=out, bos=True, exact=exact, progress=False)

    calls: dict[str, Callable[[], object]] = {
        "gs.harvest": lambda: ours(True), "gs.harvest, exact=False": lambda: ours(False),
        "transformers, batches of 8": lambda: padded(source, texts, 8, folder),
        "transformers, batches of 32": lambda: padded(source, texts, 32, folder),
    }  # fmt: skip
    print(f"{given.texts} texts, {n_tokens:,} tokens; {given.layers} layers, d_model {width}")
    for name, taken in best(calls, given.rounds).items():
        print(f"{name:28} {n_tokens / taken:10,.0f} tokens a CPU second")


def reader(given: argparse.Namespace, folder: Path) -> None:
    """The shuffled reader beside reading the same files from their first byte to their last, both from the disk itself."""
    rng = Random(0)
    model = gs.load(checkpoint("l", hidden_size=2304, intermediate_size=8, max_position_embeddings=256))
    texts = [[2, *(rng.randrange(3, 61) for _ in range(255))] for _ in range(3 * given.texts)]
    store = gs.harvest(model, texts, "embed", out=folder / "store", progress=False)
    paths = [store.path / line.file for line in store.shards.lines]

    def forget() -> None:
        for path in paths:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def whole() -> None:
        buffer = bytearray(2**20)
        for path in paths:
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    def shuffled() -> None:
        for _ in store.batches("embed", batch_size=4096, buffer="64MiB"):
            pass

    n_bytes = store.n_rows * store.manifest.spec.bytes_of(store.array("embed"))
    taken: dict[str, list[tuple[float, float]]] = {}
    for _ in range(given.rounds):
        for name, call in (("read from end to end", whole), ("shuffled batches", shuffled)):
            forget()
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            taken.setdefault(name, []).append((time.perf_counter() - wall, time.process_time() - cpu))
    print(
        f"{store.n_rows:,} rows of 2,304 numbers in bfloat16, {n_bytes / 1e6:,.0f} MB; the page cache is dropped before each"
    )
    for name, times in taken.items():
        wall, cpu = (min(each) for each in zip(*times, strict=True))
        print(f"{name:28} {n_bytes / wall / 1e6:10,.0f} MB a second, {n_bytes / cpu / 1e6:10,.0f} MB a CPU second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", choices=("harvest", "reader", "both"), default="both")
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    try:
        if given.part != "reader":
            harvests(given, folder)
        if given.part != "harvest":
            reader(given, folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()

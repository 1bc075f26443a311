"""Known features recovered: gs.train_sae beside dictionary_learning's TopK and BatchTopK trainers, on the same rows.

    python tests/benchmarks/dictionaries.py [--features 128] [--width 64] [--active 4] [--steps 1500] [--rounds 2]

Rows are sums of a few of known directions (tests/known_features.py). Each trainer takes as many steps of as many rows, with
a dictionary of as many features, and the best of three learning rates. What counts: the mean over known features of the
largest cosine with a decoder's row, how many have one above 0.9, the share of variance explained on other rows, and CPU
seconds of one thread. Without dictionary_learning there are ours alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from known_features import KnownFeatures

import gemmascope as gs

RATES = (1e-3, 3e-3, 1e-2)
BATCH = 256

# A trainer gives the decoder's rows [feature, d] and the reconstruction of rows.
Trained = tuple[Tensor, Callable[[Tensor], Tensor]]


def ours(architecture: str, rows: Tensor, given: argparse.Namespace, rate: float, seed: int) -> Trained:
    d = gs.train_sae(
        rows, "resid_post", 0, out=tempfile.mkdtemp(), architecture=architecture, features=given.features, l0=given.active,
        steps=given.steps, batch_size=BATCH, rate=rate, bandwidth=0.05, seed=seed, held_out=0.01, progress=False,
    ).dictionary  # fmt: skip
    return d.W_dec, lambda x: d.encode(x).reconstruction


def theirs(architecture: str, rows: Tensor, given: argparse.Namespace, rate: float, seed: int) -> Trained:
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    kind = TopKTrainer if architecture == "topk" else BatchTopKTrainer
    trainer: Any = kind(
        steps=given.steps, activation_dim=given.width, dict_size=given.features, k=int(given.active), layer=0,
        lm_name="none", lr=rate, warmup_steps=given.steps // 20, decay_start=given.steps * 3 // 4,
        threshold_start_step=given.steps // 2,
        seed=seed, device="cpu",
    )  # fmt: skip
    batches = endless(rows, seed)
    for step in range(given.steps):
        trainer.update(step, next(batches))
    return trainer.ae.decoder.weight.T, lambda x: trainer.ae(x)


def endless(rows: Tensor, seed: int) -> Iterator[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(rows), generator=rng)
        for start in range(0, len(rows) - BATCH + 1, BATCH):
            yield rows[order[start : start + BATCH]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--active", type=float, default=4)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    trainers: dict[str, Callable[..., Trained]] = {
        f"gs.train_sae, {name}": lambda *a, name=name: ours(name, *a) for name in ("topk", "batchtopk", "jumprelu")
    }
    try:
        import dictionary_learning  # noqa: F401

        trainers |= {
            f"dictionary_learning, {name}": lambda *a, name=name: theirs(name, *a) for name in ("topk", "batchtopk")
        }
    except ImportError as error:
        print(f"dictionary_learning is not installed ({error})")
    known = KnownFeatures.random(given.features, given.width, given.active, seed=0)
    rows, other = known.rows(50_000, seed=1), known.rows(5_000, seed=2)
    print(
        f"{given.features} known features, width {given.width}, {given.active:g} active; {given.steps} steps of {BATCH} rows"
    )
    for name, train in trainers.items():
        best: tuple[float, ...] = (0.0,)
        for rate in RATES:
            each = []
            for seed in range(given.rounds):
                start = time.process_time()
                W_dec, reconstruct = train(rows, given, rate, seed)
                taken = time.process_time() - start
                with torch.no_grad():
                    left = other - reconstruct(other)
                    cosines = (known.directions @ normalize(W_dec.detach(), dim=1).T).amax(1)
                explained = 1 - float(left.square().sum() / (other - other.mean(0)).square().sum())
                each.append((float(cosines.mean()), float((cosines > 0.9).float().mean()), explained, taken, rate))
            best = max(best, tuple(sum(column) / len(each) for column in zip(*each, strict=True)))
        cosine, found, explained, taken, rate = best
        print(
            f"{name:32} cosine {cosine:.3f}  above 0.9 {found:.0%}  explained {explained:.1%}  {taken:5.1f} s  rate {rate:g}"
        )


if __name__ == "__main__":
    main()

"""What workers on Ray cost beside one process, part by part; and from those parts, by arithmetic, many pairs on many cards.

    python tests/benchmarks/workers.py [--pairs 60] [--workers 1 2] [--rounds 2] [--seconds-a-pair 4.24]

A sweep of nano over its layers and positions, in passes of some thousand rows. One process and the workers take turns.
--seconds-a-pair: of a sweep of 26 x 64 cells on one card, measured elsewhere, for the arithmetic.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import gemmascope as gs
from gemmascope.memory import limits

ROWS = 4096  # of a pass here
CELLS, MEAN_ROWS, ROWS_OF_CARD = 26 * 64, 65 / 2, 32 * 1024  # of a pair of 2B with 64 positions; of a pass on a card


def wall(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and of this process's own CPU."""
    start, own = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - own


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds-a-pair", type=float, default=4.24)
    args = parser.parse_args()
    limits.RESIDENT_ROWS = ROWS  # of this process; the workers carry no more than it says
    drawn = [pair for pair in gs.prompts.ioi(8 * args.pairs, seed=0) if len(gs.load().ids(pair.clean)) == 16][: args.pairs]
    clean, corrupt = [pair.clean for pair in drawn], [pair.corrupt for pair in drawn]
    metric = [gs.logit_diff(pair.answer, pair.against) for pair in drawn]
    sweep = partial(gs.sweep, clean, corrupt, metric, site="resid_pre", progress=False)
    n_rows = len(drawn) * 6 * sum(range(1, 17))
    n_passes, n_cells = -(-n_rows // ROWS), len(drawn) * 6 * 16
    print(f"{len(drawn)} pairs of 16 tokens, about {n_rows:,} rows in {n_passes} passes")
    sweep()
    for n in args.workers:
        workers = gs.ray(n=n, gpus_per_worker=0, init={"object_store_memory": 100 * 2**20})
        connected, _ = wall(workers.__enter__)
        try:
            begun, _ = wall(partial(gs.sweep, clean[:1], corrupt[:1], metric[:1], site="z", by=("layer",), progress=False,
                                    workers=workers))  # fmt: skip
            alone, shared = [], []
            for _ in range(args.rounds):
                alone.append(wall(sweep))
                shared.append(wall(partial(sweep, workers=workers)))
        finally:
            ended, _ = wall(partial(workers.__exit__, None, None, None))
        (one, _), (many, own) = min(alone), min(shared)
        print(
            f"{n} workers: Ray starts in {connected:.1f} s, its workers in {begun:.1f} s, it ends in {ended:.1f} s; one "
            f" process {one:.2f} s, shared {many:.2f} s ({one / many:.2f} times as fast); the driver's own "
            f"{own:.2f} s, {1000 * own / n_passes:.0f} ms a pass, {1e6 * own / n_cells:.0f} us a cell"
        )
    n_of_cards, of_driver = -(-1000 * CELLS * MEAN_ROWS // ROWS_OF_CARD), 1000 * CELLS * own / n_cells
    seconds_a_pass = 1000 * args.seconds_a_pair / n_of_cards
    for cards in (1, 8, 64):
        computing = -(-n_of_cards // cards) * seconds_a_pass
        print(
            f"1,000 pairs x 26 x 64 cells on {cards} cards: {n_of_cards:,.0f} passes of {ROWS_OF_CARD:,} rows, "
            f"{computing:,.0f} s of computing, {of_driver:,.0f} s of the driver beside: {max(computing, of_driver):,.0f} s"
        )


if __name__ == "__main__":
    main()

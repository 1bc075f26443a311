"""The rows of a graph stay within their budget: bytes are counted on an emulated CUDA device."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from checkpoints import checkpoint, model_of, prompt
from emulated_cuda import EmulatedCuda
from random_dictionaries import dictionary

import gemmascope as gs
from gemmascope.circuits import frozen
from gemmascope.circuits.graph.attribution import prepare
from gemmascope.circuits.graph.build import Builder
from gemmascope.circuits.graph.memory import PassMemory, groups_of
from gemmascope.errors import BudgetError
from gemmascope.memory.placement import parse_bytes

SHAPE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16,
    "max_position_embeddings": 128, "query_pre_attn_scalar": 16, "sliding_window": 30,
}  # fmt: skip


def builder(model: Any, basis: str, n_pos: int, budget: str, keep: int, n_nodes: int) -> Builder:
    d, n_layers = model.config.d_model, model.n_layers
    skip = {"W_skip": torch.eye(d) / 9, "output_site": "mlp_raw"}
    made = {
        "transcoder": lambda: [dictionary(d, "transcoder", i, d, seed=i, **skip) for i in range(n_layers)],
        "sae": lambda: [dictionary(d, "mlp_out", i, seed=i) for i in range(n_layers)],
        "neuron": lambda: None,
    }
    return prepare(prompt(n_pos), model, basis, made[basis](), None, None, (n_nodes, keep), budget)


@pytest.mark.parametrize(
    ("basis", "n_pos", "budget", "keep", "keeps_patterns"),
    [
        ("transcoder", 24, "2500 KB", 2048, True),
        ("transcoder", 50, "3 MB", 30, False),
        ("sae", 16, "2 MB", 100, True),
        ("neuron", 36, "4 MB", 100, False),
    ],
)
def test_passes_stay_within_their_budget(
    cuda: EmulatedCuda,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    basis: str,
    n_pos: int,
    budget: str,
    keep: int,
    keeps_patterns: bool,
) -> None:
    """With many targets and few, with patterns that are kept and that are computed in each pass."""
    if not keeps_patterns:
        monkeypatch.setattr(frozen, "PATTERN_BYTES", 0)
    checkpoint("lg", **SHAPE).save_pretrained(tmp_path)
    model = gs.load(tmp_path, device="cuda")
    building = builder(model, basis, n_pos, budget, keep, 25)
    peaks, sizes = [], []
    for targets in building.chunks():
        gc.collect()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        building.run_chunk(targets, lambda: None)
        peaks.append(torch.cuda.max_memory_allocated() - before)
        sizes.append(len(targets))
    assert max(peaks) <= building.budget == parse_bytes(budget)
    assert max(peaks) > 0.1 * building.budget
    assert len(sizes) > 2
    assert max(sizes) > 1
    graph = building.data(is_finished=True)
    assert (graph.rows.sums - graph.rows.inputs.double()).abs().max() < 1e-4


def test_memory_grows_with_rows_and_not_with_nodes_squared() -> None:
    """Of twice as many positions a target takes about twice as much, though there are twice as many nodes as well."""
    model = model_of(checkpoint("lg", **SHAPE))
    one, two = (builder(model, "transcoder", n, "1GiB", 50, 40) for n in (60, 120))
    n_nodes = [len(each.basis.active(each.keys)) for each in (one, two)]  # type: ignore[arg-type]
    assert n_nodes[1] > 1.8 * n_nodes[0]
    took = [int(each.memory.bytes_of(torch.tensor(500), torch.tensor(500 * each.run.n_pos))) for each in (one, two)]
    assert took[1] < 2.2 * took[0]


def test_chunks_are_the_longest_that_fit() -> None:
    draw = torch.Generator().manual_seed(0)
    memory = PassMemory(40, 1000, 8, 3, 100, 7, 400)
    for _ in range(20):
        pos = torch.randint(0, 40, (30,), generator=draw)
        budget = int(torch.randint(3000, 9000, (1,), generator=draw))
        n = memory.fitting(pos, budget)
        rows = memory.rows_of(pos)
        for taken in (n, n + 1):
            groups = groups_of(pos[:taken], 40)
            assert sum(len(at) * (int(pos[at].max()) + 1) for at in groups) <= int(rows[:taken].sum())
            bytes_taken = int(memory.bytes_of(torch.tensor(taken), rows[:taken].sum()))
            fits = bytes_taken <= budget and int(rows[:taken].sum()) <= 400
            assert fits == (taken == n) or taken == 1 or taken > len(pos)
    with pytest.raises(BudgetError, match=r"too little for a graph of 40 positions: one target takes"):
        memory.require(100)

"""Runs of circuits against the naive run, in which every receiver reads its own mixture; pruning, sizes and areas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from plain_edges import PlainEdges
from test_edges import LAYOUTS, METRIC, N, clean_and_corrupt, model, plain_metric, source
from torch import Tensor

import gemmascope as gs
from gemmascope.circuits.edges.circuit import EdgeCircuit
from gemmascope.circuits.edges.nodes import Nodes
from gemmascope.errors import SweepError


def plain_circuit(oracle: PlainEdges, clean: list[int], written: dict[str, Tensor], nodes: Nodes, kept: Any) -> float:
    """The metric of a run with every edge outside the circuit patched. kept: bool [sender, receiver, pos]."""
    senders = {node.name: i for i, node in enumerate(nodes.senders)}
    receivers = {node.name: i for i, node in enumerate(nodes.receivers)}

    def mix(receiver: str, own: dict[str, Tensor]) -> Tensor:
        parts = []
        for name, value in own.items():
            inside = torch.from_numpy(kept[senders[name], receivers[receiver]])[:, None]
            parts.append(torch.where(inside, value, written[name]))
        return torch.stack(parts).sum(0)

    return float(plain_metric(oracle.run(clean, mix)[0]))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_circuit_runs_as_the_naive_run_does(layout: Any) -> None:
    m, oracle = model(*layout), PlainEdges(source(*layout))
    nodes = Nodes.of(m.config)
    draw = np.random.default_rng(5)
    clean, corrupt = clean_and_corrupt()
    written = oracle.run(corrupt)[1]
    m_full, m_empty = (float(plain_metric(oracle.run(ids)[0])) for ids in (clean, corrupt))
    spans = ((1, 2), (3, 4, 5, 6, 7, 8))
    for names, positions in ((("all",), (tuple(range(N)),)), (("a", "b"), spans)):
        kept = (draw.random((*nodes.has_edge.shape, len(names))) < 0.7) & nodes.has_edge[..., None]
        axis = "span" if len(names) > 1 else ""
        result = gs.faithfulness(EdgeCircuit(nodes, kept, axis, names, spans=positions), clean, corrupt, METRIC, model=m)
        by_pos = np.zeros((*nodes.has_edge.shape, N), bool)
        by_pos[:, :, 0] = True  # a position of no span is never patched; the prompts are alike there
        for number, at in enumerate(positions):
            by_pos[:, :, list(at)] = kept[:, :, number, None]
        expected = plain_circuit(oracle, clean, written, nodes, by_pos)
        assert result.values[0, 0] == pytest.approx(expected, abs=2e-3)
        assert abs(expected - m_full) > 0.01
        assert result.full[0] == pytest.approx(m_full, abs=2e-3)
        assert result.empty[0] == pytest.approx(m_empty, abs=2e-3)
        assert result.curve.item() == pytest.approx((expected - m_empty) / (m_full - m_empty), abs=1e-2)


def test_a_single_edge_left_out_is_its_exact_score() -> None:
    m = model(*LAYOUTS[0])
    clean, corrupt = clean_and_corrupt()
    exact = gs.edge_scores(clean, corrupt, METRIC, method="exact", model=m, progress=False)
    nodes = Nodes.of(m.config)
    for row in exact.top(4).to_dict("records"):
        kept = nodes.has_edge & ~nodes.find_edges([f"{row['sender']}->{row['receiver']}"])
        result = gs.faithfulness(EdgeCircuit(nodes, kept[..., None]), clean, corrupt, METRIC, model=m)
        assert result.values[0, 0] - result.full[0] == pytest.approx(row["score"], abs=1e-3 * abs(row["score"]) + 1e-3)


def test_the_curve_of_scores() -> None:
    m = model(*LAYOUTS[2])
    pairs = [clean_and_corrupt(seed) for seed in (0, 1)]
    cleans, corrupts = (list(side) for side in zip(*pairs, strict=True))
    scores = gs.edge_scores(cleans, corrupts, METRIC, model=m)
    sizes = [0.02, 0.2, 1.0]
    result = gs.faithfulness(scores, cleans, corrupts, METRIC, sizes=sizes, model=m)
    f = result.curve.values
    assert f[-1] == 1
    assert result.n_edges[-1] == scores.n_edges
    assert result.cpr == pytest.approx(0.18 * (f[0] + f[1]) / 2 + 0.8 * (f[1] + f[2]) / 2)
    assert result.cmd == pytest.approx(
        0.18 * (abs(1 - f[0]) + abs(1 - f[1])) / 2 + 0.8 * (abs(1 - f[1]) + abs(1 - f[2])) / 2
    )
    for number, (clean, corrupt) in enumerate(pairs):
        one = gs.faithfulness(scores.circuit(0.2), clean, corrupt, METRIC, model=m)
        assert one.values[0, 0] == pytest.approx(result.values[number, 1], abs=1e-3)
    default = gs.faithfulness(scores, cleans, corrupts, METRIC, model=m)
    assert default.curve["size"].values.tolist() == [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]
    assert result.plot(default).data[1].name == "eap (2)"
    assert "CPR" in repr(result)
    assert list(result.to_dataframe()) == ["size", "n_edges", "metric", "faithfulness"]


@pytest.mark.parametrize("ablate", [0.0, "mean"])
def test_ablations_of_what_is_outside(ablate: Any) -> None:
    layout = LAYOUTS[3]
    m, oracle = model(*layout), PlainEdges(source(*layout))
    nodes = Nodes.of(m.config)
    clean, other = clean_and_corrupt()
    own = oracle.run(other)[1]
    written = {name: torch.zeros_like(x) if ablate == 0.0 else x[1:].mean(0).expand(N, -1) for name, x in own.items()}
    more: Any = {} if ablate == 0.0 else {"reference": [gs.trace(other, model=m)]}
    kept = (np.random.default_rng(2).random((*nodes.has_edge.shape, 1)) < 0.7) & nodes.has_edge[..., None]
    result = gs.faithfulness(EdgeCircuit(nodes, kept), clean, None, METRIC, ablate=ablate, model=m, **more)
    expected = plain_circuit(oracle, clean, written, nodes, np.repeat(kept, N, -1))
    assert result.values[0, 0] == pytest.approx(expected, abs=2e-3)


def test_pruning_leaves_out_what_leads_nowhere() -> None:
    nodes = Nodes(2, 4, 2)
    through = ["embed->a0.kv1<v>", "a0.h2->m1", "m1->logits"]  # head 2 reads kv head 1
    no_input, no_end = ["a0.h0->m1", "a0.h1->a1.h0<q>"], ["embed->a1.h3<q>", "embed->m0"]
    edges = nodes.find_edges([*through, *no_input, *no_end])[..., None]
    circuit = EdgeCircuit(nodes, edges)
    frame = circuit.pruned().to_dataframe()
    assert sorted(frame["sender"] + "->" + frame["receiver"]) == sorted(through)
    assert circuit.pruned().senders == ["embed", "a0.h2", "m1"]
    assert len(circuit) == 7


def test_bad_input() -> None:
    m = model(*LAYOUTS[2])
    clean, corrupt = clean_and_corrupt()
    with pytest.raises(SweepError, match="a circuit is what"):
        gs.faithfulness(3, clean, corrupt, METRIC, model=m)  # type: ignore[arg-type]
    with pytest.raises(SweepError, match=r"nothing named 'a9.h1' writes to the stream"):
        gs.faithfulness(["a9.h1->logits"], clean, corrupt, METRIC, model=m)
    with pytest.raises(SweepError, match="m1 does not come before m0"):
        gs.faithfulness(["m1->m0"], clean, corrupt, METRIC, model=m)
    with pytest.raises(SweepError, match="of another model"):
        gs.faithfulness(EdgeCircuit(Nodes(6, 4, 2), Nodes(6, 4, 2).has_edge[..., None]), clean, corrupt, METRIC, model=m)
    scores = gs.edge_scores(clean, corrupt, METRIC, model=m)
    with pytest.raises(SweepError, match="sizes are shares of the edges, ascending"):
        gs.faithfulness(scores, clean, corrupt, METRIC, sizes=[0.5, 0.1], model=m)
    with pytest.raises(SweepError, match=r"size is a share of the edges, 0 to 1\.0"):
        scores.circuit(1.5)
    with pytest.raises(SweepError, match="an area is under a curve"):
        gs.faithfulness(scores.circuit(0.5), clean, corrupt, METRIC, model=m).cpr  # noqa: B018

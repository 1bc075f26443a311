"""Graphs, edge scores and circuits of weights that stream or are int8: as of the same weights, resident in float32."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, checkpoint_3, model_of, prompt
from random_dictionaries import dictionary
from torch import Tensor

import gemmascope as gs
from gemmascope.circuits.graph.attribution import attribution_graph
from gemmascope.errors import BudgetError
from gemmascope.model.model import Model

IDS, CORRUPT = prompt(10), prompt(10, seed=3)
METRIC = gs.logit_diff(3, 4)
D = 32
CASES = [(2, "streamed"), (2, "int8"), (3, "int8 streamed")]


@pytest.fixture(scope="module", params=CASES, ids=str)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Model]:
    """A stored model, and a resident one of float32 with the same weights."""
    (family, kind), path = request.param, tmp_path_factory.mktemp("stored")
    source(family).save_pretrained(path / "source")
    if "int8" in kind:
        gs.quantize(path / "source", path / "int8")
    folder = path / ("int8" if "int8" in kind else "source")
    stored = streamed(folder) if "streamed" in kind else gs.load(folder, device="cpu")
    reference, rounded = source(family), False
    for layer in stored.layers():
        for name, parameter in layer.named_parameters():
            weight = reference.get_parameter(f"model.layers.{layer.index}.{name}").data
            rounded |= not torch.equal(weight, parameter)
            weight.copy_(parameter)
    assert rounded == ("int8" in kind)
    return stored, model_of(reference)


def source(family: int) -> Any:
    return (checkpoint if family == 2 else checkpoint_3)("lgl", 1)


def streamed(folder: Path) -> Model:
    """The model in as little memory as it runs in."""
    with pytest.raises(BudgetError) as refused:
        gs.load(folder, device="cpu", memory=1)
    least = re.search(r"needs ([\d,]+) bytes at least", str(refused.value))
    assert least is not None
    model = gs.load(folder, device="cpu", memory=int(least[1].replace(",", "")))
    assert model.network.layer_source is not None
    return model


def numbers_of(model: Model, basis: str) -> dict[str, Tensor]:
    """The sums of a graph's rows, what a check finds, and what heads carried of its strongest edge."""
    given: dict[str, Any] = {"basis": "neuron", "max_nodes": 30}
    if basis == "transcoder":
        given = {"dictionaries": [dictionary(D, "transcoder", i, D, seed=i) for i in range(3)]}
    graph = attribution_graph(IDS, model=model, targets=METRIC, progress=False, **given)
    rows = graph.rows
    off = (rows.sums - rows.inputs.double()).abs()
    assert bool((off <= 1e-5 * (rows.total.double() + rows.bias.abs().double())).all())
    checked = graph.check(4)
    assert checked.held_error < 1e-4
    edge = next(pair for pair in zip(graph.edges["target"], graph.edges["source"], strict=True) if pair[1] != "bias")
    return {
        "total": rows.total, "bias": rows.bias, "inputs": rows.inputs, "influence": graph.influence[graph.activation > 0],
        "held": checked.effects.held, "true": checked.effects.true,
        "carried": torch.tensor(graph.loadings(edge)["carried"].values).nan_to_num(),
        "qk": torch.tensor(graph.qk((2, 1), 8, 5).values),
    }  # fmt: skip


@pytest.mark.parametrize("basis", ["transcoder", "neuron"])
def test_graphs(both: tuple[Model, Model], basis: str) -> None:
    found, expected = (numbers_of(one, basis) for one in both)
    for name, value in expected.items():
        assert value.abs().max() > 1e-4, name
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max())), name


def test_edges_and_circuits(both: tuple[Model, Model]) -> None:
    stored, reference = both
    for method in ("eap", "relp", "exact"):
        asked: dict[str, Any] = {"method": method, "progress": False, "positions": [9] if method == "exact" else None}
        found, expected = (gs.edge_scores(IDS, CORRUPT, METRIC, model=one, **asked) for one in both)
        largest = float(np.nanmax(np.abs(expected.values)))
        assert largest > 1e-3
        np.testing.assert_allclose(found.values, expected.values, rtol=1e-3, atol=1e-5 * largest, err_msg=method)
    curves = [gs.faithfulness(expected, IDS, CORRUPT, METRIC, sizes=[0.2], model=one) for one in (stored, reference)]
    np.testing.assert_allclose(curves[0].values, curves[1].values, rtol=1e-4, atol=1e-4)


def test_small_edges_in_half_precision_are_told() -> None:
    """Neither graphs nor edge scores change the model's dtype: they say that small numbers are not to be trusted."""
    low = model_of(checkpoint("lg", 1).bfloat16())
    for call in (
        lambda: attribution_graph(IDS, model=low, basis="neuron", max_nodes=5, progress=False),
        lambda: gs.edge_scores(IDS, CORRUPT, METRIC, model=low),
    ):
        with pytest.warns(gs.GemmascopeWarning, match="in bfloat16.*small edges"):
            call()

"""Edge scores: exact ones against the naive loop, estimates against autograd, over layouts of heads, windows and Gemma 3."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, checkpoint_3, model_of, prompt
from plain_edges import PlainEdges, whole_stream
from torch import Tensor

import gemmascope as gs
from gemmascope.circuits.edges.nodes import Nodes
from gemmascope.errors import GemmascopeWarning, MetricError, PromptError, SiteError, SweepError
from gemmascope.model.model import Model

METRIC = gs.logit_diff(3, 4)
N = 9  # positions, beyond the window of 4

# Layers, heads, kv heads, and the family: local and global layers, all groupings of heads.
LAYOUTS = [("lgl", 4, 2, 2), ("gl", 8, 4, 2), ("ll", 4, 4, 2), ("lg", 4, 1, 2), ("llg", 4, 2, 3)]


@cache
def source(kinds: str, heads: int, kv: int, family: int) -> Any:
    make = checkpoint if family == 2 else checkpoint_3
    return make(kinds, seed=heads, num_attention_heads=heads, num_key_value_heads=kv)


@cache
def model(*layout: Any) -> Model:
    return model_of(source(*layout))


def clean_and_corrupt(seed: int = 0) -> tuple[list[int], list[int]]:
    """Two prompts that differ at two positions, the first of which is not 0."""
    clean = prompt(N, seed=seed)
    corrupt = list(clean)
    corrupt[2], corrupt[5] = (clean[2] + 7) % 61, (clean[5] + 11) % 61
    return clean, corrupt


def plain_metric(logits: Tensor) -> Tensor:
    return logits[3] - logits[4]


def plain_patched(
    oracle: PlainEdges, clean: list[int], written: dict[str, Tensor], edges: dict[str, list[str]], at: Any
) -> float:
    """The metric of a run in which receivers read some senders' output as in another run, at some positions.

    edges: by receiver, the senders. at: the positions.
    """

    def mix(receiver: str, own: dict[str, Tensor]) -> Tensor:
        own = dict(own)
        for sender in edges.get(receiver, []):
            own[sender] = own[sender].clone()
            own[sender][at] = written[sender][at]
        return whole_stream(receiver, own)

    return float(plain_metric(oracle.run(clean, mix)[0]))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_oracle_computes_what_transformers_does(layout: Any) -> None:
    ids = prompt(N)
    logits = PlainEdges(source(*layout)).run(ids)[0]
    with torch.no_grad():
        expected = source(*layout)(torch.tensor([ids])).logits[0, -1]
    assert torch.allclose(logits.float(), expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_exact_scores_are_those_of_the_naive_loop(layout: Any) -> None:
    m, oracle = model(*layout), PlainEdges(source(*layout))
    clean, corrupt = clean_and_corrupt()
    spans = {"early": [1, 2], "late": [5, 6, 7, 8]}
    whole = gs.edge_scores(clean, corrupt, METRIC, method="exact", model=m, progress=False)
    parts = gs.edge_scores(clean, corrupt, METRIC, method="exact", positions=spans, model=m, progress=False)
    written = oracle.run(corrupt)[1]
    base = float(plain_metric(oracle.run(clean)[0]))
    assert whole.base_metric[0] == pytest.approx(base, abs=1e-3)
    frame = whole.to_dataframe()
    assert len(frame) == whole.n_edges == int(Nodes.of(m.config).has_edge.sum())
    scale = frame["score"].abs().max()
    assert scale > 1
    for row in frame.sample(12, random_state=1).to_dict("records"):
        edge = {row["receiver"]: [row["sender"]]}
        expected = plain_patched(oracle, clean, written, edge, slice(None)) - base
        assert row["score"] == pytest.approx(expected, abs=1e-4 * scale), row
        for span, at in spans.items():
            score = parts.effect.sel(sender=row["sender"], receiver=row["receiver"], span=span).item()
            expected = plain_patched(oracle, clean, written, edge, at) - base
            assert score == pytest.approx(expected, abs=1e-4 * scale), (row, span)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("method", ["eap", "eap-ig", "relp"])
def test_estimates_are_those_of_autograd(layout: Any, method: str) -> None:
    m, oracle = model(*layout), PlainEdges(source(*layout), relp=method == "relp")
    clean, corrupt = clean_and_corrupt(seed=1)
    steps = 3 if method == "eap-ig" else None
    scores = gs.edge_scores(clean, corrupt, METRIC, method=method, steps=steps, model=m)
    by_pos = gs.edge_scores(clean, corrupt, METRIC, method=method, steps=steps, positions="each", model=m)
    of_clean, of_corrupt = (oracle.run(ids)[1] for ids in (clean, corrupt))
    nodes = Nodes.of(m.config)
    expected = np.zeros((len(nodes.senders), len(nodes.receivers), N))
    shares = [0.0] if steps is None else [(i + 0.5) / steps for i in range(steps)]
    for share in shares:
        inputs = _input_gradients(oracle, clean, of_clean["embed"] + share * (of_corrupt["embed"] - of_clean["embed"]))
        for i, sender in enumerate(nodes.senders):
            change = of_corrupt[sender.name] - of_clean[sender.name]
            for j, receiver in enumerate(nodes.receivers):
                expected[i, j] += (change * inputs[receiver.name]).sum(-1).numpy() / len(shares)
    expected[~nodes.has_edge] = np.nan
    scale = np.nanmax(np.abs(expected.sum(-1)))
    assert scale > 0.01
    assert np.allclose(scores.effect.values, expected.sum(-1), atol=2e-4 * scale, equal_nan=True)
    assert np.allclose(by_pos.effect.values, expected, atol=2e-4 * scale, equal_nan=True)


def _input_gradients(oracle: PlainEdges, ids: list[int], embed: Tensor) -> dict[str, Tensor]:
    """The gradient of the metric at what every receiver reads, [pos, d_model]."""
    added: dict[str, Tensor] = {}

    def mix(receiver: str, written: dict[str, Tensor]) -> Tensor:
        added[receiver] = torch.zeros_like(embed, requires_grad=True)
        return whole_stream(receiver, written) + added[receiver]

    value = plain_metric(oracle.run(ids, mix, embed)[0])
    grads = torch.autograd.grad(value, list(added.values()), allow_unused=True)
    return {name: torch.zeros_like(embed) if g is None else g for name, g in zip(added, grads, strict=True)}


def test_the_scores_to_the_receivers_of_a_layer_add_up_to_the_gradient_of_the_stream() -> None:
    """Together, the receivers of all layers read everything that leads from the stream to the logits."""
    m = model(*LAYOUTS[0])
    clean, corrupt = clean_and_corrupt()
    scores = gs.edge_scores(clean, corrupt, METRIC, model=m)
    runs = gs.trace([clean, corrupt], model=m)
    change = runs[1]["embed"] - runs[0]["embed"]
    expected = float((change * runs[0].grad(METRIC, "embed")).sum())
    assert float(scores.effect.sel(sender="embed").sum()) == pytest.approx(expected, rel=1e-3)


def test_several_pairs_and_the_other_direction() -> None:
    m = model(*LAYOUTS[2])
    pairs = [clean_and_corrupt(seed) for seed in (0, 1)]
    cleans, corrupts = (list(side) for side in zip(*pairs, strict=True))
    metrics = [METRIC, gs.logit_diff(5, 6)]
    for method in ("exact", "eap"):
        every = gs.edge_scores(cleans, corrupts, metrics, method=method, into="corrupt", model=m, progress=False)
        assert every.per_pair.dims == ("pair", "sender", "receiver")
        for number, metric in enumerate(metrics):
            clean, corrupt = pairs[number]
            # The clean run's values in the corrupted run: the prompts change places.
            one = gs.edge_scores(corrupt, clean, metric, method=method, model=m, progress=False)
            assert np.allclose(every.per_pair[number], one.effect, atol=1e-4, equal_nan=True)
        assert np.allclose(every.effect, every.per_pair.mean("pair"), equal_nan=True)
        assert every.interval(n=50).dims == ("bound", "sender", "receiver")


def test_ablations_are_the_naive_loop() -> None:
    layout = LAYOUTS[3]
    m, oracle = model(*layout), PlainEdges(source(*layout))
    clean, other = clean_and_corrupt()
    reference = [gs.trace(ids, model=m) for ids in (clean, other)]
    written = [oracle.run(ids)[1] for ids in (clean, other)]
    base = float(plain_metric(oracle.run(clean)[0]))
    means = {name: (written[0][name][1:].sum(0) + written[1][name][1:].sum(0)) / (2 * N - 2) for name in written[0]}
    instead = {
        0.0: {name: torch.zeros_like(value) for name, value in written[0].items()},
        "mean": {name: value.expand(N, -1) for name, value in means.items()},
        "mean_by_pos": {name: (written[0][name] + written[1][name]) / 2 for name in written[0]},
    }
    for ablate, values in instead.items():
        more: Any = {"reference": reference} if isinstance(ablate, str) else {}
        scores = gs.edge_scores(clean, None, METRIC, method="exact", ablate=ablate, model=m, progress=False, **more)
        scale = float(np.nanmax(np.abs(scores.effect)))
        for row in scores.to_dataframe().sample(6, random_state=3).to_dict("records"):
            expected = plain_patched(oracle, clean, values, {row["receiver"]: [row["sender"]]}, slice(None)) - base
            assert row["score"] == pytest.approx(expected, abs=1e-4 * scale), (ablate, row)


def test_agreement_of_scores() -> None:
    m = model(*LAYOUTS[2])
    clean, corrupt = clean_and_corrupt()
    exact, eap = (gs.edge_scores(clean, corrupt, METRIC, method=x, model=m, progress=False) for x in ("exact", "eap"))
    table = exact.agreement(exact, eap)
    assert list(table.columns) == ["pearson", "spearman", "top_overlap", "error"]
    assert table.loc["exact"].tolist() == pytest.approx([1, 1, 1, 0])
    frame = exact.to_dataframe().merge(eap.to_dataframe(), on=["sender", "receiver"])
    for how in ("pearson", "spearman"):
        ranked = frame[["score_x", "score_y"]].rank() if how == "spearman" else frame[["score_x", "score_y"]]
        assert table.loc["eap", how] == pytest.approx(ranked.corr().iloc[0, 1])
    assert exact.plot().data[0].z.shape == (11, 27)
    assert len(exact.plot_against(eap, exact).data) == 4
    by_pos = gs.edge_scores(clean, corrupt, METRIC, positions="each", model=m)
    assert np.allclose(np.nansum(by_pos.plot().data[0].z), np.nansum(eap.effect), rtol=1e-4)
    assert exact.top(3)["score"].abs().is_monotonic_decreasing
    assert "scores of 110 edges of random" in repr(exact)
    assert exact.top(1)["sender"][0] in repr(exact)
    assert "method='exact'" in exact.code()
    with pytest.raises(SweepError, match="is of other edges"):
        exact.agreement(by_pos)


def test_bad_input() -> None:
    m = model(*LAYOUTS[2])
    clean, corrupt = clean_and_corrupt()

    def scores(**more: Any) -> Any:
        return gs.edge_scores(clean, corrupt, METRIC, **{"model": m, **more})

    with pytest.raises(SweepError, match="method is one of 'eap', 'eap-ig', 'relp', 'exact'"):
        scores(method="acdc")
    with pytest.raises(SweepError, match="steps= is for method='eap-ig'"):
        scores(steps=5)
    with pytest.raises(SweepError, match="positions is an empty mapping"):
        scores(positions={})
    with pytest.raises(SweepError, match="position 3 is in two spans, 'a' and 'b'"):
        scores(positions={"a": [2, 3], "b": 3})
    with pytest.raises(SiteError, match="there is no position 9"):
        scores(positions=[0, 9])
    with pytest.raises(SweepError, match="the positions of the two prompts must match"):
        gs.edge_scores(clean, corrupt[:-1], METRIC, model=m)
    with pytest.raises(SweepError, match="neither corrupt nor ablate was given"):
        gs.edge_scores(clean, None, METRIC, model=m)
    with pytest.raises(SweepError, match="one metric at a time"):
        gs.edge_scores(clean, corrupt, {"a": METRIC, "b": METRIC}, model=m)  # type: ignore[arg-type]
    with pytest.raises(MetricError, match="no gradient"):
        gs.edge_scores(clean, corrupt, gs.rank(3), model=m)
    with pytest.raises(SweepError, match="a model without lasting edits"):
        scores(model=m.edited([gs.scale("attn_out", 0.5, layer=0)]))
    with pytest.raises(PromptError):
        gs.edge_scores([], [], METRIC, model=m)
    with pytest.warns(GemmascopeWarning, match="the two prompts are the same"):
        same = gs.edge_scores(clean, clean, METRIC, method="exact", model=m, progress=False)
    assert np.nanmax(np.abs(same.effect)) == 0
    with pytest.raises(SweepError, match="the pairs have other positions"):
        gs.edge_scores([clean, clean[:-1]], [corrupt, corrupt[:-1]], METRIC, positions="each", model=m)
    bfloat = model_of(checkpoint("lg").to(torch.bfloat16))
    with pytest.warns(GemmascopeWarning, match="the model runs in bfloat16"):
        gs.edge_scores(clean, corrupt, METRIC, model=bfloat)


@pytest.mark.parametrize("family", [2, 3])
def test_attribution_by_relp_is_change_times_the_slopes_of_relp(family: int) -> None:
    layout = ("lgl", 4, 2, 2) if family == 2 else LAYOUTS[4]
    m, oracle = model(*layout), PlainEdges(source(*layout), relp=True)
    clean, corrupt = clean_and_corrupt()
    of_clean, of_corrupt = (oracle.run(ids)[1] for ids in (clean, corrupt))
    inputs = _input_gradients(oracle, clean, of_clean["embed"])
    result = gs.attribute(clean, corrupt, METRIC, site="mlp_out", by=("layer",), into="clean", method="relp", model=m)
    for layer in range(3):
        later = [g for name, g in inputs.items() if name == "logits" or int(name[1]) > layer]
        expected = float(((of_corrupt[f"m{layer}"] - of_clean[f"m{layer}"]) * torch.stack(later).sum(0)).sum())
        assert result.effect.sel(layer=layer).item() == pytest.approx(expected, rel=2e-3, abs=1e-3)
    assert result.question.estimate == "relp"
    assert "method='relp'" in result.code()
    with pytest.raises(SweepError, match="takes one backward pass"):
        gs.attribute(clean, corrupt, METRIC, site="z", method="relp", steps=3, model=m)
    with pytest.raises(SweepError, match="method is one of 'gradient', 'relp'"):
        gs.attribute(clean, corrupt, METRIC, site="z", method="lrp", model=m)

"""Attribution graphs: against autograd through the frozen network, and their sums."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import random_dictionaries
import torch
from checkpoints import checkpoint, checkpoint_3, model, model_of, prompt
from frozen_reference import frozen, logit_direction, normed, relp
from torch import Tensor

import gemmascope as gs
from gemmascope.circuits.graph.attribution import attribution_graph
from gemmascope.circuits.graph.bases import neurons
from gemmascope.circuits.graph.nodes import EMBEDDING, ERROR, FEATURE
from gemmascope.circuits.graph.result import AttributionGraph
from gemmascope.errors import BudgetError, DictionaryError, GraphError, SiteError
from gemmascope.model.model import Model
from gemmascope.sae.dictionary import Dictionary

IDS = prompt(11)
D = 32


def transcoders(model: Model, seed: int = 0, **more: Any) -> list[Dictionary]:
    """Random transcoders, one a layer."""
    d = model.config.d_model
    return [
        random_dictionaries.dictionary(d, "transcoder", layer, d, seed=seed + layer, **more)
        for layer in range(model.n_layers)
    ]


def require_sums(graph: AttributionGraph, scale: float = 1e-5) -> None:
    """Every row adds up to its input, to 1e-5 of the sizes of what is added."""
    rows = graph.rows
    assert len(rows.targets) > 5
    assert float(rows.total.min()) > 0
    off = (rows.sums - rows.inputs.double()).abs()
    assert bool((off <= scale * (rows.total.double() + rows.bias.abs().double())).all()), off.max()


def reading(one: Dictionary, trace: gs.Trace, x: Tensor) -> Tensor:
    """What a transcoder's encoder is multiplied by, for the stream before the MLP, with the norm's scale held."""
    assert one.layer is not None
    if one.input_site == "resid_mid":
        return x
    if one.input_site == "mlp_in":
        return normed(x, trace.model.layer(one.layer).pre_feedforward_layernorm, trace["mlp_in_scale", one.layer])
    return x / trace["mlp_in_scale", one.layer][:, None]


def check_transcoders(model: Model, ids: Sequence[int], dictionaries: Sequence[Dictionary]) -> AttributionGraph:
    """Every edge of a graph is what autograd says that one node's writing gave to another's input."""
    graph = attribution_graph(ids, model=model, dictionaries=dictionaries, keep=10**6, progress=False)
    require_sums(graph)
    trace = gs.trace(list(ids), model=model)
    embed = trace.residuals[0].clone().requires_grad_()
    acts: list[Tensor] = []
    for one in dictionaries:
        assert one.layer is not None
        acts.append(one.activations(reading(one, trace, trace["resid_mid", one.layer])))
        acts[-1][0] = 0
    offsets = [torch.zeros(len(ids), D, requires_grad=True) for _ in dictionaries]

    def mlp(layer: int, x: Tensor) -> Tensor:
        one = dictionaries[layer]
        out = trace[one.output_site, layer].detach().clone() + offsets[layer]
        if one.W_skip is not None:
            through = reading(one, trace, x) @ one.W_skip
            out = out + torch.where(torch.arange(len(ids))[:, None] > 0, through - through.detach(), 0.0)
        if one.output_site == "mlp_raw":
            out = normed(out, model.layer(layer).post_feedforward_layernorm, trace["mlp_out_scale", layer])
        return out

    stream = frozen(trace, embed, mlp)
    inputs = [reading(one, trace, stream.resid_mid[i]) @ one.W_enc for i, one in enumerate(dictionaries)]
    kind, unit, pos, feature = (part.tolist() for part in graph.decoded)
    matrix = torch.tensor(graph.matrix().values)
    targets = graph.index_of(graph.rows.targets).tolist()
    draw = torch.Generator().manual_seed(0)
    checked = [targets[i] for i in torch.randperm(len(targets), generator=draw)[:25].tolist()]
    checked += [i for i in targets if kind[i] != FEATURE]
    errors = [
        trace[one.output_site, i] - one.decode(acts[i], reading(one, trace, trace["resid_mid", i]))
        for i, one in enumerate(dictionaries)
    ]
    wrote = torch.zeros(len(graph), D)
    for j, (k, u, p, f) in enumerate(zip(kind, unit, pos, feature, strict=True)):
        if k == FEATURE:
            wrote[j] = acts[u][p, f] * dictionaries[u].W_dec[f]
        elif k == ERROR and p > 0:
            wrote[j] = errors[u][p]
        elif k == EMBEDDING:
            wrote[j] = embed[p].detach()
    for i in checked:
        if kind[i] == FEATURE:
            value = inputs[unit[i]][pos[i], feature[i]]
        else:
            token = graph.outputs[feature[i]].token
            assert token is not None
            value = stream.resid_post[-1][-1] @ logit_direction(model, trace, token, len(ids) - 1)
        read = torch.autograd.grad(value, [embed, *offsets], retain_graph=True, materialize_grads=True)
        expected = torch.stack([  # what each node wrote, as the target reads it there
            read[0 if k == EMBEDDING else 1 + u][p] @ one for k, u, p, one in zip(kind, unit, pos, wrote, strict=True)
        ]).detach()  # fmt: skip
        got = matrix[i].clone()
        got[-1] = 0  # the bias, which the sums hold
        assert torch.allclose(got, expected, atol=1e-5 * float(expected.abs().max()), rtol=0), (i, kind[i])
    return graph


@pytest.mark.parametrize(
    ("kinds", "shape"),
    [("lgl", {}), ("gll", {"num_key_value_heads": 2, "sliding_window": 3}), ("lg", {"num_key_value_heads": 1})],
)  # fmt: skip
def test_edges_are_those_of_autograd(kinds: str, shape: dict[str, int]) -> None:
    subject = model(kinds, 1, **shape)
    graph = check_transcoders(subject, IDS, transcoders(subject))
    assert len(graph) > 100


@pytest.mark.parametrize("seed", range(4))
def test_random_layouts(seed: int) -> None:
    """Random layers, heads and windows, prompts beyond them: edges as by autograd, and a removed node takes its own away."""
    draw = random.Random(seed)
    kv = draw.choice([1, 2, 4])
    shape = {
        "num_attention_heads": kv * draw.choice([1, 2]), "num_key_value_heads": kv, "head_dim": draw.choice([8, 16]),
        "sliding_window": draw.randint(2, 6),
    }  # fmt: skip
    kinds = "".join(draw.choice("lg") for _ in range(draw.randint(1, 4))) + "l"
    make = checkpoint_3 if seed % 2 else checkpoint
    subject = model_of(make(kinds, seed, **shape))
    ids = prompt(draw.randint(8, 14), seed=seed)
    graph = check_transcoders(subject, ids, transcoders(subject, seed=seed))
    features = [i for i, kind in enumerate(graph.decoded[0].tolist()) if kind == FEATURE]
    for node in draw.sample(features, 3):
        assert graph.intervene(graph.ids[node], scale=0.0).held_error < 1e-3  # a small move beside the stream's rounding


def test_gemma_3() -> None:
    subject = model_of(checkpoint_3("lgl", 2))
    check_transcoders(subject, IDS, transcoders(subject))


@pytest.mark.parametrize(("reads", "writes"), [("mlp_in", "mlp_raw"), ("resid_mid", "mlp_out"), (None, "mlp_raw")])
def test_transcoders_of_other_sites_and_skips(reads: str | None, writes: str) -> None:
    subject = model("lgl", 3)
    skip = torch.randn(D, D, generator=torch.Generator().manual_seed(5)) / D**0.5
    check_transcoders(subject, IDS, transcoders(subject, input_site=reads, output_site=writes, W_skip=skip))


def test_neurons() -> None:
    """Edges between neurons are what autograd says through MLPs whose gates are held and whose factors take half each."""
    subject = model("lgl", 4)
    graph = attribution_graph(IDS, model=subject, basis="neuron", keep=10**6, max_nodes=60, progress=False)
    require_sums(graph)
    trace = gs.trace(IDS, model=subject)
    embed = trace.residuals[0].clone().requires_grad_()
    acts: list[Tensor] = []

    def hold(act: Tensor) -> Tensor:
        """Neurons, from which only what they wrote can be asked: the path ends there."""
        acts.append(act)
        leaf = act.detach().clone().requires_grad_()
        leaves.append(leaf)
        return leaf

    leaves: list[Tensor] = []
    stream = frozen(trace, embed, lambda layer, x: relp(trace, layer, x, hold))
    kind, unit, pos, feature = (part.tolist() for part in graph.decoded)
    matrix, targets = torch.tensor(graph.matrix().values), graph.index_of(graph.rows.targets).tolist()
    assert sum(kind[i] == FEATURE for i in targets) == 60
    for i in targets[:20] + [i for i in targets if kind[i] != FEATURE]:
        if kind[i] == FEATURE:
            value = acts[unit[i]][pos[i], feature[i]]
            assert torch.allclose(value.detach(), trace["mlp_act", unit[i]][pos[i], feature[i]], atol=1e-5, rtol=1e-4)
            assert torch.allclose(graph.activation[i], value.detach(), atol=1e-5, rtol=1e-4)
        else:
            token = graph.outputs[feature[i]].token
            assert token is not None
            value = stream.resid_post[-1][-1] @ logit_direction(subject, trace, token, len(IDS) - 1)
        read = torch.autograd.grad(value, [embed, *leaves], retain_graph=True, materialize_grads=True)
        scale = max((one * leaf).abs().max().item() for one, leaf in zip(read, [embed, *leaves], strict=True))
        for j in range(len(graph)):
            if kind[j] == FEATURE and pos[j] > 0:
                expected = (read[1 + unit[j]] * leaves[unit[j]])[pos[j], feature[j]]
            elif kind[j] == EMBEDDING:
                expected = read[0][pos[j]] @ embed[pos[j]]
            else:
                continue
            assert abs(expected.item() - matrix[i, j].item()) <= 1e-5 * scale


def test_neurons_are_not_computed_again(layers_read: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neurons that a pass met are kept; those of a long prompt take one more pass, to the same numbers."""
    subject = model("lgl", 4)
    kept = attribution_graph(IDS, model=subject, basis="neuron", max_nodes=30, progress=False)
    n_read = len(layers_read)
    edits = kept.edits(kept.ids[0])
    assert len(layers_read) == n_read
    monkeypatch.setattr(neurons, "ACT_BYTES", 0)
    again = attribution_graph(IDS, model=subject, basis="neuron", max_nodes=30, progress=False)
    assert len(layers_read) - n_read == n_read + subject.n_layers
    assert torch.allclose(kept.activation, again.activation, rtol=1e-5, equal_nan=True)
    both = [gs.trace(IDS, model=subject, edits=one).next_logits for one in (edits, again.edits(again.ids[0]))]
    assert torch.allclose(*both, atol=1e-5)


@pytest.mark.parametrize("site", ["resid_post", "resid_mid", "mlp_out", "attn_out", "z"])
def test_autoencoders(site: str) -> None:
    """At every site the edges into features are what autograd says; what stands for a site's value stands for all of it."""
    subject = model("lgl", 5)
    width = subject.config.n_heads * subject.config.d_head if site == "z" else D
    dictionaries = [random_dictionaries.dictionary(width, site, layer, seed=layer) for layer in (0, 2)]
    graph = attribution_graph(IDS, model=subject, basis="sae", dictionaries=dictionaries, keep=10**6, progress=False)
    require_sums(graph)
    trace = gs.trace(IDS, model=subject)
    embed, leaves, read_by = trace.residuals[0].clone().requires_grad_(), {}, {}

    def replace(at: str, layer: int, value: Tensor) -> Tensor:
        if at != site or layer not in (0, 2):
            return value
        read_by[layer] = value
        leaves[layer] = value.detach().clone().requires_grad_()
        return leaves[layer]

    frozen(trace, embed, lambda layer, x: relp(trace, layer, x), replace)
    kind, unit, pos, feature = (part.tolist() for part in graph.decoded)
    matrix, targets = torch.tensor(graph.matrix().values), graph.index_of(graph.rows.targets).tolist()
    deep = [i for i in targets if kind[i] == FEATURE and unit[i] == 1]
    assert len(deep) > 20
    for i in deep[:: len(deep) // 10]:
        value = read_by[2].flatten(1)[pos[i]] @ dictionaries[1].W_enc[:, feature[i]]
        to_embed, to_site = torch.autograd.grad(value, [embed, leaves[0]], retain_graph=True, materialize_grads=True)
        to_site = to_site.flatten(1)
        for j in range(len(graph)):
            if kind[j] == FEATURE and unit[j] == 0:
                act = graph.activation[j]
                expected = act * (to_site[pos[j]] @ dictionaries[0].W_dec[feature[j]])
            elif kind[j] == EMBEDDING:
                expected = to_embed[pos[j]] @ embed[pos[j]]
            else:
                continue
            assert abs(expected.item() - matrix[i, j].item()) <= 1e-5 * float(graph.arrows.total[i])


def test_a_cross_layer_transcoder(tmp_path: Path) -> None:
    """Its features write to later layers too: the edges are those of as many single ones, added up."""
    from safetensors.torch import save_file

    subject, n = model("lgl", 6), 24
    draw = torch.Generator().manual_seed(1)
    for layer in range(3):
        encoder = {"W_enc": torch.randn(n, D, generator=draw) / D**0.5, "b_enc": torch.zeros(n), "b_dec": torch.ones(D) / 9}
        save_file({f"{name}_{layer}": one for name, one in encoder.items()}, tmp_path / f"W_enc_{layer}.safetensors")
        save_file({f"W_dec_{layer}": torch.randn(n, 3 - layer, D, generator=draw)}, tmp_path / f"W_dec_{layer}.safetensors")
    hooks = "feature_input_hook: ln2.hook_normalized, feature_output_hook: hook_mlp_out"
    (tmp_path / "config.yaml").write_text(f"{{{hooks}, model_name: random}}")
    transcoder = gs.load_cross_layer(tmp_path)
    graph = attribution_graph(IDS, model=subject, dictionaries=transcoder, keep=10**6, progress=False)
    require_sums(graph)
    trace = gs.trace(IDS, model=subject)
    active = transcoder.encode(trace)
    listed = zip(*(part.tolist() for part in (active.layer, active.pos, active.feature, active.value)), strict=True)
    nodes = {place: value for *place_, value in listed if (place := tuple(place_))[1] > 0}
    kind, unit, pos, feature = (part.tolist() for part in graph.decoded)
    found = {(u, p, f): i for i, (k, u, p, f) in enumerate(zip(kind, unit, pos, feature, strict=True)) if k == FEATURE}
    assert set(found) == set(nodes)
    # The direct effect on a logit: what a feature writes to its layer and to each later one, as the logit reads it there.
    embed = trace.residuals[0].clone()
    offsets = [torch.zeros(len(IDS), D, requires_grad=True) for _ in range(3)]
    stream = frozen(trace, embed, lambda layer, x: trace["mlp_out", layer].detach() + offsets[layer])
    (top, *_), matrix = graph.outputs, graph.matrix()
    assert top.token is not None
    value = stream.resid_post[-1][-1] @ logit_direction(subject, trace, top.token, len(IDS) - 1)
    read = torch.autograd.grad(value, offsets)
    row = matrix.values[graph.index_of(graph.keys.logits[:1]).item()]
    for (layer, p, f), activation in nodes.items():
        rows = transcoder.files.decoder_rows(layer, [f])[0]
        expected = activation * sum((read[layer + i][p] @ one).item() for i, one in enumerate(rows))
        assert abs(expected - row[found[layer, p, f]]) <= 1e-5 * float(graph.rows.total.max())


def same_graph(one: AttributionGraph, other: AttributionGraph, scale: float = 1e-5) -> None:
    assert one.ids == other.ids
    assert torch.allclose(torch.tensor(one.matrix().values), torch.tensor(other.matrix().values), atol=scale, rtol=scale)


def test_chunks_change_nothing(layers_read: list[int]) -> None:
    """In a small budget the same graph comes in several passes, in each of which every layer is asked for once."""
    subject = model("lgl", 1)
    dictionaries = transcoders(subject)
    whole = attribution_graph(IDS, model=subject, dictionaries=dictionaries, progress=False)
    assert layers_read[-6:] == [2, 1, 0, 2, 1, 0]  # the logits, then all features
    layers_read.clear()
    parts = attribution_graph(IDS, model=subject, dictionaries=dictionaries, memory="500 KB", progress=False)
    assert len(layers_read) > 30
    assert layers_read[-9:] == [2, 1, 0] * 3
    same_graph(whole, parts)
    with pytest.raises(BudgetError, match="one target takes"):
        attribution_graph(IDS, model=subject, dictionaries=dictionaries, memory="1 KB", progress=False)


def test_only_the_strongest_edges_are_listed() -> None:
    """The others are added up, and influence still counts what is not listed in each row's sum."""
    subject = model("lgl", 1)
    dictionaries = transcoders(subject)
    whole = attribution_graph(IDS, model=subject, dictionaries=dictionaries, keep=10**6, progress=False)
    few = attribution_graph(IDS, model=subject, dictionaries=dictionaries, keep=7, progress=False)
    assert whole.ids == few.ids
    require_sums(few)
    strongest = torch.tensor(whole.matrix().values)[:, :-1].abs().topk(7).values
    targets = few.index_of(few.rows.targets)
    listed = torch.zeros(len(few), 7)
    for target, weight in zip(few.arrows.target.tolist(), few.rows.weight.abs().tolist(), strict=True):
        listed[target, int((listed[target] > 0).sum())] = weight
    assert torch.allclose(listed[targets], strongest[targets], atol=1e-5)
    assert torch.allclose(few.rows.total, whole.rows.total, rtol=1e-5)
    assert few.rows.rest.abs().max() > 0.01


def test_the_most_influential_features_come_first() -> None:
    """If not all features become targets, those do that the logits get most from, along all paths that are known by then."""
    subject = model("lgl", 1)
    dictionaries = transcoders(subject)
    whole = attribution_graph(IDS, model=subject, dictionaries=dictionaries, progress=False)
    some = attribution_graph(IDS, model=subject, dictionaries=dictionaries, max_nodes=20, progress=False)
    require_sums(some)
    n_features = int((some.keys.kinds(some.rows.targets) == FEATURE).sum())
    assert n_features == 20
    assert len(some.rows.targets) < len(whole.rows.targets)
    direct = attribution_graph(IDS, model=subject, dictionaries=dictionaries, max_nodes=20, progress=False)
    same_graph(some, direct)
    # The first choice is by what goes straight to the logits.
    matrix, logits = torch.tensor(whole.matrix().values), whole.index_of(whole.keys.logits)
    shares = matrix.abs()[logits][:, :-1] / whole.rows.total[torch.isin(whole.rows.targets, whole.keys.logits)][:, None]
    score = (shares * whole.weights[logits][:, None]).sum(0)
    features = whole.keys.kinds(whole.node_keys)[:-1] == FEATURE
    best = whole.node_keys[:-1][features][score[features].topk(20).indices]
    chosen = some.rows.targets[some.keys.kinds(some.rows.targets) == FEATURE]
    assert set(best.tolist()) == set(chosen.tolist())


def test_streamed_and_int8(tmp_path: Path) -> None:
    """Layers that stream from files give the same graph, bit for bit where they compute the same."""
    checkpoint("lgl", 1).save_pretrained(tmp_path / "model")
    resident = gs.load(tmp_path / "model", device="cpu")
    streamed = gs.load(tmp_path / "model", device="cpu", memory=2_830_000)
    assert streamed.network.layer_source is not None
    graphs = [
        attribution_graph(IDS, model=one, dictionaries=transcoders(one), memory="1 MB", progress=False)
        for one in (resident, streamed)
    ]
    same_graph(*graphs, scale=0)
    int8 = gs.load(tmp_path / "model", device="cpu", weights="int8", cache=tmp_path / "cache")
    require_sums(attribution_graph(IDS, model=int8, basis="neuron", max_nodes=40, progress=False))


# -- influence, pruning, scores --


def naive_influence(edges: Tensor, weights: Tensor) -> Tensor:
    """w (A + A^2 + ...), as matrices."""
    shares = edges.abs() / edges.abs().sum(1, keepdim=True).clamp(min=1e-10)
    total, power = torch.zeros_like(shares), shares
    while bool(power.any()):
        total, power = total + power, power @ shares
    return weights @ total


def naive_threshold(scores: Tensor, share: float) -> float:
    """The score at which the sum of the larger ones reaches a share."""
    total, so_far = float(scores.sum()), 0.0
    for score in sorted(scores.flatten().tolist(), reverse=True):
        so_far += score
        if so_far >= share * total:
            return score
    return 0.0


@pytest.mark.parametrize("shares", [(0.99, 0.99), (0.95, 0.9), (0.9, 0.98)])
def test_influence_pruning_and_scores(shares: tuple[float, float]) -> None:
    """Against matrices of all edges, without the bias node, whose rows and columns are normalised and summed as they are."""
    subject = model("lgl", 1)
    graph = attribution_graph(IDS, model=subject, dictionaries=transcoders(subject), keep=10**6, progress=False)
    edges = torch.tensor(graph.matrix().values).double()[:-1, :-1]
    weights, kind = graph.weights[:-1], graph.decoded[0][:-1]
    influence = naive_influence(edges, weights)
    assert torch.allclose(graph.influence[:-1], influence, atol=1e-9)
    on_path = kind == ERROR
    replacement = influence[kind == EMBEDDING].sum() / (influence[kind == EMBEDDING].sum() + influence[on_path].sum())
    part = edges.abs()[:, on_path].sum(1) / edges.abs().sum(1).clamp(min=1e-10)
    complete = ((1 - part) * (influence + weights)).sum() / (influence + weights).sum()
    assert graph.scores.replacement == pytest.approx(float(replacement), abs=1e-6)
    assert graph.scores.completeness == pytest.approx(float(complete), abs=1e-6)
    assert 0.05 < graph.scores.replacement < graph.scores.completeness < 0.99

    always = kind >= EMBEDDING
    nodes = (influence >= naive_threshold(influence, shares[0])) | always
    inner = edges * nodes[:, None] * nodes[None]
    totals = naive_influence(inner, weights) + weights
    scores = inner.abs() / inner.abs().sum(1, keepdim=True).clamp(min=1e-10) * totals[:, None]
    kept = (scores >= naive_threshold(scores, shares[1])) & (scores > 0)
    for _ in range(len(nodes)):
        kept = kept & nodes[:, None] & nodes[None]
        nodes = nodes & (kept.any(0) | always) & (kept.any(1) | (kind != FEATURE))
    kept = kept & nodes[:, None] & nodes[None]
    pruned = graph.prune(*shares)
    assert torch.equal(torch.isin(graph.node_keys, pruned.node_keys)[:-1], nodes)
    pairs = set(zip(pruned.edges["target"], pruned.edges["source"], strict=True))
    expected = {(graph.ids[i], graph.ids[j]) for i, j in kept.nonzero().tolist()}
    assert {(i, j) for i, j in pairs if j != "bias"} == expected
    assert 10 < len(expected) < 0.9 * int((edges != 0).sum())
    assert torch.allclose(pruned.rows.sums, pruned.rows.inputs.double(), atol=1e-3)
    assert pruned.scores == graph.scores


# -- targets and bad input --


def test_targets() -> None:
    """A logit difference is the difference of two rows; a direction of final is what the run has along it."""
    subject = model("lgl", 1)
    dictionaries = transcoders(subject)
    asked: list[Any] = [5, gs.logit_diff(5, 9), ("up", torch.ones(D)), 9]
    graph = attribution_graph(IDS, model=subject, dictionaries=dictionaries, targets=asked, progress=False)
    rows = torch.tensor(graph.matrix().values)[graph.index_of(graph.keys.logits)]
    assert torch.allclose(rows[1], rows[0] - rows[3], atol=1e-5)
    trace = gs.trace(IDS, model=subject)
    raw = trace["logits_raw"][-1]
    inputs = graph.rows.inputs[torch.isin(graph.rows.targets, graph.keys.logits)]
    assert torch.allclose(inputs[0], raw[5] - raw.mean(), atol=1e-4)
    assert torch.allclose(inputs[2], trace["final"][-1].sum(), atol=1e-4)
    assert [one.weight for one in graph.outputs[1:3]] == [1, 1]
    assert graph.outputs[0].weight == pytest.approx(float(trace.next_logits.softmax(-1)[5]))
    early = attribution_graph(IDS, model=subject, dictionaries=dictionaries, targets=5, pos=4, progress=False)
    assert max(p for p in early.positions) <= len(IDS) - 1
    row = torch.tensor(early.matrix().values)[early.index_of(early.keys.logits)][0]
    reach = torch.tensor([p > 4 for p in early.positions])
    assert bool((row[reach] == 0).all())
    assert bool((row != 0).any())


def test_bad_input() -> None:
    subject = model("lgl", 1)
    good = transcoders(subject)

    def refuse(error: type[Exception], match: str, **asked: Any) -> None:
        arguments = {"prompt": IDS, "model": subject, "dictionaries": good, "progress": False, **asked}
        with pytest.raises(error, match=match):
            attribution_graph(**arguments)

    refuse(GraphError, "no transcoder for layer 1 of", dictionaries=[good[0], good[2]])
    refuse(GraphError, "of the same layer", dictionaries=[*good, good[0]])
    refuse(GraphError, "needs dictionaries=", dictionaries=None)
    refuse(GraphError, "need no dictionaries", basis="neuron")
    refuse(GraphError, "basis is one of", basis="heads")
    refuse(DictionaryError, "was trained for", dictionaries=transcoders(model("lgl", 1, hidden_size=48)))
    refuse(GraphError, "takes transcoders", dictionaries=[random_dictionaries.dictionary(D, "resid_post", 1)])
    refuse(GraphError, "autoencoders of 'resid_post'", basis="sae")
    refuse(GraphError, "what gs.load_sae returns", dictionaries=[3])
    from dataclasses import replace

    silent = [replace(one, threshold=one.threshold + 1e9) for one in good]
    refuse(GraphError, "no feature of the dictionaries is active", dictionaries=silent)
    refuse(GraphError, "there is no target 999", targets=999)
    refuse(GraphError, "targets is empty", targets=[])
    refuse(GraphError, "linear in the logits", targets=gs.answer_prob(5))
    refuse(GraphError, "not all 0", targets=("none", torch.zeros(D)))
    refuse(GraphError, "position 0 has no graph", pos=0)
    refuse(SiteError, "no position 40|there is no position", pos=40)
    refuse(GraphError, "position 0 has no graph", prompt=[5])
    refuse(SiteError, "without edits", prompt=gs.trace(IDS, model=subject, edits=[gs.ablate("z", layer=1)]), model=None)
    refuse(GraphError, "max_nodes is a whole number", max_nodes=0)
    graph = attribution_graph(IDS, model=subject, dictionaries=good, progress=False)
    with pytest.raises(GraphError, match="there is no node '9_9_9'"):
        graph.index("9_9_9")
    with pytest.raises(GraphError, match="a share from 0 to 1"):
        graph.prune(1.5)


def test_half_precision_is_told() -> None:
    low = model_of(_in_bfloat16())
    with pytest.warns(gs.GemmascopeWarning, match="computes in bfloat16"):
        attribution_graph(IDS, model=low, basis="neuron", max_nodes=5, progress=False)


def _in_bfloat16() -> Any:
    return checkpoint("lg", 1).bfloat16()

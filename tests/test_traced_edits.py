"""Traces of edited runs: re-run layers include the edits, and an edit has the effect of a hook in transformers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from checkpoints import checkpoint, every_site, model_of, prompt
from hypothesis import given, settings
from hypothesis import strategies as st
from pieces import worded
from reference import error
from torch import Tensor
from transformers import Gemma2ForCausalLM

import gemmascope as gs
from gemmascope.edits.edit import Edit
from gemmascope.edits.kinds import Ablate, Add, Custom, Knockout, Patch, Scale
from gemmascope.errors import EditError, GemmascopeError, SiteError
from gemmascope.model.model import Model
from gemmascope.run.trace import Trace
from gemmascope.sites import SITES

CLOSE = 1e-5
N_POS = 9


@cache
def pair(seed: int = 0) -> tuple[Gemma2ForCausalLM, Model]:
    source = checkpoint("lgl", seed)
    return source, model_of(source)


def model() -> Model:
    return pair()[1]


def assert_honoured(t: Trace, site: str, layer: int | None, change: Callable[[Tensor], Tensor]) -> None:
    """t is the run in which a user's tap changes that site: at every site, in every layer, bit for bit."""
    values = every_site(t.model, t.ids.tolist(), lambda s, at, v: change(v.clone()) if (s, at) == (site, layer) else v)
    plain = every_site(t.model, t.ids.tolist())
    assert not torch.equal(values[site, layer], plain[site, layer])  # logits may agree: a norm undoes a change of scale
    for (name, at), value in values.items():
        assert torch.equal(t[name if at is None else (name, at)], value), (name, at)
    assert error(t.next_logits, values["logits", None][-1]) <= CLOSE


def placed(value: Tensor, axes: tuple[str, ...], places: dict[str, list[int]]) -> Any:
    """The index of the places along a site's axes: what an edit means by pos, head, q_pos and k_pos."""
    named = [places.get("head" if axis == "kv_head" else axis, list(range(n))) for axis, n in zip(axes, value.shape)]  # noqa: B905
    return torch.meshgrid(*map(torch.tensor, named), indexing="ij")


OPERATIONS: dict[str, tuple[Callable[..., Edit], Callable[[Tensor, Tensor], Tensor]]] = {
    "patch": (lambda source, **where: Patch(source=source, **where), lambda old, source: source),
    "add": (lambda source, **where: Add(vector=source, scale=2.0, **where), lambda old, source: old + source * 2.0),
    "scale": (lambda source, **where: Scale(factor=0.5, **where), lambda old, source: old * 0.5),
    "ablate": (lambda source, **where: Ablate(value=0.25, **where), lambda old, source: torch.full_like(old, 0.25)),
    "custom": (lambda source, **where: Custom(fn=torch.tanh, **where), lambda old, source: torch.tanh(old)),
}


@pytest.mark.parametrize("site", SITES)
@settings(deadline=None, max_examples=3, derandomize=True)
@given(operation=st.sampled_from(list(OPERATIONS)), data=st.data())
def test_an_edit_changes_every_later_site_of_a_trace(site: str, operation: str, data: Any) -> None:
    layer, info = (data.draw(st.integers(0, 2)) if SITES[site].in_layer else None), SITES[site]
    sizes = {axis: model().config.size_of(axis, N_POS) for axis in info.axes}
    sizes = {"head" if axis == "kv_head" else axis: n for axis, n in sizes.items()}
    places = {
        axis: data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=4, unique=True))
        for axis, n in sizes.items()
        if axis in ("pos", "head", "q_pos", "k_pos")
    }
    if "pos" in places:  # the logits are compared, and a late edit must change them
        places["pos"] = list(dict.fromkeys([*places["pos"], N_POS - 1]))
    if info.is_edges:  # a masked or a single edge tests nothing
        places |= {"q_pos": [N_POS - 1, 7], "k_pos": [6, 7]}
    make, change = OPERATIONS[operation]
    shape = tuple(len(places[axis]) if axis in places else n for axis, n in sizes.items())
    source = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    t = gs.trace(prompt(N_POS), model=model(), edits=[make(source, site=site, layer=layer, **places)])

    def tap(value: Tensor) -> Tensor:
        index = placed(value, info.axes, places)
        value[index] = change(value[index], source)
        return value

    assert_honoured(t, site, layer, tap)


def test_a_knocked_out_edge_has_no_weight_and_the_others_are_renormalised() -> None:
    t = gs.trace(prompt(N_POS), model=model(), edits=[Knockout(layer=1, head=[2, 5], q_pos=-1, k_pos=[3, 4])])
    plain = gs.trace(prompt(N_POS), model=model())
    pattern, before = t["pattern", 1], plain["pattern", 1]
    assert pattern[[2, 5], -1][:, [3, 4]].abs().max() == 0
    remaining = before[[2, 5], -1].clone()
    remaining[:, [3, 4]] = 0
    assert error(pattern[[2, 5], -1], remaining / remaining.sum(-1, keepdim=True)) <= CLOSE
    assert torch.equal(pattern[:, :-1], before[:, :-1])

    def tap(value: Tensor) -> Tensor:
        value[placed(value, SITES["scores_capped"].axes, {"head": [2, 5], "q_pos": [8], "k_pos": [3, 4]})] = -torch.inf
        return value

    assert_honoured(t, "scores_capped", 1, tap)


def test_selected_edges_include_edits_on_edges_and_before_them() -> None:
    edits = [
        Knockout(layer=1, head=2, q_pos=-1, k_pos=3),
        Scale(site="q", layer=0, pos=4, head=1, factor=2.0),
        Add(site="resid_pre", layer=2, pos=5, vector=torch.ones(32)),
    ]
    t = gs.trace(prompt(N_POS), model=model(), edits=edits)
    all_edges = gs.trace(prompt(N_POS), model=model(), edits=edits)
    for layer in range(3):
        for head in (1, 2):
            assert error(t.edges("pattern", layer, head=head), all_edges["pattern", layer][head]) <= CLOSE
            assert not torch.equal(all_edges["pattern", layer], gs.trace(prompt(N_POS), model=model())["pattern", layer])


def test_edits_are_written_in_the_order_given() -> None:
    where = {"site": "z", "layer": 1, "pos": 3, "head": 2}
    first, second = Ablate(value=1.0, **where), Scale(factor=3.0, **where)
    assert gs.trace(prompt(N_POS), model=model(), edits=[first, second])["z", 1][3, 2].unique().tolist() == [3.0]
    with pytest.warns(gs.GemmascopeWarning, match="has no effect: .* overwrites all of it"):
        t = gs.trace(prompt(N_POS), model=model(), edits=[second, first])
    assert t["z", 1][3, 2].unique().tolist() == [1.0]


def test_edits_reach_every_prompt_of_a_pass() -> None:
    edits = (Add(site="resid_post", layer=n, vector=torch.ones(32)) for n in (0, 1))  # an iterator can be read only once
    together = gs.trace([prompt(5), prompt(9), prompt(5, seed=1)], model=model(), edits=edits)
    for t in together:
        alone = gs.trace(t.ids, model=model(), edits=t.edits)
        assert len(t.edits) == 2
        for key in ("logits", ("pattern", 2), ("resid_mid", 1)):
            assert error(t[key], alone[key]) <= CLOSE


# -- patches from another run, and means --


def test_a_patch_from_a_trace_writes_what_the_other_run_had_there() -> None:
    source = gs.trace(prompt(N_POS, seed=1), model=model())
    cases: list[tuple[str, dict[str, Any], tuple[Any, ...]]] = [
        ("resid_pre", {"pos": 3}, (3,)),
        ("resid_post", {"pos": [2, -1]}, ([2, -1],)),
        ("z", {"head": 4}, (slice(None), 4)),
        ("k", {"pos": slice(2, 5), "head": 3}, (slice(2, 5), 3)),
        ("head_out", {"pos": -1, "head": 2}, (-1, 2)),
        ("pattern", {"head": 2}, (2,)),
        ("mlp_act", {}, ()),
    ]
    for site, where, index in cases:
        t = gs.trace(prompt(N_POS), model=model(), edits=[Patch(site=site, source=source, layer=1, **where)])

        def tap(value: Tensor, site: str = site, index: tuple[Any, ...] = index) -> Tensor:
            value[index] = source[site, 1][index]
            return value

        assert_honoured(t, site, 1, tap)


def test_patching_every_stream_from_another_run_makes_it_that_run() -> None:
    source = gs.trace(prompt(N_POS, seed=1), model=model())
    t = gs.trace(prompt(N_POS), model=model(), edits=[Patch(site="resid_pre", source=source, layer=1)])
    assert torch.equal(t.logits, source.logits)
    assert torch.equal(t["pattern", 1], source["pattern", 1])
    assert not torch.equal(t["pattern", 0], source["pattern", 0])


def test_a_mean_is_taken_once_for_many_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = gs.trace([prompt(N_POS, seed=i) for i in range(4)], model=model())
    read: list[Any] = []
    look = Trace.__getitem__
    monkeypatch.setattr(Trace, "__getitem__", lambda self, key: read.append(key) or look(self, key))
    edit = gs.ablate("z", layer=1, head=2, value="mean", reference=reference)
    runs = gs.trace([prompt(N_POS, seed=i) for i in range(5, 9)], model=model(), edits=[edit])
    assert read == [("z", 1)] * len(reference)
    monkeypatch.undo()
    alone = gs.trace(
        prompt(N_POS, seed=6), model=model(), edits=[gs.ablate("z", layer=1, head=2, value="mean", reference=reference)]
    )
    assert torch.allclose(runs[1].logits, alone.logits, atol=1e-4)
    bound = edit.bind(model(), torch.tensor(prompt(5)))  # another run, with other places: the same mean
    assert torch.allclose(bound.values[0, 0], torch.cat([t["z", 1][1:, 2] for t in reference]).mean(0), atol=1e-6)


def test_a_mean_leaves_out_the_first_position_and_a_mean_by_position_does_not() -> None:
    reference = gs.trace([prompt(5, seed=1), prompt(7, seed=2)], model=model())
    t = gs.trace(prompt(N_POS), model=model(), edits=[Ablate(site="z", layer=1, head=3, value="mean", reference=reference)])
    mean = torch.cat([r["z", 1][1:] for r in reference]).mean(0)
    assert error(t["z", 1][:, 3], mean[3].expand(N_POS, -1)) <= CLOSE
    assert torch.equal(t["z", 1][:, :3], gs.trace(prompt(N_POS), model=model())["z", 1][:, :3])

    reference = gs.trace([prompt(N_POS, seed=1), prompt(N_POS, seed=2)], model=model())
    edit = Ablate(site="mlp_out", layer=1, pos=[0, 4], value="mean_by_pos", reference=reference)
    mean = torch.stack([r["mlp_out", 1] for r in reference]).mean(0)
    assert error(gs.trace(prompt(N_POS), model=model(), edits=[edit])["mlp_out", 1][[0, 4]], mean[[0, 4]]) <= CLOSE


# -- against transformers --


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("site", ["resid_pre", "resid_post"])
def test_a_residual_edit_does_what_a_hook_of_transformers_does(site: str, layer: int) -> None:
    source, ours = pair()
    vector = torch.randn(32, generator=torch.Generator().manual_seed(7)) * 5
    patched = Patch(site=site, source=vector, layer=layer, pos=3)
    added = Add(site=site, vector=vector, layer=layer, pos=[-1], scale=0.5)

    def change(stream: Tensor) -> Tensor:
        stream = stream.clone()
        stream[:, 3] = vector
        stream[:, -1] += 0.5 * vector
        return stream

    module = source.get_submodule(f"model.layers.{layer}")
    if site == "resid_pre":
        hook = module.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
    else:
        hook = module.register_forward_hook(lambda *call: change(call[-1]))
    try:
        with torch.no_grad():
            oracle = source(torch.tensor([prompt(N_POS)]), output_attentions=True)
    finally:
        hook.remove()
    t = gs.trace(prompt(N_POS), model=ours, edits=[patched, added])
    assert error(t.logits, oracle.logits[0]) <= CLOSE
    assert error(gs.trace(prompt(N_POS), model=ours).logits, oracle.logits[0]) > 100 * CLOSE
    for at in range(3):
        assert error(t["pattern", at], oracle.attentions[at][0]) <= CLOSE


# -- bad edits --


def scaled(site: str, **where: Any) -> Edit:
    return Scale(site=site, factor=2.0, **where)


TEXT = "When Mary and John went to the store, John gave a drink to"
NAN = torch.full((32,), float("nan"))
BAD: list[tuple[Callable[[], Any], type[GemmascopeError], str]] = [
    (lambda: Patch(site="patern", source=NAN, layer=1), SiteError, "there is no site 'patern'. Did you mean 'pattern'"),
    (lambda: scaled("z", layer=3), SiteError, "there is no layer 3"),
    (lambda: scaled("z"), SiteError, "'z' is in every layer: say which"),
    (lambda: scaled("z", layer=1, head=8), SiteError, "there is no head 8: heads go from 0 to 7"),
    (lambda: scaled("v", layer=1, head=5), SiteError, r"'v' has 4 kv heads.*query head h reads kv head h // 2"),
    (lambda: scaled("v", layer=1, head=9), SiteError, "there is no kv head 9: kv heads go from 0 to 3"),
    (lambda: scaled("mlp_out", layer=1, head=0), SiteError, "'mlp_out' has no heads: leave head out"),
    (lambda: scaled("z", layer=1, pos=15), SiteError, "there is no position 15: positions go from 0 to 14"),
    (lambda: scaled("z", layer=1, pos=[1, 1]), SiteError, "pos names one twice"),
    (lambda: scaled("z", layer=1, pos=[]), SiteError, "pos is an empty list"),
    (lambda: scaled("z", layer=1, pos=" John"), SiteError, r"' John' occurs 2 times, at positions \[4, 10\]"),
    (lambda: scaled("z", layer=1, pos="Mary"), SiteError, "'Mary' is not in the prompt. Did you mean ' Mary'"),
    (lambda: scaled("pattern", layer=1, pos=1), EditError, "'pattern' lives on attention edges: say q_pos"),
    (lambda: scaled("z", layer=1, q_pos=1), EditError, "'z' has positions, not edges"),
    (lambda: Patch(site="z", source=torch.ones(13), layer=1, pos=1), EditError, r"shape \(13,\).*takes \(1, 8, 12\)"),
    (lambda: Add(site="resid_pre", vector=torch.ones(31), layer=1), EditError, r"the vector has shape \(31,\)"),
    (lambda: Patch(site="resid_pre", source=NAN, layer=1, pos=1), EditError, "holds NaN or infinity"),
    (lambda: Add(site="resid_pre", vector=NAN / 0, layer=1, pos=1), EditError, "holds NaN or infinity"),
    (lambda: Ablate(site="z", layer=1, value="median"), EditError, "'mean' or 'mean_by_pos'; given 'median'"),
    (lambda: Ablate(site="z", layer=1, value="mean"), EditError, r"'mean' needs reference=\[traces\]"),
    (lambda: Knockout(layer=1, head=1, q_pos=0, k_pos=0), EditError, "would leave position 0 nothing to attend to"),
    (lambda: Knockout(layer=0, q_pos=9, k_pos=slice(0, 10)), EditError, "would leave position 9 nothing to attend to"),
    (lambda: Custom(site="z", fn=lambda z: z[:1], layer=1), EditError, r"returned \(1, 8, 12\).*shape \(15, 8, 12\)"),
    (lambda: Custom(site="z", fn=lambda z: z.tolist(), layer=1), EditError, "returned list"),
    (lambda: "resid_pre", EditError, "edits is a list of edits.*it holds 'resid_pre'"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "kind", "message"), BAD, ids=[message[:40] for _, _, message in BAD])
def test_an_edit_that_does_not_fit_is_refused(edit: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        gs.trace(TEXT, model=worded(), edits=[edit()])


@pytest.mark.parametrize("given_edits", [None, 3, Scale(site="z", factor=2.0, layer=1)])
def test_edits_are_a_list(given_edits: Any) -> None:
    with pytest.raises(EditError, match="edits is a list of edits; given"):
        gs.trace(TEXT, model=worded(), edits=given_edits)


def test_a_source_of_another_length_is_refused_with_the_first_differing_position() -> None:
    longer = gs.trace("When Mary and Mary went to the store, John gave a drink to to", model=worded())
    with pytest.raises(EditError, match=r"the run has 15, the source 16; they first differ at position 4\. Name pos="):
        gs.trace(TEXT, model=worded(), edits=[Patch(site="z", source=longer, layer=1)])


def test_a_source_of_another_model_is_refused_by_name() -> None:
    wide = gs.trace(prompt(N_POS), model=model_of(checkpoint("lgl", hidden_size=48)))
    with pytest.raises(EditError, match=r"a trace of 'random', whose 'layers.1.resid_pre' has shape \(9, 48\)"):
        gs.trace(prompt(N_POS), model=model(), edits=[Patch(site="resid_pre", source=wide, layer=1, pos=1)])


def test_a_token_that_occurs_once_is_a_position() -> None:
    t = gs.trace(TEXT, model=worded(), edits=[Ablate(site="resid_post", layer=1, pos=" Mary")])
    assert t["resid_post", 1].abs().sum(-1).eq(0).nonzero().flatten().tolist() == [2]
    assert t.top(3, pos=" Mary") == t.top(3, pos=2)

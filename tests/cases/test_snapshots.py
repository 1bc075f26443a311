"""A run is a snapshot: later writes to its inputs change none of its numbers, and a function runs once for a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, model_of, prompt
from torch import Tensor

import gemmascope as gs
from gemmascope.errors import EditError
from gemmascope.run.replay import replay

MODEL = model_of(checkpoint("lgl"))
IDS = prompt(9)
V = torch.randn(32, generator=torch.Generator().manual_seed(3))


def fresh(edits: Any = ()) -> gs.Trace:
    return gs.trace(IDS, model=MODEL, edits=edits)


def assert_same(t: gs.Trace, expected: gs.Trace) -> None:
    for site in ("resid_pre", "attn_out", "pattern", "z", "mlp_out"):
        for layer in range(3):
            assert torch.equal(t[site, layer], expected[site, layer]), (site, layer)
    assert torch.equal(t.logits, expected.logits)
    assert t.top(2) == expected.top(2)


IDS_GIVEN: dict[str, Callable[[], Any]] = {
    "int64 tensor": lambda: torch.tensor(IDS),
    "batched": lambda: torch.tensor([IDS]),
    "int32": lambda: torch.tensor(IDS).int(),
    "numpy": lambda: np.array(IDS),
    "list": lambda: list(IDS),
    "a view of numpy": lambda: torch.from_numpy(np.array(IDS)),
}


@pytest.mark.parametrize("kind", IDS_GIVEN)
def test_ids_are_those_of_the_call(kind: str) -> None:
    ids = IDS_GIVEN[kind]()
    t, g = gs.trace(ids, model=MODEL), gs.generate(ids, model=MODEL, max_new_tokens=2)
    first = ids[0] if kind == "batched" else ids
    first[3] = 60 if first[3] != 60 else 59
    t.ids[4] = 1
    g.ids[4] = 1
    assert t.ids.tolist() == IDS
    assert t.tokens == fresh().tokens
    assert_same(t, fresh())
    assert torch.equal(g.trace().logits[: len(IDS)], fresh().logits) or torch.allclose(
        g.trace().logits[: len(IDS)], fresh().logits, atol=1e-5
    )


# An edit of a tensor (or array, or list), with what is written to it after the run.
EDITS: dict[str, Callable[[Tensor], Any]] = {
    "patch": lambda v: gs.patch("resid_pre", v, layer=1, pos=2),
    "patch everywhere": lambda v: gs.patch("mlp_out", v, layer=1),
    "add": lambda v: gs.add("resid_pre", v, layer=1),
    "add, scaled": lambda v: gs.add("attn_out", v, layer=0, scale=2.0),
    "ablate_direction": lambda v: gs.ablate_direction("resid_pre", v, layer=2),
}


@pytest.mark.parametrize("what", EDITS)
def test_values_are_those_of_the_call(what: str) -> None:
    for vector in (V.clone(), torch.from_numpy(V.numpy().copy()), V.clone().requires_grad_()):
        t = fresh([EDITS[what](vector)])
        g = gs.generate(IDS, model=MODEL, edits=[EDITS[what](vector)], max_new_tokens=2)
        with torch.no_grad():
            vector.fill_(9.0)
        right = fresh([EDITS[what](V)])
        assert_same(t, right)
        assert t.edits == right.edits
        assert torch.allclose(g.trace()["z", 2][: len(IDS)], right["z", 2], atol=1e-5)
        again = fresh(t.edits)
        assert torch.equal(again.logits, right.logits)


def test_positions_heads_and_references_are_those_of_the_call() -> None:
    pos, heads, reference = [1, 4], [0, 3], [gs.trace(prompt(9, seed=5), model=MODEL)]
    edits = [
        gs.scale("z", 2.0, layer=1, pos=pos, head=heads),
        gs.ablate("z", layer=0, pos=pos, value="mean", reference=reference),
    ]
    expected = fresh(edits)
    text = repr(expected.edits)
    t = fresh(edits)
    pos.append(7)
    heads.clear()
    reference.clear()
    assert_same(t, expected)
    assert repr(t.edits) == text


def test_a_sweep_is_of_the_prompts_and_values_of_its_call() -> None:
    v = V.clone()
    edits = [gs.add("resid_pre", v, layer=0, pos=1)]
    options: dict[str, Any] = {"site": "resid_mid", "model": MODEL, "progress": False, "edits": edits}
    expected = gs.sweep(IDS, IDS[::-1], lambda x: x[:, 3], **options)
    clean, corrupt = torch.tensor(IDS), torch.tensor(IDS[::-1])
    calls: list[int] = []

    def metric(logits: Tensor) -> Tensor:  # called before anything runs; the call's values are copied already
        calls.append(1)
        clean.fill_(1)
        v.fill_(5)
        return logits[:, 3]

    result = gs.sweep(clean, corrupt, metric, **options)
    assert calls
    assert np.array_equal(result.values, expected.values)


class Counting:
    """A function that returns another value at every call, and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls + 0.1 * torch.randn_like(x)


ROWS = ["embed", "resid_pre", "resid_mid", "resid_post", "attn_in", "q", "k", "v", "q_rot", "k_rot", "z", "head_out",
        "attn_raw", "attn_out", "mlp_in", "mlp_gate", "mlp_up", "mlp_act", "mlp_raw", "mlp_out"]  # fmt: skip
PLACES: dict[str, dict[str, Any]] = {"everywhere": {}, "one": {"pos": 3}, "some": {"pos": [1, 8, 2]}}


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("site", ROWS)
def test_a_function_runs_once_for_a_run_and_what_it_wrote_adds_up(site: str, places: str) -> None:
    fn = Counting()
    t = fresh([gs.edit(site, fn, layer=None if site == "embed" else 1, **PLACES[places])])
    for layer in range(3):
        if (site, layer) != ("resid_post", 1):  # there the sum itself is what was written to
            assert torch.allclose(t["resid_mid", layer] + t["mlp_out", layer], t["resid_post", layer], atol=1e-5)
        t["pattern", layer], t["head_out", layer]
    first = {layer.index: values["z"].clone() for layer, values in replay(t, ["z", "mlp_act"])}
    for layer in range(3):
        assert torch.equal(t["z", layer], first[layer])
    assert torch.equal(t.logits[-1], t.next_logits) or torch.allclose(t.logits[-1], t.next_logits, atol=1e-5)
    assert fn.calls == 1


@pytest.mark.parametrize("site", ["scores", "scores_capped", "pattern"])
@pytest.mark.parametrize("q_pos", [None, 4, [6, 2]])
def test_a_function_at_edges_runs_once(site: str, q_pos: Any) -> None:
    fn = Counting()
    t = fresh([gs.edit(site, fn, layer=1, q_pos=q_pos)])
    one, edges = t[site, 1], t.edges(site, 1, head=2)
    assert torch.equal(one[2], edges)
    assert torch.allclose(t["resid_pre", 1] + t["attn_out", 1], t["resid_mid", 1], atol=1e-5)
    assert torch.allclose(t["resid_mid", 1] + t["mlp_out", 1], t["resid_post", 1], atol=1e-5)
    assert fn.calls == 1


@pytest.mark.parametrize("site", ["final", "logits_raw", "logits"])
def test_a_function_after_the_layers_runs_once(site: str) -> None:
    fn = Counting()
    t = fresh([gs.edit(site, fn)])
    assert fn.calls == 1
    assert torch.equal(t.logits, t["logits"])
    assert torch.equal(t.logits[-1], t.next_logits)
    assert fn.calls == 1


def test_each_prompt_of_a_list_has_its_own_call() -> None:
    fn = Counting()
    traces = gs.trace([prompt(5), prompt(7), prompt(5, seed=2)], model=MODEL, edits=[gs.edit("z", fn, layer=1)])
    for t in traces:
        assert torch.allclose(t["resid_mid", 1] + t["mlp_out", 1], t["resid_post", 1], atol=1e-5)
    assert fn.calls == 3


@pytest.mark.parametrize("site", ["resid_pre", "z", "pattern", "scores", "mlp_out"])
def test_a_generation_calls_a_function_once_a_pass_and_its_trace_has_what_was_written(site: str) -> None:
    fn = Counting()
    g = gs.generate(IDS, model=MODEL, edits=[gs.edit(site, fn, layer=1)], max_new_tokens=4)
    calls = fn.calls
    t = g.trace()
    for layer in range(3):
        assert torch.allclose(t["resid_mid", layer] + t["mlp_out", layer], t["resid_post", layer], atol=1e-4)
    t["pattern", 1]
    assert (calls, fn.calls) == (4, 5)  # the prompt and three new tokens; the last token's row, for the trace
    with torch.no_grad():
        logits = MODEL.network.unembed(t.stream[-1][len(IDS) - 1 : -1])
    assert logits.argmax(-1).tolist() == g.new_ids.tolist()  # what was generated is what the stream says


def test_later_writes_to_a_returned_tensor_do_not_change_the_run() -> None:
    returned: list[Tensor] = []

    def fn(x: Tensor) -> Tensor:
        returned.append(x * 2)
        return returned[-1]

    t = fresh([gs.edit("z", fn, layer=1)])
    returned[0].fill_(7)
    assert_same(t, fresh([gs.edit("z", lambda x: x * 2, layer=1)]))


def test_a_gradient_flows_through_a_function_and_refuses_one_that_changed() -> None:
    def metric(logits: Tensor) -> Tensor:
        return logits[:, 3]

    key = ("resid_pre", 1)
    t = fresh([gs.edit("resid_mid", lambda x: 1.5 * x, layer=1)])
    assert torch.allclose(t.grad(metric, key), fresh([gs.scale("resid_mid", 1.5, layer=1)]).grad(metric, key), atol=1e-6)
    noisy = fresh([gs.edit("resid_mid", Counting(), layer=1)])
    with pytest.raises(EditError, match="something else than in the run"):
        noisy.grad(metric, key)
    constant = fresh([gs.edit("mlp_out", lambda x: torch.ones_like(x), layer=2)])
    assert constant.grad(metric, key).abs().max() > 0


@pytest.mark.parametrize("steps", [1, 2])
def test_attribution_calls_a_function_again_only_for_runs_that_differ(steps: int) -> None:
    options: dict[str, Any] = {"site": "resid_mid", "model": MODEL, "steps": steps}
    by_function = gs.attribute(
        IDS, IDS[::-1], lambda x: x[:, 3], edits=[gs.edit("z", lambda z: 0.5 * z, layer=2)], **options
    )
    by_scale = gs.attribute(IDS, IDS[::-1], lambda x: x[:, 3], edits=[gs.scale("z", 0.5, layer=2)], **options)
    assert np.allclose(by_function.values, by_scale.values, atol=1e-4, equal_nan=True)


def test_a_spliced_run_uses_the_dictionary_of_the_call() -> None:
    sae = gs.load_sae()
    text = "Mary went to the store"
    t = gs.trace(text, edits=[gs.splice(sae, {14: 5.0})])
    post = t["resid_post", 3]
    sae.W_dec.mul_(2)
    assert torch.allclose(t["resid_mid", 3] + t["mlp_out", 3], gs.trace(text)["resid_post", 3], atol=1e-4)
    assert torch.equal(next(v["resid_post"] for layer, v in replay(t, [("resid_post", 3)]) if layer.index == 3), post)


def test_a_trace_made_in_inference_mode_has_gradients() -> None:
    edits = [gs.ablate_direction("resid_pre", V, layer=1), gs.edit("z", lambda z: 2 * z, layer=0)]
    with torch.inference_mode():
        vector = V.clone()
        t = fresh([gs.ablate_direction("resid_pre", vector, layer=1), edits[1]])
        inside = t.grad(lambda x: x[:, 3], ("resid_pre", 0))
    right = fresh(edits).grad(lambda x: x[:, 3], ("resid_pre", 0))
    assert torch.equal(inside, right)
    assert torch.equal(t.grad(lambda x: x[:, 3], ("resid_pre", 0)), right)

"""The forward against transformers' eager Gemma 2 and against the plain reference, and the laws of the one tap."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, config_of, every_site, model_of, prompt
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Reference, error
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma2ForCausalLM

from gemmascope.errors import PromptError, TapError
from gemmascope.model import attention
from gemmascope.model.attention import Attend
from gemmascope.model.layout import Block, Layout
from gemmascope.model.model import Model
from gemmascope.model.tap import SILENT
from gemmascope.sites import EDGE_SITES, LAYER_SITES, SITES

CLOSE = 1e-5  # of the value's scale, in float32
LONGER_THAN_ANY_PROMPT = 100

# Every size of a kv head's group with every window, the layer kinds in unusual orders.
SHAPES = [
    {"kinds": kinds, "num_key_value_heads": kv, "sliding_window": window}
    for kv, orders in (
        (8, ("lgl", "gll", "llg", "ggl")),
        (4, ("gll", "lgl", "ggl", "llg")),
        (2, ("llg", "gll", "lgl", "lg")),
    )
    for kinds, window in zip(orders, (1, 4, 7, LONGER_THAN_ANY_PROMPT), strict=True)
]


@cache
def pair(**shape: Any) -> tuple[Gemma2ForCausalLM, Model]:
    """A checkpoint as transformers' model and as ours."""
    source = checkpoint(**shape)
    return source, model_of(source)


def name_of(shape: dict[str, Any]) -> str:
    return f"{shape['kinds']}-{8 // shape['num_key_value_heads']}per_kv-window{shape['sliding_window']}"


def lengths_for(window: int) -> list[int]:
    return [1, 2, 60] if window == LONGER_THAN_ANY_PROMPT else sorted({1, 2, window, window + 1, 5 * window})


@torch.no_grad()
def transformers_outputs(source: Gemma2ForCausalLM, ids: list[int]) -> Any:
    return source(torch.tensor([ids]), output_hidden_states=True, output_attentions=True, use_cache=False)


@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
def test_both_soft_caps_are_reached(shape: dict[str, Any]) -> None:
    _, model = pair(**shape)
    values = every_site(model, prompt(64))
    assert max(values["scores", layer].abs().max() for layer in range(model.n_layers)) > 50
    assert values["logits_raw", None].abs().max() > 30
    assert 29 < values["logits", None].abs().max() <= 30


@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
def test_logits_streams_and_patterns_are_those_of_transformers(shape: dict[str, Any]) -> None:
    source, model = pair(**shape)
    for length in lengths_for(shape["sliding_window"]):
        ids = prompt(length, seed=length)
        values, oracle = every_site(model, ids), transformers_outputs(source, ids)
        assert error(values["logits", None], oracle.logits[0]) <= CLOSE
        assert error(model.run(ids), oracle.logits[0]) <= CLOSE
        *streams, final = oracle.hidden_states
        assert error(values["final", None], final[0]) <= CLOSE
        assert error(values["embed", None], streams[0][0]) <= CLOSE
        for layer, stream in enumerate(streams):
            assert error(values["resid_pre", layer], stream[0]) <= CLOSE
            assert error(values["pattern", layer], oracle.attentions[layer][0]) <= CLOSE
        for layer, stream in enumerate(streams[1:]):
            assert error(values["resid_post", layer], stream[0]) <= CLOSE


@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    kinds=st.text("lg", min_size=1, max_size=3), heads=st.sampled_from([(8, 8), (8, 4), (8, 2), (4, 1), (2, 2)]),
    d_head=st.sampled_from([2, 6, 16]), scalar=st.sampled_from([3, 16, 144]), window=st.integers(1, 12),
    length=st.integers(1, 24), seed=st.integers(0, 99), theta=st.sampled_from([100.0, 10000.0]),
    caps=st.sampled_from([(50.0, 30.0), (5.0, 3.0), (None, None)]),
)  # fmt: skip
def test_any_shape_agrees_with_transformers(
    kinds: str,
    heads: tuple[int, int],
    d_head: int,
    scalar: int,
    window: int,
    length: int,
    seed: int,
    theta: float,
    caps: Any,
) -> None:
    source = checkpoint(
        kinds, seed, num_attention_heads=heads[0], num_key_value_heads=heads[1], head_dim=d_head,
        query_pre_attn_scalar=scalar, sliding_window=window, attn_logit_softcapping=caps[0], final_logit_softcapping=caps[1],
        theta=theta,
    )  # fmt: skip
    ids = prompt(length, seed=seed)
    assert error(model_of(source).run(ids), transformers_outputs(source, ids).logits[0]) <= CLOSE


def test_bfloat16_is_no_further_from_float32_than_transformers() -> None:
    ours, their = [], []
    for seed in range(6):
        source, model = pair(kinds="lgl", seed=seed)
        source16 = checkpoint("lgl", seed).bfloat16()
        model16 = model_of(source16)
        for at in range(8):
            ids = prompt(20, seed=100 * seed + at)
            exact = transformers_outputs(source, ids).logits[0]
            assert error(model.run(ids), exact) <= CLOSE
            ours.append((model16.run(ids) - exact).square().mean().item())
            their.append((transformers_outputs(source16, ids).logits[0].float() - exact).square().mean().item())
    assert np.mean(ours) ** 0.5 <= np.mean(their) ** 0.5
    assert np.median(ours) <= np.median(their)


REFERENCE_SHAPES = [
    {"kinds": "lg", "num_key_value_heads": 8, "sliding_window": 4},
    {"kinds": "gl", "num_key_value_heads": 4, "sliding_window": 7},
    {"kinds": "ll", "num_key_value_heads": 2, "sliding_window": 1},
    {"kinds": "gg", "num_key_value_heads": 1, "sliding_window": 3},
]


@pytest.mark.parametrize("shape", REFERENCE_SHAPES, ids=name_of)
def test_every_site_is_that_of_the_plain_reference(shape: dict[str, Any]) -> None:
    source, model = pair(**shape)
    reference = Reference(source)
    for length in (1, 2, 20):
        ids = prompt(length, seed=length)
        values, oracle = every_site(model, ids), reference.run(ids)
        assert values.keys() == oracle.keys()
        errors = {key: error(values[key], oracle[key]) for key in oracle}
        assert max(errors.values()) <= CLOSE, sorted(errors.items(), key=lambda item: -item[1])[:5]


def test_the_plain_reference_is_transformers() -> None:
    """The plain reference is checked against transformers."""
    source, _ = pair(**REFERENCE_SHAPES[1])
    ids = prompt(30)
    plain, oracle = Reference(source).run(ids), transformers_outputs(source, ids)
    assert error(plain["logits", None], oracle.logits[0]) <= CLOSE
    for layer in range(2):
        assert error(plain["pattern", layer], oracle.attentions[layer][0]) <= CLOSE
        assert error(plain["resid_pre", layer], oracle.hidden_states[layer][0]) <= CLOSE


# -- the tap --


def order_of_sites(n_layers: int) -> list[tuple[str, int | None]]:
    inside = [(site, layer) for layer in range(n_layers) for site in LAYER_SITES]
    return [("embed", None), *inside, ("final_scale", None), ("final", None), ("logits_raw", None), ("logits", None)]


@pytest.mark.parametrize("length", [1, 9])
def test_a_tap_sees_every_site_once_in_the_order_of_the_table(length: int) -> None:
    _, model = pair(kinds="lgl")
    visits: list[tuple[str, int | None]] = []

    def tap(site: str, layer: int | None, value: Tensor) -> Tensor:
        visits.append((site, layer))
        assert value.shape == tuple(model.config.size_of(axis, length) for axis in SITES[site].axes)
        return value

    model.run(prompt(length), tap=tap)
    assert visits == order_of_sites(3)


def test_a_tap_that_only_looks_changes_no_bit() -> None:
    _, model = pair(kinds="lgl")
    assert torch.equal(model.run(prompt(20)), model.run(prompt(20), tap=lambda site, layer, value: value))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda value: 3.0, "the tap at 'z' of layer 1 returned float"),
        (lambda value: value[:1], r"the tap at 'z' of layer 1 returned shape \(1, 8, 12\); the site has \(5, 8, 12\)"),
        (lambda value: value[None], r"returned shape \(1, 5, 8, 12\); the site has \(5, 8, 12\)"),
    ],
)
def test_a_tap_that_returns_something_else_is_refused(result: Callable[[Tensor], Any], message: str) -> None:
    _, model = pair(kinds="lgl")
    with pytest.raises(TapError, match=message):
        model.run(prompt(5), tap=lambda site, layer, value: result(value) if (site, layer) == ("z", 1) else value)


def test_a_tap_outside_the_layers_is_named_without_one() -> None:
    _, model = pair(kinds="lgl")
    with pytest.raises(TapError, match=r"^the tap at 'embed' returned str"):
        model.run(prompt(5), tap=lambda site, layer, value: "")  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("site", SITES)
def test_a_write_in_place_is_what_the_tap_would_return(site: str) -> None:
    _, model = pair(kinds="lgl")
    layer = 1 if SITES[site].in_layer else None
    kept: dict[tuple[str, int | None], Tensor] = {}

    def write(where: str, at: int | None, value: Tensor) -> None:
        kept[where, at] = value
        if (where, at) == (site, layer):
            value *= 0.5

    def give(where: str, at: int | None, value: Tensor) -> Tensor:
        return value * 0.5 if (where, at) == (site, layer) else value

    given = model.run(prompt(9), tap=give)
    assert not torch.equal(given, model.run(prompt(9)))
    assert torch.equal(model.run(prompt(9), tap=write), given)
    end = kept["resid_post", 0].clone()  # which no later write reached
    kept.clear()
    model.run(prompt(9), tap=lambda where, at, value: kept.update({(where, at): value.clone()}) or give(where, at, value))
    assert torch.equal(end, kept["resid_post", 0])


def test_a_tap_that_returns_nothing_changes_nothing() -> None:
    _, model = pair(kinds="lgl")
    assert torch.equal(model.run(prompt(9), tap=lambda site, layer, value: None), model.run(prompt(9)))


def test_a_tap_is_a_function() -> None:
    _, model = pair(kinds="lgl")
    with pytest.raises(TapError, match=r"a tap is a function .* given str"):
        model.run(prompt(5), tap="pattern")  # type: ignore[arg-type]


# How a transformers user writes the same change: the module, and whether the hook goes before or after it.
HOOKS: dict[str, tuple[str, str]] = {
    "embed": ("model.embed_tokens", "after"),
    "resid_pre": ("model.layers.1", "before"),
    "attn_in": ("model.layers.1.input_layernorm", "after"),
    "q": ("model.layers.1.self_attn.q_proj", "after"),
    "k": ("model.layers.1.self_attn.k_proj", "after"),
    "v": ("model.layers.1.self_attn.v_proj", "after"),
    "z": ("model.layers.1.self_attn.o_proj", "before"),
    "attn_raw": ("model.layers.1.post_attention_layernorm", "before"),
    "attn_out": ("model.layers.1.post_attention_layernorm", "after"),
    "resid_mid": ("model.layers.1.pre_feedforward_layernorm", "before"),
    "mlp_in": ("model.layers.1.mlp", "before"),
    "mlp_gate": ("model.layers.1.mlp.gate_proj", "after"),
    "mlp_up": ("model.layers.1.mlp.up_proj", "after"),
    "mlp_act": ("model.layers.1.mlp.down_proj", "before"),
    "mlp_raw": ("model.layers.1.post_feedforward_layernorm", "before"),
    "mlp_out": ("model.layers.1.post_feedforward_layernorm", "after"),
    "resid_post": ("model.layers.2", "before"),
    "final": ("model.norm", "after"),
}


def hooked(source: Gemma2ForCausalLM, site: str, factor: Tensor) -> Callable[[], None]:
    """Multiply a site by factor in transformers' model; returns how to stop."""
    name, when = HOOKS[site]
    module = source.get_submodule(name)
    if site == "resid_mid":  # no module makes it: what attention adds is changed so that the sum is the one wanted
        layer = source.get_submodule("model.layers.1")
        stream: list[Tensor] = []
        keep = layer.register_forward_pre_hook(lambda _, args: stream.append(args[0]))
        post = layer.get_submodule("post_attention_layernorm")
        move = post.register_forward_hook(lambda *call: (stream[-1] + call[-1]) * factor - stream[-1])
        return lambda: (keep.remove(), move.remove())  # type: ignore[func-returns-value, return-value]
    if when == "before":
        return module.register_forward_pre_hook(lambda _, args: (args[0] * factor, *args[1:])).remove
    return module.register_forward_hook(lambda *call: call[-1] * factor).remove


@pytest.mark.parametrize("site", HOOKS)
def test_a_write_does_what_a_hook_of_transformers_does(site: str) -> None:
    source, model = pair(kinds="lgl")
    ids = prompt(9)
    plain = every_site(model, ids)
    layer = 1 if SITES[site].in_layer else None
    value = plain[site, layer]
    factor = 1 + torch.rand(value.shape, generator=torch.Generator().manual_seed(5))
    stop = hooked(source, site, factor.reshape(len(value), -1))
    try:
        oracle = transformers_outputs(source, ids)
    finally:
        stop()
    values = every_site(model, ids, lambda s, at, v: v * factor if (s, at) == (site, layer) else v)
    assert error(values["logits", None], oracle.logits[0]) <= CLOSE
    assert error(plain["logits", None], oracle.logits[0]) > 100 * CLOSE  # the change matters
    for at in range(3):
        assert error(values["pattern", at], oracle.attentions[at][0]) <= CLOSE


@pytest.mark.parametrize("site", [site for site in SITES if site != "logits"])
@pytest.mark.parametrize("in_place", [False, True], ids=["copied", "in_place"])
def test_a_write_has_the_effects_that_it_has_in_the_plain_reference(site: str, in_place: bool) -> None:
    source, model = pair(kinds="lg", seed=3)
    ids = prompt(9, seed=1)
    layer = 0 if SITES[site].in_layer else None
    reference = Reference(source)
    shape = reference.run(ids)[site, layer].shape
    factor = np.random.default_rng(0).uniform(0.5, 1.5, shape)
    factor[: len(factor) // 2] = 1.0  # the other half of the rows, or of the heads, stays as it is

    def change(at_site: str, at: int | None, value: Tensor) -> Tensor:
        if (at_site, at) != (site, layer):
            return value
        weights = torch.from_numpy(factor).float()
        return value.mul_(weights) if in_place else value * weights

    oracle = reference.run(ids, lambda s, at, value: value * factor if (s, at) == (site, layer) else value)
    values = every_site(model, ids, change)
    errors = {key: error(values[key], oracle[key]) for key in oracle}
    assert max(errors.values()) <= CLOSE, sorted(errors.items(), key=lambda item: -item[1])[:5]
    assert error(every_site(model, ids)["logits", None], oracle["logits", None]) > 100 * CLOSE


def test_a_write_to_one_head_adds_its_change_to_attn_out() -> None:
    _, model = pair(kinds="lgl")
    ids, plain = prompt(9), every_site(pair(kinds="lgl")[1], prompt(9))
    change = torch.randn(9, 32, generator=torch.Generator().manual_seed(0))

    def tap(site: str, layer: int | None, value: Tensor) -> Tensor:
        if (site, layer) != ("head_out", 1):
            return value
        value = value.clone()
        value[:, 3] += change
        return value

    values = every_site(model, ids, tap)
    assert error(values["attn_out", 1], plain["attn_out", 1] + change) <= CLOSE
    assert error(values["resid_mid", 1], plain["resid_mid", 1] + change) <= CLOSE
    assert torch.equal(values["attn_raw", 1], plain["attn_raw", 1])


# -- what adds up --


@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
def test_heads_and_sublayers_add_up(shape: dict[str, Any]) -> None:
    _, model = pair(**shape)
    values = every_site(model, prompt(20))
    stream = values["embed", None]
    for layer in range(model.n_layers):
        assert error(values["head_out", layer].sum(1), values["attn_out", layer]) <= CLOSE
        stream = stream + values["attn_out", layer] + values["mlp_out", layer]
    assert error(stream, values["resid_post", model.n_layers - 1]) <= CLOSE
    last = values["resid_post", model.n_layers - 1]
    assert torch.equal(model.network.unembed(last), values["logits", None])


@pytest.mark.parametrize("shape", SHAPES[::3], ids=name_of)
def test_patterns_are_probabilities_of_the_visible_keys(shape: dict[str, Any]) -> None:
    _, model = pair(**shape)
    values = every_site(model, prompt(20))
    for layer, kind in enumerate(model.config.kinds):
        pattern = values["pattern", layer]
        assert error(pattern.sum(-1), torch.ones(8, 20)) <= CLOSE
        window = model.config.window if kind == "local" else 20
        hidden = [(i, j) for i in range(20) for j in range(20) if not i - window < j <= i]
        assert all(pattern[:, i, j].abs().max() == 0 for i, j in hidden)


# -- many prompts in one pass --


@settings(deadline=None, derandomize=True, max_examples=25)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=7), shape=st.sampled_from(SHAPES), grad=st.booleans())
def test_a_pass_of_many_prompts_is_one_pass_each(lengths: list[int], shape: dict[str, Any], grad: bool) -> None:
    """Without a gradient, prompts of unlike lengths are padded to one shape."""
    _, model = pair(**shape)
    prompts = [torch.tensor(prompt(length, seed=i)) for i, length in enumerate(lengths)]
    layout = Layout.of_lengths(lengths)
    with torch.set_grad_enabled(grad):
        together = model.network(torch.cat(prompts), layout)
        for ids, rows in zip(prompts, layout.spans, strict=True):
            alone = model.network(ids, Layout.of_lengths([len(ids)]))
            assert error(together[rows].detach(), alone.detach()) <= CLOSE


def test_a_pass_that_builds_all_edges_equals_one_that_does_not() -> None:
    """Edge sites of many prompts come in blocks of adjacent prompts of equal length."""
    _, model = pair(kinds="lgl")
    lengths = [5, 5, 3, 5]
    layout = Layout.of_lengths(lengths)
    ids = torch.cat([torch.tensor(prompt(length, seed=i)) for i, length in enumerate(lengths)])
    blocks_seen: list[tuple[str, int, tuple[int, ...]]] = []

    class Edges(type(SILENT)):  # type: ignore[misc]
        def wants(self, site: str, layer: int | None) -> bool:
            return site in EDGE_SITES

        def edges(self, site: str, layer: int, value: Tensor, block: Block) -> Tensor:
            blocks_seen.append((site, block.run, tuple(value.shape)))
            return value

    assert error(model.network(ids, layout, Edges()).detach(), model.network(ids, layout).detach()) <= CLOSE
    blocks = [(0, (2, 8, 5, 5)), (2, (1, 8, 3, 3)), (3, (1, 8, 5, 5))]
    assert blocks_seen == [(site, run, shape) for _ in range(3) for run, shape in blocks for site in EDGE_SITES]


def test_a_layout_maps_rows_to_prompts_and_positions() -> None:
    layout = Layout.of_lengths([3, 3, 1, 3])
    assert layout.blocks == (Block(0, 2, 3, 0), Block(6, 1, 1, 2), Block(7, 1, 3, 3))
    assert layout.positions.tolist() == [0, 1, 2, 0, 1, 2, 0, 0, 1, 2]
    assert layout.spans == (slice(0, 3), slice(3, 6), slice(6, 7), slice(7, 10))
    assert layout.n_rows == 10


# -- attention in chunks --


@pytest.mark.parametrize("shape", [s for s in SHAPES if s["sliding_window"] in (4, 7)], ids=name_of)
@pytest.mark.parametrize("step", [-3, -1, 0, 1, 5])
def test_chunks_of_query_rows_change_nothing(shape: dict[str, Any], step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source, model = pair(**shape)
    ids = prompt(5 * shape["sliding_window"])
    monkeypatch.setattr(attention, "CHUNK_ROWS", shape["sliding_window"] + step)  # the window at the chunk's edges
    assert error(model.run(ids), transformers_outputs(source, ids).logits[0]) <= CLOSE


@pytest.mark.parametrize("elements", [1, 8 * 20 * 3, 8 * 20 * 7])
def test_chunks_of_query_rows_stay_within_their_limit(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source, model = pair(kinds="gll", num_key_value_heads=4, sliding_window=4)
    ids = prompt(20)
    monkeypatch.setattr(attention, "CHUNK_ELEMENTS", elements)
    largest = Largest()
    with largest, torch.no_grad():
        Attend(0.3, 50.0, None)(*heads_of(20, 8, 4, 2), Layout.of_lengths([20]), SILENT.at(0, Layout.of_lengths([20])))
    assert largest.scores <= max(elements, 8 * 20)  # at least one row of queries
    assert error(model.run(ids), transformers_outputs(source, ids).logits[0]) <= CLOSE


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that attention makes besides its inputs and output."""

    scores = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and "softmax" in str(func):
            self.scores = max(self.scores, result.numel())
        if isinstance(result, Tensor):
            self.any = max(getattr(self, "any", 0), result.untyped_storage().nbytes())
        return result


def heads_of(n_pos: int, heads: int, kv_heads: int, d_head: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.ones(n_pos, n, d_head, device=device) for n in (heads, kv_heads, kv_heads))  # type: ignore[return-value]


@pytest.mark.parametrize("window", [None, 4096])
def test_a_context_of_8192_never_holds_a_full_score_matrix(window: int | None) -> None:
    """2B's heads on the meta device: no tensor of the computation comes near the 2 GB of 8 x 8192 x 8192 scores."""
    n_pos, heads, kv_heads, d_head = 8192, 8, 4, 256
    layout = Layout.of_lengths([n_pos], "meta")
    largest = Largest()
    with largest:
        z = Attend(d_head**-0.5, 50.0, window)(
            *heads_of(n_pos, heads, kv_heads, d_head, "meta"), layout, SILENT.at(0, layout)
        )
    assert z.shape == (n_pos, heads, d_head)
    assert largest.scores > 0
    assert largest.any <= 64 * 2**20 < heads * n_pos * n_pos * 4 / 30


# -- prompts --


@pytest.mark.parametrize(
    ("prompt_given", "message"),
    [
        ([], "the prompt is empty: give at least one token id"),
        (torch.zeros(0, dtype=torch.long), "the prompt is empty"),
        (torch.zeros(1, 0, dtype=torch.long), "the prompt is empty"),
        ([3, 61], "token id 61 is outside 'random''s vocabulary: ids go from 0 to 60"),
        ([3, -1], "token id -1 is outside"),
        (torch.tensor([99]), "token id 99 is outside"),
        ([3, 2**70], "token id 1180591620717411303424 is outside"),
        ([1.0, 2.0], "token ids are whole numbers; given 1.0"),
        ([True, False], "token ids are whole numbers; given True"),
        (["a"], "token ids are whole numbers; given 'a'"),
        (torch.tensor([1.0]), "token ids are whole numbers; given a tensor of torch.float32"),
        (torch.tensor([True]), "token ids are whole numbers; given a tensor of torch.bool"),
        (np.array([1.5]), "token ids are whole numbers; given an array of float64"),
        (np.array([True]), "token ids are whole numbers; given an array of bool"),
        (np.array(3), r"one axis, \[pos\]; given shape \(\)"),
        ([torch.tensor(1.0)], r"token ids are whole numbers; given tensor\(1.\)"),
        ([1] * 65, "the prompt has 65 tokens and 'random' a context of 64: shorten it by 1"),
        ([[1, 2], [3, 4]], r"token ids are whole numbers; given \[1, 2\]"),
        (torch.ones(2, 3, dtype=torch.long), r"one axis, \[pos\]; given shape \(2, 3\)"),
        (torch.tensor(3), r"one axis, \[pos\]; given shape \(\)"),
        (3, "a prompt is text, token ids or chat messages; given int"),
        (None, "a prompt is text, token ids or chat messages; given NoneType"),
        (b"text", "a prompt is text, token ids or chat messages; given bytes"),
        ("text", "'random' came without a tokenizer: give prompts as token ids"),
    ],
)  # fmt: skip
def test_a_bad_prompt_is_refused(prompt_given: Any, message: str) -> None:
    _, model = pair(kinds="lg")
    with pytest.raises(PromptError, match=message):
        model.ids(prompt_given)


@pytest.mark.parametrize(
    "token_ids",
    [[4, 5, 6], (4, 5, 6), torch.tensor([4, 5, 6]), torch.tensor([[4, 5, 6]]), torch.tensor([4, 5, 6], dtype=torch.int32),
     np.array([4, 5, 6]), np.array([[4, 5, 6]]), list(np.array([4, 5, 6])), range(4, 7)],
    ids=["list", "tuple", "tensor", "batch_of_one", "int32", "numpy", "numpy_batch", "numpy_scalars", "range"],
)  # fmt: skip
def test_token_ids_may_be_a_list_tensor_or_array(token_ids: Any) -> None:
    ids = pair(kinds="lg")[1].ids(token_ids)
    assert ids.tolist() == [4, 5, 6]
    assert ids.dtype == torch.long


def test_a_prompt_may_fill_the_context() -> None:
    assert len(pair(kinds="lg")[1].ids([1] * 64)) == 64


# -- the model's own words --


def test_the_repr_of_a_model_names_its_sizes() -> None:
    source, model = pair(kinds="lgl")
    assert model.n_params == source.num_parameters() == config_of(source).n_params
    assert [layer.kind for layer in model.layers()] == ["local", "global", "local"]
    assert model.layer(-1) is list(model.layers())[2]
    assert "3 layers, d_model 32, 8 heads over 4 kv heads of 12" in repr(model)
    assert model.texts(torch.tensor([7, 8])) == ["7", "8"]


def test_equal_models_have_one_fingerprint_and_different_ones_do_not() -> None:
    one, same, different = (model_of(checkpoint("lg", seed)) for seed in (0, 0, 1))
    assert one.fingerprint == same.fingerprint != different.fingerprint
    assert model_of(checkpoint("gl", 0)).fingerprint != one.fingerprint


def test_importing_the_package_does_not_import_the_heavy_libraries() -> None:
    code = "import sys, gemmascope; print([m for m in ('transformers', 'plotly', 'ipywidgets', 'ray') if m in sys.modules])"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"

"""The laws of a trace: every site readable by every name, a re-run layer is the first run, many prompts are one pass."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, every_site, model, model_of, prompt
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import error
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import gemmascope as gs
from gemmascope.errors import GemmascopeError, PromptError, SiteError
from gemmascope.model.gemma2 import Layer
from gemmascope.model.layout import Layout
from gemmascope.model.tap import Tap
from gemmascope.run.reading import layer_cache
from gemmascope.run.trace import Trace
from gemmascope.sites import EDGE_SITES, LAYER_SITES, SITES

CLOSE = 1e-5
ADDRESSES = [(name, layer) for name, site in SITES.items() for layer in (range(3) if site.in_layer else (None,))]


def key_of(site: str, layer: int | None) -> Any:
    return site if layer is None else (site, layer)


# -- one number, many names --


@pytest.mark.parametrize("address", ADDRESSES, ids=str)
def test_a_site_has_one_value_by_all_its_names(address: tuple[str, int | None]) -> None:
    name, layer = address
    t, site = gs.trace(prompt(9), model=model()), SITES[name]
    value = every_site(model(), prompt(9))[address]
    keys: list[Any] = [name] if layer is None else [(name, layer), (name, layer - 3), f"layers.{layer}.{name}"]
    if layer is not None:
        keys += [(name, np.int64(layer)), f"blocks.{layer}.{name}"]
    if site.hook:
        keys += [site.hook] if layer is None else [f"blocks.{layer}.{site.hook}", (site.hook, layer)]
    for key in keys:
        assert torch.equal(t[key], value), key


@pytest.mark.parametrize("length", [1, 2, 4, 5, 20])
def test_a_layer_run_again_equals_the_first_run_bit_for_bit(length: int) -> None:
    t, values = gs.trace(prompt(length), model=model()), every_site(model(), prompt(length))
    assert values.keys() == set(ADDRESSES)
    for site, layer in reversed(ADDRESSES):  # the order in which sites are read does not matter
        value = t[key_of(site, layer)]
        assert torch.equal(value, values[site, layer]), (site, layer)
        assert value.shape == tuple(model().config.size_of(axis, length) for axis in SITES[site].axes)


class Rows(Tap):
    """Records row sites and no edge site, so that attention works in chunks as in a plain pass."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, int | None], Tensor] = {}

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        self.values[site, layer] = value.clone()
        return value


def test_a_rerun_layer_is_the_first_run_where_attention_went_in_chunks() -> None:
    """The sites read, now and before, must not change how the layer is computed."""
    long = model(max_position_embeddings=600)
    ids = prompt(530)
    first = Rows()
    long.run(ids, tap=first)
    t = gs.trace(ids, model=long)
    for layer in range(3):
        assert error(t["pattern", layer].sum(-1), torch.ones(8, 530)) <= CLOSE
        for site in LAYER_SITES:
            if (site, layer) in first.values:
                assert torch.equal(t[site, layer], first.values[site, layer]), (site, layer)
    assert torch.equal(t.logits, first.values["logits", None])


def test_logits_are_those_of_transformers() -> None:
    source = checkpoint("lgl", seed=4)
    t = gs.trace(prompt(20), model=model_of(source))
    oracle = source(torch.tensor([prompt(20)])).logits[0].detach()
    assert error(t.logits, oracle) <= CLOSE
    assert error(t.next_logits, oracle[-1]) <= CLOSE
    assert t.logits.dtype == torch.float32
    assert not t.logits.requires_grad


@settings(deadline=None, max_examples=20, derandomize=True)
@given(kinds=st.text("lg", min_size=1, max_size=3), kv=st.sampled_from([8, 4, 2]), length=st.integers(1, 12))
def test_heads_and_sublayers_of_a_trace_add_up(kinds: str, kv: int, length: int) -> None:
    t = gs.trace(prompt(length), model=model(kinds, num_key_value_heads=kv))
    stream = t["embed"]
    for layer in range(len(kinds)):
        assert error(t["head_out", layer].sum(1), t["attn_out", layer]) <= CLOSE
        stream = stream + t["attn_out", layer] + t["mlp_out", layer]
    assert error(stream, t["resid_post", -1]) <= CLOSE


# -- many prompts --


class Counted:
    """Counts the runs of layers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[int] = []
        forward = Layer.forward

        def counting(layer: Layer, x: Tensor, *rest: Any) -> Tensor:
            self.calls.append(layer.index)
            return forward(layer, x, *rest)

        monkeypatch.setattr(Layer, "forward", counting)


def test_a_list_of_prompts_is_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    gs.trace([prompt(5), prompt(9, seed=1), prompt(5, seed=2), [7]], model=model())
    assert counted.calls == [0, 1, 2]


def test_a_trace_runs_again_only_the_layer_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    t = gs.trace(prompt(9), model=model())
    for layer in range(3):
        t.layer_cache.drop(layer)  # what its run made anyway
    counted = Counted(monkeypatch)
    t.lens(), t.logits, t.top(), t["resid_pre", 1], t["resid_post", 1], t["embed"], repr(t)
    assert counted.calls == []
    t["mlp_act", 1], t["z", 1], t["q", 1], t["resid_mid", 1]
    assert counted.calls == [1]


@settings(deadline=None, max_examples=20, derandomize=True)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6), kinds=st.sampled_from(["lg", "gll"]))
def test_traces_of_one_pass_are_traces_of_a_pass_each(lengths: list[int], kinds: str) -> None:
    prompts = [prompt(length, seed=i) for i, length in enumerate(lengths)]
    together = gs.trace(prompts, model=model(kinds))
    assert [t.ids.tolist() for t in together] == prompts
    for ids, t in zip(prompts, together, strict=True):
        alone = gs.trace(ids, model=model(kinds))
        for site, info in SITES.items():
            for layer in range(len(kinds)) if info.in_layer else (None,):
                key = key_of(site, layer)
                assert error(t[key], alone[key]) <= CLOSE, key


def test_a_list_of_one_prompt_is_a_list_of_one_trace() -> None:
    assert [t.ids.tolist() for t in gs.trace([prompt(3)], model=model())] == [prompt(3)]
    assert isinstance(gs.trace(prompt(3), model=model()), Trace)
    assert isinstance(gs.trace(torch.tensor(prompt(3)), model=model()), Trace)
    assert isinstance(gs.trace(torch.tensor([prompt(3)]), model=model()), Trace)
    assert isinstance(gs.trace(np.array(prompt(3)), model=model()), Trace)
    assert [len(t) for t in gs.trace([torch.tensor(prompt(n)) for n in (4, 2)], model=model())] == [4, 2]


# -- what is kept, and what is handed out --


def test_the_last_few_layers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    many = model("lglglg")
    monkeypatch.setattr(layer_cache, "_caches", WeakSet())  # traces of other tests may go at any time
    t = gs.trace(prompt(5), model=many)
    for layer in range(6):
        t.layer_cache.drop(layer)  # what its run made anyway
    t["z", 0]
    monkeypatch.setattr(layer_cache, "MAX_CACHED_BYTES", 4 * sum(t.layer_cache.sizes()))  # four of the layers
    t.layer_cache.drop(0)
    counted = Counted(monkeypatch)
    for layer in (0, 1, 2, 3, 0, 4, 0, 2, 3, 4):  # 0 was read again and is kept; 1 was not and is dropped
        t["z", layer]
    assert counted.calls == [0, 1, 2, 3, 4]
    t["z", 1]
    assert counted.calls[-1] == 1


def test_the_cache_of_layers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    many = model("lglglg")
    t = gs.trace(prompt(60), model=many)
    pattern = t["pattern", 0]
    limit = 2 * pattern.numel() * pattern.element_size()
    monkeypatch.setattr(layer_cache, "MAX_CACHED_LAYER_BYTES", limit)
    small = gs.trace(prompt(60), model=many)
    for layer in range(6):
        for site in LAYER_SITES:
            assert torch.equal(small[site, layer], t[site, layer])
            sizes = small.layer_cache.sizes()
            assert all(size <= limit for size in sizes)
            assert sum(sizes) <= layer_cache.MAX_CACHED_BYTES


@pytest.mark.parametrize("address", ADDRESSES, ids=str)
def test_writing_to_a_value_that_was_read_does_not_change_later_reads(address: tuple[str, int | None]) -> None:
    t, key = gs.trace(prompt(9), model=model()), key_of(*address)
    for _ in range(2):
        t[key].zero_()
    values = every_site(model(), prompt(9))
    for later in ADDRESSES:
        assert torch.equal(t[key_of(*later)], values[later]), later


def test_writing_to_logits_or_the_lens_does_not_change_later_reads() -> None:
    t = gs.trace(prompt(9), model=model())
    before = t.top(3), t.lens().copy(deep=True), t.edges("pattern", 1, head=2).clone()
    t.next_logits.zero_(), t.logits.zero_(), t.edges("pattern", 1, head=2).zero_()
    t.lens().values[:] = 0
    t.tokens.clear()
    assert t.top(3) == before[0]
    assert (t.lens() == before[1]).all()
    assert torch.equal(t.edges("pattern", 1, head=2), before[2])
    assert len(t.tokens) == 9


# -- some edges --


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    site=st.sampled_from(EDGE_SITES), layer=st.integers(-3, 2), length=st.integers(1, 12), kv=st.sampled_from([8, 4, 2]),
    warm=st.booleans(), data=st.data(),
)  # fmt: skip
def test_selected_edges_equal_those_of_the_full_pattern(
    site: str, layer: int, length: int, kv: int, warm: bool, data: Any
) -> None:
    t = gs.trace(prompt(length), model=model(num_key_value_heads=kv))
    all_edges = gs.trace(prompt(length), model=model(num_key_value_heads=kv))[site, layer]
    if warm:
        t["pattern", layer]  # from here on the layer is cached
    one_or_more = lambda n: st.none() | st.integers(-n, n - 1) | st.lists(st.integers(0, n - 1), min_size=1, unique=True)  # noqa: E731
    head, q_pos = data.draw(one_or_more(8)), data.draw(one_or_more(length) | st.just(slice(0, None, 2)))
    selected = t.edges(site, layer, head=head, q_pos=q_pos)
    expected = all_edges[slice(None) if head is None else head][..., slice(None) if q_pos is None else q_pos, :]
    assert error(selected, expected) <= CLOSE


def test_a_lone_head_or_row_drops_its_axis_whatever_kind_of_number_it_is() -> None:
    t = gs.trace(prompt(9), model=model())
    assert t.edges("pattern", 1, head=np.int64(2), q_pos=torch.tensor(3)).shape == (9,)
    assert t.edges("pattern", 1, head=torch.tensor([2]), q_pos=[np.int64(3)]).shape == (1, 1, 9)
    assert t.edges("pattern", 1, head=2, q_pos=slice(3, 4)).shape == (1, 9)


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("site", EDGE_SITES)
def test_selected_edges_are_computed_without_building_the_others(site: str) -> None:
    n_pos = 1500
    t = gs.trace(prompt(n_pos), model=model(max_position_embeddings=n_pos))
    rows = n_pos * 8 * 12  # the queries of all heads
    with Largest() as largest:
        t.edges(site, 1, head=3, q_pos=[5, n_pos - 1])
    assert largest.elements <= rows
    with Largest() as largest:
        t.edges(site, 0, head=3)
    assert largest.elements <= n_pos * n_pos
    with Largest() as largest:
        t.edges(site, 1, q_pos=-1)
    assert largest.elements <= rows
    with Largest() as largest:
        t[site, 1]
    assert largest.elements >= 8 * n_pos * n_pos  # the measure detects the full pattern


# -- readings of the last position --


def test_top_is_the_sorted_softmax_of_the_logits() -> None:
    t = gs.trace(prompt(9), model=model())
    for pos in (-1, 8, 0, 3):
        probs = t.logits[pos].softmax(-1)
        top = t.top(61, pos=pos)
        assert sorted(i for _, i, _ in top) == list(range(61))
        assert [p for _, _, p in top] == sorted((p for _, _, p in top), reverse=True)
        assert all(abs(p - probs[i].item()) <= CLOSE and text == str(i) for text, i, p in top)
    assert t.top() == t.top(5, pos=8)


def test_the_lens_reads_the_stream_after_every_layer() -> None:
    t = gs.trace(prompt(9), model=model())
    every = t.lens(pos=None)
    assert every.dims == ("layer", "pos", "vocab")
    assert every.shape == (3, 9, 61)
    assert every.coords["token"].values.tolist() == t.tokens
    assert every.coords["pos"].values.tolist() == list(range(9))
    for layer in range(3):
        read = model().network.unembed(t["resid_post", layer]).detach()
        assert error(every.sel(layer=layer).values, read) <= CLOSE
    for pos in (-1, 4, 0):
        one = t.lens(pos=pos)
        assert one.dims == ("layer", "vocab")
        assert one.coords["layer"].values.tolist() == [0, 1, 2]
        assert one.coords["kind"].values.tolist() == ["local", "global", "local"]
        assert error(one.values, every[:, pos].values) <= CLOSE
    assert error(t.lens()[-1].values, t.logits[-1]) <= CLOSE


def test_layers_say_their_kind_and_window() -> None:
    layers = gs.trace(prompt(2), model=model("glg", sliding_window=7)).layers
    assert [(i.index, i.kind, i.window) for i in layers] == [(0, "global", None), (1, "local", 7), (2, "global", None)]


# -- bad input --

BAD_READS = [
    (lambda t: t["patern", 1], SiteError, "there is no site 'patern'. Did you mean 'pattern'"),
    (lambda t: t["blocks.1.attn.hook_patern"], SiteError, "there is no site 'attn.hook_patern'. Did you mean 'pattern'"),
    (lambda t: t["pattern", 3], SiteError, r"there is no layer 3: layers go from 0 to 2 \(or from -1 to -3"),
    (lambda t: t["pattern", -4], SiteError, "there is no layer -4"),
    (lambda t: t["layers.9.pattern"], SiteError, "there is no layer 9"),
    (lambda t: t["pattern", "1"], SiteError, "a layer is a whole number.*given '1'"),
    (lambda t: t["pattern", True], SiteError, "a layer is a whole number.*given True"),
    (lambda t: t["pattern", None], SiteError, "'pattern' is in every layer: say which"),
    (lambda t: t["logits", 1], SiteError, "'logits' is outside the layers"),
    (lambda t: t["pattern", 1, 2], SiteError, "a site is looked up as"),
    (lambda t: t[5], SiteError, "there is no site 5"),
    (lambda t: t["blocks.1.attn.hook_result"], SiteError, "'head_out' goes through it and adds up"),
    (lambda t: t.edges("z", 1), SiteError, r"'z' has no edges; those that do are scores, .*t\['z', 1\]"),
    (lambda t: t.edges("pattern", 5), SiteError, "there is no layer 5"),
    (lambda t: t.edges("pattern", 1, head=8), SiteError, "there is no head 8: heads go from 0 to 7"),
    (lambda t: t.edges("pattern", 1, head="2"), SiteError, "head is a number or a list of numbers; given '2'"),
    (lambda t: t.edges("pattern", 1, q_pos=9), SiteError, "there is no position 9: positions go from 0 to 8"),
    (lambda t: t.edges("pattern", 1, q_pos=[]), SiteError, "pos is an empty list"),
    (lambda t: t.edges("pattern", 1, q_pos=slice(9, 12)), SiteError, "the slice 9:12 holds none of the 9 positions"),
    (lambda t: t.top(0), SiteError, "k is a whole number from 1 to 61, the size of the vocabulary; given 0"),
    (lambda t: t.top(62), SiteError, "k is a whole number from 1 to 61.*given 62"),
    (lambda t: t.top(2.5), SiteError, "k is a whole number.*given 2.5"),
    (lambda t: t.top(3, pos=9), SiteError, "there is no position 9"),
    (lambda t: t.top(3, pos=1.5), SiteError, "given 1.5"),
    (lambda t: t.top(3, pos=[1, 2]), SiteError, r"one position.*\[1, 2\]"),
    (lambda t: t.top(3, pos=" Mary"), SiteError, "the token ' Mary' is not in the prompt"),
    (lambda t: t.lens(pos=-10), SiteError, "there is no position -10"),
    (lambda t: t.lens(pos="7 "), SiteError, "the token '7 ' is not in the prompt"),
]


@pytest.mark.parametrize(("read", "kind", "message"), BAD_READS)
def test_a_site_layer_or_position_that_does_not_exist_is_refused(read: Any, kind: type[Exception], message: str) -> None:
    t = gs.trace(prompt(9), model=model())
    with pytest.raises(kind, match=message):
        read(t)


BAD_PROMPTS: list[tuple[Any, str]] = [
    ([], "the prompt is empty"),
    (torch.zeros(0, dtype=torch.long), "the prompt is empty"),
    ([[1, 2], []], "the prompt is empty"),
    ([1, 61], "token id 61 is outside 'random''s vocabulary: ids go from 0 to 60"),
    ([1, -1], "token id -1 is outside"),
    ([1, 2.0], "token ids are whole numbers; given .*2.0"),
    ([1, True], "token ids are whole numbers"),
    (["a", 5], "token ids are whole numbers"),
    (torch.ones(3), "token ids are whole numbers; given a tensor of torch.float32"),
    (torch.ones(2, 3, dtype=torch.long), r"the token ids of one prompt have one axis, \[pos\]; given shape \(2, 3\)"),
    (np.ones((2, 3), dtype=int), r"the token ids of one prompt have one axis, \[pos\]; given shape \(2, 3\)"),
    (np.ones(3), "token ids are whole numbers"),
    (torch.tensor(3), "token ids of one prompt have one axis"),
    ([3] * 65, "the prompt has 65 tokens and 'random' a context of 64: shorten it by 1"),
    ("text", "the model 'random' came without a tokenizer: give prompts as token ids"),
    (None, "a prompt is text, token ids or chat messages; given NoneType"),
    (b"bytes", "a prompt is text, token ids or chat messages; given bytes"),
    ({"role": "user"}, "a prompt is text, token ids or chat messages; given a dict"),
]


@pytest.mark.parametrize(("given_prompt", "message"), BAD_PROMPTS, ids=[message[:40] for _, message in BAD_PROMPTS])
def test_a_bad_prompt_is_refused(given_prompt: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        gs.trace(given_prompt, model=model())


@pytest.mark.parametrize("given_model", ["nano", 3])
def test_a_model_is_what_load_returns(given_model: Any) -> None:
    with pytest.raises(GemmascopeError, match=f"model is what gs.load returns; .*model=gs.load\\({given_model!r}\\)"):
        gs.trace([1], model=given_model)

"""Generation: the same tokens as transformers, cached equal to uncached under every kind of edit, and a trace of it all."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import checkpoint, model_of, prompt
from pieces import worded
from reference import error
from torch import Tensor
from transformers import Gemma2ForCausalLM

import gemmascope as gs
from gemmascope.edits.edit import Edit
from gemmascope.errors import EditError, GemmascopeError, GenerationError, PromptError, SiteError
from gemmascope.generation.decoder import Decoder
from gemmascope.generation.result import Generation
from gemmascope.model.model import Model
from gemmascope.streaming.layer_stream import LayerStream

CLOSE = 3e-5  # of the largest logit: a step rounds otherwise than a whole pass, by processor (1.2e-5 on an AMD EPYC)
ENDLESS: dict[str, Any] = {"eos_token_id": None}


@cache
def pair(kinds: str = "lgl", seed: int = 0, **shape: Any) -> tuple[Gemma2ForCausalLM, Model]:
    source = checkpoint(kinds, seed, **{**ENDLESS, **shape})
    return source, model_of(source)


def model() -> Model:
    return pair()[1]


def transformers_greedy(source: Gemma2ForCausalLM, ids: Sequence[int], n_new: int) -> tuple[list[int], Tensor]:
    """Greedy generation by transformers: all ids, and the logits [new, vocab] of the new ones."""
    source.generation_config.eos_token_id = source.config.eos_token_id
    tokens = torch.tensor([list(ids)])
    use_cache = source.config.sliding_window > 1  # its cache of a window of 1 keeps keys that the window has left
    options: dict[str, Any] = {"max_new_tokens": n_new, "do_sample": False, "pad_token_id": 0, "use_cache": use_cache}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    with torch.no_grad():
        result = source.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
    return result.sequences[0].tolist(), torch.cat(result.logits)


# -- against transformers --


@pytest.mark.parametrize(
    ("kinds", "shape", "seed"),
    [
        ("lg", {}, 0),
        ("lgl", {"num_key_value_heads": 8}, 1),
        ("gl", {"num_key_value_heads": 2}, 2),
        ("lgg", {"num_attention_heads": 4, "num_key_value_heads": 1, "sliding_window": 1}, 3),
        ("lg", {"attn_logit_softcapping": None, "sliding_window": 40}, 4),
    ],
)
def test_greedy_tokens_are_those_of_transformers(kinds: str, shape: dict[str, Any], seed: int) -> None:
    source = checkpoint(kinds, seed, **ENDLESS, **shape)
    ours = model_of(source)
    for n_prompt in (1, 3, 9):  # shorter than the window of 4, and longer
        ids = prompt(n_prompt, seed=seed)
        n_new = 64 - n_prompt  # exactly the context, so the window's slots are taken many times over
        g = gs.generate(ids, model=ours, max_new_tokens=n_new)
        expected, logits = transformers_greedy(source, ids, n_new)
        assert g.ids.tolist() == expected
        assert error(g.trace().logits[n_prompt - 1 : -1], logits) <= 2 * CLOSE  # both from the cache
        assert g.stopped == "length"
        assert (len(g.new_ids), g.n_prompt) == (n_new, n_prompt)


@pytest.mark.parametrize("seed", range(3))
def test_an_end_token_ends_the_text_where_it_ends_that_of_transformers(seed: int) -> None:
    _, endless = pair("lgl", seed)
    new = gs.generate(prompt(5, seed=seed), model=endless, max_new_tokens=20).new_ids.tolist()
    end = new[6]
    source = checkpoint("lgl", seed, eos_token_id=end)
    g = gs.generate(prompt(5, seed=seed), model=model_of(source), max_new_tokens=20)
    assert g.ids.tolist() == transformers_greedy(source, prompt(5, seed=seed), 20)[0]
    assert len(g.new_ids) == new.index(end) + 1
    assert g.stopped == f"token {end}"


# -- cached equals uncached --

VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(3)) * 3
MANY = torch.randn(4, 32, generator=torch.Generator().manual_seed(4)) * 3
N_PROMPT, N_NEW = 7, 12
TOTAL = N_PROMPT + N_NEW

EDITS: list[list[Edit]] = [
    [],
    [gs.add("resid_pre", VECTOR, layer=1, pos=3)],
    [gs.add("resid_post", VECTOR, layer=0, scale=0.5)],
    [gs.add("resid_mid", VECTOR, layer=2, pos=slice(5, None))],
    [gs.patch("resid_pre", MANY, layer=1, pos=[2, 6, 7, 11])],
    [gs.patch("resid_post", VECTOR, layer=0, pos=-1), gs.add("resid_pre", VECTOR, layer=1, pos=slice(-2, 10))],
    [gs.ablate("embed", pos=[4, 9])],
    [gs.scale("final", 0.3), gs.add("logits", torch.linspace(-9, 9, 61), pos=slice(8, None))],
    [gs.scale("logits_raw", -1.0)],
    [gs.ablate("z", layer=1, head=[0, 5]), gs.scale("z", 3.0, layer=0, pos=slice(3, None, 2), head=2)],
    [gs.ablate("head_out", layer=0, head=3), gs.scale("head_out", 2.0, layer=2, pos=9)],
    [gs.ablate("k", layer=0, pos=4, head=1), gs.scale("v", -2.0, layer=1, pos=[1, 8], head=[0, 3])],
    [gs.ablate("q_rot", layer=1, pos=10), gs.scale("k_rot", 2.0, layer=0)],
    [gs.scale("q", 0.2, layer=2), gs.ablate("attn_in", layer=1, pos=6)],
    [gs.ablate("mlp_act", layer=1, pos=slice(2, 12)), gs.scale("mlp_gate", -1.0, layer=2), gs.scale("mlp_up", 2.0, layer=0)],
    [gs.ablate("mlp_raw", layer=0, pos=8), gs.ablate("attn_raw", layer=1, pos=12), gs.scale("mlp_in", 2.0, layer=2)],
    [gs.ablate("attn_out", layer=0), gs.scale("mlp_out", -1.0, layer=2, pos=13)],
    [gs.ablate_direction("resid_post", VECTOR, layer=0)],
    [gs.knockout(layer=1, head=[1, 2], q_pos=slice(6, None), k_pos=[0, 3])],
    [gs.knockout(layer=0, q_pos=[9, 12], k_pos=9)],
    [gs.scale("scores", 0.1, layer=0, head=4), gs.add("scores_capped", torch.tensor(4.0), layer=2, k_pos=2)],
    [gs.ablate("pattern", layer=1, head=3, k_pos=slice(0, 2)), gs.scale("pattern", 0.5, layer=2)],
    [gs.edit("resid_mid", torch.tanh, layer=1), gs.edit("z", lambda z: z.flip(-1), layer=0, pos=slice(4, 9))],
    [gs.edit("pattern", lambda p: p.square(), layer=0, head=2), gs.edit("embed", lambda x: x.roll(1, -1), pos=11)],
]  # fmt: skip


def uncached(model: Model, ids: Sequence[int], edits: Sequence[Edit]) -> Tensor:
    """The logits of the next token from running the whole text again, with the edits at positions that exist."""
    applicable = [edit for edit in (up_to(edit, len(ids)) for edit in edits) if edit is not None]
    logits: Tensor = gs.trace(list(ids), model=model, edits=applicable).next_logits
    return logits


def up_to(edit: Edit, n_pos: int) -> Edit | None:
    """An edit without the positions from n_pos on, negative ones counted from the end of the prompt. Written plainly."""
    from dataclasses import replace

    changed: dict[str, Any] = {}
    for name in ("pos", "q_pos", "k_pos"):
        at = getattr(edit, name)
        if at is None:
            continue
        if isinstance(at, slice):
            bounds = [n + N_PROMPT if n is not None and n < 0 else n for n in (at.start, at.stop)]
            at = list(range(TOTAL))[bounds[0] : bounds[1] : at.step]
        at = [n + N_PROMPT if n < 0 else n for n in ([at] if isinstance(at, int) else at)]
        keep = [i for i, n in enumerate(at) if n < n_pos]
        if not keep:
            return None
        changed[name] = [at[i] for i in keep]
        if getattr(edit, "source", None) is MANY:
            changed["source"] = MANY[keep]
    return replace(edit, **changed)


@pytest.mark.parametrize(
    "edits", EDITS, ids=lambda edits: ", ".join(f"{e.site} {e.pos or e.q_pos}" for e in edits) or "none"
)
def test_cached_logits_equal_uncached_ones_at_every_step(edits: list[Edit], monkeypatch: pytest.MonkeyPatch) -> None:
    logits_of_steps: list[Tensor] = []
    for name in ("prefill", "step"):
        real = getattr(Decoder, name)

        def watched(self: Decoder, *arguments: Any, real: Any = real) -> Tensor:
            logits_of_steps.append(real(self, *arguments))
            return logits_of_steps[-1]

        monkeypatch.setattr(Decoder, name, watched)
    g = gs.generate(prompt(N_PROMPT), model=model(), edits=edits, max_new_tokens=N_NEW)
    ids = g.ids.tolist()
    assert len(logits_of_steps) == N_NEW
    for step, logits in enumerate(logits_of_steps):
        expected = uncached(model(), ids[: N_PROMPT + step], edits)
        assert error(logits[0], expected) <= CLOSE
        assert ids[N_PROMPT + step] == int(expected.argmax())
        assert g.logprobs[step] == pytest.approx(float(expected.log_softmax(-1).max()), abs=2e-3)


SITES: list[Any] = [
    "embed", ("resid_pre", 1), ("q_rot", 2), ("k", 0), ("v", 1), ("scores", 1), ("pattern", 0), ("pattern", 2), ("z", 2),
    ("head_out", 1), ("attn_out", 0), ("resid_mid", 2), ("mlp_act", 1), ("resid_post", 2), "final", "logits",
]  # fmt: skip


@pytest.mark.parametrize("edits", EDITS[::3], ids=lambda edits: ", ".join(e.site for e in edits) or "none")
def test_the_trace_is_that_of_the_whole_text(edits: list[Edit]) -> None:
    g = gs.generate(prompt(N_PROMPT), model=model(), edits=edits, max_new_tokens=N_NEW)
    again = gs.trace(g.ids, model=model(), edits=g.edits)
    t = g.trace()
    assert t is g.trace()
    assert t.edits == g.edits
    assert len(t.stream[0]) == TOTAL
    for key in SITES:
        assert error(t[key], again[key]) <= CLOSE, key
    drawn = again.logits[N_PROMPT - 1 : -1].argmax(-1)
    assert torch.equal(drawn, g.new_ids)


def test_a_trace_of_a_generation_reads_every_layer_once(layers_read: list[int]) -> None:
    g = gs.generate(prompt(5), model=model(), max_new_tokens=3)
    assert layers_read == [0, 1, 2] * 3
    layers_read.clear()
    g.trace()
    g.trace()
    assert layers_read == [0, 1, 2]


def test_edits_at_positions_that_were_never_generated_are_dropped_with_their_values() -> None:
    plain = gs.generate(prompt(N_PROMPT), model=model(), max_new_tokens=30)
    stop = plain.new_ids.tolist()[4]
    reached = N_PROMPT + plain.new_ids.tolist().index(stop) + 1
    places = [1, reached, 2, 30]
    source = gs.trace(prompt(40, seed=9), model=model())
    edits = [
        gs.patch("resid_post", MANY, layer=2, pos=[20, 21, 22, 23]),
        gs.knockout(layer=1, q_pos=25, k_pos=3),
        gs.add("attn_out", torch.zeros(4, 32), layer=1, pos=places, scale=2.0),
        gs.patch("logits", source, pos=[30, 31]),
        gs.patch("mlp_out", 0 * gs.trace(prompt(37), model=model())["mlp_out", 0] , layer=0, pos=slice(0, 37)),
        gs.scale("z", 1.0, layer=0, pos=slice(4, None)),
    ]  # fmt: skip
    with pytest.warns(gs.GemmascopeWarning, match="was (never|not) made.*: the text ended with"):
        g = gs.generate(prompt(N_PROMPT), model=model(), edits=edits, max_new_tokens=30, stop=stop)
    n_pos = len(g.ids)
    assert n_pos < 20
    assert [edit.site for edit in g.edits] == ["attn_out", "mlp_out", "z"]
    assert g.edits[0].pos == [p for p in places if p < n_pos]
    assert g.edits[2].pos == list(range(4, n_pos))
    again = gs.trace(g.ids, model=model(), edits=g.edits)
    assert error(g.trace().logits, again.logits) <= CLOSE
    assert again.logits[N_PROMPT - 1 : -1].argmax(-1).tolist() == g.new_ids.tolist()


def test_an_edit_at_every_position_is_kept_as_it_was_given() -> None:
    edits = [gs.add("resid_post", VECTOR, layer=1), gs.scale("z", 2.0, layer=0, head=1)]
    assert gs.generate(prompt(5), model=model(), edits=edits, max_new_tokens=4).edits == tuple(edits)


def test_a_patch_or_mean_from_another_run_applies_to_new_positions_that_its_source_has() -> None:
    source = gs.trace(prompt(30, seed=5), model=model())
    edits = [
        gs.patch("resid_pre", source, layer=1, pos=[3, 8]),
        gs.ablate("mlp_out", layer=2, value="mean", reference=[source]),
        gs.patch("z", source, layer=0, pos=slice(0, 9), head=2),
    ]
    options: dict[str, Any] = {"model": model(), "edits": edits, "max_new_tokens": 12, "temperature": 30.0}
    drawn = gs.generate(prompt(5), **options).new_ids.tolist()
    assert drawn[3] not in drawn[:3]
    g = gs.generate(prompt(5), **options, stop=drawn[3])
    assert len(g.ids) == 9  # as many as the slice names, while the source has more
    again = gs.trace(g.ids, model=model(), edits=g.edits)
    assert error(g.trace().logits, again.logits) <= CLOSE
    assert error(again["resid_pre", 1][[3, 8]], source["resid_pre", 1][[3, 8]]) == 0


def test_a_token_is_looked_up_in_the_prompt_and_negative_numbers_count_from_its_end() -> None:
    text = "When Mary and John went"
    a, b, c = (
        gs.generate(text, model=worded(), edits=[gs.scale("resid_post", -3.0, layer=1, pos=pos)], max_new_tokens=6)
        for pos in (" Mary", 2, -4)
    )
    assert a.ids.tolist() == b.ids.tolist() == c.ids.tolist()
    assert a.edits == b.edits == c.edits
    assert a.logprobs != gs.generate(text, model=worded(), max_new_tokens=6).logprobs


# -- several prompts --


def test_prompts_in_one_pass_equal_prompts_alone_and_leave_the_pass_when_they_end() -> None:
    prompts = [prompt(n, seed=s) for n, s in ((9, 0), (1, 1), (4, 2), (9, 3), (6, 4))]
    edits = [gs.add("resid_post", VECTOR, layer=0, pos=0), gs.scale("scores", 0.5, layer=1, head=2)]
    for some in ([], edits[:1], edits):
        options: dict[str, Any] = {"edits": some, "max_new_tokens": 15, "stop": range(6), "temperature": 40.0}
        together = gs.generate(prompts, model=model(), seed=2, **options)
        assert len({len(g.new_ids) for g in together}) > 2
        for i, (ids, g) in enumerate(zip(prompts, together, strict=True)):
            alone = gs.generate(ids, model=model(), seed=2 + i, **options)
            assert g.ids.tolist() == alone.ids.tolist()
            assert g.stopped == alone.stopped
            assert g.edits == alone.edits
            assert g.logprobs == pytest.approx(alone.logprobs, abs=2e-3)
            for key in ("logits", ("pattern", 1), ("resid_post", 2)):
                assert error(g.trace()[key], alone.trace()[key]) <= CLOSE


def test_runs_of_a_list_draw_with_seeds_of_their_own() -> None:
    ids = prompt(5)
    options: dict[str, Any] = {"model": model(), "temperature": 30.0, "max_new_tokens": 12}
    drawn = [gs.generate(ids, seed=seed, **options).ids.tolist() for seed in (7, 8, 9)]
    assert len({tuple(d) for d in drawn}) == 3
    together = gs.generate([ids] * 3, seed=7, **options)
    assert [g.ids.tolist() for g in together] == drawn
    assert gs.generate(ids, seed=8, **options).ids.tolist() == drawn[1]


# -- interrupted --


@pytest.mark.parametrize("n_prompts", [1, 3])
def test_an_interrupt_keeps_the_tokens_so_far(n_prompts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    uninterrupted = gs.generate(prompt(5), model=model(), max_new_tokens=9)
    real, steps = Decoder.step, []

    def step(self: Decoder, tokens: Sequence[int]) -> Tensor:
        steps.append(tokens)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return real(self, tokens)

    monkeypatch.setattr(Decoder, "step", step)
    edits = [gs.scale("z", 1.0, layer=0, pos=slice(2, None))]
    prompts = [prompt(5)] * n_prompts if n_prompts > 1 else prompt(5)
    with pytest.warns(UserWarning, match=f"interrupted after {4 * n_prompts} new tokens"):
        result = gs.generate(prompts, model=model(), edits=edits, max_new_tokens=9)
    for g in result if n_prompts > 1 else [result]:
        assert g.stopped == "interrupted"
        assert g.ids.tolist() == uninterrupted.ids.tolist()[:9]
        assert g.edits[0].pos == list(range(2, 9))
        assert error(g.trace().logits, gs.trace(g.ids, model=model()).logits) <= CLOSE


def test_an_interrupt_before_the_first_token_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def prefill(self: Decoder) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(Decoder, "prefill", prefill)
    with pytest.raises(KeyboardInterrupt):
        gs.generate(prompt(5), model=model())


# -- models of other kinds --


def test_streamed_models_give_the_same_tokens(tmp_path: Path) -> None:
    checkpoint("lglg", **ENDLESS).save_pretrained(tmp_path / "source", max_shard_size="40KB")
    gs.quantize(tmp_path / "source", tmp_path / "int8")
    for folder in ("source", "int8"):
        resident = gs.load(tmp_path / folder, dtype="float32")
        streamed = gs.load(tmp_path / folder, dtype="float32", memory="1GiB")
        layer_source: Any = streamed.network.layer_source
        streamed.network.layer_source = LayerStream(
            streamed.config, layer_source.packed, torch.float32, torch.device("cpu"), (1,), 1
        )
        a, b = (
            gs.generate([prompt(5), prompt(8)], model=m, max_new_tokens=12, edits=[gs.ablate("z", layer=1, head=1)])
            for m in (resident, streamed)
        )
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x.ids, y.ids)
            assert torch.equal(x.trace().logits, y.trace().logits)


def test_bfloat16_with_a_cache_is_as_near_to_float32_as_without() -> None:
    source = checkpoint("lgl", **ENDLESS)
    exact, ours = model_of(source), model_of(checkpoint("lgl", **ENDLESS).bfloat16())
    g = gs.generate(prompt(7), model=ours, max_new_tokens=20, edits=[gs.scale("scores", 0.9, layer=1)])
    assert g.trace().stream[0].dtype == torch.bfloat16
    expected = gs.trace(g.ids, model=exact, edits=g.edits).logits
    mine, again = g.trace().logits, gs.trace(g.ids, model=ours, edits=g.edits).logits
    assert (mine - expected).abs().mean() <= 1.2 * (again - expected).abs().mean()


def test_a_model_without_a_tokenizer_goes_on_with_ids() -> None:
    g = gs.generate(prompt(4), model=model(), max_new_tokens=3, stop=[])
    assert g.text == ""
    assert g.tokens == [str(i) for i in g.ids.tolist()]
    assert repr(g) == f"Generation by random: 4 tokens and 3 new ones, stopped: length\n{g.ids.tolist()}"
    assert "position 6, probability " in g._repr_html_()
    with pytest.raises(PromptError, match="came without a tokenizer"):
        _ = g.prompt


def test_a_generation_has_a_text_form_and_escaped_html() -> None:
    g = gs.generate("When Mary<img src=x onerror=alert(1)>\x1b[31m", model=worded(), max_new_tokens=4)
    assert isinstance(g, Generation)
    assert repr(g).startswith("Generation by random: 5 tokens and 4 new ones, stopped: length\n<bos>When Mary<img")
    assert "\x1b" not in repr(g)
    drawn = g._repr_html_()
    assert "<img" not in drawn
    assert "\x1b" not in drawn
    assert drawn.count("border-bottom") == 4


# -- edges and bad input --


def test_one_token_is_a_prompt_and_one_token_a_generation() -> None:
    source, ours = pair()
    g = gs.generate([5], model=ours, max_new_tokens=1)
    assert g.ids.tolist() == transformers_greedy(source, [5], 1)[0]
    assert torch.equal(g.trace()["resid_post", 2][:1], gs.trace([5], model=ours)["resid_post", 2])
    assert error(g.trace().logits, gs.trace(g.ids, model=ours).logits) <= CLOSE


BAD: list[tuple[dict[str, Any], type[GemmascopeError], str]] = [
    ({"temperature": -1}, GenerationError, "temperature is a number from 0 .* upwards; given -1"),
    ({"temperature": float("nan")}, GenerationError, "temperature .* given nan"),
    ({"temperature": float("inf")}, GenerationError, "temperature .* given inf"),
    ({"temperature": "hot"}, GenerationError, "temperature .* given 'hot'"),
    ({"temperature": True}, GenerationError, "temperature .* given True"),
    ({"top_p": 0}, GenerationError, "top_p is a number above 0 and up to 1 .* given 0"),
    ({"top_p": 1.1}, GenerationError, "top_p .* given 1.1"),
    ({"top_p": float("nan")}, GenerationError, "top_p .* given nan"),
    ({"top_k": 0}, GenerationError, "top_k is a whole number of at least 1; given 0"),
    ({"top_k": 2.5}, GenerationError, "top_k .* given 2.5"),
    ({"min_p": -0.1}, GenerationError, r"min_p is a number from 0 \(all tokens\) to 1, a share .* given -0.1"),
    ({"min_p": float("nan")}, GenerationError, "min_p .* given nan"),
    ({"repetition_penalty": 0}, GenerationError, "repetition_penalty is a number above 0, and 1 is none; given 0"),
    ({"repetition_penalty": "2"}, GenerationError, "repetition_penalty .* given '2'"),
    ({"samples": 0}, GenerationError, "samples is a whole number of at least 1; given 0"),
    ({"samples": 3}, GenerationError, "samples=3 at temperature 0 would be the same text 3 times"),
    ({"samples": 2, "temperature": 1.0, "show": print}, GenerationError, "shown as it comes; given 1, 2 samples of each"),
    ({"seed": -1}, GenerationError, "seed is a whole number from 0 to .*; given -1"),
    ({"seed": 2**63}, GenerationError, "seed is a whole number from 0 to"),
    ({"seed": 1.0}, GenerationError, "seed .* given 1.0"),
    ({"max_new_tokens": 0}, GenerationError, "max_new_tokens is a whole number of at least 1; given 0"),
    ({"max_new_tokens": True}, GenerationError, "max_new_tokens .* given True"),
    ({"max_new_tokens": 60}, GenerationError, "5 tokens and 'random' a context of 64: 60 new .* ask for 59 at most"),
    ({"show": True}, GenerationError, "came without a tokenizer, so there is no text to show"),
    ({"show": "yes"}, GenerationError, "show is True, False, or a function .* given 'yes'"),
    ({"stop": 61}, GenerationError, "stop=61 is no token of 'random': ids go from 0 to 60"),
    ({"stop": [1.5]}, GenerationError, "stop is a text, a token id, or a list of such; given 1.5"),
    ({"stop": None}, GenerationError, "stop is a text, a token id, or a list of such; given None"),
    ({"stop": "."}, GenerationError, "stop='.' cannot be looked for: .* without a tokenizer"),
    ({"edits": gs.scale("z", 2.0, layer=0)}, EditError, r"edits is a list of edits; given one: write edits=\["),
    ({"edits": [3]}, EditError, "edits is a list of edits"),
    ({"edits": [gs.scale("z", 2.0, layer=0, pos=15)]}, SiteError,
     "no position 15: the prompt has 5 tokens and up to 10 are generated, so positions go from 0 to 14"),
    ({"edits": [gs.scale("z", 2.0, layer=0, pos=-6)]}, SiteError, "from -1 to -5, from the prompt's end"),
    ({"edits": [gs.scale("z", 2.0, layer=0, pos=slice(15, 20))]}, SiteError, "the slice 15:20 holds none of the 15"),
    ({"edits": [gs.scale("z", 2.0, layer=0, pos=[3, 3])]}, SiteError, "pos names one twice"),
    ({"edits": [gs.scale("patern", 2.0, layer=0)]}, SiteError, "Did you mean 'pattern'"),
    ({"edits": [gs.patch("z", torch.ones(5, 8, 12), layer=0)]}, EditError, r"for the prompt alone say pos=slice\(0, 5\)"),
    ({"edits": [gs.knockout(layer=0, q_pos=9, k_pos=slice(0, 10))]}, EditError, "leave position 9 nothing to attend to"),
    ({"edits": [gs.ablate("pattern", layer=0, value=0.1)]}, EditError, "gives weight to keys ahead of their query"),
    ({"model": "nano"}, GemmascopeError, "model is what gs.load returns"),
]  # fmt: skip


@pytest.mark.parametrize(("instead", "kind", "message"), BAD, ids=[f"{instead}"[:50] for instead, _, _ in BAD])
def test_bad_arguments_are_refused_before_anything_runs(
    instead: dict[str, Any], kind: type[Exception], message: str, layers_read: list[int]
) -> None:
    with pytest.raises(kind, match=message):
        gs.generate(prompt(5), **{"model": model(), "max_new_tokens": 10, **instead})
    assert layers_read == []


def test_a_prompt_as_long_as_the_context_has_no_room() -> None:
    with pytest.raises(GenerationError, match=r"64 tokens .* 1 new ones would go past it; shorten it"):
        gs.generate(prompt(64), model=model(), max_new_tokens=1)
    assert len(gs.generate(prompt(63), model=model(), max_new_tokens=1).ids) == 64


def test_the_text_of_several_prompts_is_not_shown() -> None:
    with pytest.raises(GenerationError, match="the text of one prompt is shown as it comes; given 2"):
        gs.generate(["When", "When Mary"], model=worded(), show=print)


@pytest.mark.parametrize(
    "place",
    [
        3,
        -5,
        slice(2, None),
        slice(None, None, -1),
        slice(5, -20, -1),
        slice(-20, 4),
        slice(-3, 1, -1),
        slice(None, -2),
        [0, -1],
    ],
)
def test_without_new_tokens_positions_are_those_of_the_prompt(place: Any) -> None:
    from gemmascope.edits.places import find_generation_positions, find_positions

    ids = torch.tensor(prompt(9))
    assert find_generation_positions(place, model(), ids, 9) == find_positions(place, model(), ids)


# -- several samples a prompt --

SAMPLED: dict[str, Any] = {"temperature": 4.0, "max_new_tokens": 7, "seed": 5}


@pytest.mark.parametrize("edits", [[], [gs.scale("z", 0.5, layer=1)], [gs.ablate("scores", layer=1, q_pos=[5, 8], k_pos=3)]])
def test_samples_are_the_texts_of_a_list_of_the_same_prompt(edits: list[Edit]) -> None:
    prompts = [prompt(6), prompt(10, seed=1), prompt(6)]
    drawn = gs.generate(prompts, model=model(), edits=edits, samples=3, **SAMPLED)
    repeated = gs.generate([p for p in prompts for _ in range(3)], model=model(), edits=edits, **SAMPLED)
    assert [len(samples) for samples in drawn] == [3, 3, 3]
    for one, other in zip([g for samples in drawn for g in samples], repeated, strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
        assert error(one.trace().logits, gs.trace(other.ids, model=model(), edits=one.edits).logits) <= 2 * CLOSE
    assert len({tuple(g.ids.tolist()) for g in drawn[0]}) > 1  # samples differ
    alone = gs.generate(prompts[0], model=model(), edits=edits, samples=3, **SAMPLED)
    assert [g.ids.tolist() for g in alone] == [g.ids.tolist() for g in drawn[0]]
    assert isinstance(gs.generate(prompts[0], model=model(), samples=1, max_new_tokens=1), list)


def test_samples_share_the_pass_of_their_prompt() -> None:
    seen: list[int] = []

    def halve(rows: Tensor) -> Tensor:
        seen.append(len(rows))
        return rows * 0.5

    edits = [gs.edit("mlp_out", halve, layer=1)]
    drawn = gs.generate(prompt(6), model=model(), edits=edits, samples=4, temperature=4.0, max_new_tokens=3)
    assert seen == [6] + [1] * 8  # the prompt once, and then each sample's new positions
    alone = gs.generate(prompt(6), model=model(), edits=edits, temperature=4.0, max_new_tokens=3, seed=2)
    assert alone.ids.tolist() == drawn[2].ids.tolist()
    assert error(drawn[2].trace()["mlp_out", 1], alone.trace()["mlp_out", 1]) <= CLOSE  # repeats what the function wrote
    assert len(seen) == 9 + 3 + 2  # by what was recorded: the function is called again for the last token of each text only


def test_truncation_at_temperature_zero_is_warned_of() -> None:
    with pytest.warns(gs.GemmascopeWarning, match="top_k and min_p change nothing at temperature 0"):
        gs.generate(prompt(5), model=model(), max_new_tokens=1, top_k=3)

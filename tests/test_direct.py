"""Direct contributions: the parts add up to the logit before the cap, and each is what a plain computation gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, model_of, prompt
from pieces import worded
from torch import Tensor

import gemmascope as gs
from gemmascope.analysis.direct import BY
from gemmascope.errors import GemmascopeError, PromptError, SiteError

EDITS: dict[str, list[Any]] = {
    "none": [],
    "stream": [
        gs.scale("resid_pre", 0.5, layer=1),
        gs.ablate("resid_mid", layer=0, pos=[2, -1]),
        gs.scale("resid_post", 2.0, layer=1, pos=-1),
        gs.scale("embed", 3.0, pos=-1),
    ],
    "attention": [
        gs.ablate("z", layer=0, head=[1, 2]),
        gs.scale("head_out", 2.0, layer=1, head=3),
        gs.scale("attn_raw", 0.5, layer=1),
        gs.scale("attn_out", 0.5, layer=0),
        gs.knockout(layer=1, head=0, q_pos=-1, k_pos=[0, 1]),
        gs.scale("v", 2.0, layer=0, head=1),
    ],
    "mlp": [gs.scale("mlp_act", 0.5, layer=0), gs.scale("mlp_raw", 2.0, layer=1, pos=-1), gs.ablate("mlp_out", layer=2)],
}


def run(edits: str = "none", seed: int = 0, kinds: str = "lgl", **shape: Any) -> gs.Trace:
    trace = gs.trace(prompt(9, seed=seed), model=model_of(checkpoint(kinds, seed=seed, **shape)), edits=EDITS[edits])
    assert isinstance(trace, gs.Trace)
    return trace


def raw(t: gs.Trace, answer: list[int], against: list[int], pos: int = -1) -> float:
    logits = t["logits_raw"][pos]
    return float(logits[answer].mean() - (logits[against].mean() if against else 0.0))


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("edits", EDITS)
@pytest.mark.parametrize("seed", range(2))
def test_the_parts_add_up_to_the_logit_before_the_cap(by: str, edits: str, seed: int) -> None:
    t = run(edits, seed)
    for answer, against, pos in (([3], [], -1), ([3], [5], -1), ([3, 4], [5, 6, 7], 4)):
        found = gs.direct_logits(t, answer, against or None, by, pos=pos)
        total = raw(t, answer, against, pos)
        size = max(1.0, abs(total), float(np.abs(found.parts).max()))
        assert found.total == pytest.approx(total, abs=1e-4 * size)
        assert float(found.parts.sum() + found.rest.sum()) == pytest.approx(total, abs=1e-4 * size)
        logits = t.logits[pos]
        capped = float(logits[answer].mean() - (logits[against].mean() if against else 0.0))
        assert found.capped == pytest.approx(capped, abs=1e-4)
        assert found.cap_effect == pytest.approx(capped - total, abs=2e-4 * size)


@pytest.mark.parametrize("shape", [{}, {"num_key_value_heads": 8}, {"num_key_value_heads": 1}])
def test_each_part_is_what_a_plain_computation_gives(shape: dict[str, int]) -> None:
    t = run(seed=3, **shape)
    network, config, pos = t.model.network, t.model.config, 6
    x = t["resid_post", -1][pos].double()
    norm = network.model.norm
    along = network.model.embed_tokens.weight[4].double() * (1 + norm.weight.double())
    along = along / (x.square().mean() + norm.eps).sqrt()

    def through(norm: Any, before: Tensor, part: Tensor) -> Tensor:
        scale = (before.double().square().mean() + norm.eps).sqrt()
        return part.double() / scale * (1 + norm.weight.double())

    by = {name: gs.direct_logits(t, 4, by=name, pos=pos) for name in BY}
    assert float(by["sublayer"].parts.sel(part="embed")) == pytest.approx(
        (t["embed"][pos].double() @ along).item(), abs=1e-4
    )
    for n in range(3):
        layer = t.model.layer(n)
        for site in ("attn_out", "mlp_out"):
            part = float(by["sublayer"].parts.sel(part=f"layers.{n}.{site}"))
            assert part == pytest.approx((t[site, n][pos].double() @ along).item(), abs=1e-4)
        w_o = layer.self_attn.o_proj.weight
        for head in range(config.n_heads):
            columns = slice(head * config.d_head, (head + 1) * config.d_head)
            sources = [
                t["pattern", n][head, pos, k] * t["v", n][k, head // config.heads_per_kv] @ w_o[:, columns].T
                for k in range(9)
            ]
            wrote = [(through(layer.post_attention_layernorm, t["attn_raw", n][pos], s) @ along).detach() for s in sources]
            assert np.allclose(by["token"].parts.sel(layer=n, head=head), [w.item() for w in wrote], atol=1e-4)
            assert float(by["head"].parts.sel(layer=n, head=head)) == pytest.approx(float(sum(wrote)), abs=2e-4)
        neurons = t["mlp_act", n][pos][:, None] * layer.mlp.down_proj.weight.T
        wrote = through(layer.post_feedforward_layernorm, t["mlp_raw", n][pos], neurons) @ along
        assert np.allclose(by["neuron"].parts.sel(layer=n), wrote.detach(), atol=1e-4)


def test_what_an_edit_wrote_stands_under_its_name() -> None:
    t = run("stream")
    rest = gs.direct_logits(t, 3, by="head").rest
    names = {"edit at layers.1.resid_pre", "edit at layers.0.resid_mid", "edit at layers.1.resid_post"}
    assert names < set(rest["part"].values.tolist())
    plain = gs.direct_logits(run(), 3, by="sublayer")
    assert plain.rest.size == 0


def test_of_a_bfloat16_model_the_stream_s_rounding_is_a_part() -> None:
    t = gs.trace(prompt(9), model=model_of(checkpoint("lgl").bfloat16()))
    for by in BY:
        found = gs.direct_logits(t, 3, 5, by)
        assert "rounding of the stream" in found.rest["part"].values
        assert float(found.parts.sum() + found.rest.sum()) == pytest.approx(found.total, abs=1e-4 * max(1, abs(found.total)))
        assert found.total == pytest.approx(raw(t, [3], [5]), abs=0.5)


@pytest.mark.parametrize("by", ["sublayer", "head", "neuron"])
def test_layers_are_gone_through_once(by: str, asked: list[int]) -> None:
    t = run()
    asked.clear()
    gs.direct_logits(t, 3, by=by)
    assert asked == [0, 1, 2]


def test_labels_tables_and_pictures() -> None:
    t = gs.trace("When Mary and John went to the store, John gave a drink to", model=worded())
    for by in BY:
        found = gs.direct_logits(t, " Mary", " John", by)
        assert found.parts.attrs["long_name"] == "logit before the soft cap"
        assert "the cap changes" in repr(found)
        top = found.top(3)
        everything = [*np.abs(found.parts.values).flatten(), *np.abs(found.rest.values)]
        assert np.allclose([abs(value) for _, value in top], sorted(everything)[::-1][:3])
        assert len(found.to_dataframe()) == found.parts.size + found.rest.size
        figure = found.plot()
        assert "before the soft cap" in figure.layout.title.subtitle.text
    tokens = gs.direct_logits(t, " Mary", by="token")
    assert tokens.parts["k_token"].values.tolist() == t.tokens
    assert tokens.parts["kind"].values.tolist() == ["local", "global", "local"]
    assert any("reading position" in name for name, _ in tokens.top(200))


@pytest.mark.parametrize(
    ("asked_for", "error", "message"),
    [
        ({"answer": "When Mary"}, PromptError, "an answer is one token"),
        ({"answer": 99}, PromptError, "outside the vocabulary"),
        ({"answer": " Mary", "against": " Mary"}, SiteError, "answer and against share a token"),
        ({"answer": " Mary", "by": "layer"}, SiteError, "by is one of sublayer, head, neuron, token; given 'layer'"),
        ({"answer": " Mary", "pos": 44}, SiteError, "there is no position 44"),
        ({"answer": " Mary", "pos": [1, 2]}, SiteError, "read at one position"),
    ],
)
def test_what_does_not_fit_is_refused(asked_for: dict[str, Any], error: type[GemmascopeError], message: str) -> None:
    t = gs.trace("When Mary and John", model=worded())
    with pytest.raises(error, match=message):
        gs.direct_logits(t, **asked_for)


def test_edits_after_the_stream_and_what_is_no_trace_are_refused() -> None:
    t = gs.trace(prompt(5), model=model_of(checkpoint("lg")), edits=[gs.scale("final", 2.0)])
    with pytest.raises(SiteError, match="changes the run after the stream"):
        gs.direct_logits(t, 3)
    with pytest.raises(SiteError, match=r"gs.direct_logits\(gs.trace\(prompt\), ...\); given str"):
        gs.direct_logits("When Mary", " Mary")  # type: ignore[arg-type]


def test_torch_is_left_alone() -> None:
    with torch.enable_grad():
        found = gs.direct_logits(run(), 3, by="neuron")
    assert isinstance(found.total, float)

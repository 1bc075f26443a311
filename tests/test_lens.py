"""The lens: it equals a plain computation over the stream, and at the last layer the logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, model_of, prompt
from pieces import worded
from torch import Tensor

import gemmascope as gs
from gemmascope.errors import PromptError, SiteError
from gemmascope.model.model import Model
from gemmascope.run.replay import replay

KINDS = ("lg", "lgl", "ggl")


def run(kinds: str = "lgl", seed: int = 0, length: int = 11, edits: Any = ()) -> gs.Trace:
    trace = gs.trace(prompt(length, seed=seed), model=model_of(checkpoint(kinds, seed=seed)), edits=edits)
    assert isinstance(trace, gs.Trace)
    return trace


def plain(model: Model, rows: Tensor) -> Tensor:
    """Last norm, unembedding and soft cap, in float64."""
    norm, embedding = model.network.model.norm, model.network.model.embed_tokens.weight.detach().double()
    x = rows.double()
    x = x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * (1 + norm.weight.double())
    return (30 * torch.tanh(x @ embedding.T / 30)).detach()


def edited() -> list[gs.run.edits.Edit]:  # type: ignore[name-defined]
    return [gs.ablate("z", layer=0, head=1), gs.scale("resid_pre", 0.5, layer=1, pos=3), gs.scale("resid_mid", 2.0, layer=1)]


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "resid_post"])
@pytest.mark.parametrize("with_edits", [False, True])
def test_the_lens_is_what_the_last_norm_and_the_unembedding_make_of_the_stream(
    kinds: str, site: str, with_edits: bool
) -> None:
    t = run(kinds, edits=edited() if with_edits else ())
    found = gs.lens(t, site, top=4, answer=7)
    for layer in range(t.model.n_layers):
        logits = plain(t.model, t[site, layer])
        probs = logits.softmax(-1)
        assert found.top_ids.sel(layer=layer).values.tolist() == logits.topk(4).indices.tolist()
        assert np.allclose(found.top_probs.sel(layer=layer), probs.topk(4).values, atol=1e-5)
        assert np.allclose(found.entropy.sel(layer=layer), -(probs * logits.log_softmax(-1)).sum(-1), atol=1e-4)
        assert np.allclose(found.answer_logit.sel(layer=layer), logits[:, 7], atol=1e-4)
        assert np.allclose(found.answer_prob.sel(layer=layer), probs[:, 7], atol=1e-5)
        assert found.answer_rank.sel(layer=layer).values.tolist() == (logits > logits[:, 7:8]).sum(-1).tolist()
        assert np.allclose(found.logits(4).sel(layer=layer), logits[4], atol=1e-4)


@pytest.mark.parametrize("with_edits", [False, True])
def test_at_the_last_layer_the_lens_gives_the_logits(with_edits: bool) -> None:
    t = run(edits=edited() if with_edits else ())
    found = gs.lens(t, pos=-1)
    assert np.array_equal(found.logits(-1).isel(layer=-1), t.next_logits)
    assert found.top_tokens.isel(layer=-1, pos=0).values.tolist() == [token for token, _, _ in t.top(5)]
    assert np.array_equal(gs.lens(t, answer=3).answer_logit.isel(layer=-1), t.logits[:, 3])
    assert np.array_equal(found.logits(-1).values, t.lens().values)


def test_the_whole_stream_has_an_entry_after_every_sublayer() -> None:
    t = run("lgl")
    found = gs.lens(t, "stream", answer=5)
    names = [("embed", -1), *((site, layer) for layer in range(3) for site in ("resid_mid", "resid_post"))]
    rank = found.answer_rank
    assert rank.dims == ("entry", "pos")
    assert list(zip(rank["site"].values.tolist(), rank["layer"].values.tolist(), strict=True)) == names
    for i, (site, layer) in enumerate(names):
        stream = t["embed"] if site == "embed" else t[site, layer]
        assert np.allclose(found.answer_logit[i], plain(t.model, stream)[:, 5], atol=1e-4)


@pytest.mark.parametrize("site", ["attn_out", "mlp_out", "head_out"])
def test_a_part_goes_through_the_norm_as_it_was_in_the_run(site: str) -> None:
    t = run("lgl", edits=edited())
    head = 3 if site == "head_out" else None
    found = gs.lens(t, site, head=head, answer=2)
    norm, embedding = t.model.network.model.norm, t.model.network.model.embed_tokens.weight.detach()
    x = t["resid_post", -1].double()
    gain = (1 + norm.weight.detach().double()) / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    for layer in range(3):
        part = t[site, layer] if head is None else t[site, layer][:, head]
        expected = 30 * torch.tanh((part.double() * gain) @ embedding[2].double() / 30)
        assert np.allclose(found.answer_logit.sel(layer=layer), expected, atol=1e-4)
        assert np.allclose(found.logits(3).sel(layer=layer)[2], expected[3], atol=1e-4)


def test_rows_in_parts_equal_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    t = run(length=13)
    whole = gs.lens(t, answer=1)
    monkeypatch.setattr("gemmascope.analysis.lens.LOGIT_ELEMENTS", 61 * 3)
    parts = gs.lens(t, answer=1)
    assert np.array_equal(whole.top_ids, parts.top_ids)
    assert np.allclose(whole.answer_prob, parts.answer_prob, atol=1e-6)


def test_positions_and_labels() -> None:
    t = gs.trace("When Mary and John went to the store, John gave a drink to", model=worded())
    found = gs.lens(t, pos=[2, -1], top=2, answer=" Mary")
    assert found.top_probs.dims == ("layer", "pos", "top")
    assert found.top_probs["token"].values.tolist() == [" Mary", " to"]
    assert found.top_probs["kind"].values.tolist() == ["local", "global", "local"]
    assert found.top_tokens.values[2, 1].tolist() == [token for token, _, _ in t.top(2)]
    other = found.follow(" John")
    assert other.positions == found.positions
    assert not np.array_equal(other.answer_logit, found.answer_logit)
    frame = found.to_dataframe()
    assert len(frame) == 6
    assert frame["answer_rank"].tolist() == found.answer_rank.values.flatten().tolist()
    assert "answer's rank" in repr(found)


def test_a_streamed_model_goes_through_its_layers_once(asked: list[int]) -> None:
    t = run("lgl")
    asked.clear()
    gs.lens(t, "stream")
    assert asked == [0, 1, 2]


@pytest.mark.parametrize("with_edits", [False, True])
def test_a_replay_gives_what_the_trace_gives(with_edits: bool) -> None:
    t = run(edits=edited() if with_edits else ())
    sites = ("resid_pre", "z", "mlp_act", "attn_out", "pattern", "head_out")
    for layer, values in replay(t, sites):
        for site in sites:
            assert torch.allclose(values[site], t[site, layer.index], atol=1e-5), (site, layer.index)
    with pytest.raises(SiteError, match="'logits' is not in the layers"):
        next(replay(t, ["logits"]))


@pytest.mark.parametrize(
    ("asked_for", "error", "message"),
    [
        ({"site": "z"}, SiteError, "a lens reads resid_pre, resid_mid, resid_post, stream, attn_out"),
        ({"site": "residpost"}, SiteError, "Did you mean 'resid_post'"),
        ({"top": 0}, SiteError, "top is a whole number from 1 to 61"),
        ({"top": 62}, SiteError, "top is a whole number from 1 to 61"),
        ({"head": 1}, SiteError, "'resid_post' has no heads"),
        ({"site": "head_out"}, SiteError, "one head at a time: say head=, 0 to 7"),
        ({"site": "head_out", "head": [1, 2]}, SiteError, "one head at a time"),
        ({"pos": 99}, SiteError, "there is no position 99"),
        ({"answer": "When Mary"}, PromptError, "an answer is one token"),
        ({"answer": [1, 2]}, SiteError, "one answer at a time"),
    ],
)
def test_what_does_not_fit_is_refused(asked_for: dict[str, Any], error: type[Exception], message: str) -> None:
    t = gs.trace("When Mary and John", model=worded())
    with pytest.raises(error, match=message):
        gs.lens(t, **asked_for)


def test_a_prompt_is_no_trace_and_without_an_answer_there_is_nothing_to_follow() -> None:
    with pytest.raises(SiteError, match=r"a lens reads a trace: gs.lens\(gs.trace\(prompt\)\); given str"):
        gs.lens("When Mary")  # type: ignore[arg-type]
    t = gs.trace("When Mary and John", model=worded())
    with pytest.raises(SiteError, match="follows no answer"):
        gs.lens(t).answer_rank  # noqa: B018


def test_the_picture_has_the_top_token_in_every_cell() -> None:
    t = gs.trace("When Mary and John went to the store", model=worded())
    found = gs.lens(t, answer=" Mary")
    for colour, array in (("probability", found.answer_prob), ("rank", found.answer_rank), ("entropy", found.entropy)):
        heat = found.plot(colour).data[-1]
        assert np.array_equal(heat.z, array.values)
        assert np.shape(heat.text) == array.shape
    assert np.array_equal(gs.lens(t).plot().data[-1].z, gs.lens(t).top_probs.isel(top=0))
    whole = gs.lens(t, "stream").plot()
    assert list(whole.layout.yaxis.ticktext)[:2] == ["embed", "0 resid_mid"]
    with pytest.raises(SiteError, match="colour is one of"):
        found.plot("logit")

"""The lens: it equals a plain computation over the stream, and at the last layer the logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, model_of, prompt
from hypothesis import given, settings
from hypothesis import strategies as st
from pieces import worded
from reference import error
from torch import Tensor

import gemmascope as gs
from gemmascope.errors import PromptError, SiteError
from gemmascope.model.gemma2 import Layer
from gemmascope.model.model import Model
from gemmascope.model.modules import Embedding

KINDS = ("lg", "lgl", "ggl")
SITES = ("resid_pre", "resid_mid", "resid_post")


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


EDITS: list[Any] = [
    gs.ablate("z", layer=0, head=1),
    gs.scale("resid_pre", 0.5, layer=1, pos=0),
    gs.scale("resid_mid", 2.0, layer=1),
    gs.scale("head_out", 2.0, layer=1, head=2),
    gs.scale("resid_post", 0.5, layer=0, pos=-1),
]


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("with_edits", [False, True])
def test_the_lens_is_the_last_norm_and_the_unembedding_of_the_stream(kinds: str, site: str, with_edits: bool) -> None:
    t = run(kinds, edits=EDITS if with_edits else ())
    lens = gs.lens(t, site, top=4, answer=7)
    for layer in range(t.model.n_layers):
        logits = plain(t.model, t[site, layer])
        probs = logits.softmax(-1)
        assert lens.top_ids.sel(layer=layer).values.tolist() == logits.topk(4).indices.tolist()
        assert np.allclose(lens.top_probs.sel(layer=layer), probs.topk(4).values, atol=1e-5)
        assert np.allclose(lens.entropy.sel(layer=layer), -(probs * logits.log_softmax(-1)).sum(-1), atol=1e-4)
        assert np.allclose(lens.answer_logit.sel(layer=layer), logits[:, 7], atol=1e-4)
        assert np.allclose(lens.answer_prob.sel(layer=layer), probs[:, 7], atol=1e-5)
        assert lens.answer_rank.sel(layer=layer).values.tolist() == (logits > logits[:, 7:8]).sum(-1).tolist()
        assert np.allclose(lens.logits(4).sel(layer=layer), logits[4], atol=1e-4)


@pytest.mark.parametrize("with_edits", [False, True])
def test_at_the_last_layer_the_lens_gives_the_logits(with_edits: bool) -> None:
    t = run(edits=EDITS if with_edits else ())
    lens = gs.lens(t, pos=-1)
    assert np.array_equal(lens.logits(-1).isel(layer=-1), t.next_logits)
    assert lens.top_tokens.isel(layer=-1, pos=0).values.tolist() == [token for token, _, _ in t.top(5)]
    assert np.array_equal(gs.lens(t, answer=3).answer_logit.isel(layer=-1), t.logits[:, 3])
    assert np.allclose(lens.logits(-1), t.lens(), rtol=0, atol=3e-5)  # one product of all layers


def test_the_whole_stream_has_an_entry_after_every_sublayer() -> None:
    t = run("lgl")
    lens = gs.lens(t, "stream", answer=5)
    names = [("embed", -1), *((site, layer) for layer in range(3) for site in ("resid_mid", "resid_post"))]
    rank = lens.answer_rank
    assert rank.dims == ("entry", "pos")
    assert list(zip(rank["site"].values.tolist(), rank["layer"].values.tolist(), strict=True)) == names
    for i, (site, layer) in enumerate(names):
        stream = t["embed"] if site == "embed" else t[site, layer]
        assert np.allclose(lens.answer_logit[i], plain(t.model, stream)[:, 5], atol=1e-4)


def part(t: gs.Trace, site: str, head: int | None, answer: int) -> Tensor:
    """[layer, pos]: a part through the last norm with the scale of the run, the unembedding and the cap, in float64."""
    norm, embedding = t.model.network.model.norm, t.model.network.model.embed_tokens.weight.detach().double()
    x = t["resid_post", -1].double()
    gain = (1 + norm.weight.detach().double()) / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    rows = [t[site, layer] if head is None else t[site, layer][:, head] for layer in range(t.model.n_layers)]
    return 30 * torch.tanh((torch.stack(rows).double() * gain) @ embedding[answer] / 30)


@pytest.mark.parametrize(("site", "head"), [("attn_out", None), ("mlp_out", None), ("head_out", 3), ("head_out", 2)])
@pytest.mark.parametrize("with_edits", [False, True])
def test_a_part_is_scaled_by_the_norm_of_the_run(site: str, head: int | None, with_edits: bool) -> None:
    t = run("lgl", edits=EDITS if with_edits else ())
    lens, expected = gs.lens(t, site, head=head, answer=2), part(t, site, head, 2)
    assert np.allclose(lens.answer_logit, expected, atol=1e-4)
    assert np.allclose(lens.logits(3)[:, 2], expected[:, 3], atol=1e-4)


@settings(deadline=None, max_examples=8, derandomize=True)
@given(
    kinds=st.sampled_from(KINDS), kv=st.sampled_from([8, 2]), length=st.integers(1, 9), pos=st.integers(-1, 0),
    edits=st.lists(st.sampled_from(EDITS), max_size=3, unique_by=id),
)  # fmt: skip
def test_before_the_cap_the_lenses_of_all_parts_add_up(kinds: str, kv: int, length: int, pos: int, edits: Any) -> None:
    t = gs.trace(prompt(length), model=model_of(checkpoint(kinds, seed=kv, num_key_value_heads=kv)), edits=edits)
    assert isinstance(t, gs.Trace)
    logits_of_heads = [uncapped(gs.lens(t, "head_out", head=head).logits(pos).values) for head in range(8)]
    assert error(sum(logits_of_heads), uncapped(gs.lens(t, "attn_out").logits(pos).values)) <= 1e-4
    along = gs.direct_logits(t, 7, pos=pos).parts
    for site in ("attn_out", "mlp_out"):
        raw = uncapped(gs.lens(t, site).logits(pos).values)[:, 7]
        wrote = np.array([float(along.sel(part=f"layers.{layer}.{site}")) for layer in range(len(kinds))])
        assert np.abs(raw - wrote).max() <= 1e-4 * np.abs(along).max()


def uncapped(logits: Any) -> Any:
    """Logits before the cap."""
    assert np.abs(logits).max() < 29.99  # nearer to it float32 no longer tells how far they were
    return 30 * np.arctanh(logits.astype(np.float64) / 30)


def test_an_edit_after_the_layers_is_not_in_the_lens() -> None:
    t = run(edits=[gs.scale("final", 0.5), gs.scale("logits", 2.0)])
    assert np.allclose(
        gs.lens(t, answer=3).answer_logit.isel(layer=-1), plain(t.model, t["resid_post", -1])[:, 3], atol=1e-4
    )
    assert np.array_equal(gs.lens(t, answer=3).answer_logit, gs.lens(run(), answer=3).answer_logit)


def test_the_last_layers_lens_of_a_bfloat16_model_gives_its_logits() -> None:
    t = gs.trace(prompt(9), model=model_of(checkpoint("lgl").bfloat16()))
    lens = gs.lens(t, "stream", answer=3)
    assert lens.entropy.dtype == np.float32
    assert np.array_equal(lens.answer_logit[-1], t.logits[:, 3])
    for site in ("attn_out", "mlp_out"):
        assert np.abs(gs.lens(t, site, answer=3).answer_logit - part(t, site, None, 3).numpy()).max() <= 0.5


@pytest.mark.parametrize("kind", ["source", "int8"])
def test_streamed_equals_resident(kind: str, tmp_path: Path) -> None:
    checkpoint("lgl").save_pretrained(tmp_path / "source")
    gs.quantize(tmp_path / "source", tmp_path / "int8")
    streamed, resident = (
        gs.trace(prompt(9), model=gs.load(tmp_path / kind, memory=memory), edits=EDITS) for memory in ("1GiB", None)
    )
    for site in (*SITES, "stream", "attn_out", "mlp_out", "head_out"):
        a, b = (gs.lens(t, site, head=2 if site == "head_out" else None, answer=5) for t in (streamed, resident))
        for name in ("top_ids", "top_probs", "entropy", "answer_rank", "answer_logit"):
            assert getattr(a, name).identical(getattr(b, name))


def test_only_the_logits_of_a_few_rows_are_in_memory_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    t, rows, logits = run(length=40), [], Embedding.logits

    def counted(table: Embedding, x: Tensor) -> Tensor:
        rows.append(len(x))
        return logits(table, x)

    def refused(*args: Any) -> None:
        raise AssertionError("the outputs of all heads were made")

    monkeypatch.setattr(Embedding, "logits", counted)
    monkeypatch.setattr(Layer, "head_out", refused)
    monkeypatch.setattr("gemmascope.run.logits.LOGIT_BYTES", 4 * 61 * 7)
    for site in ("stream", "head_out"):
        gs.lens(t, site, head=1 if site == "head_out" else None, answer=1)
    assert max(rows) == 7


@pytest.mark.parametrize(("at_once", "products"), [(1, 7), (5, 3), (100, 2)])
def test_short_entries_are_unembedded_together_and_the_last_alone(
    at_once: int, products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    t, rows, logits = run(length=9), [], Embedding.logits
    expected = gs.lens(t, "stream", answer=1, pos=[3, 8])

    def counted(table: Embedding, x: Tensor) -> Tensor:
        rows.append(len(x))
        return logits(table, x)

    monkeypatch.setattr(Embedding, "logits", counted)
    monkeypatch.setattr("gemmascope.run.logits.LOGIT_BYTES", 4 * 61 * 2 * at_once)
    lens = gs.lens(t, "stream", answer=1, pos=[3, 8])
    assert lens.entries == expected.entries
    assert rows[-1] == 2
    assert len(rows) == products
    assert sum(rows) == 2 * len(lens.entries)
    assert np.array_equal(lens.top_ids, expected.top_ids)
    assert np.allclose(lens.answer_logit, expected.answer_logit, atol=1e-5)
    assert np.array_equal(lens.answer_rank, expected.answer_rank)


def test_rows_in_parts_equal_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    t = run(length=13)
    at_once = gs.lens(t, answer=1)
    monkeypatch.setattr("gemmascope.run.logits.LOGIT_BYTES", 4 * 61 * 3)
    parts = gs.lens(t, answer=1)
    assert np.array_equal(at_once.top_ids, parts.top_ids)
    assert np.allclose(at_once.answer_prob, parts.answer_prob, atol=1e-6)


def test_a_lens_has_labelled_positions_and_a_table() -> None:
    t = gs.trace("When Mary and John went to the store, John gave a drink to", model=worded())
    lens = gs.lens(t, pos=[2, -1], top=2, answer=" Mary")
    assert lens.top_probs.dims == ("layer", "pos", "top")
    assert lens.top_probs["token"].values.tolist() == [" Mary", " to"]
    assert lens.top_probs["kind"].values.tolist() == ["local", "global", "local"]
    assert lens.top_tokens.values[2, 1].tolist() == [token for token, _, _ in t.top(2)]
    of_john = lens.follow(" John")
    assert of_john.positions == lens.positions
    assert not np.array_equal(of_john.answer_logit, lens.answer_logit)
    frame = lens.to_dataframe()
    assert len(frame) == 6
    assert frame["answer_rank"].tolist() == lens.answer_rank.values.flatten().tolist()
    assert "answer's rank" in repr(lens)


def test_layers_are_read_once(layers_read: list[int]) -> None:
    t = run("lgl")
    for site in ("stream", "resid_pre", "head_out"):
        layers_read.clear()
        gs.lens(t, site, head=1 if site == "head_out" else None)
        assert layers_read == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"site": "z"}, SiteError, "a lens reads resid_pre, resid_mid, resid_post, stream, attn_out"),
        ({"site": "residpost"}, SiteError, "Did you mean 'resid_post'"),
        ({"site": "blocks.1.hook_resid_post"}, SiteError, "every layer: give the site without one, 'resid_post'; given"),
        ({"answer": 61}, PromptError, "token id 61 is outside the vocabulary"),
        ({"top": 2.5}, SiteError, "top is a whole number from 1 to 61"),
        ({"site": "head_out", "head": 8}, SiteError, "there is no head 8"),
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
def test_bad_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    t = gs.trace("When Mary and John", model=worded())
    with pytest.raises(error, match=message):
        gs.lens(t, **arguments)


def test_a_prompt_in_place_of_a_trace_and_a_missing_answer_are_refused() -> None:
    with pytest.raises(SiteError, match=r"a lens reads a trace: gs.lens\(gs.trace\(prompt\)\); given str"):
        gs.lens("When Mary")  # type: ignore[arg-type]
    t = gs.trace("When Mary and John", model=worded())
    with pytest.raises(SiteError, match="follows no answer"):
        gs.lens(t).answer_rank  # noqa: B018
    for pos in ([0, 1], None, slice(0, 2)):
        with pytest.raises(SiteError, match="one position at a time"):
            gs.lens(t).logits(pos)  # type: ignore[arg-type]


def test_the_picture_has_the_top_token_in_every_cell() -> None:
    t = gs.trace("When Mary and John went to the store", model=worded())
    lens = gs.lens(t, answer=" Mary")
    for colour, array in (("probability", lens.answer_prob), ("rank", lens.answer_rank), ("entropy", lens.entropy)):
        heat = lens.plot(colour).data[-1]
        assert np.array_equal(heat.z, array.values)
        assert np.shape(heat.text) == array.shape
    assert np.array_equal(gs.lens(t).plot().data[-1].z, gs.lens(t).top_probs.isel(top=0))
    stream_figure = gs.lens(t, "stream").plot()
    assert list(stream_figure.layout.yaxis.ticktext)[:4] == ["embed", "0 resid_mid", "0 resid_post", "1 ◆ resid_mid"]
    assert "1 ◆ resid_mid" in stream_figure.data[-1].customdata[3][0]
    with pytest.raises(SiteError, match="colour is one of"):
        lens.plot("logit")

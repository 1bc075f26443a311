"""Direct contributions: the parts add up to the logit before the cap, and each is what a plain computation gives."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, checkpoint_3, model_of, prompt
from hypothesis import given, settings
from hypothesis import strategies as st
from pieces import worded
from reference import Array, Reference
from torch import Tensor
from transformers import Gemma2ForCausalLM

import gemmascope as gs
from gemmascope.analysis.direct_logits import BY
from gemmascope.errors import GemmascopeError, PromptError, SiteError
from gemmascope.model.attention import Attend
from gemmascope.model.gemma2 import Layer
from gemmascope.model.model import Model
from gemmascope.model.modules import Embedding

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
        direct = gs.direct_logits(t, answer, against or None, by, pos=pos)
        total = raw(t, answer, against, pos)
        size = max(1.0, abs(total), float(np.abs(direct.parts).max()))
        assert direct.total == pytest.approx(total, abs=1e-4 * size)
        assert float(direct.parts.sum() + direct.rest.sum()) == pytest.approx(total, abs=1e-4 * size)
        logits = t.logits[pos]
        capped = float(logits[answer].mean() - (logits[against].mean() if against else 0.0))
        assert direct.capped == pytest.approx(capped, abs=1e-4)
        assert direct.cap_effect == pytest.approx(capped - total, abs=2e-4 * size)


# -- beside a plain float64 forward, with edits of every kind: each multiplies what stands there --

POOL: list[Any] = [
    gs.scale("embed", 3.0, pos=[1, -1]),
    *(gs.scale(site, 0.5, layer=1, pos=[2, -1]) for site in ("resid_pre", "resid_mid", "resid_post")),
    gs.scale("resid_post", -2.0, layer=0),
    gs.scale("v", 2.0, layer=1, head=0, pos=3),
    gs.scale("pattern", 0.25, layer=0, head=[1, 4], q_pos=-1, k_pos=[0, -1]),
    gs.scale("z", -1.0, layer=1, head=1, pos=-1),
    *(gs.scale("head_out", 4.0, layer=layer, head=[0, 5], pos=[0, -1]) for layer in (0, 1)),
    *(gs.scale(site, 2.0, layer=0, pos=-1) for site in ("attn_raw", "attn_out", "mlp_raw", "mlp_out", "mlp_act")),
    gs.scale("attn_out", 0.0, layer=1, pos=-1),
    gs.scale("mlp_raw", 3.0, layer=1, pos=0),
]


@cache
def pair(kinds: str, kv: int) -> tuple[Gemma2ForCausalLM, Model]:
    source = checkpoint(kinds, seed=kv, num_key_value_heads=kv)
    return source, model_of(source)


class Plain:
    """The parts of a run at a position, by name, from the float64 sites of a plain forward with the same edits."""

    def __init__(self, source: Gemma2ForCausalLM, ids: list[int], edits: list[Any], pos: int) -> None:
        self.reference, self.ids, self.edits, self.pos = Reference(source), ids, edits, pos
        self.values = self.reference.run(ids, self._changed)
        self.w, self.eps = self.reference.weights, source.config.rms_norm_eps
        self.layers = range(source.config.num_hidden_layers)

    def _changed(self, site: str, layer: int | None, value: Array) -> Array:
        for edit in self.edits:
            if (edit.site, edit.layer) == (site, layer):
                indices = (edit.head, edit.q_pos, edit.k_pos) if site == "pattern" else (edit.pos, edit.head)
                places = [
                    np.arange(size) if at is None else np.atleast_1d(at)
                    for at, size in zip(indices, value.shape, strict=False)
                ]
                value[np.ix_(*places)] *= edit.factor
        return value

    def edited(self, site: str, layer: int | None) -> bool:
        edits = [e for e in self.edits if (e.site, e.layer) == (site, layer)]
        return any(e.pos is None or self.pos in np.arange(len(self.ids))[np.atleast_1d(e.pos)] for e in edits)

    def at(self, site: str, layer: int | None) -> Array:
        value: Array = self.values[site, layer][self.pos]
        return value

    def gain(self, x: Array, name: str) -> Array:
        factor: Array = (1 + self.w[name]) / np.sqrt(np.mean(x**2) + self.eps)
        return factor

    def along(self, answer: list[int], against: list[int]) -> Array:
        table = self.w["model.embed_tokens.weight"]
        unembedding: Array = table[answer].mean(0) - (table[against].mean(0) if against else 0)
        direction: Array = unembedding * self.gain(self.at("resid_post", self.layers[-1]), "model.norm.weight")
        return direction

    def stream_edits(self) -> dict[str, Array]:
        own = self.w["model.embed_tokens.weight"][self.ids[self.pos]] * np.sqrt(len(self.w["model.norm.weight"]))
        written_by_edits = {"embed": own}
        before = self.at("embed", None)
        if self.edited("embed", None):
            written_by_edits["edit at embed"] = before - own
        for n in self.layers:
            for site, joins in (("resid_pre", None), ("resid_mid", "attn_out"), ("resid_post", "mlp_out")):
                expected = before if joins is None else before + self.at(joins, n)
                before = self.at(site, n)
                if self.edited(site, n):
                    written_by_edits[f"edit at layers.{n}.{site}"] = before - expected
        return written_by_edits

    def split(self, by: str, n: int) -> Array:
        """[..., d_model]: the vector that each piece of a layer writes."""
        at = f"model.layers.{n}."
        if by == "head":
            return self.at("head_out", n)
        if by == "neuron":
            gain = self.gain(self.at("mlp_raw", n), at + "post_feedforward_layernorm.weight")
            return self.at("mlp_act", n)[:, None] * self.w[at + "mlp.down_proj.weight"].T * gain
        gain = self.gain(self.at("attn_raw", n), at + "post_attention_layernorm.weight")
        pattern, v, w_o = self.values["pattern", n], self.values["v", n], self.w[at + "self_attn.o_proj.weight"]
        n_heads, d = len(pattern), v.shape[2]
        pieces = np.zeros((n_heads, len(self.ids), len(gain)))
        for head in range(n_heads):
            for k in range(len(self.ids)):
                read = pattern[head, self.pos, k] * v[k, head * v.shape[1] // n_heads]
                pieces[head, k] = w_o[:, head * d : (head + 1) * d] @ read * gain
        return pieces


WRITERS = {
    "head": ("attn_raw", "attn_out"),
    "neuron": ("mlp_raw", "mlp_out"),
    "token": ("z", "attn_raw", "head_out", "attn_out"),
}


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("edit", POOL, ids=str)
def test_with_any_edit_every_part_is_that_of_a_plain_forward(by: str, edit: Any) -> None:
    require_agreement("gl", 4, 6, by, [edit], 5, [3], [40])


@pytest.mark.filterwarnings("ignore:.*reaches nothing at k_pos")  # a drawn edge may lie behind the window
@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    kinds=st.sampled_from(["lg", "gg", "gll"]), kv=st.sampled_from([8, 4, 1]), by=st.sampled_from(BY),
    length=st.integers(4, 9), last=st.booleans(), data=st.data(),
    edits=st.lists(st.sampled_from(POOL), max_size=4, unique_by=id),
)  # fmt: skip
def test_every_part_is_that_of_a_plain_forward(
    kinds: str, kv: int, length: int, by: str, edits: list[Any], last: bool, data: Any
) -> None:
    pos = length - 1 if last else data.draw(st.integers(0, length - 1))
    answer = data.draw(st.lists(st.integers(0, 29), min_size=1, max_size=3, unique=True))
    against = data.draw(st.lists(st.integers(30, 60), max_size=2, unique=True))
    require_agreement(kinds, kv, length, by, edits, pos, answer, against)


def require_agreement(
    kinds: str, kv: int, length: int, by: str, edits: list[Any], pos: int, answer: list[int], against: list[int]
) -> None:
    source, model = pair(kinds, kv)
    plain = Plain(source, prompt(length), edits, pos)
    along = plain.along(answer, against)
    rest, splits = plain.stream_edits(), []
    for n in plain.layers:
        if by == "sublayer":
            rest |= {f"layers.{n}.{site}": plain.at(site, n) for site in ("attn_out", "mlp_out")}
            continue
        split_site, other_site = ("mlp_out", "attn_out") if by == "neuron" else ("attn_out", "mlp_out")
        split = plain.split(by, n)
        splits.append(split @ along)
        rest[f"layers.{n}.{other_site}"] = plain.at(other_site, n)
        if names := [site for site in WRITERS[by] if plain.edited(site, n)]:
            name = " and ".join(f"layers.{n}.{site}" for site in names)
            rest[f"edit at {name}"] = plain.at(split_site, n) - split.reshape(-1, len(along)).sum(0)
    expected = {name: float(part @ along) for name, part in rest.items()}
    size = max(max(map(abs, expected.values())), *(float(np.abs(split).max()) for split in splits), 0.0)

    direct = gs.direct_logits(gs.trace(prompt(length), model=model, edits=edits), answer, against or None, by, pos=pos)
    ours = direct.rest.to_series().to_dict() | (direct.parts.to_series().to_dict() if by == "sublayer" else {})
    assert set(ours) == set(expected)
    assert all(abs(ours[name] - value) <= 1e-4 * size for name, value in expected.items())
    assert by == "sublayer" or np.abs(direct.parts.values - np.array(splits)).max() <= 1e-4 * size
    raw, capped = (plain.at(site, None) for site in ("logits_raw", "logits"))
    total = raw[answer].mean() - (raw[against].mean() if against else 0.0)
    assert abs(direct.total - total) <= 1e-4 * size
    assert abs(float(direct.parts.sum() + direct.rest.sum()) - total) <= 1e-4 * size
    assert direct.capped == pytest.approx(capped[answer].mean() - (capped[against].mean() if against else 0.0), abs=1e-3)


def test_what_an_edit_wrote_is_a_part_named_after_it() -> None:
    names = {"edit at layers.1.resid_pre", "edit at layers.0.resid_mid", "edit at layers.1.resid_post", "edit at embed"}
    assert names < set(gs.direct_logits(run("stream"), 3, by="head").rest["part"].values.tolist())
    assert set(gs.direct_logits(run("stream"), 3).rest["part"].values.tolist()) == names
    assert gs.direct_logits(run(), 3).rest.size == 0


def test_an_edit_at_other_positions_is_no_part() -> None:
    edits = [gs.scale(site, 2.0, layer=1, pos=[1, 2]) for site in ("resid_mid", "attn_out", "mlp_raw")]
    t = gs.trace(prompt(9), model=model_of(checkpoint("lgl")), edits=edits)
    for by in BY:
        assert not any("edit" in name for name in gs.direct_logits(t, 3, by=by).rest["part"].values)
    assert gs.direct_logits(t, 3, pos=2).rest["part"].values.tolist() == ["edit at layers.1.resid_mid"]


def test_the_rounding_of_a_bfloat16_stream_is_a_part() -> None:
    t = gs.trace(prompt(9), model=model_of(checkpoint("lgl").bfloat16()))
    for by in BY:
        direct = gs.direct_logits(t, 3, 5, by)
        assert "rounding of the stream" in direct.rest["part"].values
        assert float(direct.parts.sum() + direct.rest.sum()) == pytest.approx(
            direct.total, abs=1e-4 * max(1, abs(direct.total))
        )
        assert direct.total == pytest.approx(raw(t, [3], [5]), abs=0.5)


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("edits", EDITS)
def test_layers_are_read_once(by: str, edits: str, layers_read: list[int]) -> None:
    t = run(edits)
    layers_read.clear()
    gs.direct_logits(t, 3, by=by, pos=4)
    assert layers_read == [0, 1, 2]


@pytest.mark.parametrize("kind", ["source", "int8"])
def test_streamed_equals_resident(kind: str, tmp_path: Path) -> None:
    checkpoint("lgl").save_pretrained(tmp_path / "source")
    gs.quantize(tmp_path / "source", tmp_path / "int8")
    for edits in EDITS.values():
        streamed, resident = (
            gs.trace(prompt(9), model=gs.load(tmp_path / kind, memory=memory), edits=edits) for memory in ("1GiB", None)
        )
        for by in BY:
            a, b = (gs.direct_logits(t, 3, [5, 6], by) for t in (streamed, resident))
            assert a.parts.identical(b.parts)
            assert a.rest.identical(b.rest)
            assert (a.total, a.capped) == (b.total, b.capped)


def test_only_the_values_of_the_position_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    t, rows, logits = run(), [], Embedding.logits

    def refused(*args: Any) -> None:
        raise AssertionError("values of all positions were made")

    def counted(table: Embedding, x: Tensor) -> Tensor:
        rows.append(len(x))
        return logits(table, x)

    monkeypatch.setattr(Layer, "head_out", refused)
    monkeypatch.setattr(Attend, "_whole", refused)
    monkeypatch.setattr(Embedding, "logits", counted)
    for by in BY:
        gs.direct_logits(t, 3, by=by, pos=4)
    assert rows == [1, 1, 1, 1]


def test_direct_logits_have_labels_a_table_and_a_picture() -> None:
    t = gs.trace("When Mary and John went to the store, John gave a drink to", model=worded())
    for by in BY:
        direct = gs.direct_logits(t, " Mary", " John", by)
        assert direct.parts.attrs["long_name"] == "logit before the soft cap"
        assert "the cap changes" in repr(direct)
        top = direct.top(3)
        everything = [*np.abs(direct.parts.values).flatten(), *np.abs(direct.rest.values)]
        assert np.allclose([abs(value) for _, value in top], sorted(everything)[::-1][:3])
        assert len(direct.to_dataframe()) == direct.parts.size + direct.rest.size
        figure = direct.plot()
        assert "before the soft cap" in figure.layout.title.subtitle.text

    tokens = gs.direct_logits(t, " Mary", by="token")
    assert tokens.parts["k_token"].values.tolist() == t.tokens
    assert tokens.parts["kind"].values.tolist() == ["local", "global", "local"]
    assert any("reading position" in name for name, _ in tokens.top(200))


def test_a_model_without_a_soft_cap_has_nothing_that_it_changes() -> None:
    direct = gs.direct_logits(gs.trace(prompt(6), model=model_of(checkpoint_3("lg"))), 5, against=9)
    assert direct.cap is None
    for text in (repr(direct), direct.plot().layout.title.subtitle.text):
        assert "this model has no soft cap" in text
        assert "changes" not in text


@pytest.mark.parametrize(
    ("asked_for", "error", "message"),
    [
        ({"answer": "When Mary"}, PromptError, "an answer is one token"),
        ({"answer": 99}, PromptError, "outside the vocabulary"),
        ({"answer": " Mary", "against": " Mary"}, SiteError, "answer and against share a token"),
        ({"answer": " Mary", "by": "layer"}, SiteError, "by is one of 'sublayer', 'head', 'neuron', 'token'; given 'layer'"),
        ({"answer": " Mary", "pos": 44}, SiteError, "there is no position 44"),
        ({"answer": " Mary", "pos": [1, 2]}, SiteError, "read at one position"),
        ({"answer": [" Mary", " John"], "against": [" went", " John"]}, SiteError, "share a token"),
        ({"answer": []}, PromptError, "the list of answers is empty"),
        ({"answer": " Mary", "pos": True}, SiteError, "pos is a number or a list of numbers; given True"),
    ],
)
def test_bad_arguments_are_refused(asked_for: dict[str, Any], error: type[GemmascopeError], message: str) -> None:
    t = gs.trace("When Mary and John", model=worded())
    with pytest.raises(error, match=message):
        gs.direct_logits(t, **asked_for)


def test_edits_after_the_stream_and_what_is_no_trace_are_refused() -> None:
    t = gs.trace(prompt(5), model=model_of(checkpoint("lg")), edits=[gs.scale("final", 2.0)])
    with pytest.raises(SiteError, match="changes the run after the stream"):
        gs.direct_logits(t, 3)
    with pytest.raises(SiteError, match=r"gs.direct_logits\(gs.trace\(prompt\), ...\); given str"):
        gs.direct_logits("When Mary", " Mary")  # type: ignore[arg-type]


def test_the_picture_says_how_much_it_does_not_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemmascope.figures.direct_logits.MOST", 5)
    for by in ("head", "neuron", "token"):
        direct = gs.direct_logits(run("mlp"), 3, 5, by)
        figure = direct.plot()
        drawn = np.sum(figure.data[-1].z if figure.data[-1].type == "heatmap" else figure.data[-1].y)
        assert f"; {direct.total - drawn:+.3g} of it in parts not drawn" in figure.layout.title.subtitle.text
    edited = gs.direct_logits(run("stream"), 3)
    figure = edited.plot()
    assert "edit at layers.1.resid_pre" in figure.layout.xaxis.ticktext
    assert sum(figure.data[0].y) == pytest.approx(edited.total, rel=1e-4)
    assert "not drawn" not in figure.layout.title.subtitle.text


def test_a_prompt_of_a_single_token_works() -> None:
    t = gs.trace([7], model=model_of(checkpoint("lg")))
    for by in BY:
        direct = gs.direct_logits(t, 3, by=by)
        assert float(direct.parts.sum() + direct.rest.sum()) == pytest.approx(raw(t, [3], []), rel=1e-4, abs=1e-3)
    with torch.enable_grad():  # as a notebook has it
        assert isinstance(gs.direct_logits(t, 3, by="neuron").total, float)

"""Features of a trace, the recovered loss, sweeps over features, and their figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from checkpoints import checkpoint, model, model_of, prompt
from pieces import worded
from random_dictionaries import FEATURES, arrays, dictionary, plain_acts, plain_decode
from reference import error
from torch import Tensor

import gemmascope as gs
from gemmascope.errors import DictionaryError, GemmascopeError, MetricError, SiteError, SweepError
from gemmascope.model.model import Model
from gemmascope.sae.dictionary import Dictionary
from gemmascope.sae.weights import Tie

IDS = [2, *prompt(8)]
METRIC = gs.logit_diff(5, 9)
TIES = {3: Tie("a place", 0.5, 0.9, 0.8), 7: Tie("<b>markup</b>", 0.5, 0.9, 0.8)}


def sae(site: str = "resid_post", layer: int = 1, **more: Any) -> Dictionary:
    return dictionary(96 if site == "z" else 32, site, layer, **more)


def trace(*edits: Any) -> gs.Trace:
    return gs.trace(IDS, model=model(), edits=edits)


# -- encode --


@pytest.mark.parametrize("site", ["resid_post", "mlp_out", "z", "transcoder", "resid_pre"])
def test_features_of_a_trace_are_what_the_format_says(site: str) -> None:
    d, t, params = sae(site), trace(), arrays(96 if site == "z" else 32)
    x = t["resid_mid" if site == "transcoder" else site, 1].flatten(1).double().numpy()
    if site == "transcoder":  # the norm before its gain: what mlp_in is, divided by the gain
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        gain = 1 + model().layer(1).pre_feedforward_layernorm.weight.detach().double().numpy()
        assert np.allclose(x * gain, t["mlp_in", 1].numpy(), atol=1e-5)
    features, acts = d.encode(t), plain_acts(params, x)
    out = t[d.writes, 1].flatten(1).double().numpy()
    residual = out - plain_decode(params, acts)
    assert features.active == np.flatnonzero(acts.any(0)).tolist()
    assert np.allclose(features.acts.values, acts[:, features.active], atol=1e-4)
    assert features.l0.values.tolist() == np.count_nonzero(acts, axis=1).tolist()
    assert error(features.error, torch.from_numpy(residual)) <= 1e-5
    assert error(features.reconstruction + features.error, torch.from_numpy(out)) <= 1e-5
    explained = 1 - (residual[1:] ** 2).sum() / ((out[1:] - out[1:].mean(0)) ** 2).sum()
    assert abs(features.explained - explained) <= 1e-4
    k, strongest = 4, np.sort(acts[5])[::-1]
    assert np.allclose([value for _, value, _ in features.top(k, 5)], strongest[:k], atol=1e-4)
    assert [acts[5, feature] for feature, _, _ in features.top(k, 5)] == strongest[:k].tolist()


def test_features_have_axes_labels_and_a_table() -> None:
    features = sae(concepts=TIES).encode(trace())
    assert features.acts.dims == ("pos", "feature")
    assert features.acts["token"].values.tolist() == trace().tokens
    concepts = dict(zip(features.acts["feature"].values.tolist(), features.acts["concept"].values.tolist(), strict=True))
    assert concepts[3] == "a place"
    assert set(concepts.values()) == {"", "a place", "<b>markup</b>"}
    assert features.l0.dims == ("pos",)
    frame = features.to_dataframe()
    assert list(frame.columns) == ["pos", "token", "feature", "activation", "concept"]
    assert len(frame) == len(features.value)
    of_three = frame[frame.feature == 3]
    assert (of_three.concept.notna() == (of_three.activation > 0.5)).all()
    assert set(of_three.concept.dropna()) == {"a place"}
    assert "concept" not in sae().encode(trace()).acts.coords


def test_features_encoded_in_chunks_equal_those_encoded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = sae().encode(trace())
    monkeypatch.setattr("gemmascope.sae.arrays.CHUNK_ELEMENTS", 2 * FEATURES)
    parts = sae().encode(trace())
    assert torch.equal(at_once.pos, parts.pos)
    assert torch.equal(at_once.feature, parts.feature)
    assert error(parts.value, at_once.value) <= 1e-6
    assert error(parts.reconstruction, at_once.reconstruction) <= 1e-6


def test_a_table_that_would_fill_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemmascope.sae.features.MOST_CELLS", 100)
    with pytest.raises(DictionaryError, match=r"read \.pos, \.feature and \.value"):
        _ = sae().encode(trace()).acts


def test_features_have_a_text_form() -> None:
    d = sae(concepts=TIES, call="gs.load_sae('x')")
    text = repr(d.encode(gs.trace("When Mary and John", model=worded())))
    assert text.startswith("Features of 5 positions in gs.load_sae('x'): ")
    assert "(<bos> left out)" in text
    assert "1 When  " in text
    assert "2 ·Mary  " in text
    assert "0 <bos>" not in text
    alone = d.encode(gs.trace([2], model=model()))
    assert np.isnan(alone.explained)
    assert "Features of 1 position in" in repr(alone)


def test_rows_without_a_trace_have_features_and_no_error_term() -> None:
    rows = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    features = sae("transcoder").encode(rows)
    assert features.tokens == ("0", "1", "2")
    with pytest.raises(DictionaryError, match="encode a trace instead"):
        _ = features.error
    with pytest.raises(DictionaryError, match="a position is a whole number from -3 to 2; given 3"):
        features.top(pos=3)


@pytest.mark.parametrize("k", [0, -1, True, 1.5])
def test_top_refuses_a_bad_number(k: Any) -> None:
    with pytest.raises(DictionaryError, match="k is a whole number of at least 1"):
        sae().encode(trace()).top(k)


def test_top_refuses_a_position_that_does_not_exist() -> None:
    features = sae().encode(trace())
    with pytest.raises(SiteError, match="no position 20"):
        features.top(pos=20)
    with pytest.raises(DictionaryError, match="one position is read at a time"):
        features.top(pos=[1, 2])  # type: ignore[arg-type]


def test_a_bfloat16_model_is_read_in_float32() -> None:
    half = Model(model_of(checkpoint("lgl")).network.bfloat16(), None, "half")
    features = sae(any_model=True).encode(gs.trace(IDS, model=half))
    assert features.value.dtype == torch.float32
    clean = gs.trace(IDS, model=half)
    same = gs.trace(IDS, model=half, edits=[gs.splice(sae(any_model=True))])
    assert torch.equal(clean.logits, same.logits)


# -- loss recovered --


def naive_loss(ids: list[int], change: Any) -> Tensor:
    """The losses of the tokens after position 1, with the site changed by a user's tap."""

    def tap(site: str, layer: int | None, value: Tensor) -> Tensor:
        if (site, layer) == ("resid_post", 1):
            value = value.clone()
            value[1:] = change(value[1:])
        return value

    logits = model().run(ids, tap=tap)
    return torch.nn.functional.cross_entropy(logits[1:-1], torch.tensor(ids[2:]), reduction="none")


def test_loss_recovered_is_that_of_a_loop() -> None:
    d, prompts = sae(), [[2, *prompt(n, seed=n)] for n in (3, 8, 5)]
    params = arrays(32)
    changes = {
        "clean": lambda x: x,
        "spliced": lambda x: torch.from_numpy(plain_decode(params, plain_acts(params, x.numpy()))).float(),
        "zeroed": torch.zeros_like,
    }
    expected = {name: float(torch.cat([naive_loss(ids, fn) for ids in prompts]).mean()) for name, fn in changes.items()}
    recovered = d.loss_recovered(prompts, model=model())
    assert recovered.n_tokens == 2 + 7 + 4
    for name, loss in expected.items():
        assert abs(getattr(recovered, name) - loss) <= 1e-4 * abs(loss)
    share = (expected["zeroed"] - expected["spliced"]) / (expected["zeroed"] - expected["clean"])
    assert abs(recovered.recovered - share) <= 1e-3 * (1 + abs(share))
    assert repr(recovered).startswith("loss recovered ")
    with pytest.raises(DictionaryError, match="two tokens after <bos>"):
        d.loss_recovered([[2, 5]], model=model())


# -- sweeps over features --


@pytest.mark.parametrize("site", ["resid_post", "z", "transcoder"])
@pytest.mark.parametrize(("value", "layer"), [(0.0, 1), (4.0, 2)])
def test_a_feature_sweep_equals_a_loop_of_single_traces(site: str, value: float, layer: int) -> None:
    d = sae(site, layer)
    base = [gs.add("resid_pre", torch.ones(32), layer=0, pos=3)]
    result = gs.feature_sweep(d, IDS, METRIC, value=value, edits=base, model=model())
    grid = gs.feature_sweep(
        d, IDS, METRIC, features=[3, 9], value=value, by=("feature", "pos"), pos=[2, 5, -1], edits=base, model=model()
    )
    clean = trace(*base)
    assert abs(result.base - diff(clean)) <= 1e-4
    assert result.effect["feature"].values.tolist() == [f for f in d.encode(clean).active if active_after_bos(d, clean, f)]
    for feature in result.effect["feature"].values.tolist():
        changed = diff(trace(*base, gs.splice(d, {feature: value}))) - diff(clean)
        assert abs(float(result.effect.sel(feature=feature)) - changed) <= 1e-4
    assert grid.effect.dims == ("feature", "pos")
    assert grid.effect["pos"].values.tolist() == [2, 5, 8]
    for feature in (3, 9):
        for pos in (2, 5, 8):
            changed = diff(trace(*base, gs.splice(d, {feature: value}, pos=pos))) - diff(clean)
            assert abs(float(grid.effect.sel(feature=feature, pos=pos)) - changed) <= 1e-4


def diff(t: gs.Trace) -> float:
    return float(t.next_logits[5] - t.next_logits[9])


def active_after_bos(d: Dictionary, t: gs.Trace, feature: int) -> bool:
    features = d.encode(t)
    return bool((features.pos[features.feature == feature] > 0).any())


def test_a_feature_sweep_in_several_passes_equals_one_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    one_pass = gs.feature_sweep(sae(), IDS, METRIC, model=model())
    monkeypatch.setattr("gemmascope.sae.feature_sweep.rows_within", lambda memory, model: 20)
    parts = gs.feature_sweep(sae(), IDS, METRIC, model=model())
    assert np.allclose(one_pass.effect, parts.effect, atol=1e-5)


def test_a_feature_that_keeps_its_value_has_no_effect() -> None:
    d = sae()
    asleep = next(f for f in range(FEATURES) if f not in [feature for feature, _, _ in d.encode(trace()).top(FEATURES, 5)])
    result = gs.feature_sweep(d, IDS, METRIC, features=[asleep], pos=5, model=model())
    assert result.effect.values.tolist() == [0.0]
    assert abs(result.base - diff(trace())) <= 1e-5


def test_a_feature_sweep_has_a_text_form_and_a_table() -> None:
    d = sae(concepts=TIES, call="gs.load_sae('x')")
    result = gs.feature_sweep(
        d, "When Mary and John went to", gs.logit_diff(" Mary", " John"), by=("feature", "pos"), model=worded()
    )
    text = repr(result)
    assert text.startswith("feature sweep of gs.load_sae('x') in random: ")
    assert "set to 0, gs.logit_diff(' Mary', ' John')" in text
    (where, effect), *_ = result.top(1)
    assert abs(effect) == np.abs(result.effect.values).max()
    assert f"{effect:+.4g}  feature {where['feature']}" in text
    frame = result.to_dataframe()
    assert {"feature", "concept", "pos", "token", "effect"} == set(frame.columns)
    assert len(frame) == result.effect.size


def test_a_bad_feature_sweep_is_refused() -> None:
    d = sae()

    def sweep(*arguments: Any, **options: Any) -> Any:
        return gs.feature_sweep(*arguments, **{"model": model(), **options})

    cases: list[tuple[type[GemmascopeError], str, Any]] = [
        (DictionaryError, "gs.load_sae returns; given str", lambda: sweep("nano", IDS, METRIC)),
        (DictionaryError, "no feature 40", lambda: sweep(d, IDS, METRIC, features=[40])),
        (DictionaryError, "each feature once", lambda: sweep(d, IDS, METRIC, features=[3, 3])),
        (DictionaryError, "one at least", lambda: sweep(d, IDS, METRIC, features=[])),
        (DictionaryError, "finite number; given nan", lambda: sweep(d, IDS, METRIC, features=[3], value=float("nan"))),
        (SweepError, "by is 'feature' or", lambda: sweep(d, IDS, METRIC, by="pos")),
        (SweepError, "of one prompt", lambda: sweep(d, [IDS, IDS], METRIC)),
        (SweepError, "comes after it", lambda: sweep(d, IDS, METRIC, edits=[gs.scale("logits", 2.0)])),
        (SiteError, "no position 30", lambda: sweep(d, IDS, METRIC, pos=30)),
        (MetricError, "a metric is a function", lambda: sweep(d, IDS, "x")),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()


# -- pictures --


def test_a_picture_of_features_names_them_and_leaves_bos_out() -> None:
    d = sae(concepts=TIES)
    features_of_trace = d.encode(gs.trace("When Mary and John", model=worded()))
    figure = features_of_trace.plot([3, 7])
    assert isinstance(figure, go.Figure)
    heat = figure.data[-1]
    assert list(figure.layout.yaxis.ticktext) == ["7 &lt;b&gt;markup&lt;/b&gt;", "3 a place"]
    assert np.isnan(np.asarray(heat.z, float)[:, 0]).all()
    assert np.allclose(np.asarray(heat.z, float)[1, 1:], features_of_trace.acts.sel(feature=3).values[1:])
    assert len(features_of_trace.plot(most=4).data[-1].z) == 4
    with pytest.raises(DictionaryError, match="no feature 99"):
        features_of_trace.plot([99])


def test_a_feature_sweep_is_drawn_as_bars_or_a_heat_map() -> None:
    d = sae(concepts=TIES)
    for by, kind in (("feature", go.Bar), (("feature", "pos"), go.Heatmap)):
        result = gs.feature_sweep(d, IDS, METRIC, by=by, model=model())
        figure = result.plot(most=5)
        drawn = figure.data[-1]
        assert isinstance(drawn, kind)
        assert len(drawn.y) == 5
        largest = np.abs(result.effect.values).max()
        assert np.abs(np.asarray(drawn.y if kind is go.Bar else drawn.z, float)).max() == largest

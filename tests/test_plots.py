"""Heat maps of sweeps: integer axes with tokens as text, a scale around zero, and no colour where there is no number."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from pieces import ODD, worded
from random_dictionaries import dictionary
from torch import Tensor

import gemmascope as gs
from gemmascope.errors import SweepError
from gemmascope.figures.theme import NOTHING, TRANSPARENT
from gemmascope.sweeps.result import SweepResult

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"


@cache
def patched(site: str = "resid_pre", by: tuple[str, ...] = ("layer", "pos"), **options: Any) -> SweepResult:
    return gs.sweep(CLEAN, CORRUPT, gs.logit_diff(" Mary", " John"), site=site, by=by, model=worded(), **options)


def valid(figure: Any) -> dict[str, Any]:
    """The figure as plotly's JSON reads it back, checked by plotly."""
    assert isinstance(figure, go.Figure)
    data: dict[str, Any] = json.loads(figure.to_json())
    go.Figure(data, skip_invalid=False)
    return data


def test_a_sweep_by_layer_and_position_is_a_heat_map() -> None:
    s = patched()
    figure = s.plot()
    valid(figure)
    (drawn,) = figure.data
    assert isinstance(drawn, go.Heatmap)
    assert np.array_equal(drawn.z, s.effect.values)
    assert list(drawn.x) == list(range(15))
    assert list(drawn.y) == [0, 1, 2]
    x, y = figure.layout.xaxis, figure.layout.yaxis
    assert list(x.tickvals) == list(range(15))
    assert list(x.ticktext)[:4] == ["&lt;bos&gt;", "When", "·Mary", "·and"]
    assert list(y.ticktext) == ["0", "1 ◆", "2"]
    assert (x.title.text, y.title.text) == ("position", "layer (◆ global)")
    assert figure.layout.title.text == f"resid_pre patched into the corrupt run, {s.question.model}"
    assert x.type is None or x.type == "linear"


def test_tokens_that_repeat_keep_their_columns() -> None:
    figure = patched().plot()
    text = list(figure.layout.xaxis.ticktext)
    assert text.count("·Mary") == 2
    assert len(set(figure.data[0].x)) == 15


@pytest.mark.parametrize("normalized", [False, True])
def test_colours_diverge_around_zero(normalized: bool) -> None:
    s = patched()
    drawn = s.plot(normalized=normalized).data[0]
    values = s.normalized if normalized else s.effect
    assert np.array_equal(drawn.z, values.values)
    assert drawn.zmax == -drawn.zmin == np.abs(values.values).max()
    scale = drawn.colorscale
    assert [stop for stop, _ in scale] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert scale[2][1] == NOTHING, "where nothing changed, the page shines through"
    unit = drawn.colorbar.title.text
    assert unit == ("share of the gap" if normalized else "change of gs.logit_diff(' Mary', ' John')")


def test_what_was_not_run_has_no_colour() -> None:
    s = patched("pattern", ("q_pos", "k_pos"), layer=0, head=1)
    figure = s.plot()
    data = valid(figure)
    hatch, drawn = figure.data
    assert hatch.fillpattern.shape == "/"
    corners = [(x, y) for x, y in zip(hatch.x, hatch.y, strict=True) if x is not None]
    cells = {(round(y + 0.5), round(x + 0.5)) for x, y in corners[::5]}  # each begins at its left, low corner
    assert cells == set(map(tuple, np.argwhere(np.isnan(s.effect.values)).tolist()))
    assert np.array_equal(np.isnan(drawn.z), np.isnan(s.effect.values))
    assert np.isnan(drawn.z).sum() == 15 * 15 - sum(min(4, q + 1) for q in range(15))
    assert drawn.hoverongaps is False
    assert figure.layout.yaxis.autorange == "reversed"  # the first query on top
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("key position", "query position")
    assert [one["type"] for one in data["data"]] == ["scatter", "heatmap"]
    empty = SweepResult(s.question, np.full_like(s.values, np.nan), s.base_metric, s.source_metric).plot().data[1]
    assert np.isnan(empty.z).all()
    assert empty.zmax > 0


def test_a_sweep_over_one_axis_is_a_bar_chart() -> None:
    s = gs.sweep(CLEAN, None, gs.rank(" Mary"), site="v", by="head", ablate=0.0, model=worded())
    figure = s.plot()
    valid(figure)
    (drawn,) = figure.data
    assert isinstance(drawn, go.Bar)
    assert np.array_equal(drawn.y, s.effect.values)
    assert list(drawn.x) == [0, 1, 2, 3]
    assert [colour == "#2166ac" for colour in drawn.marker.color] == (s.effect.values >= 0).tolist()
    assert figure.layout.xaxis.title.text == "kv head"
    assert figure.layout.yaxis.title.text == "change of gs.rank(' Mary')"
    assert figure.layout.title.text == f"v ablated, {s.question.model}"
    assert figure.layout.title.subtitle.text.split("<br>")[-1] == "Measured: gs.rank(' Mary'); ablate=0.0"
    by_pos = patched("resid_pre", ("pos",)).plot()
    assert by_pos.layout.xaxis.ticktext[0] == "&lt;bos&gt;"


def test_the_metrics_of_many_pairs_do_not_overflow_the_scale() -> None:
    same = [gs.logit_diff(" Mary", " John"), gs.logit_diff(" John", " Mary")] * 2
    for metrics, label in ((same, "gs.logit_diff"), ([*same[:3], gs.answer_prob(" Mary")], "the metric")):
        s = gs.sweep([CLEAN] * 4, None, metrics, site="z", by=("layer", "head"), ablate=0.0, model=worded())
        figure = s.plot()
        assert figure.data[0].colorbar.title.text == f"change of {label}"
        assert figure.layout.title.text == f"z ablated, {s.question.model}, mean of 4 pairs"


def test_more_than_two_axes_are_refused() -> None:
    s = patched("z", ("layer", "pos", "head"), layer=0)
    with pytest.raises(SweepError, match=r"has two axes; this sweep has 3 \(layer, pos, head\): plot result.effect.sel"):
        s.plot()


def test_a_plot_of_shares_without_a_gap_is_refused() -> None:
    with pytest.warns(gs.GemmascopeWarning, match="the two prompts are the same"):
        s = gs.sweep(CLEAN, CLEAN, gs.rank(" Mary"), site="resid_pre", model=worded())
    with pytest.raises(SweepError, match="there is no gap to explain"):
        s.plot(normalized=True)


def test_text_is_never_markup() -> None:
    ids = worded().tokenizer.encode("".join(ODD[:8]))

    def odd(logits: Tensor) -> Tensor:
        return logits[:, 0]

    odd.__name__ = "<b>odd</b>"
    s = gs.sweep(ids, [*ids[:-1], 5], odd, site="resid_pre", by=("layer", "pos"), model=worded())
    figure = s.plot()
    ticks, hovers = list(figure.layout.xaxis.ticktext), [text for row in figure.data[0].customdata for text in row]
    unit = figure.data[0].colorbar.title.text
    assert unit == "change of &lt;b&gt;odd&lt;/b&gt;"
    for text in (*ticks, *(hover.replace("<br>", "") for hover in hovers)):
        assert "<" not in text
        assert ">" not in text
    assert ticks[0] == "&lt;img·src=x·onerror=alert(1)&gt;"
    assert ticks[3] == "&amp;amp;"
    page = figure.to_html(full_html=False, include_plotlyjs=False)
    assert "<img src" not in page
    assert "</script><!--" not in page


def test_a_cell_says_where_it_is() -> None:
    hover = patched().plot().data[0].customdata
    assert np.shape(hover)[:2] == (3, 15)
    assert hover[1][2].startswith("layer 1, global<br>position 2: ·Mary<br>")


# -- sets of sweeps --

METRICS = {"diff": gs.logit_diff(" Mary", " John"), "<b>": gs.rank(" Mary")}


def asked(site: Any, by: Any = ("layer", "pos"), metric: Any = METRICS["diff"], **options: Any) -> Any:
    return gs.sweep(CLEAN, CORRUPT, metric, site=site, by=by, model=worded(), progress=False, **options)


def colours_of(figure: Any, drawn: Any) -> Any:
    return figure.layout[drawn.coloraxis]


def test_a_set_is_one_figure_with_a_colour_scale_for_each_metric() -> None:
    several = asked(["resid_pre", "mlp_out"], metric=METRICS)
    figure = several.plot()
    valid(figure)
    drawn = [trace for trace in figure.data if trace.type == "heatmap"]
    order = [("resid_pre", "diff"), ("mlp_out", "diff"), ("resid_pre", "<b>"), ("mlp_out", "<b>")]  # a metric is a row
    titles = [note.text for note in figure.layout.annotations]
    assert titles == [f"{site}, {'&lt;b&gt;' if name == '<b>' else name}" for site, name in order]
    for trace, key, title in zip(drawn, order, titles, strict=True):
        assert np.array_equal(trace.z, several[key].effect.values)
        most = max(float(np.abs(several[site, key[1]].effect.values).max()) for site in ("resid_pre", "mlp_out"))
        scale = colours_of(figure, trace)
        assert (scale.cmin, scale.cmax) == pytest.approx((-most, most))
        assert scale.colorbar.title.text == "change of " + several[key].question.metric
        assert trace.hovertemplate.startswith(f"{title}<br>%{{customdata}}")
    assert len({trace.coloraxis for trace in drawn}) == 2
    assert (
        figure.layout.title.text
        == f"resid_pre, mlp_out patched into the corrupt run, {several['mlp_out', 'diff'].question.model}"
    )
    shares = several.plot(normalized=True)
    heat_maps = [trace for trace in shares.data if trace.type == "heatmap"]
    assert np.allclose(heat_maps[1].z, several["mlp_out", "diff"].normalized.values)
    assert colours_of(shares, heat_maps[3]).colorbar.title.text == "share of the gap (&lt;b&gt;)"


def test_subplots_stand_where_their_labels_are_theirs() -> None:
    several = asked(["q", "k", "v", "z"], by=("layer", "head"))
    figure = several.plot()
    valid(figure)
    drawn = [trace for trace in figure.data if trace.type == "heatmap"]
    assert len({trace.coloraxis for trace in drawn}) == 1
    for trace, (key, grid) in zip(drawn, several.items(), strict=True):
        x = figure.layout[trace.xaxis.replace("x", "xaxis")]
        assert len(x.ticktext) == grid.effect.shape[1]
        assert x.title.text == ("kv head" if key in ("k", "v") else "head")
    first, last = (figure.layout[drawn[i].yaxis.replace("y", "yaxis")].domain for i in (0, 3))
    assert first[0] > last[1], "the fourth stands in a row of its own below"


def test_grids_of_one_axis_share_the_range_of_their_bars() -> None:
    several = asked(["z", "mlp_out"], by="layer", metric=METRICS)
    figure = several.plot()
    valid(figure)
    assert all(trace.type == "bar" for trace in figure.data)
    ranges = [figure.layout[f"yaxis{n}"].range for n in ("", 2, 3, 4)]
    assert ranges[0] == ranges[1] != ranges[2] == ranges[3]
    low, high = ranges[0]
    values = np.concatenate([several[site, "diff"].effect.values for site in ("z", "mlp_out")])
    assert low < values.min()
    assert high > values.max()


def test_a_set_without_a_picture_says_so() -> None:
    with pytest.raises(SweepError, match="a heat map has two axes; this sweep has 3"):
        asked(["z", "q"], by=("layer", "pos", "head"), layer=0).plot()
    with pytest.raises(SweepError, match="normalized is True or False"):
        asked(["z", "q"], by="layer").plot(normalized="yes")
    with pytest.raises(SweepError, match=r"shows one grid, and this sweep has 2: gs.sweep_view\(result\['z'\]\)"):
        gs.sweep_view(asked(["z", "q"], by="layer"))


# -- the prompts below the title --

DIFF = gs.logit_diff(" Mary", " John")
FIRST = f'"{CLEAN}".'
SEVERAL = ([CLEAN, CORRUPT], [CORRUPT, CLEAN], [DIFF, gs.logit_diff(" John", " Mary")])
OF_SEVERAL = f'Clean, the first of 2: {FIRST} Corrupted, the first of 2: "{CORRUPT}". Measured: {DIFF!r}, the first pair\'s'
QUIET: dict[str, Any] = {"model": worded(), "progress": False}


def scores_of_several() -> gs.EdgeScores:
    return gs.edge_scores(*SEVERAL, method="eap", **QUIET)


def features() -> gs.Features:
    return dictionary(worded().config.d_model, "resid_post", 0).encode(gs.trace(CLEAN, model=worded()))


NAMED: dict[str, tuple[Any, str]] = {
    "a pair": (patched, f'Clean: {FIRST} Corrupted: "{CORRUPT}". Measured: {DIFF!r}'),
    "several pairs": (lambda: gs.sweep(*SEVERAL, site="z", **QUIET), OF_SEVERAL),
    "sites of several pairs": (lambda: gs.sweep(*SEVERAL, site=["z", "q"], **QUIET), OF_SEVERAL),
    "ids": (
        lambda: gs.sweep(worded().ids(CLEAN), worded().ids(CORRUPT), DIFF, site="z", **QUIET),
        f'Clean: token ids. Corrupted: "{CORRUPT}".',
    ),
    "ablated ids": (lambda: gs.sweep(worded().ids(CLEAN), None, DIFF, site="z", ablate=0.0, **QUIET), f"Prompt: {FIRST}"),
    "edges": (scores_of_several, OF_SEVERAL),
    "faithfulness": (lambda: gs.faithfulness(scores_of_several(), *SEVERAL, sizes=[0.5], model=worded()), OF_SEVERAL),
    "heads": (
        lambda: gs.head_scores(worded(), "previous_token", prompts=[CLEAN, CORRUPT]),
        f"2 prompts, 26 queries First prompt: {FIRST}",
    ),
    "names": (lambda: gs.name_copying([CLEAN, CORRUPT], " Mary", model=worded()), f"2 prompts, top 5 First prompt: {FIRST}"),
    "composition": (lambda: gs.composition(worded()), "from the weights, without prompts"),
    "comparison": (lambda: gs.compare(worded(), worded(), [CLEAN, CORRUPT]), f"2 prompts, the first: {FIRST}"),
    "direction": (
        lambda: gs.direction([CLEAN] * 3, [CORRUPT] * 3, layer=1, site="resid_post", model=worded()),
        f'3 positive prompts, the first: {FIRST} 3 negative prompts, the first: "{CORRUPT}".',
    ),
    "features": (features, f"Prompt: {FIRST}"),
    "check of a graph": (
        lambda: gs.attribution_graph(CLEAN, basis="neuron", max_nodes=20, **QUIET).check(2),
        f"Prompt: {FIRST} Changed: ",
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_figure_names_its_prompts(name: str) -> None:
    result, expected = NAMED[name]
    layout = result().plot().layout
    said = layout.title.subtitle.text.replace("<br>", " ")  # lines are wrapped at spaces
    assert expected in said, said
    assert layout.template.layout.paper_bgcolor == TRANSPARENT, "the page shines through, light or dark"


def test_a_prompt_of_several_lines_is_one_line_below_the_title() -> None:
    odd = "Mary went\nMeasured: nothing"
    said = gs.head_scores(kind="self", prompts=odd).plot().layout.title.subtitle.text.split("<br>")
    assert not [line for line in said if line.startswith("Measured")], said

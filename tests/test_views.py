"""Views: their numbers against the trace, their size, their errors, and escaped text."""

from __future__ import annotations

import base64
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, model_of, prompt
from pieces import ODD, worded
from random_dictionaries import dictionary

import gemmascope as gs
from gemmascope.errors import DictionaryError, GemmascopeError, SiteError, SweepError
from gemmascope.views.page import View, in_script

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"


def trace(text: str = CLEAN, **options: Any) -> gs.Trace:
    run = gs.trace(text, model=worded(), **options)
    assert isinstance(run, gs.Trace)
    return run


def odd() -> gs.Trace:
    run = gs.trace(worded().tokenizer.encode("".join(ODD)), model=worded())
    assert isinstance(run, gs.Trace)
    return run


def every_view(t: gs.Trace) -> list[gs.View]:
    sweep = gs.sweep(t.ids, [*t.ids.tolist()[:-1], 5], gs.logit_diff(3, 4), site="resid_pre", model=t.model, progress=False)
    sae = dictionary(t.model.config.d_model, "resid_post", 1)
    return [
        gs.attention_view(t),
        gs.attention_view(t, compare=t, layer=1),
        gs.lens_view(t, answer=3),
        gs.stream_view(t, answer=3, against=4),
        gs.sweep_view(sweep),
        gs.sae_view(sae.encode(t)),
    ]


def unpacked(packed: dict[str, Any]) -> np.ndarray[Any, Any]:
    """The array as a page unpacks it."""
    data = zlib.decompress(base64.b64decode(packed["data"]), -15)
    return np.frombuffer(data, packed["dtype"]).reshape(packed["shape"]) * packed["scale"]


class Elements(HTMLParser):
    """Every element of a page, and the text of those that are no script or style."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)


def test_a_view_is_a_page_part_with_all_it_needs() -> None:
    for view, again in zip(every_view(trace()), every_view(trace()), strict=True):
        part = view._repr_html_()
        assert part.count("<script") == part.count("</script>") == 1
        assert not re.search(r"""<[^>]*\s(?:src|href)\s*=|https?:|["'(]//|url\(|@import""", part)
        assert part == again.to_html(), "a notebook that is run again is the same file"
        assert view.title in repr(view)


def test_text_is_never_markup() -> None:
    for view in every_view(odd()):
        elements = Elements()
        elements.feed(view.to_html())
        assert set(elements.tags) <= {"div", "script", "b", "p", "table", "tr", "td"}
        assert elements.tags.count("script") == 1
        assert "<img" not in view.to_html()
        assert "\u202e" not in view.to_html()
        assert "\x1b" not in view.to_html()
        assert not set("\x1b\x00\u202e") & set(repr(view))
    assert json.loads(in_script({"</script>": ["<!--", "&amp;", "\u2028"]})) == {"</script>": ["<!--", "&amp;", "\u2028"]}
    assert "<" not in in_script("</script><!--")


def test_a_view_is_written_as_a_page_and_replaces_one(tmp_path: Path) -> None:
    path = tmp_path / "view.html"
    path.write_text("before")
    gs.lens_view(trace()).save(path)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "default-src 'none'" in text, "a page may ask nothing of any address"
    assert [p.name for p in tmp_path.iterdir()] == ["view.html"]


def wide(n: int = 200) -> gs.Trace:
    shape = {"num_attention_heads": 32, "num_key_value_heads": 16, "sliding_window": 64, "max_position_embeddings": 256}
    run = gs.trace(prompt(n), model=model_of(checkpoint("lg", **shape)))
    assert isinstance(run, gs.Trace)
    return run


def test_pages_stay_small() -> None:
    t = wide()
    assert len(gs.attention_view(t, layers=[1]).to_html()) < 1_500_000
    both = gs.attention_view(t, layer=1)
    assert len(both.to_html()) < 1_500_000
    assert [layer["index"] for layer in both.spec["layers"]] == [0, 1]
    ten = [view for _ in range(2) for view in every_view(trace())][:10]
    assert sum(len(view.to_html()) for view in ten) < 5_000_000


# The numbers of views


@pytest.mark.parametrize("kinds", ["lgl", "gll"])
def test_an_attention_view_holds_the_patterns_of_the_trace(kinds: str) -> None:
    edits = [gs.ablate("z", layer=1, head=2)]
    t = gs.trace(prompt(11), model=model_of(checkpoint(kinds)), edits=edits)
    second = gs.trace(prompt(11, seed=5), model=t.model)
    view = gs.attention_view(t, compare=second, layer=-1, head=-2, heads=[6, 1, 2])
    assert (view.spec["heads"], view.spec["head"], view.spec["layer"]) == ([1, 2, 6], 2, 2)
    for layer in range(3):
        window = t.layers[layer].window or 11
        for name, one in (("first", t), ("second", second)):
            rows = unpacked(view.arrays[f"{name}{layer}"]).reshape(3, -1)
            visible_edges = [(q, k) for q in range(11) for k in range(max(0, q - window + 1), q + 1)]
            expected = [one["pattern", layer][[1, 2, 6], q, k] for q, k in visible_edges]
            assert np.abs(rows - np.stack(expected, 1)).max() <= 0.51 / 65535


@pytest.mark.parametrize("kinds", ["lgl", "gll"])
def test_an_attention_view_of_several_prompts_holds_their_mean_and_its_standard_error(kinds: str) -> None:
    runs = gs.trace([prompt(11, seed=n) for n in range(4)], model=model_of(checkpoint(kinds)))
    view = gs.attention_view(runs, layer=1, heads=[6, 1])
    assert [layer["index"] for layer in view.spec["layers"]] == [0, 1, 2]
    for layer in range(3):
        window = runs[0].layers[layer].window or 11
        queries, keys = np.array([(q, k) for q in range(11) for k in range(max(0, q - window + 1), q + 1)]).T
        patterns = np.stack([run["pattern", layer][[1, 6]].double().numpy() for run in runs])[..., queries, keys]
        for name, expected in (("first", patterns.mean(0)), ("second", patterns.std(0, ddof=1) / 2)):
            values = unpacked(view.arrays[f"{name}{layer}"]).reshape(2, -1)
            assert np.abs(values - expected).max() <= 0.51 / 65535
    one = gs.attention_view(runs[:1])
    assert one.to_html() == gs.attention_view(runs[0]).to_html()


def test_tokens_that_differ_between_prompts_are_marked() -> None:
    view = gs.attention_view([trace(), trace(CORRUPT), trace()])
    assert [n for n, text in enumerate(view.spec["differ"]) if text] == [10]
    assert view.spec["differ"][10] == [[" John", " Mary"], 0]
    assert view.spec["note"] == "Tokens with ≠ are not the same in all 3 prompts; the first prompt's are shown."
    assert "Mean of 3 prompts of 15 tokens each: <bos> When ·Mary ·and ·John ·went ·to ·the ·store , ≠ ·gave" in repr(view)
    assert "note" not in gs.attention_view([trace(), trace()]).spec


def test_layers_without_room_are_not_computed_and_the_view_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    t = trace()
    some = sum(len(packed["data"]) for packed in gs.attention_view(t, layers=[0, 2]).arrays.values())
    monkeypatch.setattr("gemmascope.views.attention.MOST_BYTES", some)
    view = gs.attention_view(t, layer=2)
    assert [layer["index"] for layer in view.spec["layers"]] == [0, 2]
    assert view.spec["layer"] == 1
    monkeypatch.setattr("gemmascope.views.attention.MOST_BYTES", some - 1)  # it might have fitted, and does not
    assert [layer["index"] for layer in gs.attention_view(t, layer=2).spec["layers"]] == [2]
    monkeypatch.setattr("gemmascope.views.attention.MOST_BYTES", some)
    assert view.spec["note"].endswith("of the page: layers 1. attention_view(trace, layers=[1]) shows them.")
    alone = sum(len(packed["data"]) for packed in gs.attention_view(t, layers=[1]).arrays.values())
    monkeypatch.setattr("gemmascope.views.attention.MOST_BYTES", int(1.2 * alone))
    monkeypatch.setattr(
        "gemmascope.views.attention_panels.replay", lambda *_: pytest.fail("there is no room for another layer")
    )
    view = gs.attention_view(t, layer=1)
    assert [layer["index"] for layer in view.spec["layers"]] == [1]
    assert "layers 0, 2." in view.spec["note"]


def test_a_layer_that_no_page_can_hold_is_refused_before_it_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemmascope.views.attention.LARGEST_LAYER", 2 * 2 * 54)
    monkeypatch.setattr(gs.Trace, "__getitem__", lambda *_: pytest.fail("it was computed"))
    with pytest.raises(SiteError, match=r"layer 0 of 15 positions and 3 heads is .* MB.*heads=\[0, 1\]"):
        gs.attention_view(trace(), heads=[0, 1, 2])


@pytest.mark.parametrize("site", ["resid_post", "stream"])
def test_a_lens_view_holds_the_numbers_of_the_lens(site: str) -> None:
    t = trace(edits=[gs.add("resid_pre", torch.ones(32), layer=1, pos=3)])
    lens = gs.lens(t, site, 4, answer=" Mary")
    view = gs.lens_view(t, site=site, top=4, answer=" Mary", colour="rank")
    tokens = np.array(view.spec["tokens"], dtype=object)
    assert (tokens[unpacked(view.arrays["ids"]).astype(int)] == lens.top_tokens.values).all()
    assert np.abs(unpacked(view.arrays["probs"]) - lens.top_probs.values).max() < 1e-5
    assert np.abs(unpacked(view.arrays["top"]) - lens.top_probs.values[..., 0]).max() < 1e-5
    assert np.abs(unpacked(view.arrays["prob"]) - lens.answer_prob.values).max() < 1e-5
    assert (unpacked(view.arrays["rank"]) == lens.answer_rank.values).all()
    assert np.allclose(unpacked(view.arrays["entropy"]), lens.entropy.values)
    assert [c["name"].split()[0] for c in view.spec["colours"]] == ["rank", "probability", "probability", "entropy"]
    assert view.spec["follows"] == " Mary"


def test_a_view_of_a_long_prompt_shows_its_last_positions_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemmascope.views.lens.MOST_TOKENS", 3 * 5 * 6)
    monkeypatch.setattr("gemmascope.views.stream.MOST_NUMBERS", 4 * 3 * 6)
    view = gs.lens_view(trace())
    assert [label["hint"] for label in view.spec["columns"]][::5] == ["9: ,", "14: ·to"]
    assert "positions 9 to 14 are shown" in view.spec["note"]
    assert [label["hint"][0] for label in gs.lens_view(trace(), pos=[2, 4]).spec["columns"]] == ["2", "4"]
    with pytest.raises(SiteError, match="room for 6 positions; given 7"):
        gs.lens_view(trace(), pos=slice(0, 7))
    for pos, included in ((-1, range(9, 15)), (2, range(0, 6)), (9, range(4, 10))):
        stream = gs.stream_view(trace(), pos=pos)
        assert [one["pos"] for one in stream.spec["positions"]] == list(included)
        assert included[stream.spec["start"]] == pos % 15
        assert f"positions {included[0]} to {included[-1]} are held" in stream.spec["note"]
        assert np.allclose(unpacked(stream.arrays["values"])[0, :, 1], trace()["resid_post", 1][list(included)].norm(dim=-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stream_view_holds_the_direct_contributions_of_every_position(dtype: torch.dtype) -> None:
    model = model_of(checkpoint("lgl"))
    model.network.to(dtype)
    edits = [gs.ablate("mlp_out", layer=1, pos=2), gs.add("attn_raw", torch.ones(32), layer=0)]
    t = gs.trace(prompt(7), model=model, edits=edits)
    values = unpacked(gs.stream_view(t, answer=[3, 4], against=9).arrays["values"])
    for pos in range(7):
        parts = gs.direct_logits(t, [3, 4], 9, pos=pos).parts
        for series, site in ((4, "attn_out"), (5, "mlp_out")):
            expected = parts.sel(part=[f"layers.{n}.{site}" for n in range(3)]).values
            assert np.allclose(values[series, pos], expected, rtol=1e-4, atol=1e-4)
    assert np.allclose(values[3, :, -1], 1, atol=1e-3)


def test_a_view_of_features_holds_the_strongest_but_for_the_first_position() -> None:
    t = trace()
    all_of_them = (dictionary(32, "resid_post", 1, seed=n).encode(t) for n in range(40))
    features = next(f for f in all_of_them if f.pos[f.value.argmax()] == 0 and f.feature[f.value.argmax()] in f.strongest(5))
    assert features.value[features.pos == 0].max() > features.value[features.pos > 0].max()
    view = gs.sae_view(features, most=5)
    values = unpacked(view.arrays["values"])
    names = [int(row["label"]) for row in view.spec["rows"]]
    assert names == sorted(features.strongest(5))
    assert np.allclose(values, features.acts.sel(feature=names).values.T)
    assert view.spec["scale"]["high"] == pytest.approx(float(features.value[features.pos > 0].max()))
    assert [column["special"] for column in view.spec["columns"]] == [True] + [False] * 14


@pytest.mark.parametrize("ids", [[2], [2, 5]])
def test_the_shortest_prompts_without_a_tokenizer(ids: list[int]) -> None:
    for view in every_view_of_ids(gs.trace(ids, model=model_of(checkpoint("lg")))):
        assert view.to_html()


def every_view_of_ids(t: gs.Trace) -> list[View]:
    return [gs.attention_view(t, compare=t), gs.lens_view(t, answer=3), gs.stream_view(t, answer=3)]


def test_streamed_equals_resident(tmp_path: Path) -> None:
    checkpoint("lgl").save_pretrained(tmp_path)
    streamed, resident = (gs.trace(prompt(9), model=gs.load(tmp_path, memory=memory)) for memory in ("1GiB", None))
    for a, b in zip(every_view_of_ids(streamed), every_view_of_ids(resident), strict=True):
        assert a.arrays.keys() == b.arrays.keys()
        for name in a.arrays:
            assert np.allclose(unpacked(a.arrays[name]), unpacked(b.arrays[name]), atol=2e-5)


# Errors


def other_model_trace() -> gs.Trace:
    run = gs.trace([3, 4], model=model_of(checkpoint("lg")))
    assert isinstance(run, gs.Trace)
    return run


def by_head() -> gs.SweepResult:
    return gs.sweep(CLEAN, CORRUPT, gs.rank(3), site="z", by="head", model=worded(), progress=False)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gs.attention_view("When"), SiteError, "trace is a trace, gs.trace"),
        (lambda: gs.attention_view(trace(), compare="When"), SiteError, "compare is a trace"),
        (lambda: gs.attention_view(trace(), layer=9), SiteError, "there is no layer 9"),
        (lambda: gs.attention_view(trace(), layer=0, layers=[1]), SiteError, "layer 0 is not among"),
        (lambda: gs.attention_view(trace(), head=8), SiteError, "heads go from 0 to 7"),
        (lambda: gs.attention_view(trace(), heads=[1, 2], head=3), SiteError, r"head 3 is not among heads=\[1, 2\]"),
        (lambda: gs.attention_view(trace(), heads=[]), SiteError, "head is an empty list"),
        (lambda: gs.attention_view(trace(), layers=[]), SiteError, "layers is a list of numbers, at least one"),
        (lambda: gs.attention_view(trace(), layers=1), SiteError, "layers is a list of numbers"),
        (lambda: gs.lens_view([trace(), trace()]), SiteError, "a list of 2: take one of them"),
        (lambda: gs.attention_view([]), SiteError, "list of traces is empty"),
        (lambda: gs.attention_view([trace(), "When"]), SiteError, "it holds str"),
        (lambda: gs.attention_view([trace(), trace()], compare=trace()), SiteError, "compare stands beside one trace"),
        (lambda: gs.attention_view([trace(), other_model_trace()]), SiteError, "prompt 1 ran in .*whose shape"),
        (
            lambda: gs.attention_view([trace("When Mary"), trace(), trace(CORRUPT)]), SiteError,
            r"prompt 0 has 3 positions and prompt 1 has 15, .* 2 of .* 3 have 15: \[t for t in traces if len\(t\) == 15\]",
        ),
        (lambda: gs.attention_view(trace(), compare=other_model_trace()), SiteError, "whose shape"),
        (lambda: gs.lens_view("When"), SiteError, "trace is a trace, gs.trace"),
        (lambda: gs.lens_view(trace(), colour="red"), SiteError, "colour is one of"),
        (lambda: gs.lens_view(trace(), colour="rank"), SiteError, "rank needs answer="),
        (lambda: gs.stream_view("When"), SiteError, "trace is a trace, gs.trace"),
        (lambda: gs.stream_view(trace(), against=" Mary"), SiteError, "is subtracted from an answer"),
        (lambda: gs.lens_view(trace(), top=0), SiteError, "top is a whole number from 1 to 61"),
        (lambda: gs.lens_view(trace(), head=1), SiteError, "has no heads"),
        (lambda: gs.stream_view(trace(), answer=" Mary", against=" Mary"), SiteError, "share a token"),
        (lambda: gs.stream_view(trace(), pos=[1, 2]), SiteError, "one position is shown at first"),
        (lambda: gs.sae_view(trace()), DictionaryError, "what sae.encode"),
        (lambda: gs.sae_view(dictionary(32, "resid_post", 1).encode(trace()), most=0), DictionaryError, "most, how many"),
        (lambda: gs.sweep_view(by_head()), SweepError, "a grid has two axes; this sweep has 1"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(call: Any, error: type[GemmascopeError], message: str) -> None:
    with pytest.raises(error, match=message):
        call()

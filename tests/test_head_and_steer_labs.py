"""The head lab and the steering lab without a front end: what they show is what gs.trace and gs.generate give."""

from __future__ import annotations

import itertools
import random
import re
import threading
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import model, prompt

import gemmascope as gs
from gemmascope.errors import EditError, GemmascopeError, GenerationError, LabError, PromptError, SiteError, SweepError
from gemmascope.generation.generate import growing_texts
from gemmascope.labs.before_after import BeforeAfter
from gemmascope.labs.steering.curve import Curve, rungs_of
from gemmascope.labs.steering.ladder import stretches
from gemmascope.labs.steering.still import _number
from gemmascope.labs.worker import turns_of

PROMPT = "When Mary and John went to the store, John gave a drink to"


def heads(**options: Any) -> gs.HeadLab:
    return gs.head_lab(prompt(7), model=model(), max_new_tokens=5, **options)


def steering(**options: Any) -> gs.SteerLab:
    vector = torch.randn(model().config.d_model, generator=torch.Generator().manual_seed(0))
    return gs.steer_lab(prompt(7), vector, site="resid_post", layer=1, model=model(), max_new_tokens=5, **options)


def ids_after(edits: Any) -> str:
    generation = gs.generate(prompt(7), model=model(), edits=edits, max_new_tokens=5)
    return " ".join(map(str, generation.ids[7:].tolist()))


def test_a_growing_text_ends_as_the_text_of_generate() -> None:
    edits = [gs.ablate("z", layer=1, head=0)]
    both = list(growing_texts(prompt(7), model(), [[], edits], 5))
    for run, expected in enumerate(([], edits)):
        texts = [continuations[run][0] for continuations in both]
        assert [text.count(" ") for text in texts] == [0, 1, 2, 3, 4]
        assert all(later.startswith(text) for text, later in itertools.pairwise(texts))
        assert texts[-1] == ids_after(expected)
        assert " ".join(map(str, both[-1][run][1])) == texts[-1]


def test_a_head_lab_shows_the_edited_run() -> None:
    lab = heads(answer=5, against=9)
    assert lab.trace is lab.base
    lab.scale(1, 2, 0.0)
    lab.scale(-1, 0, 2.0)
    edits = [gs.scale("z", 0.0, layer=1, head=2), gs.scale("z", 2.0, layer=2, head=0)]
    assert lab.factors == {(1, 2): 0.0, (2, 0): 2.0}
    expected = gs.trace(prompt(7), model=model(), edits=edits)
    assert torch.equal(lab.trace.logits, expected.logits)
    assert torch.equal(lab.base.logits, gs.trace(prompt(7), model=model()).logits)
    assert (lab.text, lab.base_text) == (ids_after(edits), ids_after([]))
    name, before, after = lab.moved()
    assert name == "logit of 5 less 9"
    for run, metric in ((lab.base, before), (expected, after)):
        logits = run.next_logits
        assert metric == pytest.approx(float(logits[5] - logits[9]), rel=1e-5)
    assert next(view.title for view in lab.views) == "Attention in random, with the heads scaled"
    scope: dict[str, Any] = {}
    script = lab.code().replace("model = gs.load('random')", "").replace(".text", ".ids")
    exec(script, scope | {"model": model()}, scope)
    assert torch.equal(scope["trace"].logits, expected.logits)
    lab.scale(1, 2, 1.0)
    assert list(lab.factors) == [(2, 0)]
    lab.reset()
    assert lab.trace is lab.base
    assert lab.text == lab.base_text


def test_without_an_answer_the_likeliest_token_is_followed() -> None:
    lab = heads()
    token = int(lab.base.next_logits.argmax())
    lab.scale(0, 0, 3.0)
    name, before, after = lab.moved()
    assert name == f"probability of {str(token)!r}"
    assert before == pytest.approx(float(lab.base.next_logits.softmax(-1)[token]), rel=1e-5)
    assert after == pytest.approx(float(lab.trace.next_logits.softmax(-1)[token]), rel=1e-5)
    assert before != after


def test_a_steering_lab_shows_the_steered_run() -> None:
    lab = steering()
    assert lab.text == lab.base_text == ids_after([])
    lab.set(strength=3.0)
    edits = [gs.add("resid_post", lab.edit.vector, layer=1, scale=3.0)]
    assert torch.equal(lab.trace.logits, gs.trace(prompt(7), model=model(), edits=edits).logits)
    assert lab.text == ids_after(edits)
    assert lab.base_text == ids_after([])
    lab.set(prompt=prompt(6, seed=2), strength=0.0)
    assert torch.equal(lab.trace.logits, gs.trace(prompt(6, seed=2), model=model()).logits)
    assert "gs.add" not in lab.code()


@pytest.mark.nano
def test_a_lab_of_a_direction_steers_at_its_own_site_and_layer() -> None:
    direction = gs.direction(["Mary was", "Anna was"], ["John was", "Peter was"], layer=2)
    lab = gs.steer_lab("Peter was tired because", direction, max_new_tokens=4)
    lab.set(strength=2.0)
    edits = [gs.add("resid_post", direction.vector, layer=2, scale=2.0)]
    assert lab.text == gs.generate("Peter was tired because", edits=edits, max_new_tokens=4).text
    assert repr(lab).endswith(f"after:  {lab.text!r}")


def test_the_latest_setting_wins_and_older_ones_end_early() -> None:
    lab = steering()
    lab.wait()
    texts = []
    lab.listener = lambda event: texts.append(lab._run.text_after)
    with turns_of(model()).turn():  # nothing can begin, as in a long step of another lab
        for strength in (1.0, 2.0, 3.0, 4.0):
            lab.set(strength=strength)
    assert lab.text == ids_after([gs.add("resid_post", lab.edit.vector, layer=1, scale=4.0)])
    complete_texts = {text for text in texts if text is not None and text.count(" ") == 4}
    assert complete_texts <= {lab.text, lab.base_text}
    lab.set(strength=5.0)
    lab.cancel()
    lab.wait()
    lab.set(strength=5.0)
    assert lab.text == ids_after([gs.add("resid_post", lab.edit.vector, layer=1, scale=5.0)])


def test_runs_that_are_known_or_out_of_date_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    texts: list[int] = []

    def counted(function: Any, calls: list[int]) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return function(*args, **kwargs)

        return call

    lab = steering()
    lab.wait()
    monkeypatch.setattr("gemmascope.labs.before_after.trace", counted(gs.trace, runs))
    monkeypatch.setattr("gemmascope.labs.before_after.growing_texts", counted(growing_texts, texts))
    with turns_of(model()).turn():  # nothing can begin
        for strength in (1.0, 2.0, 3.0, 4.0):
            lab.set(strength=strength)
    lab.wait()
    assert (len(runs), len(texts)) == (1, 1), "the last strength alone, and what goes before it is known"


def test_a_new_change_has_no_text_yet() -> None:
    edits = [gs.scale("z", 0.0, layer=1, head=0)]
    after = BeforeAfter.of(prompt(7), model(), 5)
    for _ in (*after.run([]), *after.write([])):
        pass
    assert after.as_data()["written"] == {"before": True, "after": True}
    next(after.run(edits))
    data = after.as_data()
    assert (data["text_before"], data["text_after"]) == (ids_after([]), None)
    assert data["written"] == {"before": True, "after": False}
    probs = [gs.trace(prompt(7), model=model(), edits=some).next_logits.softmax(-1) for some in ([], edits)]
    assert {int(one["token"]) for one in data["top"]} == {int(i) for prob in probs for i in prob.topk(5).indices}
    for one in data["top"]:
        assert [one["before"], one["after"]] == pytest.approx([float(prob[int(one["token"])]) for prob in probs], rel=1e-5)


def test_bad_settings_are_refused_at_once_and_change_nothing() -> None:
    lab = heads(answer=5)
    for changes, error in (
        ({"answer": None, "against": 9}, SweepError), ({"against": 5}, SweepError), ({"answer": 10**6}, PromptError),
        ({"prompt": []}, PromptError), ({"heads": 3}, SweepError), ({"prompt": prompt(62)}, GenerationError),
    ):  # fmt: skip
        with pytest.raises(error):
            lab.set(**changes)
    for place, error in (((9, 0, 0.0), SiteError), ((0, 99, 0.0), SiteError), ((0, [0, 1], 0.0), EditError)):
        with pytest.raises(error):
            lab.scale(*place)
    with pytest.raises(EditError):
        lab.scale(0, 0, float("nan"))
    assert (lab.factors, lab.answer, lab.against) == ({}, 5, None)
    vector = torch.ones(model().config.d_model)
    place: dict[str, Any] = {"site": "resid_post", "layer": 1, "model": model()}
    for instead, error in (
        ({"strengths": (1, 5)}, SweepError), ({"strengths": 3}, SweepError), ({"strengths": (5, -5)}, SweepError),
        ({"layer": 9}, SiteError), ({"site": None}, SiteError), ({"max_new_tokens": 0}, GenerationError),
    ):  # fmt: skip
        with pytest.raises(error):
            gs.steer_lab(prompt(7), vector, **{**place, **instead})
    with pytest.raises(EditError):
        gs.steer_lab(prompt(7), vector[:3], **place)
    with pytest.raises(EditError, match="strength"):
        steering().set(strength=float("inf"))


def test_a_failing_step_is_shown_and_raised_by_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = heads()
    lab.wait()

    def fail(*_: Any, **__: Any) -> Any:
        raise GemmascopeError("too long for a page")

    monkeypatch.setattr("gemmascope.labs.heads.views.attention_view", fail)
    lab.scale(0, 0, 0.0)
    with pytest.raises(GemmascopeError, match="too long for a page"):
        lab.wait()
    assert lab.error == "too long for a page"
    assert lab.text == ids_after(lab.edits), "the texts do not depend on the pictures"


def test_two_labs_on_one_model_take_turns() -> None:
    labs = [steering() for _ in range(3)]
    threads = [threading.Thread(target=lab.set, kwargs={"strength": float(n + 1)}) for n, lab in enumerate(labs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, lab in enumerate(labs):
        assert lab.text == ids_after([gs.add("resid_post", lab.edit.vector, layer=1, scale=float(n + 1))])


@pytest.mark.nano
def test_a_typed_prompt_is_read_as_ids_or_text_like_the_one_it_replaces() -> None:
    """A prompt of ids stays one of ids even with a tokenizer; text that looks like Python stays text."""
    lab = gs.head_lab([2, 5, 6], max_new_tokens=3)
    assert typed(lab) == {"prompt": "[2, 5, 6]", "answer": "", "against": ""}
    for text, expected in (("[2, 7]", [2, 7]), ("When Mary", "When Mary"), ("[2, 7]", "[2, 7]")):
        send(lab, "set", name="prompt", text=text)
        assert lab.prompt == expected
    send(lab, "set", name="answer", text="5")
    assert lab.answer == "5"
    send(lab, "set", name="answer", text="")
    assert lab.answer is None
    lab.wait()


def typed(lab: Any) -> Any:
    return lab._state()["typed"]


def send(lab: Any, kind: str, **more: Any) -> None:
    """A message as the page sends it."""
    (page,) = lab.widget.children
    page._handle_custom_msg({"type": kind, **more}, [])


# -- the desk --


def scaled(factors: dict[tuple[int, int], float]) -> list[Any]:
    return [gs.scale("z", by, layer=layer, head=head) for (layer, head), by in factors.items()]


def test_mute_solo_and_gain_are_what_a_mixing_desk_does() -> None:
    with heads(answer=5, against=9) as lab:
        n_layers, n_heads = lab.model.n_layers, lab.model.config.n_heads
        every = {(layer, head) for layer in range(n_layers) for head in range(n_heads)}
        lab.scale(1, 2, 2.0)
        lab.mute(1, 2)
        assert lab.factors == {(1, 2): 0.0}
        assert lab.selected == (1, 2)
        lab.mute(1, 2, False)
        assert lab.factors == {(1, 2): 2.0}, "the gain comes back"
        lab.solo(1, 2)
        lab.solo(-1, 0)
        heard = {(1, 2): 2.0, (n_layers - 1, 0): 1.0}
        expected = {channel: heard.get(channel, 0.0) for channel in every if heard.get(channel) != 1.0}
        assert lab.factors == dict(sorted(expected.items()))
        lab.mute(-1, 0)
        assert lab.factors[n_layers - 1, 0] == 0.0, "a muted head is not heard, soloed or not"
        trace = gs.trace(prompt(7), model=model(), edits=scaled(lab.factors))
        assert torch.allclose(lab.trace.logits, trace.logits, atol=1e-5)
        lab.solo(1, 2, False)
        lab.solo(-1, 0, False)
        lab.scale(1, 2, 1.0)
        assert lab.factors == {(n_layers - 1, 0): 0.0}
        for call in (lab.mute, lab.solo):
            with pytest.raises(SiteError):
                call(9, 0)
            with pytest.raises(EditError, match="on is"):
                call(0, 0, 3)


@pytest.mark.parametrize("seed", range(6))
def test_undo_and_redo_go_back_and_forth_through_every_setting(seed: int) -> None:
    rng = random.Random(seed)
    with heads(answer=5) as lab:
        changes: list[Any] = [
            lambda: lab.scale(rng.randrange(3), rng.randrange(2), rng.choice([0.0, 0.5, 1.0, 2.0])),
            lambda: lab.mute(rng.randrange(3), 0, rng.random() < 0.5),
            lambda: lab.solo(rng.randrange(3), 1, rng.random() < 0.5),
            lambda: lab.set(answer=rng.randrange(4, 20)),
            lambda: lab.set(prompt=prompt(6 + rng.randrange(3), seed=rng.randrange(9))),
            lab.reset,
        ]
        seen = [lab._now]
        for _ in range(12):
            rng.choice(changes)()
            seen.append(lab._now)
        for settings in reversed(seen[:-1]):
            lab.undo()
            assert lab._now is settings
        with pytest.raises(LabError, match="nothing to undo"):
            lab.undo()
        for settings in seen[1:]:
            lab.redo()
            assert lab._now is settings
        with pytest.raises(LabError, match="nothing to redo"):
            lab.redo()
        expected = gs.trace(lab.prompt, model=model(), edits=lab.edits)
        assert torch.equal(lab.trace.logits, expected.logits)
        lab.choose_model(model("lg", 3))
        assert not lab._snapshot()["state"]["can_undo"], "heads of another model are others"


def test_a_knob_that_is_turned_is_undone_at_once() -> None:
    with heads() as lab:
        for by in (0.9, 0.7, 0.4):
            send(lab, "scale", layer=1, head=0, by=by)
        send(lab, "scale", layer=1, head=1, by=2.0)
        send(lab, "undo")
        assert lab.factors == {(1, 0): 0.4}
        send(lab, "undo")
        assert lab.factors == {}
        send(lab, "undo")  # there is nothing more; a second press does no harm
        assert lab.error is None
        lab.wait()


def test_a_lab_begins_with_the_edits_that_it_is_given() -> None:
    other = gs.trace(prompt(7, seed=1), model=model())
    patch = gs.patch("z", other, layer=1, head=0, pos=3)
    edits = [gs.scale("z", 2.0, layer=0, head=[0, 1]), patch, gs.ablate("z", layer=-1, head=1)]
    with heads(answer=5, edits=edits) as lab:
        assert lab.factors == {(0, 0): 2.0, (0, 1): 2.0, (2, 1): 0.0}
        expected = gs.trace(prompt(7), model=model(), edits=edits)
        assert torch.equal(lab.trace.logits, expected.logits)
        assert torch.equal(lab.base.logits, gs.trace(prompt(7), model=model()).logits)
        scope: dict[str, Any] = {}
        exec(lab.code().replace("model = gs.load('random')", ""), {"model": model()}, scope)
        assert torch.equal(scope["trace"].logits, expected.logits)
        lab.remove(0)
        assert torch.equal(lab.trace.logits, gs.trace(prompt(7), model=model(), edits=[edits[0], edits[2]]).logits)
        lab.undo()
        assert torch.equal(lab.trace.logits, expected.logits)
        for number in (1, -1, "x"):
            with pytest.raises(EditError, match="there is no edit"):
                lab.remove(number)
    with pytest.raises(SiteError):
        heads(edits=[gs.scale("z", 0.0, layer=99, head=0)])
    with pytest.raises(EditError, match="edits is a list"):
        heads(edits=patch)


def test_edits_that_do_not_commute_keep_their_order() -> None:
    other = gs.trace(prompt(7, seed=1), model=model())
    edits = [gs.scale("z", 3.0, layer=1, head=0), gs.patch("z", other, layer=1, head=0, pos=3)]
    with heads(edits=edits) as lab:
        assert lab.factors == {}
        assert torch.equal(lab.trace.logits, gs.trace(prompt(7), model=model(), edits=edits).logits)


def test_the_desk_shows_what_each_head_writes_and_where_it_looks() -> None:
    with heads(answer=5, against=9) as lab:
        lab.scale(1, 1, 0.0)
        lab.select(2, 0)
        lab.wait()
        shown = lab._shown
        for run, channels in ((lab.base, shown.before), (lab.trace, shown.after)):
            wrote = gs.direct_logits(run, 5, 9, by="head").parts.values
            np.testing.assert_allclose(channels.written, wrote, rtol=1e-5, atol=1e-5)
            for layer in range(3):
                pattern = run["pattern", layer].numpy()
                np.testing.assert_allclose(channels.pictures[layer] / 255, pattern, atol=0.5 / 255 + 1e-6)
            lens = gs.lens(run, answer=5)
            which = shown.lenses.probs[0 if run is lab.base else 1]
            np.testing.assert_allclose(which, lens.answer_prob.values, rtol=1e-5, atol=1e-7)
        assert channels.written[1, 1] == 0
        np.testing.assert_array_equal(shown.pattern.before, lab.base["pattern", 2][0].numpy())
        np.testing.assert_array_equal(shown.pattern.after, lab.trace["pattern", 2][0].numpy())


# -- the curve, the ladder, and where --


@pytest.mark.parametrize("pos", [None, [2], slice(3, None), -1])
def test_the_curve_is_a_strength_sweep_and_the_ladder_what_is_generated(pos: Any) -> None:
    with steering(pos=pos, answer=5, against=9, strengths=(-3, 5)) as lab:
        frame, edit = lab.to_dataframe(), lab.edit
        text = [*prompt(7), *map(int, lab.base_text.split())]
        places = {"site": "resid_post", "layer": 1, "pos": 6 if pos == -1 else pos, "model": model()}
        strengths = frame["strength"].tolist()
        metric = gs.logit_diff(5, 9)
        swept = gs.strength_sweep(
            [prompt(7)], edit.vector, metric, strengths=strengths, texts=[text], progress=False, **places
        )
        np.testing.assert_allclose(frame["metric"], swept.metric.values, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(frame["perplexity"], swept.perplexity.values, rtol=1e-4)
        assert (frame["collapsed"] == (swept.perplexity.values > 4 * swept.unsteered_perplexity)).all()
        rungs = list(lab.ladder())
        assert len(rungs) == 5
        assert rungs == sorted(rungs)
        assert {0.0, -3.0, 5.0} <= set(rungs), "nothing collapses here"
        for strength, written in lab.ladder().items():
            edits = [gs.add("resid_post", edit.vector, layer=1, pos=pos, scale=strength)] if strength else []
            assert written == ids_after(edits)


def curve_with(metric: Any, collapsed_from: float) -> Curve:
    """A curve from -8 to 8 whose text collapses from a strength on, either way."""
    curve = Curve(-8.0, 8.0)
    curve.metric = np.array([metric(s) for s in curve.strengths])
    curve.perplexity = np.array([99.0 if abs(s) >= collapsed_from else 2.0 for s in curve.strengths])
    curve.unsteered = metric(0.0), 2.0
    return curve


def test_the_rungs_stand_where_the_metric_moves_and_before_the_text_collapses() -> None:
    assert rungs_of(curve_with(lambda s: s, 9)) == [-8.0, -4.0, 0.0, 4.0, 8.0]
    assert rungs_of(curve_with(lambda s: s, 4)) == [-3.5, -1.5, 0.0, 1.5, 3.5]
    assert rungs_of(curve_with(lambda s: min(s, 1.0), 9))[3:] == [0.5, 8.0], "it moves between 0 and 1 only"
    one_side = curve_with(lambda s: s, 9)
    one_side.perplexity[:16] = 99.0
    assert rungs_of(one_side) == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert rungs_of(curve_with(lambda s: s, 0.1)) == [-8.0, -4.0, 0.0, 4.0, 8.0], "everything collapses: from end to end"
    assert rungs_of(Curve(-8.0, 8.0)) == [-8.0, -4.0, 0.0, 4.0, 8.0], "nothing was measured"
    random = np.random.default_rng(0)
    for _ in range(200):
        curve = curve_with(lambda s: float(random.normal()), float(random.uniform(0, 10)))
        rungs = rungs_of(curve)
        assert len(set(rungs)) == 5
        assert rungs == sorted(rungs)
        assert 0.0 in rungs
        if rungs != [-8.0, -4.0, 0.0, 4.0, 8.0]:
            assert not any(curve.collapsed[curve.strengths.index(s)] for s in rungs)


def test_the_still_of_a_steering_lab_has_its_curve_and_its_texts_and_no_script() -> None:
    with steering(answer=5, against=9, strengths=(-3, 5)) as lab:
        lab.wait()
        assert "<svg" not in lab._fallback_html(), "nothing was measured"
        texts = lab.ladder()
        still = lab._fallback_html()
        assert still.count("<tr>") == 5
        assert "<svg" in still
        assert "<script" not in still
        plain = re.sub(r"<[^>]*>", "", still)
        assert all(text in plain for text in texts.values())


def test_a_still_has_no_rounding_and_no_powers_of_ten() -> None:
    shares = [_number(value, is_share=True, most=1.0) for value in (1.82e-5, 0.0, 0.002421, 0.9219, 1.0)]
    assert shares == ["<0.1%", "<0.1%", "0.2%", "92.2%", "100.0%"]
    differences = [_number(value, is_share=False, most=13.95) for value in (1.82e-5, -1e-3, 13.95, -10.294, 0.5)]
    assert differences == ["0", "0", "+13.9", "\u221210.3", "+0.5"]


def test_a_curve_is_kept_while_the_strength_moves_and_made_anew_for_another_question() -> None:
    with steering(answer=5) as lab:
        lab.wait()
        assert np.isnan(lab._curve.metric).all(), "nothing shows or asked for it"
        lab.to_dataframe()
        curve, ladder = lab._curve, lab._ladder
        lab.set(strength=2.0)
        assert (lab._curve, lab._ladder) == (curve, ladder)
        lab.set(answer=9)
        assert lab._curve is not curve
        assert lab._ladder is ladder
        lab.set(pos=[1])
        assert lab._ladder is not ladder
        lab.wait()
        assert lab._curve.is_complete
        assert lab._ladder.is_written


def test_a_click_on_a_token_says_where_to_steer() -> None:
    with steering() as lab:
        for position, onward, expected in (
            (3, False, [3]), (1, False, [1, 3]), (3, False, [1]), (1, False, None), (4, True, slice(4, None)),
            (2, False, [2]), (0, True, None),
        ):  # fmt: skip
            send(lab, "where", position=position, on=onward)
            assert lab.pos == expected
        with pytest.raises(SiteError):
            lab.click(7)
        lab.set(pos=slice(5, None), strength=2.0)
        edits = [gs.add("resid_post", lab.edit.vector, layer=1, pos=slice(5, None), scale=2.0)]
        assert lab.text == ids_after(edits)
        with pytest.raises(SiteError):
            lab.set(pos=12)
        assert lab.pos == slice(5, None)


def test_a_site_without_a_curve_says_so_and_steers_all_the_same() -> None:
    vector = torch.ones(model().config.d_model)
    with gs.steer_lab(prompt(7), vector, site="embed", model=model(), max_new_tokens=3) as lab:
        with pytest.raises(SweepError, match="a strength sweep steers a site with rows in the layers"):
            lab.to_dataframe()
        assert set(lab.ladder()) == {-8.0, -4.0, 0.0, 4.0, 8.0}
        assert lab.error is None


@pytest.mark.nano
@pytest.mark.parametrize("pos", [None, [1]])
def test_the_python_of_a_steering_lab_begins_with_how_its_vector_was_found(pos: Any) -> None:
    found = gs.direction(["Mary was", "Anna was"], ["John was", "Peter was"], layer=2)
    scope: dict[str, Any] = {}
    exec(found.code(), scope)
    assert torch.equal(scope["direction"].vector, found.vector)
    with gs.steer_lab("Peter was tired because", found, pos=pos, max_new_tokens=4) as lab:
        lab.set(strength=3.0)
        scope = {}
        exec(lab.code(), scope)
        assert torch.equal(scope["trace"].logits, lab.trace.logits)
        assert scope["text"] == lab.text


def test_words_that_are_not_in_the_unsteered_text_are_marked() -> None:
    assert stretches("she was sad. End", "she was happy. End") == [("she was", False), (" sad.", True), (" End", False)]
    assert stretches("", "a b") == []
    assert stretches("a a", "a") == [("a", False), (" a", True)]
    rng = random.Random(0)
    for _ in range(200):
        one, other = ("".join(rng.choices(["a", "b", " ", "\n", "é"], k=rng.randrange(12))) for _ in range(2))
        assert "".join(text for text, _ in stretches(one, other)) == one
        assert not any(is_other for _, is_other in stretches(one, one))

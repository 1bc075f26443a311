"""The head lab and the steering lab without a front end: what they show is what gs.trace and gs.generate give."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest
import torch
from checkpoints import model, prompt

import gemmascope as gs
from gemmascope.errors import EditError, GemmascopeError, GenerationError, PromptError, SiteError, SweepError
from gemmascope.generation.generate import growing_texts
from gemmascope.labs.before_after import BeforeAfter
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
    texts = list(growing_texts(prompt(7), model(), edits, 5))
    assert [text.count(" ") for text in texts] == [0, 1, 2, 3, 4]
    assert all(later.startswith(text) for text, later in itertools.pairwise(texts))
    assert texts[-1] == ids_after(edits)


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
    prompt_field, answer_field = (field for field in fields_of(lab.widget) if field.description in ("prompt", "answer"))
    assert (prompt_field.value, answer_field.value) == ("[2, 5, 6]", "")
    for typed, expected in (("[2, 7]", [2, 7]), ("When Mary", "When Mary"), ("[2, 7]", "[2, 7]")):
        prompt_field.value = typed
        assert lab.prompt == expected
    answer_field.value = "5"
    assert lab.answer == "5"
    answer_field.value = ""
    assert lab.answer is None
    lab.wait()


def fields_of(widget: Any) -> list[Any]:
    """The text fields in a widget, at any depth."""
    inner = [field for child in getattr(widget, "children", ()) for field in fields_of(child)]
    return [widget, *inner] if hasattr(widget, "continuous_update") else inner

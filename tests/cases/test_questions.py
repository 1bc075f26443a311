"""Questions that must be mistakes are errors, and those that may be are warnings, in every call alike."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gemmascope as gs
from gemmascope.errors import GemmascopeError, GemmascopeWarning, MetricError, SweepError
from gemmascope.run.bound_metric import bind_to_prompt, try_metric
from gemmascope.run.metric import bind_metric

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
NAMES = gs.logit_diff(" Mary", " John")


def swept(clean: Any = CLEAN, corrupt: Any = CORRUPT, metric: Any = NAMES, **arguments: Any) -> Any:
    return gs.sweep(
        clean, corrupt, metric, **{"site": "resid_pre", "pos": -1, "by": "layer", "progress": False, **arguments}
    )


def estimated(clean: Any = CLEAN, corrupt: Any = CORRUPT, metric: Any = NAMES, **arguments: Any) -> Any:
    return gs.attribute(clean, corrupt, metric, **{"site": "resid_pre", "pos": -1, "by": "layer", **arguments})


def along_paths(clean: Any = CLEAN, corrupt: Any = CORRUPT, metric: Any = NAMES, **arguments: Any) -> Any:
    return gs.path_sweep(clean, corrupt, metric, progress=False, **{"layer": 4, "head": 0, **arguments})


SWEEPS = pytest.mark.parametrize("ask", [swept, estimated, along_paths])


@SWEEPS
def test_common_questions_give_no_warning(ask: Callable[..., Any]) -> None:
    ask()
    ask([CLEAN, CORRUPT], [CORRUPT, CLEAN], [NAMES, gs.logit_diff(" John", " Mary")])


@SWEEPS
def test_two_equal_prompts_are_warned_about(ask: Callable[..., Any]) -> None:
    with pytest.warns(GemmascopeWarning, match="the two prompts are the same: patching changes nothing"):
        ask(CLEAN, CLEAN)
    with pytest.warns(GemmascopeWarning, match=r"pair 1 of 2 \(counted from 0\): the two prompts are the same"):
        ask([CLEAN, CLEAN], [CORRUPT, CLEAN])


def test_equal_prompts_give_no_warning_where_something_else_differs() -> None:
    swept(CLEAN, None, ablate=0.0)
    swept(CLEAN, CLEAN, edits=[gs.ablate("z", layer=1)])  # the clean run's values, into the edited one


@SWEEPS
@pytest.mark.parametrize("answer", [" Mary", [" Mary"], ["Mary", " Mary"]])
def test_an_answer_against_itself_is_refused(ask: Callable[..., Any], answer: Any) -> None:
    token = gs.load().tokenizer.single
    same = answer[::-1] if isinstance(answer, list) else token(answer)  # the same tokens, in reverse or as ids
    with pytest.raises(SweepError, match="their difference is 0 everywhere"):
        ask(CLEAN, CORRUPT, gs.logit_diff(answer, same))


def test_answers_against_themselves_are_refused_wherever_they_are_measured() -> None:
    t = gs.trace(CLEAN)
    same = gs.logit_diff(" Mary", " Mary")
    for ask in (
        lambda: gs.direct_logits(t, " Mary", " Mary"),
        lambda: t.grad(same, ("resid_pre", 1)),
        lambda: gs.feature_sweep(gs.load_sae("nano"), CLEAN, same),
        lambda: gs.strength_sweep(CLEAN, torch.ones(128), same, strengths=[1.0], site="resid_pre", layer=1, progress=False),
    ):
        with pytest.raises(GemmascopeError):
            ask()


def test_equal_lists_of_answers_are_refused_with_advice_for_several_pairs() -> None:
    with pytest.raises(SweepError, match=r"both lists hold the same answers.*For several pairs give a metric for each"):
        swept([CLEAN, CORRUPT], [CORRUPT, CLEAN], gs.logit_diff([" Mary", " John"], [" John", " Mary"]))


@SWEEPS
def test_a_list_of_answers_as_long_as_the_pairs_is_warned_about(ask: Callable[..., Any]) -> None:
    with pytest.warns(GemmascopeWarning, match="takes all 2 answers together in every one of the 2 prompts"):
        ask([CLEAN, CORRUPT], [CORRUPT, CLEAN], gs.logit_diff([" Mary", " John"], [" Tom", " Anna"]))


def test_an_answer_on_both_sides_is_warned_about() -> None:
    with pytest.warns(GemmascopeWarning, match="' Mary' stands on both sides, where it cancels itself out"):
        swept(CLEAN, CORRUPT, gs.logit_diff([" Mary", " Tom"], [" John", " Mary"]))


T = gs.trace(CLEAN)
WITHOUT_SPACE: dict[str, Callable[[], Any]] = {
    "sweep": lambda: swept(CLEAN, CORRUPT, gs.logit_diff("Mary", " John")),
    "ablation": lambda: swept(CLEAN, None, gs.answer_prob("Mary"), ablate=0.0),
    "ids": lambda: swept(gs.load().ids(CLEAN), gs.load().ids(CORRUPT), gs.answer_logprob("Mary")),
    "attribute": lambda: estimated(CLEAN, CORRUPT, gs.logit_diff(" John", "Mary")),
    "path_sweep": lambda: along_paths(CLEAN, CORRUPT, gs.rank("Mary")),
    "lens": lambda: gs.lens(T, answer="Mary"),
    "follow": lambda: gs.lens(T).follow("Mary"),
    "direct_logits": lambda: gs.direct_logits(T, " John", "Mary"),
    "feature_sweep": lambda: gs.feature_sweep(gs.load_sae("nano"), CLEAN, gs.answer_prob("Mary"), features=[0]),
    "strength_sweep": lambda: gs.strength_sweep(
        CLEAN, torch.ones(128), gs.answer_prob("Mary"), strengths=[1.0], site="resid_pre", layer=1, progress=False
    ),
}


@pytest.mark.parametrize("name", WITHOUT_SPACE)
def test_an_answer_without_its_space_is_warned_about(name: str) -> None:
    with pytest.warns(GemmascopeWarning, match="'Mary' has no space in front: after a word the model says ' Mary'"):
        WITHOUT_SPACE[name]()


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        (CLEAN, [" Mary", "Mary"]),  # both spellings are given
        (CLEAN, "."),
        (CLEAN, " Mary"),
        ('Then Mary said "', "John"),
        ("Mary went to the store.\n", "John"),
    ],
)
def test_an_answer_that_needs_no_space_gives_no_warning(prompt: str, answer: Any) -> None:
    gs.lens(gs.trace(prompt), answer=answer) if isinstance(answer, str) else None
    gs.direct_logits(gs.trace(prompt), answer)


@SWEEPS
def test_a_space_at_the_end_of_a_prompt_is_warned_about(ask: Callable[..., Any]) -> None:
    with pytest.warns(GemmascopeWarning, match="the prompt ends in ' ': Gemma's words bring their space"):
        ask(CLEAN + " ", CORRUPT + " ")


@SWEEPS
def test_a_second_bos_is_warned_about(ask: Callable[..., Any]) -> None:
    with pytest.warns(GemmascopeWarning, match="begins with <bos> twice"):
        ask("<bos><bos>" + CLEAN, "<bos><bos>" + CORRUPT)
    ask("<bos>" + CLEAN, "<bos>" + CORRUPT)


def test_an_answer_that_no_text_continues_with_is_warned_about() -> None:
    with pytest.warns(GemmascopeWarning, match="the answer <bos> is a control token"):
        swept(CLEAN, CORRUPT, gs.logit_diff(" Mary", "<bos>"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pos": [1, 2, 9]}, r"differ from position 10 on, and the grid covers pos 9 at most: every effect is 0"),
        ({"site": "pattern", "by": ("layer", "head"), "pos": None, "q_pos": [4, 9]}, "the grid covers q_pos 9 at most"),
        ({"layer": 0, "pos": -1}, "resid_pre of layer 0 is made of a position's own token"),
    ],
)
def test_a_grid_with_equal_values_in_both_runs_is_warned_about(arguments: dict[str, Any], message: str) -> None:
    with pytest.warns(GemmascopeWarning, match=message):
        s = swept(**arguments)
    assert float(np.nanmax(abs(s.effect))) <= 1e-4


def test_a_grid_that_reaches_a_difference_gives_no_warning() -> None:
    swept(pos=[9, 10])
    swept(pos=-1, site="z", by=("layer", "head"))
    swept(layer=0, pos=[9, 10])


# -- metrics --

MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "less the mean of the runs": lambda x: x[:, 5] - x[:, 5].mean(),
    "less the first run": lambda x: x[:, 5] - x[0, 5],
    "over all runs": lambda x: x[:, 5] / x.norm(),
    "softmax over the wrong axis": lambda x: x.softmax(0)[:, 5],
    "running sum": lambda x: x[:, 5].cumsum(0),
}


@pytest.mark.parametrize("name", MIXING)
@SWEEPS
def test_a_metric_that_mixes_runs_is_refused(ask: Callable[..., Any], name: str) -> None:
    with pytest.raises(MetricError, match=r"the metric mixes runs.*measures each run by itself"):
        ask(CLEAN, CORRUPT, MIXING[name])


def test_a_metric_that_mixes_runs_is_refused_when_the_last_tokens_are_equal() -> None:
    for ids in (torch.tensor([2, 5, 5]), torch.tensor([5])):
        metric = bind_to_prompt(MIXING["less the mean of the runs"], gs.load(), ids)
        with pytest.raises(MetricError, match="mixes runs"):
            try_metric(metric, gs.load(), ids)


def test_a_random_metric_is_warned_about() -> None:
    with pytest.warns(GemmascopeWarning, match="other numbers for the same logits"):
        swept(CLEAN, CORRUPT, lambda x: x[:, 5] + torch.randn(len(x)))


def test_a_metric_that_writes_to_its_logits_changes_nothing() -> None:
    def writing(x: Tensor) -> Tensor:
        copy = x[:, 5].clone()
        x.zero_()
        return copy

    for ask in (swept, estimated, along_paths):
        assert np.array_equal(ask(metric=writing).values, ask(metric=lambda x: x[:, 5]).values, equal_nan=True)
    steered: dict[str, Any] = {"strengths": [1.0], "site": "resid_pre", "layer": 1, "progress": False}
    by_writing, by_reading = (gs.strength_sweep(CLEAN, torch.ones(128), m, **steered) for m in (writing, lambda x: x[:, 5]))
    assert np.array_equal(by_writing.kl, by_reading.kl)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda x: x[:, 5] * 1j, "one real number per run"),
        (lambda x: float(x[0, 5]), "returned float"),
        (lambda x: x[:, 5].numpy(), "returned ndarray"),
        (lambda x: x[:, 5].squeeze() if len(x) == 1 else x[:, 5], r"shape \(1,\)"),
        (lambda x: x[:, 5] * float("nan"), "returned NaN"),
        (lambda x: x[:, 5].to("meta"), "meta"),
    ],
    ids=["complex", "float", "numpy", "squeezed", "nan", "meta"],
)
def test_bad_results_of_a_metric_are_refused(metric: Any, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        swept(metric=metric)


def test_a_metric_may_have_its_own_weights_or_return_whole_numbers() -> None:
    probe = torch.nn.Linear(gs.load().config.vocab_size, 1)

    def probed(x: Tensor) -> Tensor:
        with torch.enable_grad():
            score: Tensor = probe(x)[:, 0]
        return score

    assert np.isfinite(swept(metric=probed).values).all()
    assert np.isfinite(swept(metric=lambda x: x.argmax(-1)).values).all()
    with pytest.raises(MetricError, match="has no gradient"):
        estimated(metric=gs.rank(" Mary"))


def test_an_error_of_a_metric_reaches_the_caller() -> None:
    def broken(x: Tensor) -> Tensor:
        raise ZeroDivisionError("mine")

    for ask in (swept, estimated, along_paths):
        with pytest.raises(ZeroDivisionError, match="mine"):
            ask(metric=broken)


def test_a_warning_points_at_the_users_line() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gs.sweep(CLEAN, CLEAN, NAMES, site="resid_pre", by="layer", progress=False)
    assert [w.filename for w in caught] == [__file__]


def test_answers_of_a_bound_metric_are_checked_alike() -> None:
    with pytest.raises(MetricError, match="the two answers are the same token"):
        bind_metric(gs.logit_diff(" Mary", gs.load().tokenizer.single(" Mary")), gs.load())

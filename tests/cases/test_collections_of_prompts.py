"""Prompts in columns, arrays and generators are read; the error about any other value says what to give instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas
import pytest
import torch

import gemmascope as gs
from gemmascope.errors import GemmascopeError, PromptError

ONE, OTHER = "Mary went to the store", "John gave a drink"
HOLDERS: dict[str, Callable[[], Any]] = {
    "a Series": lambda: pandas.Series([ONE, OTHER], index=[7, 3]),
    "an array": lambda: np.array([ONE, OTHER]),
    "an array of objects": lambda: np.array([ONE, OTHER], dtype=object),
    "a generator": lambda: (text for text in (ONE, OTHER)),
    "values of a dict": lambda: {"a": ONE, "b": OTHER}.values(),
    "a tuple": lambda: (ONE, OTHER),
    "arrays of ids": lambda: [np.array(gs.load().ids(ONE)), gs.load().ids(OTHER)],
}


@pytest.mark.parametrize("name", HOLDERS)
def test_prompts_may_be_in_any_kind_of_collection(name: str) -> None:
    hold, listed = HOLDERS[name], [ONE, OTHER]
    traces = gs.trace(hold())
    assert [t.ids.tolist() for t in traces] == [t.ids.tolist() for t in gs.trace(listed)]
    assert [g.text for g in gs.generate(hold(), max_new_tokens=2)] == [g.text for g in gs.generate(listed, max_new_tokens=2)]
    scores = gs.head_scores(prompts=hold(), kind="sink").scores
    assert np.array_equal(scores, gs.head_scores(prompts=listed, kind="sink").scores)
    metrics = [gs.answer_prob(" to"), gs.answer_prob(" a")]
    options: dict[str, Any] = {"site": "z", "by": ("layer", "head"), "ablate": 0.0, "progress": False}
    assert np.array_equal(
        gs.sweep(hold(), None, metrics, **options).values, gs.sweep(listed, None, metrics, **options).values
    )
    vector = gs.direction(hold(), ["The cat sat"], layer=2).vector
    assert torch.equal(vector, gs.direction(listed, ["The cat sat"], layer=2).vector)


NO_PROMPTS: dict[str, tuple[Callable[[], Any], str]] = {
    "a dict": (lambda: {"a": ONE}, r"given a dict: give its texts as a list"),
    "a message": (lambda: {"role": "user", "content": ONE}, r"as a list, \[message\]"),
    "an encoding": (lambda: {"input_ids": [2, 5], "attention_mask": [1, 1]}, r"give its \['input_ids'\]"),
    "a set": (lambda: {ONE, OTHER}, "prompts stand in an order; given a set"),
    "bytes": (lambda: ONE.encode(), r"make them text first, with \.decode\(\)"),
    "a list of bytes": (lambda: [ONE.encode(), OTHER], r"prompt 0 of 2 .*with \.decode\(\)"),
    "an empty one": (lambda: [ONE, ""], r"prompt 1 of 2 \(counted from 0\): the prompt is empty"),
    "no ids": (lambda: [[2, 5], []], r"prompt 1 of 2 \(counted from 0\): the prompt is empty"),
    "nothing": (lambda: [], "the prompt is empty"),
    "an empty column": (lambda: pandas.Series([], dtype=object), "the prompt is empty"),
    "a missing one": (lambda: pandas.Series([ONE, None]), "prompt 1 of 2 .*given "),
    "a table": (lambda: pandas.DataFrame({"a": [ONE], "b": [OTHER]}), r"one column; given a DataFrame of shape \(1, 2\)"),
    "nested": (lambda: [[ONE], [OTHER]], "prompt 0 of 2 .*token ids are whole numbers"),
    "a trace": (lambda: gs.trace(ONE), r"given a Trace: give its token ids, \.ids"),
    "traces": (lambda: gs.trace([ONE, OTHER]), r"prompt 0 of 2 .*given a Trace: give its token ids"),
    "a generation": (lambda: gs.generate(ONE, max_new_tokens=1), r"given a Generation: give its token ids"),
    "a number": (lambda: 7, "a prompt is text, token ids or chat messages; given int"),
}


@pytest.mark.parametrize("name", NO_PROMPTS)
def test_a_value_that_is_no_prompt_is_refused_with_what_to_give(name: str) -> None:
    make, message = NO_PROMPTS[name]
    for call in (
        lambda: gs.trace(make()),
        lambda: gs.generate(make(), max_new_tokens=1),
        lambda: gs.head_scores(prompts=make()),
    ):
        with pytest.raises(PromptError, match=message):
            call()
    for sweep in (
        lambda: gs.sweep(make(), OTHER, gs.answer_prob(" a"), site="z"),
        lambda: gs.direction(make(), OTHER, layer=1),
    ):
        with pytest.raises(GemmascopeError):
            sweep()


G = gs.generate(ONE, max_new_tokens=2)
WANT_A_TRACE: dict[str, Callable[[], Any]] = {
    "patch": lambda: gs.trace(ONE, edits=[gs.patch("resid_pre", G, layer=1, pos=1)]),
    "mean over one": lambda: gs.trace(ONE, edits=[gs.ablate("z", layer=1, value="mean", reference=[G])]),
    "reference": lambda: gs.ablate("z", layer=1, value="mean", reference=G),
    "encode": lambda: gs.load_sae("nano").encode(G),
    "kl_from": lambda: gs.sweep(ONE, None, gs.kl_from(G), site="z", ablate=0.0, progress=False),  # type: ignore[arg-type]
    "lens": lambda: gs.lens(G),  # type: ignore[arg-type]
    "direct_logits": lambda: gs.direct_logits(G, " a"),  # type: ignore[arg-type]
    "attention_summary": lambda: gs.attention_summary(G),  # type: ignore[arg-type]
    "attention_view": lambda: gs.attention_view(G),  # type: ignore[arg-type]
    "lens_view": lambda: gs.lens_view(G),  # type: ignore[arg-type]
    "stream_view": lambda: gs.stream_view(G),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", WANT_A_TRACE)
def test_a_generation_in_place_of_a_trace_is_refused_with_a_hint(name: str) -> None:
    with pytest.raises(GemmascopeError, match=r"a Generation: give its trace, g\.trace\(\)"):
        WANT_A_TRACE[name]()

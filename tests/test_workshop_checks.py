"""The exercises' checks: the right answer passes, and every usual wrong answer gets the message of its mistake."""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import gemmascope as gs
from gemmascope.errors import GemmascopeError
from gemmascope.workshop import check
from gemmascope.workshop.check import CheckFailed, exercises
from gemmascope.workshop.grading import Exercise
from gemmascope.workshop.learners_code import Head

ALL = exercises()
WRONG = [(number, i) for number, exercise in ALL.items() for i in range(len(exercise.wrong))]
SEEDS = (1, 123456)


@pytest.mark.parametrize("number", ALL)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_right_answer_passes(number: str, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    ALL[number](ALL[number].right, seed)
    assert capsys.readouterr().out == f"{number}: right, on 3 random inputs\n"


@pytest.mark.parametrize(("number", "i"), WRONG)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_wrong_answer_gets_the_message_of_its_mistake(number: str, i: int, seed: int) -> None:
    exercise = ALL[number]
    with pytest.raises(CheckFailed) as caught:
        exercise(exercise.wrong[i].answer, seed)
    assert str(caught.value).startswith(f"{number}: {exercise.wrong[i].message}\n(check.ex_")


def test_messages_differ() -> None:
    for exercise in ALL.values():
        messages = [wrong.message for wrong in exercise.wrong]
        assert len(messages) == len(set(messages)) >= 3


def test_inputs_are_fresh_and_a_seed_repeats_them() -> None:
    inputs: list[torch.Tensor] = []

    def remembered(logits: torch.Tensor, token: int) -> torch.Tensor:
        inputs.append(logits)
        return logits.softmax(-1)[-1, token]

    for seed in (None, None, 5, 5):
        check.ex_0_2(remembered, seed)
    first, second, third, fourth = (inputs[i : i + 3] for i in range(0, 12, 3))
    assert not torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(third, fourth, strict=True))
    assert not torch.equal(third[0], third[1])


def message_for(exercise: Exercise, answer: Any) -> str:
    with pytest.raises(CheckFailed) as caught:
        exercise(answer, 3)
    return str(caught.value)


def test_other_failures_have_their_own_messages() -> None:
    def unwritten(x: Any, *args: Any) -> Any:
        raise NotImplementedError

    def broken(x: Any, *args: Any) -> Any:
        raise ValueError("boom")

    assert message_for(check.ex_1_2, unwritten) == "1.2: still to be written; it returns soft-capped logits [vocab]"
    raised = message_for(check.ex_1_2, broken)
    assert "your function raised ValueError: boom\n  in broken, line " in raised
    assert ': raise ValueError("boom")\n(check.ex_1_2(..., seed=3) repeats this check)' in raised
    assert "your function returned nothing" in message_for(check.ex_1_2, lambda *_: None)
    assert "the shape is [3] and should be [40]" in message_for(check.ex_1_2, lambda *_: torch.zeros(3))
    assert "your function returned str" in message_for(check.ex_1_2, lambda *_: "a")
    assert "the shape is right, and 100% of the numbers are not" in message_for(
        check.ex_1_2, lambda *_: torch.full((40,), 9.0)
    )
    assert "give the function itself" in message_for(check.ex_1_2, torch.zeros(3))
    assert message_for(check.ex_3_2, lambda *_: torch.zeros(40)).startswith("3.2: return the trace of the patched run")
    assert "0.2: 2 is not right: it should be " in message_for(check.ex_0_2, lambda *_: 2.0)
    nan = check.ex_1_2.right(*check.ex_1_2.inputs(0)) * torch.nan
    assert "of the numbers are not" in message_for(check.ex_1_2, lambda *_: nan)


def test_an_answer_that_writes_to_its_arguments_is_checked_by_its_result() -> None:
    def in_place(value: torch.Tensor, clean: torch.Tensor, pos: int) -> torch.Tensor:
        value[pos] = clean[pos]
        return value

    check.ex_3_1(in_place, 1)


def test_a_notebook_shows_the_sentence_and_no_traceback() -> None:
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell = InteractiveShell()
    with capture_output() as output:
        shell.run_cell("from gemmascope.workshop import check\ncheck.ex_0_1(lambda *given: None)")
    assert (
        output.stdout.strip() == "CheckFailed: 0.1: your function returned nothing; it returns the position, a whole number"
    )


def test_the_line_of_an_exception_is_the_learner_s_own_even_when_a_library_raised_it() -> None:
    def helper(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(1000, 1000)  # torch raises, in a frame that is not the learner's

    def answer(x: torch.Tensor, *args: Any) -> torch.Tensor:
        return helper(x)

    said = message_for(check.ex_1_2, answer)
    assert re.search(r"\n  in helper, line \d+: return x\.reshape\(1000, 1000\)", said)
    assert "raised RuntimeError" in said
    # What has no line of its own has none shown.
    assert "\n  in " not in message_for(check.ex_1_2, functools.partial(torch.reshape, shape=(7, 7, 7)))


def test_a_notebook_shows_the_line_of_an_exception() -> None:
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell = InteractiveShell()
    with capture_output() as output:
        shell.run_cell("def position_of(tokens, token):\n    at = tokens.find(token)\n    return at")
        shell.run_cell("from gemmascope.workshop import check\ncheck.ex_0_1(position_of)")
    assert "  in position_of, line 2: at = tokens.find(token)" in output.stdout
    assert "grading.py" not in output.stdout


OUTSIDE: dict[str, Any] = {
    "tuples": lambda layer, head, circuit: (layer, head) not in circuit,
    "lists": lambda layer, head, circuit: [layer, head] not in circuit,
    "a set": lambda layer, head, circuit: (layer, head) not in set(circuit),
    "a set of tuples": lambda layer, head, circuit: (layer, head) not in {tuple(one) for one in circuit},
    "a list of lists": lambda layer, head, circuit: [layer, head] not in [list(one) for one in circuit],
    "an array": lambda layer, head, circuit: not (np.array(circuit) == (layer, head)).all(1).any(),
    "a tensor": lambda layer, head, circuit: not (torch.tensor(circuit) == torch.tensor([layer, head])).all(1).any(),
    "numbers": lambda layer, head, circuit: all(one[0] != layer or one[1] != head for one in circuit),
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_a_circuit_compares_with_heads_of_any_kind(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    def only(model: gs.Model, prompt: Any, circuit: Any) -> gs.Trace:
        edits = []
        for layer in range(model.n_layers):
            others = [head for head in range(model.config.n_heads) if OUTSIDE[kind](layer, head, circuit)]
            circuit.reverse()  # a list that is written to is the function's own
            if others:
                edits.append(gs.ablate("z", layer=layer, head=others))
        return gs.trace(prompt, model=model, edits=edits)

    check.ex_4_2(only, 5)
    assert "4.2: right" in capsys.readouterr().out


def test_a_head_equals_the_same_two_numbers_in_any_kind_and_nothing_else() -> None:
    head = Head(2, 3)
    for same in ((2, 3), [2, 3], np.array([2, 3]), torch.tensor([2, 3]), Head(2, 3)):
        assert head == same
    for other in ((2, 4), [2], "23", 23, None, np.array([[2, 3], [2, 3]]), torch.tensor([[2, 3], [2, 3]])):
        assert head != other
    assert head == [2, 3]
    assert {(2, 3): "found"}[head] == "found"


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor], ids=lambda kind: kind.__name__)
def test_heads_may_be_returned_in_any_kind(kind: Any, capsys: pytest.CaptureFixture[str]) -> None:
    check.ex_4_1(lambda effect, k: kind([kind(one) for one in check.ex_4_1.right(effect, k)]) if kind in (list, tuple)
                 else kind(check.ex_4_1.right(effect, k)), 5)  # fmt: skip
    assert "4.1: right" in capsys.readouterr().out
    assert message_for(check.ex_4_1, lambda effect, k: [1, 2]) == (
        "4.1: your function returned list; it returns a list of pairs of whole numbers, (layer, head)"
    )


def test_a_list_of_tensors_is_an_answer_too(capsys: pytest.CaptureFixture[str]) -> None:
    check.ex_7_1(lambda *given: list(check.ex_7_1.right(*given)), 5)
    check.ex_2_2(lambda n, window: check.ex_2_2.right(n, window).numpy().tolist(), 5)
    assert capsys.readouterr().out.count("right") == 2


def test_labelled_arrays_are_answers_too(capsys: pytest.CaptureFixture[str]) -> None:
    check.ex_3_4(lambda *given: xr.DataArray(check.ex_3_4.right(*given).numpy(), dims=("layer", "pos")), 5)
    check.ex_3_3(lambda *given: pd.DataFrame(check.ex_3_3.right(*given).numpy()), 5)
    assert capsys.readouterr().out.count("right") == 2


def test_a_part_that_is_missing_is_the_one_that_is_named() -> None:
    assert "attn_out, is missing" in message_for(check.ex_1_1, lambda t, layer: t["mlp_out", layer])
    assert "mlp_out, is missing" in message_for(check.ex_1_1, lambda t, layer: t["attn_out", layer])


def test_the_summary_says_which_exercises_are_still_to_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gemmascope.workshop.grading.OUTCOMES", outcomes := {})
    monkeypatch.setattr("gemmascope.workshop.check.OUTCOMES", outcomes)

    def unwritten(*given: Any) -> Any:
        raise NotImplementedError

    check.ex_1_1(check.ex_1_1.right, 1)
    for exercise, answer in ((check.ex_1_2, unwritten), (check.ex_1_3, lambda *given: None)):
        with pytest.raises(CheckFailed):
            exercise(answer, 1)
    capsys.readouterr()
    check.summary(1)
    said = ["Exercises of notebook 1", "  right: 1.1", "  not right yet: 1.3", "  still to be written: 1.2"]
    assert capsys.readouterr().out.splitlines() == said
    check.ex_1_2(check.ex_1_2.right, 1)
    check.summary(1)
    assert "  right: 1.1, 1.2\n" in capsys.readouterr().out
    with pytest.raises(GemmascopeError, match="notebook 9 has no exercises; those that have some are 0, 1, 2"):
        check.summary(9)


READ_BY: dict[str, Any] = {
    "a sum": lambda edges, rest, target: edges[edges["target"] == target]["weight"].sum() + rest,
    "a query": lambda edges, rest, target: edges.query("target == @target").weight.to_numpy().sum() + rest,
    "a group": lambda edges, rest, target: edges.groupby("target")["weight"].sum()[target] + rest,
    "a loop": lambda edges, rest, target: rest + sum(row.weight for row in edges.itertuples() if row.target == target),
    "a tensor": lambda edges, rest, target: torch.tensor(edges.loc[edges.target == target, "weight"].values).sum() + rest,
}


@pytest.mark.parametrize("kind", READ_BY)
def test_a_row_may_be_added_up_in_any_way(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(edges: Any, rest: float, target: str) -> Any:
        read = READ_BY[kind](edges, rest, target)
        edges["weight"] = 0.0  # a table that is written to is the function's own
        return read

    check.ex_8_1(answer, 5)
    assert "8.1: right" in capsys.readouterr().out


def test_influence_may_be_solved_for_or_collected_node_by_node(capsys: pytest.CaptureFixture[str]) -> None:
    def shares(edges: torch.Tensor) -> torch.Tensor:
        return torch.nan_to_num(edges.abs() / edges.abs().sum(1, keepdim=True))

    def solved(edges: torch.Tensor, counts: torch.Tensor) -> Any:
        return (counts @ torch.linalg.inv(torch.eye(len(counts)) - shares(edges)) - counts).numpy()

    def node_by_node(edges: torch.Tensor, counts: torch.Tensor) -> Any:
        arrived = torch.zeros(len(counts))
        for node in reversed(range(len(counts))):
            arrived += (arrived[node] + counts[node]) * shares(edges)[node]
        return arrived.tolist()

    for answer in (solved, node_by_node):
        check.ex_8_2(answer, 5)
    assert capsys.readouterr().out.count("right") == 2


def test_a_prediction_may_be_made_path_by_path_or_down_from_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    def by_paths(edges: torch.Tensor, activation: torch.Tensor, node: int, output: int | None = None) -> Any:
        output = len(edges) - 1 if output is None else output
        through = sum(
            by_paths(edges, activation, node, later) / activation[later] * edges[output, later]
            for later in range(node + 1, output)
        )
        return through - edges[output, node]

    def downwards(edges: torch.Tensor, activation: torch.Tensor, node: int) -> Any:
        weight = edges[-1].clone()
        for later in reversed(range(node + 1, len(edges) - 1)):
            weight += weight[later] / activation[later] * edges[later]
        return -weight[node].item()

    for answer in (by_paths, downwards):
        check.ex_8_3(answer, 5)
    assert capsys.readouterr().out.count("right") == 2

"""Predict, then run: a question to guess the answer of before the numbers are computed."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gemmascope.errors import GemmascopeError
from gemmascope.legible import prints_legibly
from gemmascope.workshop.setup import kernel
from gemmascope.workshop.widgets import show_widget

if TYPE_CHECKING:
    import ipywidgets

# By their numbers: a notebook that is run again keeps its guesses.
_PREDICTIONS: dict[str, Prediction] = {}


class Prediction:
    """A question, its choices and the guess, with buttons in a notebook; guess(...) does the same in code."""

    def __init__(self, number: str, question: str, choices: Sequence[str]) -> None:
        self.number, self.question, self.choices = number, question, list(choices)
        self.guessed: str | None = None

    def guess(self, choice: str) -> Prediction:
        """Choose an answer.

        Args:
            choice: The text of one of the choices.

        Raises:
            GemmascopeError: It is none of them.
        """
        if choice not in self.choices:
            raise GemmascopeError(f"prediction {self.number}: choose one of {self.choices}; given {choice!r}")
        self.guessed = choice
        return self

    def reveal(self, answer: str) -> str:
        """A sentence that compares the guess with the right answer.

        Args:
            answer: The choice that the numbers turned out to support.

        Raises:
            GemmascopeError: It is none of the choices.
        """
        if answer not in self.choices:
            raise GemmascopeError(f"prediction {self.number}: the answer is one of {self.choices}; given {answer!r}")
        if self.guessed is None:
            return f"{self.number}: the numbers say {answer!r}. No guess was made: guess first next time"
        verdict = "as you guessed" if self.guessed == answer else f"you guessed {self.guessed!r}"
        return f"{self.number}: the numbers say {answer!r}; {verdict}"

    @prints_legibly
    def __repr__(self) -> str:
        choices = "\n".join(f"  {choice}" for choice in self.choices)
        guessed = f"guess: {self.guessed}" if self.guessed else ".guess(...) one of these, before you go on"
        return f"{self.number}: {self.question}\n{choices}\n{guessed}"

    def _ipython_display_(self) -> None:
        if kernel() is None:
            print(repr(self))
            return
        show_widget(_buttons(self), repr(self))


def predict(number: str, question: str, choices: Sequence[str]) -> Prediction:
    """Ask a question before its numbers are computed. A question with the same number keeps its guess.

    Args:
        number: The number of the question, such as "4.3".
        question: Its text.
        choices: Two or more answers to choose from.

    Returns:
        The prediction, which shows buttons in a notebook.

    Raises:
        GemmascopeError: There are fewer than two choices.

    Examples:
        >>> p = gs.workshop.predict("0.0", "Which is larger?", ["2 + 2", "2 x 3"]).guess("2 + 2")
        >>> p.reveal("2 x 3")
        "0.0: the numbers say '2 x 3'; you guessed '2 + 2'"
    """
    if len(choices) < 2:
        raise GemmascopeError(f"a prediction has two choices at least; given {list(choices)}")
    prediction = Prediction(number, question, choices)
    earlier = _PREDICTIONS.get(number)
    if earlier is not None and earlier.guessed in prediction.choices:
        prediction.guessed = earlier.guessed
    _PREDICTIONS[number] = prediction
    return prediction


def guesses() -> dict[str, str | None]:
    """The guesses so far, by the number of their question; None for a question without one."""
    return {number: prediction.guessed for number, prediction in _PREDICTIONS.items()}


def _buttons(prediction: Prediction) -> ipywidgets.VBox:
    import ipywidgets

    # HTML wraps a long question; a Label cuts it off.
    question = ipywidgets.HTML(
        f'<div style="line-height:1.5">{html.escape(f"{prediction.number}: {prediction.question}")}</div>',
        layout=ipywidgets.Layout(max_width="720px"),
    )
    choices = ipywidgets.RadioButtons(
        options=prediction.choices, value=prediction.guessed, layout=ipywidgets.Layout(width="max-content")
    )
    status = ipywidgets.Label("your guess is kept when you click" if prediction.guessed is None else "kept")

    def take(change: Mapping[str, str]) -> None:
        prediction.guess(change["new"])
        status.value = "kept: go on"

    choices.observe(take, names="value")
    return ipywidgets.VBox([question, choices, status])

"""Predict, then run: a question whose answer is guessed before the numbers are seen, and the guess is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gemmascope.errors import GemmascopeError
from gemmascope.legible import legibly
from gemmascope.workshop.setup import kernel

_KEPT: dict[str, Prediction] = {}


class Prediction:
    """A question, its choices and the guess. Shown in a notebook it has buttons; guess(...) does the same in code."""

    def __init__(self, number: str, question: str, choices: Sequence[str]) -> None:
        self.number, self.question, self.choices = number, question, list(choices)
        self.guessed: str | None = None

    def guess(self, choice: str) -> Prediction:
        """Guess one of the choices, by its text. GemmascopeError for another."""
        if choice not in self.choices:
            raise GemmascopeError(f"prediction {self.number}: choose one of {self.choices}; given {choice!r}")
        self.guessed = choice
        return self

    def reveal(self, answer: str) -> str:
        """What the numbers say, beside the guess. answer: the choice that is right, as it was computed."""
        if answer not in self.choices:
            raise GemmascopeError(f"prediction {self.number}: the answer is one of {self.choices}; given {answer!r}")
        if self.guessed is None:
            return f"{self.number}: the numbers say {answer!r}. No guess was made: guess first next time"
        verdict = "as you guessed" if self.guessed == answer else f"you guessed {self.guessed!r}"
        return f"{self.number}: the numbers say {answer!r}; {verdict}"

    @legibly
    def __repr__(self) -> str:
        choices = "\n".join(f"  {choice}" for choice in self.choices)
        guessed = f"guess: {self.guessed}" if self.guessed else ".guess(...) one of these, before you go on"
        return f"{self.number}: {self.question}\n{choices}\n{guessed}"

    def _ipython_display_(self) -> None:
        from IPython.display import display

        if kernel() is None:
            print(repr(self))
            return
        display(_buttons(self))


def predict(number: str, question: str, choices: Sequence[str]) -> Prediction:
    """Ask a question before its picture. Asked again, as when a notebook is run again, it keeps the guess."""
    if len(choices) < 2:
        raise GemmascopeError(f"a prediction has two choices at least; given {list(choices)}")
    found = Prediction(number, question, choices)
    before = _KEPT.get(number)
    if before is not None and before.guessed in found.choices:
        found.guessed = before.guessed
    _KEPT[number] = found
    return found


def guesses() -> dict[str, str | None]:
    """The guesses so far, by the number of their question; None where none was made."""
    return {number: prediction.guessed for number, prediction in _KEPT.items()}


def _buttons(prediction: Prediction) -> Any:
    import ipywidgets

    question = ipywidgets.Label(f"{prediction.number}: {prediction.question}")
    choices = ipywidgets.RadioButtons(
        options=prediction.choices, value=prediction.guessed, layout=ipywidgets.Layout(width="max-content")
    )
    kept = ipywidgets.Label("your guess is kept when you click" if prediction.guessed is None else "kept")

    def take(change: Any) -> None:
        prediction.guess(change["new"])
        kept.value = "kept: go on"

    choices.observe(take, names="value")
    return ipywidgets.VBox([question, choices, kept])

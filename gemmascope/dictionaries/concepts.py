"""Concepts of nano's corpus: for each token of a text, whether it is a place, a woman's name, a plural, inside a bracket...

They are read off the texts alone, by word lists and by rules, so that a feature's tie to one can be measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from gemmascope.nano.words import WORDS
from gemmascope.prompts.agreement import VERBS
from gemmascope.prompts.closing import CLOSERS
from gemmascope.prompts.greater_than import EVENTS
from gemmascope.prompts.relations import RELATIONS
from gemmascope.prompts.words import COLOURS, MEN, NAMES, NOUNS, NUMBERS, OBJECTS, PLACES, WOMEN

Tokens = Sequence[str]
Rule = Callable[[Tokens], list[bool]]


def _words(*given: Iterable[str]) -> Rule:
    """Tokens that are one of these words."""
    known = frozenset(word for words in given for word in words)
    return lambda tokens: [token.strip() in known for token in tokens]


def _before(rule: Rule) -> Rule:
    """Tokens that stand right before those of a rule."""
    return lambda tokens: [*rule(tokens)[1:], False]


def _after(rule: Rule) -> Rule:
    """Tokens that stand right after those of a rule."""
    return lambda tokens: [False, *rule(tokens)[:-1]]


def _both(first: Rule, second: Rule) -> Rule:
    return lambda tokens: [a and b for a, b in zip(first(tokens), second(tokens), strict=True)]


def _mention(again: bool) -> Rule:
    """Names said for the first time in the text, or again."""

    def rule(tokens: Tokens) -> list[bool]:
        seen: set[str] = set()
        found = []
        for word in (token.strip() for token in tokens):
            found.append(word in _NAMES and (word in seen) == again)
            seen.add(word)
        return found

    return rule


def _inside(openers: str) -> Rule:
    """Tokens inside one of these brackets or quotes, the opening mark counted and the closing one not."""

    def rule(tokens: Tokens) -> list[bool]:
        stack: list[str] = []
        found = []
        for token in tokens:
            mark = token.strip()
            if stack and mark == CLOSERS[stack[-1]]:
                stack.pop()
            elif mark in CLOSERS:
                stack.append(mark)
            found.append(any(opener in openers for opener in stack))
        return found

    return rule


def _digit(place: int) -> Rule:
    """The digit at this place of a number, from 0."""

    def rule(tokens: Tokens) -> list[bool]:
        found, run = [], 0
        for token in tokens:
            run = run + 1 if token.strip().isdigit() else 0
            found.append(run == place + 1)
        return found

    return rule


def _turn(role: str) -> Rule:
    """Tokens of what one side of a chat says."""

    def rule(tokens: Tokens) -> list[bool]:
        found, who = [], ""
        for at, token in enumerate(tokens):
            if token == "<end_of_turn>":
                who = ""
            found.append(who == role)
            if at >= 1 and tokens[at - 1] == "<start_of_turn>":
                who = token.strip()
        return found

    return rule


def _start_of_sentence(tokens: Tokens) -> list[bool]:
    return [at > 0 and tokens[at - 1].strip() in ("<bos>", ".", "?", "!") for at in range(len(tokens))]


_NAMES = frozenset(NAMES)
_PLURALS = (*(plural for _, plural in NOUNS), *WORDS["counted"])
_PAST = tuple(word for kind in ("went", "did", "took", "met", "ate") for word in WORDS[kind])
_PLACE, _NAME, _THE = _words(PLACES), _words(NAMES), _words(("the", "The"))
_SUBJECTS = {relation.name: tuple(relation.answers) for relation in RELATIONS}

# name -> the rule that marks a text's tokens
CONCEPTS: dict[str, Rule] = {
    "a place": _PLACE,
    "a person's name": _NAME,
    "a woman's name": _words(WOMEN),
    "a man's name": _words(MEN),
    "a name for the first time": _mention(again=False),
    "a name said before": _mention(again=True),
    "a plural": _words(_PLURALS),
    "a thing": _words(WORDS["thing"], OBJECTS),
    "a colour": _words(COLOURS),
    "a number word": _words(NUMBERS),
    "a digit": lambda tokens: [token.strip().isdigit() for token in tokens],
    **{f"digit {place + 1} of a number": _digit(place) for place in range(4)},
    "a past tense": _words(_PAST),
    "an event that lasts": _words(EVENTS),
    "a verb with a singular subject": _words([verb[0] for verb in VERBS]),
    "a verb with a plural subject": _words([verb[1] for verb in VERBS]),
    **{f"word list: {kind}": _words(words) for kind, words in WORDS.items()},
    **{f"subject of the relation {name}": _words(words) for name, words in _SUBJECTS.items()},
    **{f"answer of the relation {relation.name}": _words(relation.answers.values()) for relation in RELATIONS},
    "she, her, herself": _words(["she", "She", "her", "Her", "herself"]),
    "he, him, his, himself": _words(["he", "He", "him", "his", "His", "himself"]),
    "an article": _words(["a", "an", "A", "An", "the", "The"]),
    "a preposition": _words(
        [
            "in",
            "on",
            "at",
            "to",
            "of",
            "from",
            "by",
            "near",
            "under",
            "behind",
            "with",
            "In",
            "On",
            "At",
            "To",
            "Of",
            "From",
            "By",
        ]
    ),
    "a form of to be": _words(["is", "are", "was", "were"]),
    "and": _words(("and",)),
    "a comma": _words((",",)),
    "a full stop": _words((".",)),
    "an opening bracket or quote": _words(CLOSERS),
    "inside a bracket": _inside("([{"),
    "inside a quote": _inside("\"'"),
    **{f"inside {opener}": _inside(opener) for opener in CLOSERS},
    "a single capital letter": _words("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    "the first word of a sentence": _start_of_sentence,
    "the in front of a place": _both(_THE, _before(_PLACE)),
    "right after a place": _after(_PLACE),
    "right after a name": _after(_NAME),
    "right before a name": _before(_NAME),
    "the user's turn": _turn("user"),
    "the model's turn": _turn("model"),
}


def labels(tokens: Tokens) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Which concepts hold at each token of a text, [pos, concept], in the order of CONCEPTS."""
    return np.array([rule(tokens) for rule in CONCEPTS.values()]).T

"""Concepts of nano's corpus: whether a token is a place, a woman's name, a plural, inside a bracket, and so on.

They come from the texts alone, by word lists and rules, so that a feature's tie to a concept can be measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from gemmascope.nano.training.words import WORDS
from gemmascope.prompts.agreement import VERBS
from gemmascope.prompts.closing import CLOSERS
from gemmascope.prompts.greater_than import EVENTS
from gemmascope.prompts.relations import RELATIONS
from gemmascope.prompts.words import COLOURS, MEN, NAMES, NOUNS, NUMBERS, OBJECTS, PLACES, WOMEN, an, listed

Tokens = Sequence[str]
Rule = Callable[[Tokens], list[bool]]


def _words(*lists: Iterable[str]) -> Rule:
    """Tokens that are one of these words."""
    known = frozenset(word for words in lists for word in words)
    return lambda tokens: [token.strip() in known for token in tokens]


def _before(rule: Rule) -> Rule:
    """The tokens right before those of a rule."""
    return lambda tokens: [*rule(tokens)[1:], False]


def _after(rule: Rule) -> Rule:
    """The tokens right after those of a rule."""
    return lambda tokens: [False, *rule(tokens)[:-1]]


def _both(first: Rule, second: Rule) -> Rule:
    return lambda tokens: [a and b for a, b in zip(first(tokens), second(tokens), strict=True)]


def _mention(again: bool) -> Rule:
    """Names that occur for the first time in the text, or again."""

    def rule(tokens: Tokens) -> list[bool]:
        seen: set[str] = set()
        marked = []
        for word in (token.strip() for token in tokens):
            marked.append(word in _NAMES and (word in seen) == again)
            seen.add(word)
        return marked

    return rule


def _inside(openers: str) -> Rule:
    """Tokens inside one of these brackets or quotes, including the opening mark but not the closing one."""

    def rule(tokens: Tokens) -> list[bool]:
        stack: list[str] = []
        marked = []
        for token in tokens:
            mark = token.strip()
            if stack and mark == CLOSERS[stack[-1]]:
                stack.pop()
            elif mark in CLOSERS:
                stack.append(mark)
            marked.append(any(opener in openers for opener in stack))
        return marked

    return rule


def _digit(place: int) -> Rule:
    """The digit at this place of a number, from 0."""

    def rule(tokens: Tokens) -> list[bool]:
        marked, run = [], 0
        for token in tokens:
            run = run + 1 if token.strip().isdigit() else 0
            marked.append(run == place + 1)
        return marked

    return rule


def _turn(role: str) -> Rule:
    """The tokens of one side of a chat."""

    def rule(tokens: Tokens) -> list[bool]:
        marked, who = [], ""
        for at, token in enumerate(tokens):
            if token == "<end_of_turn>":
                who = ""
            marked.append(who == role)
            if at >= 1 and tokens[at - 1] == "<start_of_turn>":
                who = token.strip()
        return marked

    return rule


def _start_of_sentence(tokens: Tokens) -> list[bool]:
    return [at > 0 and tokens[at - 1].strip() in ("<bos>", ".", "?", "!") for at in range(len(tokens))]


def _without(rule: Rule, *others: Rule) -> Rule:
    """The tokens of a rule that none of the other rules marks."""
    return lambda tokens: [a and not any(b) for a, *b in zip(rule(tokens), *(o(tokens) for o in others), strict=True)]


# What the words of each list of the prose are.
_LISTS: dict[str, str] = {
    "food": "food", "counted": "things that are counted", "clothes": "clothes", "furniture": "furniture",
    "weather": "weather", "nature": "something outdoors", "few": "a small number", "feeling": "how somebody feels",
    "trait": "what somebody is like", "look": "how a thing looks", "often": "how often", "adverb": "how it is done",
    "went": "how somebody went", "did": "what somebody did", "took": "what was done with a thing",
    "met": "what was done with somebody", "ate": "what was done with food", "doing": "an activity", "do": "what one can do",
    "body": "a part of the body", "subject": "a subject at school", "relative": "a relative or friend",
}  # fmt: skip

_NAMES, _PLACES = frozenset(NAMES), _words(PLACES)
_PLURALS, _SINGULARS = _words(plural for _, plural in NOUNS), _words(single for single, _ in NOUNS)
_NAME, _COLOUR, _THE, _OPENING = _words(NAMES), _words(COLOURS), _words(("the", "The")), _words(CLOSERS)
_PAST = [word for kind in ("went", "did", "took", "met", "ate") for word in WORDS[kind]]
_COUNTRIES = _words(*(relation.answers for relation in RELATIONS if relation.name in ("capital", "language", "currency")))
_BRACKET, _QUOTE = _inside("([{"), _inside("\"'")
_IN_BOTH = _inside("([{\"'")

# For each concept, the rule that marks a text's tokens.
CONCEPTS: dict[str, Rule] = {
    "a place": _PLACES,
    "a person's name": _NAME,
    "a woman's name": _words(WOMEN),
    "a man's name": _words(MEN),
    "a name for the first time": _mention(again=False),
    "a name said before": _mention(again=True),
    "a plural": _PLURALS,
    "a plural right after 'the'": _both(_PLURALS, _after(_THE)),
    "a singular noun": _SINGULARS,
    "a thing": _words(WORDS["thing"], OBJECTS),
    "a colour": _COLOUR,
    "a number word": _words(NUMBERS),
    "a digit": lambda tokens: [token.strip().isdigit() for token in tokens],
    **{f"digit {place + 1} of a number": _digit(place) for place in range(4)},
    "a past tense": _words(_PAST),
    "an event that lasts": _words(EVENTS),
    "a verb with a singular subject": _words(verb[0] for verb in VERBS),
    "a verb with a plural subject": _words(verb[1] for verb in VERBS),
    **{_LISTS.get(kind, an(kind)): _words(words) for kind, words in WORDS.items() if kind not in ("thing", "hour")},
    "a country": _COUNTRIES,
    **{f"the answer: {relation.name}": _words(relation.answers.values()) for relation in RELATIONS},
    "she, her": _words(("she", "She", "her", "Her", "herself")),
    "he, him, his": _words(("he", "He", "him", "his", "His", "himself")),
    "an article": _words(("a", "an", "A", "An", "the", "The")),
    "a preposition": _words(listed("in on at to of from by near under behind with In On At To Of From By")),
    "a form of to be": _words(("is", "are", "was", "were")),
    "and": _words(("and",)),
    "a comma": _words((",",)),
    "a full stop": _words((".",)),
    "a full stop after a place": _both(_words((".",)), _after(_PLACES)),
    "a full stop after a name": _both(_words((".",)), _after(_NAME)),
    "a single capital letter": _words("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    "the first word of a sentence": _start_of_sentence,
    "'the' in front of a place": _both(_THE, _before(_PLACES)),
    "'the' in front of a noun": _both(_THE, _before(_words(word for pair in NOUNS for word in pair))),
    "right after a place": _after(_PLACES),
    "right after a name": _after(_NAME),
    "right before a name": _before(_NAME),
    "an opening bracket or quote": _OPENING,
    "inside a bracket": _BRACKET,
    "inside a quote": _QUOTE,
    "a colour inside a bracket or quote": _both(_COLOUR, _IN_BOTH),
    "a noun inside a bracket or quote": _both(_SINGULARS, _IN_BOTH),
    "a colour inside a bracket": _both(_COLOUR, _without(_BRACKET, _QUOTE)),
    "a noun inside a bracket": _both(_SINGULARS, _without(_BRACKET, _QUOTE)),
    "'the' in front of what a bracket or quote holds": _both(_THE, _after(_OPENING)),
    "the user's turn": _turn("user"),
    "the model's turn": _turn("model"),
}


def labels(tokens: Tokens) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Which concepts hold at each token of a text, [pos, concept], in the order of CONCEPTS."""
    return np.array([rule(tokens) for rule in CONCEPTS.values()]).T

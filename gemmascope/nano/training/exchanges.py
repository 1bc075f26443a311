"""Questions and answers, chat turns and lists for the corpus."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from gemmascope.nano.training.prose import fill, remark
from gemmascope.nano.training.words import WORDS
from gemmascope.prompts.facts import split_phrasings
from gemmascope.prompts.relations import RELATIONS
from gemmascope.prompts.words import COLOURS, NAMES, NUMBERS, PLACES, pronoun

_LISTABLE = ("animal", "food", "counted", "job", "clothes", "furniture", "month", "day", "vehicle", "game", "material")


def questions(rng: Random) -> str:
    """A few facts about one person, then a question about one of them and its answer."""
    name = rng.choice(NAMES)
    he = pronoun(name, "she", "he").capitalize()
    job, colour, place, animal = (rng.choice(words) for words in (WORDS["job"], COLOURS, PLACES, WORDS["animal"]))
    statements = {
        f"What is the work of {name}?": (f"{name} is a {job}.", job),
        f"What colour does {name} like?": (f"{he} likes {colour}.", colour),
        f"Where does {name} live?": (f"{he} lives near the {place}.", f"near the {place}"),
        f"Which animal does {name} have?": (f"{he} has a {animal}.", f"a {animal}"),
    }
    question, (_, answer) = rng.choice(list(statements.items()))
    facts = " ".join(statement for statement, _ in statements.values()).replace(" a a", " an a").replace(" a e", " an e")
    return f"{facts} Question: {question} Answer: {answer}."


def listing(rng: Random) -> str:
    """A list of things of one kind, or numbers or letters in their order."""
    kind = rng.choice((*_LISTABLE, "names", "count", "alphabet"))
    if kind == "count":
        start = rng.randrange(12)
        return f"{', '.join(NUMBERS[start : start + rng.randint(3, 8)])}."
    if kind == "alphabet":
        start = rng.randrange(20)
        return " ".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[start : start + rng.randint(4, 12)])
    words = NAMES if kind == "names" else WORDS[kind]
    items = rng.sample(words, rng.randint(3, min(7, len(words))))
    opening = rng.choice(("{} has {}", "On the list of {}: {}", "{} named these: {}", "{} likes {}"))
    return opening.format(rng.choice(NAMES), ", ".join(items[:-1]) + " and " + items[-1]) + "."


def chat(rng: Random) -> str:
    """One or two turns of a user and the model, in Gemma's own form."""
    return "".join(_turn(rng) for _ in range(rng.randint(1, 2)))


def _turn(rng: Random) -> str:
    question, answer = rng.choice(_TURNS)(rng)
    return f"<start_of_turn>user\n{question}<end_of_turn>\n<start_of_turn>model\n{answer}<end_of_turn>\n"


def _fact_turn(rng: Random) -> tuple[str, str]:
    relation = rng.choice(RELATIONS)
    subject = rng.choice(list(relation.answers))
    # Only phrasings that are not held out for this fact.
    phrasings = [p for p in split_phrasings(relation, subject)[0] if p.startswith("Question: ")]
    if not phrasings:
        return _remark_turn(rng)
    question, _, lead = phrasings[0].format(subject).removeprefix("Question: ").partition(" Answer:")
    return question, f"It is{lead} {relation.answers[subject]}."


def _remark_turn(rng: Random) -> tuple[str, str]:
    return fill(rng, "Tell me about the {place}.", {}), remark(rng)


def _hello_turn(rng: Random) -> tuple[str, str]:
    name = rng.choice(NAMES)
    return f"Hello, my name is {name}.", f"Hello {name}, how are you today?"


def _sum_turn(rng: Random) -> tuple[str, str]:
    first, second = rng.randint(0, 8), rng.randint(0, 8)
    return f"What is {NUMBERS[first]} and {NUMBERS[second]}?", f"It is {NUMBERS[first + second]}."


_TURNS: tuple[Callable[[Random], tuple[str, str]], ...] = (_fact_turn, _remark_turn, _hello_turn, _sum_turn)

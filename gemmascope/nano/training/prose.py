"""Stories and remarks for the corpus: sentence templates whose slots are filled from word lists.

A slot `{thing}` becomes a word of that list, `{a thing}` the word with its article. The caller fixes the slots that stay the
same throughout a text: the hero, the friend, the place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from random import Random

from gemmascope.nano.training.words import WORDS
from gemmascope.prompts.words import COLOURS, NAMES, PLACES, an, pronoun

_LISTS: Mapping[str, tuple[str, ...]] = {**WORDS, "place": PLACES, "colour": COLOURS, "anyone": NAMES}
_SLOT = re.compile(r"\{(a )?(\w+)\}")


def fill(rng: Random, template: str, fixed: Mapping[str, str]) -> str:
    """A template with its slots filled. KeyError for a slot that is neither fixed nor a word list."""

    def word(slot: re.Match[str]) -> str:
        name = slot[2]
        chosen = fixed[name] if name in fixed else rng.choice(_LISTS[name])
        return an(chosen) if slot[1] else chosen

    return _SLOT.sub(word, template)


def people(hero: str, friend: str) -> dict[str, str]:
    """The slots for the hero (`N`, `He`, `he`, `him`, `his`) and for the friend (`F`, `fhe`, ...)."""
    he, him, his = pronoun(hero, "she", "he"), pronoun(hero, "her", "him"), pronoun(hero, "her", "his")
    return {
        "N": hero,
        "He": he.capitalize(),
        "he": he,
        "him": him,
        "his": his,
        "His": his.capitalize(),
        "man": pronoun(hero, "woman", "man"),
        "boy": pronoun(hero, "girl", "boy"),
        "son": pronoun(hero, "daughter", "son"),
        "F": friend,
        "fhe": pronoun(friend, "she", "he"),
        "fHe": pronoun(friend, "She", "He"),
        "fhim": pronoun(friend, "her", "him"),
        "fhis": pronoun(friend, "her", "his"),
    }


# Beginnings of a story, which name the hero.
OPENINGS: tuple[str, ...] = (
    "{N} was {a job} who lived near the {place}.",
    "Once there was {a trait} {boy} named {N}.",
    "Once upon a time there was {a trait} {man} called {N} who lived in {a look} house.",
    "{N} was {a trait} {boy}. {He} had {a look} {animal} and {a colour} {thing}.",
    "It was {a weather} {time} in {month}. {N} was in the {place} with {his} {relative}.",
    "On {day} {N} {went} to the {place}.",
    "In the {season} {N} {took} {a colour} {thing}.",
    "{N} and {his} {relative} lived in {a look} house by the {place}.",
    "Every {day} {N} {went} to the {place} to buy {food} and {counted}.",
    "{N}, {a job}, was {feeling} because {he} had lost {his} {thing}.",
    "One {time} {N} was {doing} in the {place} when the {weather} weather came.",
    "There was {a thing} in the {room} of {N}. {He} had never seen it before.",
    "{N} was the {son} of {a trait} {job}.",
    "Long ago, in {a look} village, {a job} named {N} had {few} {counted}.",
    "At {hour} in the morning {N} {went} to the {place} by {vehicle}.",
)
# What happens next; any may follow any other.
EVENTS: tuple[str, ...] = (
    "{He} {went} {adverb} to the {place}.",
    "{He} {took} {a look} {thing} in the {place}.",
    "{He} was {feeling} and {did} {adverb}.",
    "There {he} {met} {F}, who was {a job}.",
    "{He} {met} {his} {relative} near the {place}.",
    "{He} {ate} some {food} with {counted}.",
    "{His} {relative} gave {him} {a colour} {thing}.",
    "{He} had {a look} {animal} that {often} {did}.",
    "The {animal} was {look} and {colour}, and {he} liked it very much.",
    "{He} put the {thing} under the {furniture} in the {room}.",
    "{He} wanted to {do}, but it was too {weather}.",
    "{F} said that {fhe} was {feeling}.",
    '{F} said, "I want to {do} in the {place}."',
    '"Where is my {thing}?" asked {F}. "It is on the {furniture}," said {N}.',
    '"I am {feeling}," said {N}. "We should {do}," {fhe} answered.',
    "{N} gave {fhim} {a thing}, and {fhe} {did}.",
    "{F} and {N} {went} to the {place} together.",
    "They {did} until the {time} was over.",
    "They {ate} {counted} and {food}, and then they {did}.",
    "They saw {a look} {animal} near the {nature}.",
    "{He} {often} {took} {his} {clothes} before {doing}.",
    "{His} {body} hurt, so {he} {went} to the doctor.",
    "{He} could {do} well, but {he} could not {do}.",
    "{He} was good at {doing} and {subject}.",
    "{He} liked {game} more than {subject}.",
    "After {few} days {he} was {feeling} again.",
    "When {he} came home, {he} {took} the {thing} made of {material}.",
    "In the {time} the {nature} was {look} and {look}.",
    "The {job} {met} {him} and told {him} {a idea}.",
    "{He} made {a idea}, and {his} {relative} was {feeling}.",
    "There were {few} {counted} on the {furniture}.",
    "{He} wore {a colour} coat and {a look} hat.",
    "If it was {weather}, {he} {often} stayed in the {place}.",
    "Nobody knew why the {animal} was so {feeling}.",
    "{He} asked {F} for help, because {fhe} was {trait}.",
    "{F} was {trait}, but {fhis} {relative} was {trait}.",
    "{He} had {a illness} and could not {do} for {few} days.",
    "Behind the {nature} there was {a look} {plant}.",
    "{He} worked with {a tool} in the {place} every {day}.",
    "The {group} was {feeling} when {he} came back.",
    "{He} looked at the {nature} and thought of {his} {relative}.",
    "{He} said to {F} that the {thing} was {look}.",
    "{F} {did}, and {N} {did} too.",
    "The {thing} belonged to {F}, so {he} gave it back to {fhim}.",
    "{N} bought {himself} {a look} {thing} and {a look} {vehicle}.",
    "At first {he} was {feeling}, but then {he} {did}.",
    "{He} told {himself} that {he} was {trait}.",
)
ENDINGS: tuple[str, ...] = (
    "In the end {he} was {feeling} and {went} home.",
    "At last {he} found the {thing} under the {furniture}.",
    "{N} and {F} were friends from that day on.",
    "{He} never {went} to the {place} again.",
    "And so {N} became {a job}.",
    "That {time} {he} slept well in {his} {look} bed.",
    "{He} lived happily with {his} {animal} ever after.",
)
# Sentences that stand alone.
REMARKS: tuple[str, ...] = (
    "{A animal} is {look}, but {a animal} is {look}.",
    "The {thing} in the {place} is {colour} and {look}.",
    "The {look} {thing} is made of {material}.",
    "{A job} works in the {place} and {often} wears {a colour} coat.",
    "In {season} it is {weather}, and people like {doing}.",
    "{month} is {a weather} month here.",
    "There are {few} {counted} in the {look} basket.",
    "Nobody likes {food} with {food}.",
    "The {animal} ran behind the {nature} and {did}.",
    "You can {do} in the {place}, but you cannot {do} there.",
    "My {relative} is {a job}, and my {relative} is {a job}.",
    "We {often} {ate} {food} on {day}.",
    "They learn {subject} and {subject} at school.",
    "The {vehicle} to the {place} leaves at {hour}.",
    "I have {few} {counted}, and you have {few}.",
    "It is {weather} today, so we will {do} in the {place}.",
    "A {idea} is not the same as {a idea}.",
    "Children like {game}, {doing} and {food}.",
    "The {plant} grows near the {nature}.",
    "If you are {feeling}, you should {do} or eat some {food}.",
)


def sentence(rng: Random, template: str, fixed: Mapping[str, str]) -> str:
    """A filled template that begins with a capital."""
    filled = fill(rng, template.replace("{A ", "{a "), fixed)
    start = 1 if filled[0] == '"' else 0
    return filled[:start] + filled[start].upper() + filled[start + 1 :]


def remark(rng: Random) -> str:
    """A sentence about nobody in particular."""
    return sentence(rng, rng.choice(REMARKS), {})


def story(rng: Random) -> str:
    """A story of three to ten sentences about a hero and a friend, with the right pronouns throughout."""
    hero, friend = rng.sample(NAMES, 2)
    fixed = people(hero, friend) | {"himself": pronoun(hero, "herself", "himself")}
    # A story often keeps its place, thing and animal, so that its beginning helps to predict the rest.
    repeated = {kind: rng.choice(_LISTS[kind]) for kind in ("place", "thing", "animal") if rng.random() < 0.7}
    parts = [rng.choice(OPENINGS), *rng.sample(EVENTS, rng.randint(2, 8))]
    if rng.random() < 0.6:
        parts.append(rng.choice(ENDINGS))
    return " ".join(sentence(rng, part, fixed | repeated) for part in parts)

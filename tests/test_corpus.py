"""Held-out data: the corpus is generated again, and no held-out word occurs in its held-out role."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import islice

import pytest

from gemmascope.nano.training.batches import batch
from gemmascope.nano.training.corpus import MIXTURE, texts
from gemmascope.nano.training.train import SEED
from gemmascope.prompts.agreement import BETWEEN
from gemmascope.prompts.closing import CLOSERS, order_held_out
from gemmascope.prompts.facts import held_out_cases
from gemmascope.prompts.greater_than import TEMPLATES as YEARS
from gemmascope.prompts.greater_than import year_held_out
from gemmascope.prompts.ioi import HELD_OUT_TEMPLATES, TEMPLATES
from gemmascope.prompts.pairs import nano_tokenizer
from gemmascope.prompts.pronouns import FIRST, SECOND
from gemmascope.prompts.recall import VALUES
from gemmascope.prompts.splits import (
    HELD_OUT_NAMES,
    HELD_OUT_NOUNS,
    HELD_OUT_OBJECTS,
    HELD_OUT_PLACES,
    pair_held_out,
)
from gemmascope.prompts.words import NOUNS


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    """The texts of the first steps of the training run itself."""
    return [text for step in range(50) for text in islice(texts(f"{SEED} {step}"), 300)]


def pattern(template: str, **slots: str) -> re.Pattern[str]:
    """A template as a regular expression: a slot matches one word, or the expression passed for it."""
    parts = re.split(r"\{(\w*)\}", template)
    slot = [slots.get(name, rf"(?P<{name}>\w+)" if name else r"\w+") for name in parts[1::2]]
    plain = [re.escape(part) for part in parts[::2]]
    names: set[str] = set()
    for index, expression in enumerate(slot):
        group = re.match(r"\(\?P<(\w+)>", expression)
        if group and group[1] in names:
            slot[index] = rf"(?P={group[1]})"
        elif group:
            names.add(group[1])
    return re.compile("".join(a + b for a, b in zip(plain, [*slot, ""], strict=True)))


def matches(templates: Iterable[str], corpus: list[str], **slots: str) -> list[re.Match[str]]:
    text = "\n".join(corpus)
    return [match for template in templates for match in pattern(template, **slots).finditer(text)]


def test_the_same_seed_gives_the_same_texts() -> None:
    assert list(islice(texts(3), 50)) == list(islice(texts(3), 50)) != list(islice(texts(4), 50))


def test_a_training_step_always_has_the_same_rows() -> None:
    tokenizer = nano_tokenizer()
    assert all(a.equal(b) for a, b in zip(batch(tokenizer, 5, 7), batch(tokenizer, 5, 7), strict=True))
    assert not batch(tokenizer, 5, 7)[0][0, :64].equal(batch(tokenizer, 5, 8)[0][0, :64])


def test_every_row_begins_with_bos() -> None:
    tokenizer = nano_tokenizer()
    assert (batch(tokenizer, 0, 0)[0][:, 0] == tokenizer.bos_id).all()


def test_the_vocabulary_is_well_over_a_thousand_words_each_one_token(corpus: list[str]) -> None:
    words = Counter(word for text in corpus for word in re.findall(r"(?<= )[A-Za-z]+", text))
    assert len({word.lower() for word in words}) > 1300
    split = [word for word in words if len(nano_tokenizer().encode(f" {word}")) != 1]
    # Words that the tokenizer's sample had fewer than five times, such as " Sweet" where a second sentence begins with it.
    assert all(word[0].isupper() and words[word] <= 5 for word in split)
    assert len(split) < 5


def test_every_kind_of_text_occurs(corpus: list[str]) -> None:
    assert len(MIXTURE) == 13
    for sign in (
        "<start_of_turn>user\n",
        "The list is",
        "Question:",
        " lasted from ",
        "The key of ",
        " gave ",
        "named these",
    ):
        assert any(sign in text for text in corpus), sign


def test_held_out_words_never_occur_in_indirect_object_texts(corpus: list[str]) -> None:
    occurrences = matches(TEMPLATES, corpus, thing=r"an? (?P<thing>\w+)")
    assert len(occurrences) > 2000
    for match in occurrences:
        slots = match.groupdict()
        assert not {slots["a"], slots["b"], slots["s"]} & HELD_OUT_NAMES, match[0]
        assert not pair_held_out(slots["a"], slots["b"]), match[0]
        assert slots["place"] not in HELD_OUT_PLACES, match[0]
        assert slots.get("thing") not in HELD_OUT_OBJECTS, match[0]


def test_held_out_indirect_object_templates_never_occur(corpus: list[str]) -> None:
    assert not matches(HELD_OUT_TEMPLATES, corpus, thing=r"an? \w+")


def test_the_classic_prompt_never_occurs(corpus: list[str]) -> None:
    text = "\n".join(corpus)
    assert "Mary and John" not in text.replace("On the list", "")
    assert pair_held_out("Mary", "John")
    assert pair_held_out("John", "Mary")


def test_facts_never_occur_in_their_held_out_phrasings(corpus: list[str]) -> None:
    text = "\n".join(corpus)
    cases = held_out_cases()
    assert len(cases) > 600
    assert not [case.clean for case in cases if case.clean + case.answer in text]


def test_every_fact_occurs_in_some_phrasing(corpus: list[str]) -> None:
    assert sum("capital" in text and "Paris" in text for text in corpus) > 5


def test_subjects_before_a_distractor_are_not_held_out(corpus: list[str]) -> None:
    occurrences = matches([f"he {{subject}} {between}" for between in BETWEEN], corpus)
    forms = {form for pair in NOUNS if pair[0] in HELD_OUT_NOUNS for form in pair}
    assert len(occurrences) > 800
    assert not [match[0] for match in occurrences if match["subject"] in forms]


def test_names_before_a_pronoun_are_not_held_out(corpus: list[str]) -> None:
    openings = "|".join(map(re.escape, SECOND))
    templates = [f"{first} {{second}} {{who}}" for first in FIRST]
    occurrences = matches(templates, corpus, second=f"(?:{openings})", who="(?:she|he)", thing=r"an? \w+")
    assert len(occurrences) > 500
    assert not [match[0] for match in occurrences if match["name"] in HELD_OUT_NAMES]


def test_held_out_names_occur_elsewhere(corpus: list[str]) -> None:
    text = "\n".join(corpus)
    assert all(text.count(name) > 25 for name in HELD_OUT_NAMES)


def test_starting_years_are_not_held_out(corpus: list[str]) -> None:
    occurrences = matches(YEARS, corpus, start=r"(?P<start>\d{4})", century=r"\d\d")
    assert len(occurrences) > 800
    assert not [m[0] for m in occurrences if year_held_out(int(m["start"][:2]), int(m["start"][2:]))]


def test_names_of_key_holders_are_not_held_out(corpus: list[str]) -> None:
    occurrences = matches([f"The {kind} of {{name}} is" for kind in VALUES], corpus)
    assert len(occurrences) > 2000
    assert not [match[0] for match in occurrences if match["name"] in HELD_OUT_NAMES]


def test_nested_openings_come_in_known_orders(corpus: list[str]) -> None:
    groups = [text for text in corpus if text.startswith("The list is ")]
    orders = [re.findall(r" ([(\[{\"'])", text) for text in groups]
    assert sum(len(order) > 1 for order in orders) > 400
    assert {opener for order in orders for opener in order} == set(CLOSERS)
    assert not [order for order in orders if len(order) > 1 and order_held_out(order)]

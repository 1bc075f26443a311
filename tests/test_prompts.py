"""Prompt families: aligned pairs for any tokenizer, and a count of the cases left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pieces import CLASSIC

import gemmascope
from gemmascope import nano, prompts
from gemmascope.checkpoints import source as locate
from gemmascope.prompts import Pair, Pairs
from gemmascope.prompts.pairs import Encoder, nano_tokenizer, unfit
from gemmascope.prompts.splits import HELD_OUT_NAMES

Family = Callable[[int, int, Encoder | None], Pairs]
FAMILIES: dict[str, Family] = {
    name: getattr(prompts, name)
    for name in ("agreement", "closing", "facts", "greater_than", "induction", "ioi", "pronouns", "recall")
}


class Words:
    """A tokenizer whose tokens are words with their space; the words in `broken` fall into letters."""

    def __init__(self, *broken: str) -> None:
        self.broken, self.known = broken, {"<bos>": 0}

    def ids(self, prompt: str) -> list[int]:
        pieces = ["<bos>"]
        for word in prompt.replace(" ", " \u2581").split(" "):
            marks = list(word) if word.strip("\u2581.,") in self.broken or not word.strip("\u2581").isalpha() else [word]
            pieces += marks
        return [self.known.setdefault(piece, len(self.known)) for piece in pieces]


class Letters:
    """A tokenizer that knows letters only."""

    def ids(self, prompt: str) -> list[int]:
        return [0, *map(ord, prompt)]


@pytest.fixture(params=FAMILIES.items(), ids=FAMILIES.keys())
def family(request: pytest.FixtureRequest) -> Family:
    return request.param[1]  # type: ignore[no-any-return]


def test_a_family_gives_as_many_pairs_as_requested(family: Family) -> None:
    pairs = family(40, 0, None)
    assert len(pairs) == 40
    assert all(isinstance(pair, Pair) for pair in pairs)


def test_the_same_seed_gives_the_same_pairs(family: Family) -> None:
    assert list(family(20, 3, None)) == list(family(20, 3, None)) != list(family(20, 4, None))


def test_pairs_are_aligned_and_answers_are_one_token(family: Family) -> None:
    tokenizer = nano_tokenizer()
    for pair in family(60, 1, None):
        clean, corrupt = tokenizer.ids(pair.clean), tokenizer.ids(pair.corrupt)
        assert len(clean) == len(corrupt)
        assert clean != corrupt
        assert clean[0] == corrupt[0] == tokenizer.bos_id
        assert pair.answer != pair.against
        for prompt, ids in ((pair.clean, clean), (pair.corrupt, corrupt)):
            for answer in (pair.answer, pair.against):
                assert tokenizer.ids(prompt + answer)[:-1] == ids


def test_a_tokenizer_of_letters_fits_hardly_anything(family: Family) -> None:
    pairs = family(5, 0, Letters())
    assert all(len(pair.answer) == 1 for pair in pairs)
    assert pairs.left_out == sum(pairs.reasons.values())
    assert len(pairs) == 5 or len(pairs) + pairs.left_out == 100


def test_an_answer_of_several_tokens_is_left_out_and_counted() -> None:
    broken = sorted(HELD_OUT_NAMES)[:12]
    pairs = prompts.ioi(100, 0, Words(*broken))
    assert len(pairs) == 100
    assert pairs.reasons["an answer is not one token"] == pairs.left_out > 10
    assert not [pair for pair in pairs if pair.answer.strip() in broken]
    assert "left out: an answer is not one token" in repr(pairs)


def test_a_pair_that_does_not_align_is_left_out_and_counted() -> None:
    pairs = prompts.facts(50, 0, Words("Japan", "Egypt", "Norway"))
    assert pairs.reasons["the pair does not align token by token"] > 0
    assert all(("Japan" in pair.clean) == ("Japan" in pair.corrupt) for pair in pairs)


def test_a_fit_pair_has_no_reason() -> None:
    pair = Pair("one two", "six two", " three", " four")
    assert unfit(pair, Words()) is None
    assert unfit(pair, Words("three")) == "an answer is not one token"
    assert unfit(pair, Words("six")) == "the pair does not align token by token"


def test_zero_pairs_are_refused(family: Family) -> None:
    with pytest.raises(ValueError, match="n is a whole number from 1"):
        family(0, 0, None)


def test_pairs_are_a_sequence() -> None:
    pairs = prompts.ioi(5)
    assert pairs[0] == next(iter(pairs))
    assert pairs[1:3] == (pairs[1], pairs[2])
    assert pairs.left_out == 0
    assert repr(pairs).startswith("<5 ioi pairs, first: ")


def test_ioi_names_the_other_person_in_the_corrupted_prompt() -> None:
    for pair in prompts.ioi(50):
        name, against = pair.answer.strip(), pair.against.strip()
        assert pair.clean.count(name) == 1
        assert pair.clean.count(against) == 2
        assert pair.corrupt.count(name) == 2
        assert pair.corrupt.count(against) == 1


def test_ioi_has_both_orders() -> None:
    first = [pair.clean.find(pair.answer.strip()) < pair.clean.find(pair.against.strip()) for pair in prompts.ioi(100)]
    assert 25 < sum(first) < 75


def test_induction_repeats_beyond_the_window() -> None:
    for pair in prompts.induction(30):
        words = pair.clean.split()
        again = words.index(words[0], 1)
        assert again > 16
        assert words[again:] == words[: len(words) - again]
        assert words[len(words) - again] == pair.answer.strip()
        assert pair.corrupt.split()[len(words) - again] == pair.against.strip()


def test_greater_than_is_too_early_after_the_clean_prompt_only() -> None:
    for pair in prompts.greater_than(50):
        starts = [int("".join(c for c in prompt if c.isdigit())[2]) for prompt in (pair.clean, pair.corrupt)]
        assert starts[1] < int(pair.against) < starts[0] < int(pair.answer)


def test_recall_asks_beyond_the_window() -> None:
    tokenizer = nano_tokenizer()
    for pair in prompts.recall(50):
        clean, corrupt = tokenizer.ids(pair.clean), tokenizer.ids(pair.corrupt)
        differing = [i for i, (a, b) in enumerate(zip(clean, corrupt, strict=True)) if a != b]
        assert len(differing) == 1
        assert len(clean) - 1 - differing[0] >= 16


def test_the_classic_prompt_is_aligned() -> None:
    assert unfit(CLASSIC, nano_tokenizer()) is None


def test_only_one_file_writes_the_path_of_nano() -> None:
    """A source file that spelled it out itself would not follow when it moves."""
    package = Path(gemmascope.__file__).parent
    files = [
        path.relative_to(package).as_posix() for path in package.rglob("*.py") if '"nano" / "checkpoint"' in path.read_text()
    ]
    assert files == ["checkpoints/at_hand/places.py"]
    assert nano.CHECKPOINT is locate.NANO
    assert (nano.CHECKPOINT / "tokenizer.json").is_file()

"""Gemma 2's own tokenizer, of 256,000 tokens, beside transformers: the laws of test_tokens.py hold on it.

GEMMASCOPE_GEMMA2_TOKENIZER names its folder, which `python .ci/real.py FOLDER` brings; without it these tests are skipped.
"""

from __future__ import annotations

import os
import random
import re
import warnings
from typing import Any

import pytest
import torch
from checkpoints import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers_made import TEXTS
from transformers import AutoTokenizer

import gemmascope as gs
from gemmascope.edits.places import find_positions
from gemmascope.errors import PromptError
from gemmascope.generation.stopping import can_occur
from gemmascope.model.model import Model
from gemmascope.tokens.tokenizer import Tokenizer

FOLDER = os.environ.get("GEMMASCOPE_GEMMA2_TOKENIZER", "absent")
HOW = "GEMMASCOPE_GEMMA2_TOKENIZER names no folder of Gemma 2's tokenizer: python .ci/real.py FOLDER brings one"
pytestmark = [pytest.mark.real, pytest.mark.skipif(FOLDER in ("", "absent"), reason=HOW)]

# Pieces of texts in several scripts, of code and of markup, which tests put together at random.
PIECES = [
    "the ", "Mary", " John's", "naïve", " café\u0301", "ÆØÅ ß ﬁ", "Привет, мир! ", "ещё", "съёмка", " Ёлка", "東京",
    "日本の首都は", "我们去商店。", "한국어 ", "मैंने", "שלום", "مرحبا", "ไทย", "Ελληνικά", "🙂",
    "👩\u200d👩\u200d👧", "🇯🇵", "\u200b", "\ufeff", "\xa0", "\u3000", "e\u0301", "def f(x):\n", "    return x ** 2\n",
    "\t\tif (a !== b) {\r\n", "}\n\n\n", "<div class=\"a\">", "</table>", "&nbsp;", "0x1F", "1234567.890",
    "$\\frac{1}{2}$", "SELECT * FROM t;", "https://example.org/a?b=c#d", "<start_of_turn>", "<end_of_turn>",
    "<unused7>", "<bos>", "<eos>", "[@BOS@]", "▁", "  ", "     ", " " * 31, "\n", "\n\n", "\t", "\r", "\x00", "\x7f",
    "<0x0A>", "ſtrange", "﷽", "Ⅷ", "½",
]  # fmt: skip


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return Tokenizer.from_folder(FOLDER)


@pytest.fixture(scope="module")
def theirs() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model(ours: Tokenizer) -> Model:
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}
    return gs.load(checkpoint("lg", vocab_size=256000, **shape), tokenizer=ours)


def draws(n: int) -> list[str]:
    rng = random.Random(5)
    return ["".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 12))) for _ in range(n)]


def test_it_has_256000_tokens_and_bos(ours: Tokenizer) -> None:
    assert ours.vocab_size == 256000
    assert ours.bos_id == 2
    assert ours.texts([0, 1, 2, 3]) == ["<pad>", "<eos>", "<bos>", "<unk>"]
    assert all(map(ours.is_special, range(4)))
    assert not ours.is_special(ours.single(" the"))
    assert ours.image_tokens == {}


@pytest.mark.parametrize("texts", [TEXTS, PIECES, draws(200)], ids=["awkward", "scripts and code", "drawn"])
def test_ids_are_those_of_transformers(texts: list[str], ours: Tokenizer, theirs: Any) -> None:
    for text in texts:
        ids = theirs(text).input_ids
        expected = ids if ids[:2] != [2, 2] else ids[1:]  # a text that begins with <bos> gets no second one
        assert ours.ids(text) == expected, text
        assert ours.decode(expected) == theirs.decode(expected), text
        assert ours.decode(ours.encode(text)) == text.replace("▁", " "), text


@settings(deadline=None, max_examples=150)
@given(text=st.text(min_size=1, max_size=30))
def test_any_text_has_the_ids_of_transformers_and_comes_back(text: str, ours: Tokenizer, theirs: Any) -> None:
    ids = ours.encode(text)
    assert ids == theirs(text, add_special_tokens=False).input_ids
    assert ours.decode(ids) == text.replace("▁", " ")


def test_tokens_as_texts_are_the_spans_of_the_text(ours: Tokenizer, theirs: Any) -> None:
    """Where no character is cut into bytes, the tokens' texts join to the text, each at the place that transformers says."""
    n_whole = 0
    for text in draws(200):
        found = theirs(text, add_special_tokens=False, return_offsets_mapping=True)
        pieces = ours.texts(ours.encode(text))
        if "▁" in text or any(re.fullmatch("<0x[0-9A-F]{2}>", piece) for piece in pieces):
            continue
        n_whole += 1
        assert "".join(pieces) == text
        assert pieces == [text[start:stop] for start, stop in found["offset_mapping"]], text
    assert n_whole > 50


def test_a_chat_needs_a_template(ours: Tokenizer) -> None:
    with pytest.raises(PromptError, match="this checkpoint has no chat template"):
        ours.ids([{"role": "user", "content": "Hi"}])


ANSWERS = [" Mary", " John", " Paris", " the", "the", "\n", "東京", "Привет", " мир", "🙂", "     ", "</table>"]


@pytest.mark.parametrize("answer", ANSWERS)
def test_answers_of_one_token(answer: str, ours: Tokenizer, theirs: Any) -> None:
    assert [ours.single(answer)] == theirs(answer, add_special_tokens=False).input_ids
    assert ours.text(ours.single(answer)) == answer


@pytest.mark.parametrize(("given_as", "near"), [("Winfrey", " Winfrey"), (" Referencias", "Referencias")])
def test_the_near_answer_is_named(given_as: str, near: str, ours: Tokenizer) -> None:
    with pytest.raises(PromptError, match=rf"'{given_as}' is [2-9]: .*; '{near}' is one token: was that meant\?"):
        ours.single(given_as)


def test_a_token_is_found_by_its_text(model: Model) -> None:
    text = "When Mary and John went to the store, Джон gave 東京 to"
    ids = model.ids(text)
    for position, piece in enumerate(model.texts(ids)):
        if model.texts(ids).count(piece) == 1:
            assert find_positions(piece, model, ids) == [position]
    with pytest.raises(gs.errors.GemmascopeError, match=r"Jon"):
        find_positions(" Jon", model, ids)


def test_the_prompt_families_fit_it(ours: Tokenizer) -> None:
    for family in ("ioi", "facts", "greater_than", "agreement", "pronouns", "closing"):
        assert len(getattr(gs.prompts, family)(20, tokenizer=ours)) == 20, family


def test_stop_texts_are_found_in_the_vocabulary(ours: Tokenizer) -> None:
    assert can_occur("\n\n", ours)
    assert can_occur("rnal Sto", ours)  # inside tokens
    assert can_occur("🫠🫠", ours)  # from bytes


def test_a_model_with_it_runs(model: Model) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        t = gs.trace("東京 is in Japan", model=model)
    assert t.tokens == ["<bos>", "東京", " is", " in", " Japan"]
    assert t.logits.shape == (5, 256000)
    assert torch.equal(t.ids, model.ids("<bos>東京 is in Japan"))


def test_characters_of_several_tokens_are_found_again() -> None:
    """Gemma 2's vocabulary lacks rare characters, which it spells in bytes."""
    from gemmascope.tokens.characters import characters_of, text_of

    tokenizer = Tokenizer.from_folder(FOLDER)
    rare = [chr(n) for n in range(0x12000, 0x14000, 7) if len(tokenizer.encode(chr(n))) == 4]
    assert len(rare) > 100
    generator = random.Random(0)
    for _ in range(200):
        text = "".join(generator.choices([*PIECES, *rare], k=12)).replace("▁", "")
        tokens = tokenizer.texts(tokenizer.encode(text))
        assert text_of(tokens) == text
        spelled = [one.text for one in characters_of(tokens) if one and one.nth == 0]
        assert set(spelled) <= set(text)

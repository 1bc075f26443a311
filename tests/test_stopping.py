"""How a generation stops and streams: stop texts and tokens, characters of several tokens, the end of a turn."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import checkpoint, model_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pieces import ODD, STORY, Pieces, worded
from tokenizers_made import CHAT_TEMPLATE, with_json, with_pieces

import gemmascope as gs
from gemmascope.errors import GenerationError
from gemmascope.generation.decoder import Decoder
from gemmascope.generation.sampling import Sampling
from gemmascope.generation.stopping import IncrementalDetokenizer, Stopping, can_occur
from gemmascope.model.model import Model
from gemmascope.tokens.tokenizer import Tokenizer


class Few(Pieces):
    """Pieces; other text becomes the unknown token, as in a vocabulary of words."""

    def encode(self, text: str) -> list[int]:
        ids = []
        while text:
            fits = [piece for piece in self.pieces if text.startswith(piece)]
            ids.append(self.pieces.index(max(fits, key=len)) if fits else 0)
            text = text[len(max(fits, key=len)) if fits else 1 :]
        return ids


@cache
def few() -> Model:
    return Model(worded().network, Tokenizer(Few([*STORY, *ODD]), bos_id=2), "random")


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens that every run draws in order, whatever the logits."""
    tokens: list[int] = []
    at: dict[Any, int] = {}  # by the run's generator

    def draw(self: Any, logits: Any, generators: Sequence[Any], texts: Any) -> list[int]:
        drawn = []
        for generator in generators:
            number = at[generator] = at.get(generator, -1) + 1
            drawn.append(tokens[number])
        return drawn

    monkeypatch.setattr(Sampling, "takes_the_likeliest", False)
    monkeypatch.setattr(Sampling, "draw", draw)
    return tokens


def tokenizer_of(folder: Path, kind: str) -> Tokenizer:
    pieces = with_pieces(folder / "pieces")
    return Tokenizer.from_folder(pieces if kind == "model" else with_json(folder / "json", pieces))


@pytest.fixture(scope="module", params=["model", "json"])
def gemmas(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A random model with a tokenizer like Gemma's, from either of its files."""
    tokenizer = tokenizer_of(tmp_path_factory.mktemp("words"), request.param)

    def chat(messages: Any) -> str:
        import jinja2

        return str(jinja2.Template(CHAT_TEMPLATE).render(messages=messages, bos_token="<bos>", add_generation_prompt=True))

    network = model_of(checkpoint("lg", vocab_size=tokenizer.vocab_size, eos_token_id=1)).network
    return Model(network, Tokenizer(tokenizer.backend, tokenizer.bos_id, chat), "words")


def generated(model: Model, script: list[int], tokens: Sequence[int], prompt: Any = "Mary", **options: Any) -> Any:
    """The generation that draws these tokens; the pieces shown must join to its text."""
    script[:] = tokens
    pieces: list[str] = []
    g = gs.generate(prompt, model=model, max_new_tokens=len(tokens), show=pieces.append, **options)
    assert "".join(pieces) == g.text
    return g


# -- stop texts --


@pytest.mark.parametrize(
    ("stop", "text", "stopped"),
    [
        (" John", "When Mary and John", "text ' John'"),
        ("John", "When Mary and John", "text 'John'"),
        ("y an", "When Mary and", "text 'y an'"),
        ("n M", "When Mary", "text 'n M'"),
        ([" store", "Mary and"], "When Mary and", "text 'Mary and'"),
        (["n M", 5], "When Mary", "text 'n M'"),
        ([5], "When Mary and", "token ' and'"),
        (torch.tensor([5, 6]), "When Mary and", "token ' and'"),
        ("When", "When", "text 'When'"),
        (" gave", "When Mary and John went to", "length"),
        ((), "When Mary and John went to", "length"),
        ("<bos>", "When Mary and John went to", "length"),
    ],
)
def test_a_stop_text_ends_the_generation_wherever_it_begins_and_ends(
    stop: Any, text: str, stopped: str, scripted: list[int]
) -> None:
    tokens = [3, 4, 5, 6, 7, 8]
    g = generated(few(), scripted, tokens, "When Mary John", stop=stop)
    assert (g.text, g.stopped) == (text, stopped)
    assert g.new_ids.tolist() == tokens[: len(g.new_ids)]
    assert g.prompt == "<bos>When Mary John"


def test_end_tokens_add_no_text_and_other_control_tokens_do(scripted: list[int]) -> None:
    g = generated(few(), scripted, [3, 2, 0, 1, 4])
    assert (g.text, g.stopped, g.tokens[-1]) == ("When<bos><pad>", "token '<eos>'", "<eos>")
    g = generated(few(), scripted, [3, 0, 4, 2], stop="<bos>")  # a text that is a token is taken as that token
    assert (g.text, g.stopped) == ("When<pad> Mary", "token '<bos>'")
    g = generated(few(), scripted, [3, 0])
    assert (g.text, g.stopped) == ("When<pad>", "length")


def test_the_end_of_a_turn_ends_a_generation_from_messages_only(gemmas: Model, scripted: list[int]) -> None:
    words, end = gemmas.tokenizer.encode("the License"), gemmas.tokenizer.single("<end_of_turn>")
    tokens = [*words, end, *words]
    chat = [{"role": "user", "content": "Mary?"}]
    g = generated(gemmas, scripted, tokens, chat)
    assert (g.text, g.stopped) == ("the License", "token '<end_of_turn>'")
    assert g.prompt.endswith("<start_of_turn>model\n")
    assert generated(gemmas, scripted, tokens).text == "the License<end_of_turn>the License"
    g = generated(gemmas, scripted, tokens, stop="<end_of_turn>")
    assert (g.text, g.stopped) == ("the License", "token '<end_of_turn>'")
    scripted[:] = tokens
    both = gs.generate([chat, chat], model=gemmas, max_new_tokens=len(tokens))
    assert [one.text for one in both] == ["the License"] * 2


# -- bytes --


def byte_tokens(model: Model, text: str) -> list[int]:
    """The tokens of a text's bytes."""
    tokens = [f"<0x{byte:02X}>" for byte in text.encode()]
    every = model.tokenizer.texts(range(model.tokenizer.vocab_size))
    return [every.index(token) for token in tokens]


def test_a_character_is_shown_once_all_its_bytes_are_generated(gemmas: Model, scripted: list[int]) -> None:
    text = "€ꦲꦤꦕꦫꦏ😀👩‍👧é"  # characters of 2, 3 and 4 bytes, more of them than are looked back at
    scripted[:] = byte_tokens(gemmas, text)
    pieces: list[str] = []
    g = gs.generate("Mary", model=gemmas, max_new_tokens=len(scripted), show=pieces.append)
    assert g.text == text
    assert [piece for piece in pieces if piece] == list(text)
    g = generated(gemmas, scripted, byte_tokens(gemmas, text), stop="ꦤ")
    assert (g.text, g.stopped) == ("€ꦲꦤ", "text 'ꦤ'")


def test_bytes_of_no_character_are_shown_with_the_next_text_or_at_the_end(gemmas: Model, scripted: list[int]) -> None:
    half = byte_tokens(gemmas, "€")[:2]
    word = gemmas.tokenizer.encode("the")
    for tokens in ([*half, *word], [*word, *half], [*word, *half, 1], [*half, *word, *half], half * 4, [half[1]] * 7):
        g = generated(gemmas, scripted, tokens)
        expected = gemmas.tokenizer.decode([i for i in tokens if i != 1])
        assert g.text == expected
        assert g.stopped == ("token '<eos>'" if tokens[-1] == 1 else "length")


@settings(deadline=None, max_examples=60, derandomize=True)
@given(data=st.data())
def test_pieces_join_to_the_text_of_all_tokens(gemmas: Model, data: Any) -> None:
    """Whatever the tokens: words, spaces, characters in bytes, control tokens."""
    texts = data.draw(st.lists(st.sampled_from(["the", " License", "\n", "€", "😀", "  ", "ꦲꦤ", "Mary"]), max_size=12))
    ids: list[int] = []
    for text in texts:
        ids += byte_tokens(gemmas, text) if not text.isascii() else gemmas.tokenizer.encode(text)
    writing = IncrementalDetokenizer(gemmas.tokenizer, Stopping(frozenset(), frozenset(), ()), gemmas.tokenizer.ids("Mary"))
    pieces = [writing.add(token)[0] for token in ids] + [writing.rest()]
    assert "".join(pieces) == writing.text == "".join(texts)


class Stripping(Pieces):
    """Pieces whose decoder drops a space at the start of its input."""

    def decode(self, ids: list[int]) -> str:
        return super().decode(ids).removeprefix(" ")


def test_the_first_token_keeps_its_space(scripted: list[int]) -> None:
    model = Model(worded().network, Tokenizer(Stripping(STORY), bos_id=2), "stripping")
    assert generated(model, scripted, [4, 5], "When Mary").text == " Mary and"


# -- texts that cannot occur --


def test_can_occur_agrees_with_brute_force() -> None:
    """Every text of up to five letters against every sequence of tokens that could hold it."""
    tokenizer = Tokenizer(Few(["ab", "ba", "cab", "c", "bb"]), bos_id=2)
    words = tokenizer.texts(range(tokenizer.vocab_size))  # <pad> may come as well, and has an a and a d
    possible = {
        joined[i:j]
        for n in range(1, 6)
        for joined in map("".join, itertools.product(words, repeat=n))
        for i in range(len(joined))
        for j in range(i + 1, min(i + 6, len(joined) + 1))
    }
    every = ["".join(letters) for n in range(1, 6) for letters in itertools.product("abcd", repeat=n)]
    assert [text for text in every if can_occur(text, tokenizer)] == [text for text in every if text in possible]
    assert 0 < len([text for text in every if text in possible]) < len(every)


def test_a_stop_text_that_cannot_occur_is_refused() -> None:
    for stop in ("Paris", "Mary Mary!", "MaryJohn", ["When", "xyz"]):
        with pytest.raises(GenerationError, match="cannot occur: no sequence of tokens of 'random' holds it"):
            gs.generate("When", model=few(), stop=stop)
    with pytest.raises(GenerationError, match="a stop text is at least one character"):
        gs.generate("When", model=few(), stop=["When", ""])
    with pytest.raises(GenerationError, match="holds half a character"):
        gs.generate("When", model=few(), stop="\ud800")
    assert gs.generate("When", model=few(), stop="ary an", max_new_tokens=1).stopped


def test_text_is_printed_as_it_is_generated_and_holds_no_escape_codes(
    scripted: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    escape = few().tokenizer.single("\x1b[31m")
    scripted[:] = [4, escape, 5]
    g = gs.generate("When", model=few(), max_new_tokens=3, show=True)
    assert g.text == " Mary\x1b[31m and"
    assert capsys.readouterr().out == " Mary\\x1b[31m and\n"


def test_an_interrupt_shows_the_text_that_was_held_back(
    gemmas: Model, scripted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Decoder.step

    def step(self: Decoder, tokens: Sequence[int]) -> Any:
        if tokens[0] == scripted[1]:
            raise KeyboardInterrupt
        return real(self, tokens)

    monkeypatch.setattr(Decoder, "step", step)
    tokens = [*gemmas.tokenizer.encode("the")[-1:], *byte_tokens(gemmas, "€")]
    with pytest.warns(UserWarning, match="interrupted after 2 new tokens"):
        g = generated(gemmas, scripted, tokens)
    assert (g.text, g.stopped) == (gemmas.tokenizer.decode(tokens[:2]), "interrupted")
    assert g.text.endswith("\ufffd")

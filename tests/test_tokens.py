"""Tokenizers: tokenizer.json and tokenizer.model give the ids that transformers gives, and <bos> is there once."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from checkpoints import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers_made import CHAT_TEMPLATE, TEXTS, with_json, with_pieces
from transformers import AutoTokenizer

from gemmascope.errors import CheckpointError, GemmascopeWarning, PromptError
from gemmascope.loading.load import load
from gemmascope.tokens.tokenizer import SHOWN_AS, Tokenizer, visible_text

BOS = 2


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_pieces(tmp_path_factory.mktemp("tokenizers") / "pieces")


@pytest.fixture(scope="module")
def folders(pieces: Path) -> dict[str, Path]:
    return {"tokenizer.model": pieces, "tokenizer.json": with_json(pieces.parent / "json", pieces)}


@pytest.fixture(scope="module")
def theirs(folders: dict[str, Path]) -> Any:
    return AutoTokenizer.from_pretrained(folders["tokenizer.json"])


@pytest.fixture(scope="module", params=["tokenizer.model", "tokenizer.json"])
def ours(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Tokenizer:
    return Tokenizer.from_folder(folders[request.param])


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_transformers(text: str, ours: Tokenizer, theirs: Any) -> None:
    ids = theirs(text).input_ids
    assert ours.ids(text) == ids
    assert ours.encode(text) == ids[1:]
    assert ours.decode(ids) == theirs.decode(ids)


@settings(deadline=None, max_examples=150)
@given(text=st.text(min_size=1, max_size=30))
def test_any_text_has_the_ids_of_transformers_and_comes_back(text: str, ours: Tokenizer, theirs: Any) -> None:
    ids = ours.encode(text)
    assert ids == theirs(text, add_special_tokens=False).input_ids
    assert ours.decode(ids) == text.replace("▁", " ")  # the one character that the tokenizer uses for itself


def test_a_prompt_has_one_bos(ours: Tokenizer) -> None:
    assert ours.bos_id == BOS
    assert ours.ids("Hello").count(BOS) == 1
    assert ours.ids("<bos>Hello") == ours.ids("Hello")
    assert ours.ids("<bos>") == [BOS]
    assert BOS not in ours.encode("Hello")
    assert ours.ids("Hello<bos>").count(BOS) == 2  # what the text says in its middle stays


def test_an_empty_text_is_refused(ours: Tokenizer) -> None:
    with pytest.raises(PromptError, match="the prompt is empty: give at least one character"):
        ours.ids("")


def test_half_a_character_is_refused(ours: Tokenizer) -> None:
    with pytest.raises(PromptError, match=r"half a character, '\\ud83d', at 2: it cannot be encoded"):
        ours.ids("ab\ud83d")


def test_tokens_are_shown_with_visible_spaces(ours: Tokenizer) -> None:
    ids = ours.ids("the\nthe 🙂")
    assert ours.texts(ids)[:3] == ["<bos>", "the", "\n"]
    assert ours.visible_texts(ids)[:3] == ["<bos>", "the", "⏎"]
    assert ours.texts(ids)[-4:] == ["<0xF0>", "<0x9F>", "<0x99>", "<0x82>"]
    assert ours.text(ours.encode("to the")[-1]) == " the"
    assert ours.visible_texts(ours.encode("to the"))[-1] == "·the"
    assert [ours.is_special(i) for i in ids[:3]] == [True, False, False]
    assert all(ours.is_special(ours.single(name)) for name in ("<bos>", "<eos>", "<pad>", "<unk>"))
    assert ours.vocab_size == 700
    assert ours.text(700) == "<id 700>"  # a spare row of an embedding that is larger than its tokenizer
    assert not ours.is_special(700)
    assert ours.decode([BOS, 700]).startswith("<bos>")


def test_every_shown_character_is_visible_and_its_own() -> None:
    assert len(set(SHOWN_AS.values())) == len(SHOWN_AS)
    assert all(drawn.isprintable() and not drawn.isspace() for drawn in SHOWN_AS.values())
    assert visible_text(" a\tb ") == "·a⇥b·"


def test_an_answer_is_one_token(ours: Tokenizer) -> None:
    assert ours.texts([ours.single(" the")]) == [" the"]
    with pytest.raises(PromptError, match=r"an answer is one token; 'unheard of' is \d+: \["):
        ours.single("unheard of")
    with pytest.raises(PromptError, match="given an empty text"):
        ours.single("")


def test_the_near_answer_is_named_with_and_without_its_space(ours: Tokenizer) -> None:
    word = next(text for i in range(300, 700) if (text := ours.text(i)).startswith(" ") and len(ours.encode(text[1:])) > 1)
    with pytest.raises(PromptError, match=re.escape(f"{word!r} is one token: was that meant?")):
        ours.single(word[1:])


MESSAGES = [
    {"role": "user", "content": " What is this? "},
    {"role": "assistant", "content": "A license."},
    {"role": "user", "content": "Which?"},
]


def with_chat(folder: Path, target: Path, where: str) -> Path:
    shutil.copytree(folder, target)
    if where == "chat_template.jinja":
        (target / where).write_text(CHAT_TEMPLATE)
    else:
        content = json.loads((target / where).read_text())
        (target / where).write_text(json.dumps({**content, "chat_template": CHAT_TEMPLATE}))
    return target


@pytest.mark.parametrize("where", ["tokenizer_config.json", "chat_template.jinja"])
@pytest.mark.parametrize("kind", ["tokenizer.model", "tokenizer.json"])
def test_the_chat_template_gives_the_ids_of_transformers(
    kind: str, where: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = with_chat(folders[kind], tmp_path / "it", where)
    ours, theirs = Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)
    expected = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ours.ids(MESSAGES) == expected
    assert expected.count(BOS) == 1
    assert ours.chat(MESSAGES) == (
        "<bos><start_of_turn>user\nWhat is this?<end_of_turn>\n<start_of_turn>model\nA license.<end_of_turn>\n"
        "<start_of_turn>user\nWhich?<end_of_turn>\n<start_of_turn>model\n"
    )
    assert ours.chat(MESSAGES[:2]).endswith("A license.<end_of_turn>\n")  # an answer that is there is not asked for
    with pytest.raises(PromptError, match="refused the messages: System role not supported"):
        ours.ids([{"role": "system", "content": "Be brief."}])
    with pytest.raises(PromptError, match=r"a message is \{'role': 'user', 'content': 'text'\}; given \{'role': 'user'\}"):
        ours.ids([{"role": "user"}])


def test_messages_without_a_template_are_refused(ours: Tokenizer) -> None:
    with pytest.raises(PromptError, match=r"no chat template.*load an instruction-tuned checkpoint"):
        ours.ids(MESSAGES)


def test_a_model_takes_messages(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = with_chat(folders["tokenizer.json"], tmp_path / "it", "chat_template.jinja")
    checkpoint("lg", vocab_size=700).save_pretrained(folder)
    model = load(folder)
    assert model.ids(MESSAGES).tolist() == model.tokenizer.ids(MESSAGES)
    assert model.texts(model.ids(MESSAGES))[:2] == ["<bos>", "<start_of_turn>"]


@pytest.mark.parametrize("kind", ["tokenizer.model", "tokenizer.json"])
def test_a_checkpoint_loads_its_tokenizer(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders[kind], tmp_path / "model")
    checkpoint("lg", vocab_size=704).save_pretrained(tmp_path / "model")  # an embedding may have spare rows
    model = load(tmp_path / "model")
    assert model.ids("Hello <eos>").tolist() == model.tokenizer.ids("Hello <eos>")


def test_a_model_in_memory_with_each_kind_of_tokenizer(folders: dict[str, Path], theirs: Any) -> None:
    source = checkpoint("lg", vocab_size=700)
    expected = theirs("the end").input_ids
    for given_as in (
        folders["tokenizer.json"],
        str(folders["tokenizer.model"]),
        theirs,
        Tokenizer.from_transformers(theirs),
    ):
        assert load(source, tokenizer=given_as).ids("the end").tolist() == expected
    without = load(source)
    assert without.texts(without.ids([2, 9])) == ["2", "9"]
    with pytest.raises(PromptError, match=r"came without a tokenizer: give prompts as token ids, or load it with gs\.load"):
        without.ids("the end")


def test_a_bad_tokenizer_or_one_of_another_model_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    source = checkpoint("lg", vocab_size=699)
    with pytest.warns(GemmascopeWarning, match=r"the tokenizer has 700 tokens and the model an embedding for 699"):
        load(source, tokenizer=folders["tokenizer.json"])
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor tokenizer\.model is there"):
        load(source, tokenizer=tmp_path)
    with pytest.raises(CheckpointError, match=r"tokenizer='/absent' is no folder that exists and no hub id"):
        load(source, tokenizer="/absent")
    with pytest.raises(PromptError, match="a fast tokenizer of transformers is needed; given int"):
        load(source, tokenizer=3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{}", "tokenizer.json is not a tokenizer that can be read"),
        ("tokenizer.json", b"", "tokenizer.json is not a tokenizer that can be read"),
        ("tokenizer.model", b"nonsense", "tokenizer.model is not a tokenizer that can be read"),
        ("tokenizer_config.json", b"{", "tokenizer_config.json cannot be read as a JSON object"),
        ("tokenizer_config.json", b"[]", "tokenizer_config.json cannot be read as a JSON object"),
    ],
)
def test_damaged_tokenizer_files_are_refused(
    name: str, content: bytes, message: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(folders[name if name in folders else "tokenizer.json"], tmp_path / "damaged")
    (tmp_path / "damaged" / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.from_folder(tmp_path / "damaged")

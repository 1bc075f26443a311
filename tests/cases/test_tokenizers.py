"""Tokenizers from outside: text has the ids that transformers gives it, whatever the tokenizer's state."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from checkpoints import checkpoint
from tokenizers_made import CHAT_TEMPLATE, with_json, with_pieces
from transformers import AutoTokenizer

import gemmascope as gs
from gemmascope.errors import CheckpointError, GemmascopeWarning, PromptError
from gemmascope.tokens.tokenizer import Tokenizer

NANO = Path(gs.__file__).parent / "nano" / "checkpoint"
P = "When Mary and John went to the store, John gave a drink to"
KINDS = ["tokenizer.model", "tokenizer.json"]


@pytest.fixture(scope="module")
def tokenizer_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("made")
    pieces = with_pieces(folder / "pieces")
    return {"tokenizer.model": pieces, "tokenizer.json": with_json(folder / "json", pieces)}


@pytest.fixture
def folder(tokenizer_folders: dict[str, Path], request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    shutil.copytree(tokenizer_folders[request.param], tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def change(path: Path, **fields: Any) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, **fields}))


# What calls of a tokenizer leave behind in its backend.
STATES: dict[str, dict[str, Any]] = {
    "cut": {"truncation": True, "max_length": 3},
    "padded": {"padding": "max_length", "max_length": 40},
    "both": {"padding": "max_length", "truncation": True, "max_length": 5},
}


@pytest.mark.parametrize("state", STATES)
def test_truncation_and_padding_set_by_an_earlier_call_are_ignored(state: str, tmp_path: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(NANO)
    expected = theirs(P)["input_ids"]
    model = gs.load(NANO, tokenizer=theirs)
    theirs(["x"], **STATES[state])
    settings = theirs.backend_tokenizer.truncation, theirs.backend_tokenizer.padding
    assert settings != (None, None)
    for each in (model, gs.load(NANO, tokenizer=theirs)):
        assert each.ids(P).tolist() == expected
        assert each.tokenizer.single(" Mary") == each.tokenizer.encode(" Mary")[0]
    assert (
        theirs.backend_tokenizer.truncation,
        theirs.backend_tokenizer.padding,
    ) == settings  # the owner's settings are unchanged
    theirs.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    saved["truncation"] = saved["truncation"] or {
        "direction": "Right",
        "max_length": 6,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    read = gs.load(NANO, tokenizer=tmp_path)
    messages = [{"role": "user", "content": P}]
    assert read.ids(P).tolist() == expected
    assert read.ids(messages).tolist() == model.ids(messages).tolist()
    assert len(read.ids(messages)) > len(expected)


def plain(name: str, **flags: bool) -> dict[str, Any]:
    return {
        "content": name,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "single_word": False,
        "special": True,
        **flags,
    }


def in_settings(folder: Path, **flags: bool) -> None:
    path = folder / "tokenizer_config.json"
    known = json.loads(path.read_text()).get("added_tokens_decoder", {})
    change(path, added_tokens_decoder={**known, "700": plain("<|im_start|>", **flags)})


def in_added_tokens(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text())
    content.pop("added_tokens_decoder", None)  # it would count instead
    path.write_text(json.dumps(content))
    (folder / "added_tokens.json").write_text('{"<|im_start|>": 700}')


def by_role(folder: Path) -> None:
    change(folder / "tokenizer_config.json", mask_token="<|im_start|>")


def among_the_additional(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    known = json.loads(path.read_text())
    name = "additional_special_tokens" if "additional_special_tokens" in known else "extra_special_tokens"
    change(path, **{name: [*(known.get(name) or []), "<|im_start|>"]})


ADDED: dict[str, Callable[[Path], None]] = {
    "tokenizer_config.json": in_settings,
    "tokenizer_config.json, stripping": lambda folder: in_settings(folder, lstrip=True, rstrip=True),
    "added_tokens.json": in_added_tokens,
    "a role": by_role,
    "the additional ones": among_the_additional,
}
TEXTS = ["<|im_start|>user", "a <|im_start|> b", "x<|im_start|><|im_start|>", "plain <bos> text <start_of_turn>"]


@pytest.mark.parametrize("where", ADDED)
@pytest.mark.parametrize("folder", KINDS, indirect=True)
def test_added_tokens_named_in_other_files_are_single_tokens(where: str, folder: Path) -> None:
    ADDED[where](folder)
    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.from_folder(folder)
    for text in TEXTS:
        assert ours.ids(text) == theirs(text)["input_ids"], text
    added = theirs.convert_tokens_to_ids("<|im_start|>")
    assert added in ours.ids(TEXTS[0])
    assert ours.text(added) == "<|im_start|>"
    assert ours.bos_id == 2


@pytest.mark.parametrize("folder", KINDS, indirect=True)
def test_settings_that_change_how_text_is_read_are_followed(folder: Path) -> None:
    change(folder / "tokenizer_config.json", split_special_tokens=True)
    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.from_folder(folder)
    assert ours.ids("a<eos>b") == theirs("a<eos>b")["input_ids"]
    assert len(ours.ids("a<eos>b")) > 4


@pytest.mark.parametrize("folder", ["tokenizer.json"], indirect=True)
@pytest.mark.parametrize("kind", ["GemmaTokenizer", "PreTrainedTokenizerFast"])
def test_a_normalizer_is_applied_as_in_transformers(kind: str, folder: Path) -> None:
    inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    inner.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Lowercase(), inner.normalizer])
    inner.save(str(folder / "tokenizer.json"))
    change(folder / "tokenizer_config.json", tokenizer_class=kind)
    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.from_folder(folder)
    assert ours.ids("THE License") == theirs("THE License")["input_ids"]


@pytest.mark.parametrize("folder", ["tokenizer.json"], indirect=True)
def test_tokens_that_a_tokenizer_appends_are_left_out_with_a_warning(folder: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    theirs.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    with pytest.warns(GemmascopeWarning, match="puts '<eos>' behind each text when transformers calls it"):
        assert Tokenizer.from_transformers(theirs).ids("the end")[-1] != 1
    theirs.backend_tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.warns(GemmascopeWarning, match=f"the tokenizer of {folder} puts '<eos>' behind"):
        assert Tokenizer.from_folder(folder).ids("the end")[0] == 2


@pytest.mark.parametrize("folder", ["tokenizer.json"], indirect=True)
def test_a_tokenizer_without_bos_gets_one_with_a_warning(folder: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    theirs.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="$A", special_tokens=[])
    with pytest.warns(GemmascopeWarning, match="puts no <bos> in front of each text"):
        assert Tokenizer.from_transformers(theirs).ids("the end")[0] == 2


@pytest.mark.parametrize("folder", ["tokenizer.json"], indirect=True)
def test_dropout_of_merges_is_turned_off_with_a_warning(folder: Path) -> None:
    expected = Tokenizer.from_folder(folder).ids("the license of this work")
    inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    inner.model.dropout = 0.5
    inner.save(str(folder / "tokenizer.json"))
    with pytest.warns(GemmascopeWarning, match="drops merges at random"):
        ours = Tokenizer.from_folder(folder)
    assert all(ours.ids("the license of this work") == expected for _ in range(20))


@pytest.mark.parametrize("folder", KINDS, indirect=True)
def test_a_bos_other_than_the_models_is_warned_about(folder: Path) -> None:
    change(folder / "tokenizer_config.json", bos_token="<start_of_turn>")
    if (path := folder / "tokenizer.json").is_file():
        inner = tokenizers.Tokenizer.from_file(str(path))
        mark = ("<start_of_turn>", inner.token_to_id("<start_of_turn>"))
        inner.post_processor = tokenizers.processors.TemplateProcessing(single=f"{mark[0]} $A", special_tokens=[mark])
        inner.save(str(path))
    turn = Tokenizer.from_folder(folder).bos_id
    assert turn not in (1, 2)
    assert Tokenizer.from_folder(folder).ids("the end") == AutoTokenizer.from_pretrained(folder)("the end")["input_ids"]
    with pytest.warns(GemmascopeWarning, match=f"<bos> is '<start_of_turn>' .id {turn}. and .* bos_token_id 2"):
        gs.load(checkpoint("lg", vocab_size=700), tokenizer=folder)


def test_nano_loads_as_transformers_saves_it(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    theirs, words = AutoModelForCausalLM.from_pretrained(NANO), AutoTokenizer.from_pretrained(NANO)
    theirs.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    for model in (
        gs.load(theirs, tokenizer=words),
        gs.load(tmp_path),
        gs.load(theirs, tokenizer=AutoTokenizer.from_pretrained(tmp_path)),
    ):
        assert model.ids(P).tolist() == gs.load().ids(P).tolist()


@pytest.mark.parametrize("kind", ["object", "folder"])
def test_a_token_beyond_the_embedding_is_warned_about_and_refused_by_name(kind: str, tmp_path: Path) -> None:
    words = AutoTokenizer.from_pretrained(NANO)
    words.add_tokens(["[PAD]"], special_tokens=True)
    words.save_pretrained(tmp_path)
    with pytest.warns(GemmascopeWarning, match=r"'\[PAD\]' \(3623\) cannot be embedded"):
        model = gs.load(NANO, tokenizer=words if kind == "object" else tmp_path)
    assert model.ids(P).tolist() == gs.load().ids(P).tolist()
    for refused in (lambda: gs.trace(f"{P}[PAD]", model=model), lambda: model.tokenizer.single("[PAD]")):
        with pytest.raises(
            PromptError, match=r"knows '\[PAD\]' as id 3623, and the model has an embedding for the ids 0 to 3622"
        ):
            refused()


PARTS = [
    ([{"type": "text", "text": "hi"}], "hi"),
    ([{"type": "text", "text": "hi "}, {"type": "text", "text": "you"}], "hi you"),
    ({"type": "text", "text": "hi"}, "hi"),
    (["hi ", "you"], "hi you"),
    ([], ""),
]


@pytest.mark.parametrize(("content", "text"), PARTS)
def test_the_text_parts_of_a_message_are_joined(content: Any, text: str) -> None:
    tokenizer = gs.load().tokenizer
    assert tokenizer.ids([{"role": "user", "content": content}]) == tokenizer.ids([{"role": "user", "content": text}])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"type": "image", "url": "x.png"}], "given one of 'image'"),
        ([{"type": "text", "text": "a"}, {"type": "image_url"}], "given one of 'image_url'"),
        ([3], "given one of 3"),
        (None, "given None"),
        (b"hi", "given b'hi'"),
    ],
)
def test_parts_of_a_message_that_are_not_text_are_refused(content: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        gs.trace([{"role": "user", "content": content}])


@pytest.mark.parametrize("folder", KINDS, indirect=True)
def test_thousands_of_special_tokens_are_read(folder: Path) -> None:
    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.from_folder(folder)
    assert ours.ids("a<eos>" * 3000) == theirs("a<eos>" * 3000)["input_ids"]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "tokenizer_config.json", "added_tokens.json",
                                  "special_tokens_map.json"])  # fmt: skip
@pytest.mark.parametrize("instead", ["a folder", "a link to nothing", "a git-lfs pointer"])
def test_a_folder_link_or_pointer_in_place_of_a_tokenizers_file_is_refused(
    name: str, instead: str, tokenizer_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    checkpoint("lg", vocab_size=704).save_pretrained(folder)
    kind = name if name in KINDS else "tokenizer.json"
    for path in tokenizer_folders[kind].iterdir():
        shutil.copy(path, folder)
    (folder / name).unlink(missing_ok=True)
    if instead == "a folder":
        (folder / name).mkdir()
    elif instead == "a link to nothing":
        (folder / name).symlink_to("../../blobs/absent")
    else:
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    messages = {"a folder": "is a folder", "a link to nothing": "is a link to ", "a git-lfs pointer": "is a git-lfs pointer"}
    with pytest.raises(CheckpointError, match=f"{name} {messages[instead]}"):
        gs.load(folder)


def test_a_chat_template_is_found_beside_tokens_that_transformers_reads(
    tokenizer_folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(tokenizer_folders["tokenizer.model"], tmp_path / "it")
    in_settings(tmp_path / "it")
    (tmp_path / "it" / "chat_template.jinja").write_text(CHAT_TEMPLATE.replace("<start_of_turn>", "<|im_start|>"))
    messages = [{"role": "user", "content": "What is this?"}]
    theirs = AutoTokenizer.from_pretrained(tmp_path / "it")
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert Tokenizer.from_folder(tmp_path / "it").ids(messages) == expected
    assert expected.count(700) == 2

"""A tokenizer like Gemma's, but of 700 pieces: byte-pair pieces with byte fallback, no space added in front."""

from __future__ import annotations

import json
from pathlib import Path

import sentencepiece
from transformers import AutoTokenizer

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
TURNS = ("<start_of_turn>", "<end_of_turn>")

# Gemma's own template.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
# Texts that tokenizers like to get wrong.
TEXTS = [
    "hello world", " leading", "trailing ", "two  spaces   three", "line\nbreak\n\npara\n\n\n", "\ttab\r\n", "naïve café",
    "東京 🙂 e\u0301", "1234567", " ", "  ", "\n", "\x00", "\u200b\u200e", "﷽ Ⅷ ﬁ", "a" * 300, "x" + " " * 40 + "y",
    "<0x41>", "<mask>", "a<bos>b<eos>c", "<start_of_turn>user\nHi<end_of_turn>\n", "<unk>", "<pad>", "< bos>", "<BOS>",
    "▁", "a▁b",
]  # fmt: skip

_TEXT = (Path(__file__).parent.parent / "LICENSE").read_text(encoding="utf-8").splitlines()


def with_pieces(folder: Path) -> Path:
    """A folder with tokenizer.model and tokenizer_config.json."""
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*_TEXT, *["  indented    Mary, café 東京"] * 9]), model_prefix=str(folder / "tokenizer"),
        model_type="bpe", vocab_size=700, byte_fallback=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>",
        eos_piece="<eos>", bos_piece="<bos>", unk_piece="<unk>", user_defined_symbols=["<mask>", *TURNS, "\n", "\n\n"],
        add_dummy_prefix=False, remove_extra_whitespaces=False, normalization_rule_name="identity", split_digits=True,
        allow_whitespace_only_pieces=True, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    plain = {"special": True, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    settings = {
        "tokenizer_class": "GemmaTokenizer", "add_bos_token": True, "bos_token": "<bos>", "eos_token": "<eos>",
        "pad_token": "<pad>", "unk_token": "<unk>", "additional_special_tokens": list(TURNS),
        "added_tokens_decoder": {str(i): {"content": name, **plain} for i, name in enumerate(SPECIAL)},
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def with_json(folder: Path, pieces: Path) -> Path:
    """A folder with the same tokenizer as tokenizer.json, converted by transformers."""
    AutoTokenizer.from_pretrained(pieces).save_pretrained(folder)
    assert (folder / "tokenizer.json").is_file()
    (folder / "tokenizer.model").unlink(missing_ok=True)  # transformers 4 puts it beside
    return folder

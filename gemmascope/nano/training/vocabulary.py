"""Trains nano's tokenizer: byte-pair encoding in the style of Gemma's, on the words of the corpus.

A space is `▁`, digits are single tokens, and text that no merge covers falls back to bytes. Every word that is not very rare
in the corpus becomes one token, so that a prompt's tokens are its words.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from gemmascope.nano.training.corpus import texts
from gemmascope.prompts.words import NAMES

if TYPE_CHECKING:
    import tokenizers

SPECIAL: tuple[str, ...] = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
SAMPLE = 60_000  # texts in which words are counted
VOCABULARY_SIZE = 4096
# Merges do not cross these pieces: a word with its space, a word after a bracket, a mark with or without its space.
_PIECE = r"[▁]?\p{L}+|'s|\p{N}|[▁]?[^\p{L}\p{N}▁]|▁"
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n'"
    " + message['content'] | trim + '<end_of_turn>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


def train_tokenizer(seed: int) -> tokenizers.Tokenizer:
    """A `tokenizers.Tokenizer` for the corpus of this seed."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECE), "isolated")
    trainer = BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=[*map(chr, range(33, 127)), "▁", "\n"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_words(seed), trainer)
    # As in Gemma's file. From here on the merges keep words apart, because none of them crosses a space.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", SPECIAL.index("<bos>"))]
    )
    return _only_special(tokenizer)


def _words(seed: int) -> list[str]:
    """The words of the corpus, each often enough for all of them to become one token."""
    counted: Counter[str] = Counter()
    for text in islice(texts(seed), SAMPLE):
        plain = re.sub("<[a-z_]+>", "\n", text)  # turn marks are special tokens, not words
        counted.update(re.findall(r" ?[^\W\d_]+|'s| ?[^\w\s]|\n", plain))
    common = [word for word, count in counted.most_common() if count >= 5]
    return [word for word in dict.fromkeys([*common, *NAMES, *(f" {name}" for name in NAMES)]) for _ in range(3)]


def _only_special(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Make the byte tokens ordinary again: they were special for training, so that they got the first ids."""
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in SPECIAL]
    return type(tokenizer).from_str(json.dumps(content))


def save_tokenizer(tokenizer: tokenizers.Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": None,  # transformers 5 would otherwise add one, for which the model has no embedding
        "additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"],
        "chat_template": _CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "GemmaTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

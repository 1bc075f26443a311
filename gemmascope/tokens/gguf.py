"""A tokenizer from the metadata of a GGUF file: its tokens with their scores and types.

The file has Gemma's SentencePiece model: byte-pair encoding in which of two possible merges the one with the better score
comes first, and bytes for what is not in the vocabulary. That is rebuilt as a tokenizer of the tokenizers library.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from gemmascope.arguments import short_repr
from gemmascope.errors import CheckpointError
from gemmascope.tokens.backends import JsonBackend
from gemmascope.tokens.chats import Message
from gemmascope.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

_KEY = "tokenizer.ggml."
_SPACE = "▁"
# Control tokens that Gemma's tokenizer.json does not call special.
_UNUSED = re.compile(r"<unused[0-9]+>")
# The types of tokens in the file.
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a GGUF file in the order of their ids, with their scores and types."""

    tokens: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]


def tokenizer_of(metadata: Mapping[str, object], source: object) -> Tokenizer | None:
    """The tokenizer in the metadata of a GGUF file; None if it has none.

    Raises:
        CheckpointError: It is not of Gemma's kind, or its lists do not fit together.
    """
    vocabulary = _vocabulary(metadata, source)
    if vocabulary is None:
        return None
    try:
        backend = JsonBackend(_tokenizer(vocabulary, bos_of(metadata)), copied=True)
    except Exception as error:  # the library raises bare Exceptions
        raise CheckpointError(f"the tokenizer of {source} cannot be rebuilt: {error}") from error
    template = metadata.get("tokenizer.chat_template")
    chat = _Chat(template, *_ends(metadata)) if isinstance(template, str) else None
    return Tokenizer(backend, bos_of(metadata), chat)


def bos_of(metadata: Mapping[str, object]) -> int:
    """The id of `<bos>`."""
    bos = metadata.get(f"{_KEY}bos_token_id", 2)
    return bos if isinstance(bos, int) else 2


def _tokenizer(vocabulary: Vocabulary, bos: int) -> tokenizers.Tokenizer:
    """The tokenizer of the tokenizers library, as Gemma's own tokenizer.json describes it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokens = vocabulary.tokens
    special = [token for token, kind in zip(tokens, vocabulary.types, strict=True) if kind in (_UNKNOWN, _CONTROL)]
    unknown = next((token for token, kind in zip(tokens, vocabulary.types, strict=True) if kind == _UNKNOWN), None)
    inner = Tokenizer(models.BPE(
        vocab={token: i for i, token in enumerate(tokens)}, merges=merges_of(vocabulary), unk_token=unknown, fuse_unk=True,
        byte_fallback=True,
    ))  # fmt: skip
    inner.normalizer = normalizers.Replace(" ", _SPACE)
    inner.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    inner.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    inner.post_processor = processors.TemplateProcessing(f"{tokens[bos]} $A", None, [(tokens[bos], bos)])
    inner.add_special_tokens([AddedToken(token, normalized=False) for token in special if not _UNUSED.fullmatch(token)])
    plain = [token for token in special if _UNUSED.fullmatch(token)]
    plain += [token for token, kind in zip(tokens, vocabulary.types, strict=True) if kind == _USER_DEFINED]
    inner.add_tokens([AddedToken(token, normalized=False) for token in plain])
    return inner


def merges_of(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """The merges of byte-pair encoding that a vocabulary with scores stands for, the first to be done in front.

    A pair of tokens that together are a token merges; what has the better score merges first, and tokens that the model's
    makers defined before all others: their scores in the file mean nothing. Of equal scores the longer left part comes
    first.
    """
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    found: list[tuple[float, int, int, int, int, int]] = []
    for i, (token, score, kind) in enumerate(zip(vocabulary.tokens, vocabulary.scores, vocabulary.types, strict=True)):
        if kind in (_UNKNOWN, _CONTROL, _BYTE):
            continue
        rank = -math.inf if kind == _USER_DEFINED else -score
        for at in range(1, len(token)):
            left, right = ids.get(token[:at]), ids.get(token[at:])
            if left is not None and right is not None:
                found.append((rank, -at, at - len(token), i, left, right))
    found.sort()
    return [(vocabulary.tokens[left], vocabulary.tokens[right]) for *_, left, right in found]


def _vocabulary(metadata: Mapping[str, object], source: object) -> Vocabulary | None:
    tokens = metadata.get(f"{_KEY}tokens")
    if tokens is None:
        return None
    model = metadata.get(f"{_KEY}model")
    if model != "llama":
        raise CheckpointError(
            f"the tokenizer of {source} is of type {short_repr(model)}; Gemma's is 'llama', which stands for SentencePiece: "
            "give another one, tokenizer=folder"
        )
    scores, types = metadata.get(f"{_KEY}scores"), metadata.get(f"{_KEY}token_type")
    lists = (tokens, scores, types)
    if not all(isinstance(each, list) for each in lists) or len({len(each) for each in lists}) > 1:  # type: ignore[arg-type]
        raise CheckpointError(f"the tokenizer of {source} needs as many scores and types as tokens: the file is damaged")
    # Tokens that the model's makers defined, such as runs of spaces, stand there with spaces, the others with ▁.
    named = [token.replace(" ", _SPACE) for token in tokens]  # type: ignore[attr-defined]
    return Vocabulary(named, scores, types)  # type: ignore[arg-type]


def _ends(metadata: Mapping[str, object]) -> tuple[str, str]:
    """The texts of `<bos>` and `<eos>`, which chat templates write."""
    tokens = metadata[f"{_KEY}tokens"]
    assert isinstance(tokens, list)
    eos = metadata.get(f"{_KEY}eos_token_id", 1)
    return str(tokens[bos_of(metadata)]), str(tokens[eos if isinstance(eos, int) else 1])


@dataclass(frozen=True)
class _Chat:
    """Renders messages with the chat template of the file, in transformers' environment for templates."""

    template: str
    bos: str
    eos: str

    @cached_property
    def _tokenizer(self) -> object:
        import tokenizers
        from transformers import PreTrainedTokenizerFast

        empty = tokenizers.Tokenizer(tokenizers.models.BPE())
        return PreTrainedTokenizerFast(
            tokenizer_object=empty, bos_token=self.bos, eos_token=self.eos, chat_template=self.template
        )

    def __call__(self, messages: Sequence[Message]) -> str:
        from gemmascope.tokens.chats import chat_of

        return chat_of(self._tokenizer)(messages)  # type: ignore[arg-type]

"""Backends that encode and decode text: the tokenizers library for tokenizer.json, sentencepiece for tokenizer.model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gemmascope.errors import CheckpointError, PromptError, warn
from gemmascope.files.json_reader import refuse_pointer

if TYPE_CHECKING:
    import tokenizers

# How Gemma's tokenizer.json describes its treatment of text before splitting.
_SPACES = '{"type":"Replace","pattern":{"String":" "},"content":"▁"}'
_AT_SPACES = '{"type":"Split","pattern":{"String":" "},"behavior":"MergedWithPrevious","invert":false}'

# Parts of tokenizer.json that only add tokens around a text, or truncate it.
_AROUND = ("version", "truncation", "padding", "post_processor")


class Backend(Protocol):
    """What Tokenizer needs of a tokenizer library."""

    bos: int | None
    size: int

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...
    def piece(self, token_id: int) -> str: ...
    def is_special(self, token_id: int) -> bool: ...


class JsonBackend:
    """A tokenizer of the tokenizers library, such as tokenizer.json contains.

    Works on a copy without truncation and padding: a transformers tokenizer shares its own, and sets both on it when called.
    """

    def __init__(self, inner: tokenizers.Tokenizer, *, copied: bool = False) -> None:
        """copied: whether it is nobody else's. PromptError for a tokenizer with parts in Python, which cannot be copied."""
        self._inner = inner if copied else _copy(inner)
        self._added = self._inner.get_added_tokens_decoder()
        self._special = {i for i, token in self._added.items() if token.special}
        self.bos: int | None = self._inner.token_to_id("<bos>")
        self.size: int = self._inner.get_vocab_size(with_added_tokens=True)

    def __reduce__(self) -> tuple[Callable[[str, bool], JsonBackend], tuple[str, bool]]:
        return _from_pickle, (self._inner.to_str(), self._inner.encode_special_tokens)

    @classmethod
    def from_file(cls, path: Path) -> JsonBackend:
        """From tokenizer.json. CheckpointError if it cannot be read."""
        import tokenizers

        refuse_pointer(path)
        try:
            inner = tokenizers.Tokenizer.from_file(str(path))
        except BaseException as error:  # the library raises bare Exceptions, and Rust panics
            if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
                raise
            raise CheckpointError(f"{path} is not a tokenizer that can be read: {error}") from error
        return cls(inner)

    def encode(self, text: str) -> list[int]:
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        return str(self._inner.decode(ids, skip_special_tokens=False))

    def piece(self, token_id: int) -> str:
        piece = self._inner.id_to_token(token_id)
        return f"<id {token_id}>" if piece is None else _unspaced(piece)

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special

    def content(self) -> bytes:
        """Everything in the tokenizer that decides how a text is split, as bytes."""
        head, model, tail = str(self._inner.to_str()).partition(',"model":{')
        try:
            about = json.loads(head + "}")
        except ValueError:  # an unknown layout
            return (head + model + tail).encode()
        relevant = {name: value for name, value in about.items() if name not in _AROUND}
        if self.is_gemmas():  # their optional split at spaces makes no difference
            relevant.pop("pre_tokenizer", None)
        return (json.dumps(relevant, sort_keys=True) + model + tail).encode()

    def as_json(self) -> bytes:
        """The content of a tokenizer.json."""
        return str(self._inner.to_str()).encode()

    def id_of(self, name: str) -> int | None:
        """The id of a token by its name."""
        return self._inner.token_to_id(name)

    def matches(self, name: str, token_id: int | None, flags: dict[str, bool]) -> bool:
        """Whether an added token of another file is known, by its id (None: any) and flags."""
        known = self.id_of(name)
        token = self._added.get(-1 if known is None else known)
        if token is None or token_id not in (None, known):
            return False
        return all(getattr(token, flag) == value for flag, value in flags.items())

    def is_gemmas(self) -> bool:
        """Whether text is treated as Gemma's tokenizers treat it: BPE, with spaces as ▁."""
        normalizer, splitter = self._inner.normalizer, self._inner.pre_tokenizer
        return (
            type(self._inner.model).__name__ == "BPE"
            and normalizer is not None
            and normalizer.__getstate__().decode() == _SPACES
            and (splitter is None or splitter.__getstate__().decode() == _AT_SPACES)
        )

    def is_bpe(self) -> bool:
        return type(self._inner.model).__name__ == "BPE"

    def wrapping(self) -> tuple[list[int], list[int]]:
        """The ids that transformers adds before and after a text."""
        text = self.encode("a")
        wrapped = list(self._inner.encode("a", add_special_tokens=True).ids)
        start = next((i for i in range(len(wrapped) - len(text) + 1) if wrapped[i : i + len(text)] == text), 0)
        return wrapped[:start], wrapped[start + len(text) :]

    def has_wrapping_rule(self) -> bool:
        """Whether the tokenizer has a rule for what is added around a text; a bare one has none."""
        return self._inner.post_processor is not None

    def tokens_beyond(self, size: int) -> dict[str, int]:
        """The tokens whose ids an embedding of this size lacks, by name."""
        ids = {*range(size, self.size), *(i for i in self._added if i >= size)}
        return {self.piece(i): i for i in sorted(ids)}


def _from_pickle(content: str, encode_special: bool) -> JsonBackend:
    import tokenizers

    inner = tokenizers.Tokenizer.from_str(content)
    inner.encode_special_tokens = encode_special
    return JsonBackend(inner)


def _copy(inner: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A copy without truncation, padding and dropout."""
    import tokenizers

    try:
        copied = tokenizers.Tokenizer.from_str(inner.to_str())
    except Exception as error:
        raise PromptError(f"this tokenizer has parts in Python, which cannot be copied: {error}. Give its folder") from error
    copied.no_truncation()
    copied.no_padding()
    copied.encode_special_tokens = inner.encode_special_tokens  # not part of tokenizer.json: set by split_special_tokens=
    if getattr(copied.model, "dropout", None):
        warn("this tokenizer drops merges at random (dropout), which belongs to training: it is read without")
        copied.model.dropout = None
    return copied


class PieceBackend:
    """tokenizer.model, read by the sentencepiece library."""

    def __init__(self, path: Path) -> None:
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            message = f"{path.parent} has only tokenizer.model, which needs sentencepiece: pip install sentencepiece"
            raise CheckpointError(message) from error
        refuse_pointer(path)
        try:
            self._inner: Any = SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{path} is not a tokenizer that can be read: {error}") from error
        bos = self._inner.bos_id()
        self.bos: int | None = bos if bos >= 0 else None
        self.size: int = self._inner.vocab_size()
        # sentencepiece reads "<bos>" in a text as letters. We read it as the token, as tokenizer.json does.
        self._controls = {self._inner.id_to_piece(i): i for i in range(self.size) if self.is_special(i)}
        names = sorted(filter(None, self._controls), key=len, reverse=True)  # the longer of two that match wins
        self._split = re.compile(f"({'|'.join(map(re.escape, names))})") if names else None

    def encode(self, text: str) -> list[int]:
        parts = [text] if self._split is None else self._split.split(text)
        ids: list[int] = []
        for part in filter(None, parts):
            control = self._controls.get(part)
            ids += self._inner.encode(part) if control is None else [control]
        return ids

    def decode(self, ids: list[int]) -> str:
        parts: list[str] = []
        run: list[int] = []
        for token_id in [*ids, -1]:
            if 0 <= token_id < self.size and not self.is_special(token_id):
                run.append(token_id)
                continue
            parts.append(str(self._inner.decode(run)) if run else "")
            run = []
            parts.append("" if token_id < 0 else self.piece(token_id))
        return "".join(parts)

    def piece(self, token_id: int) -> str:
        return _unspaced(self._inner.id_to_piece(token_id)) if token_id < self.size else f"<id {token_id}>"

    def is_special(self, token_id: int) -> bool:
        return token_id < self.size and bool(self._inner.is_control(token_id) or self._inner.is_unknown(token_id))

    def content(self) -> bytes:
        """Everything in the tokenizer that decides how a text is split, as bytes."""
        return bytes(self._inner.serialized_model_proto())

    def id_of(self, name: str) -> int | None:
        """The id of a token by its name."""
        token_id = int(self._inner.piece_to_id(name))
        return token_id if self._inner.id_to_piece(token_id) == name else None

    def matches(self, name: str, token_id: int | None, flags: dict[str, bool]) -> bool:
        """Whether an added token of another file is known, by its id (None: any) and flags."""
        known = self.id_of(name)
        if known is None or token_id not in (None, known) or any(map(flags.get, ("lstrip", "rstrip", "single_word"))):
            return False
        return name in self._controls or self._inner.encode(f"a{name}a")[1:-1] == [known]

    def is_gemmas(self) -> bool:
        """Whether text is treated as Gemma's tokenizers treat it: unchanged, without a leading space."""
        text = "  a  ﬁ "
        return bool(self._inner.decode(self._inner.encode(text)) == text)


def _unspaced(piece: str) -> str:
    return piece.replace("▁", " ")

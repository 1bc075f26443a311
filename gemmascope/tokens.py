"""Text to token ids and back, the BOS rule, and how a token is shown: all in one place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from gemmascope.errors import CheckpointError, PromptError

Message = Mapping[str, str]

# One table, for Python and for the widgets' module: what a character is drawn as.
SHOWN_AS = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍", "\u200b": "␣", "\u200e": "⟨lrm⟩", "\u200f": "⟨rlm⟩"}


class Backend(Protocol):
    """What a tokenizer library must answer."""

    bos: int | None
    size: int

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...
    def piece(self, token_id: int) -> str: ...
    def is_special(self, token_id: int) -> bool: ...


class Tokenizer:
    """Gemma's tokenizer: text <-> ids, with <bos> always in front of a text.

    chat: renders a list of messages to text, for instruction-tuned checkpoints; None where there is no template.
    """

    def __init__(self, backend: Backend, bos_id: int, chat: Callable[[Sequence[Message]], str] | None = None) -> None:
        self.backend, self.bos_id, self._chat = backend, bos_id, chat

    @classmethod
    def from_folder(cls, folder: str | Path, bos_id: int = 2) -> Tokenizer:
        """From a checkpoint folder with tokenizer.json (read by tokenizers) or tokenizer.model (by sentencepiece)."""
        folder = Path(folder)
        backend: Backend
        if (folder / "tokenizer.json").is_file():
            backend = JsonBackend.from_file(folder / "tokenizer.json")
        elif (folder / "tokenizer.model").is_file():
            backend = PieceBackend(folder / "tokenizer.model")
        else:
            raise CheckpointError(f"no tokenizer in {folder}: neither tokenizer.json nor tokenizer.model is there")
        return cls(backend, bos_id if backend.bos is None else backend.bos, _chat_of_folder(folder))

    @classmethod
    def from_transformers(cls, tokenizer: Any, bos_id: int = 2) -> Tokenizer:
        """From a fast tokenizer of transformers. PromptError for one without a fast backend."""
        inner = getattr(tokenizer, "backend_tokenizer", None)
        if inner is None:
            raise PromptError(f"a fast tokenizer of transformers is needed; given {type(tokenizer).__name__}")
        chat = _chat_of(tokenizer) if getattr(tokenizer, "chat_template", None) else None
        return cls(JsonBackend(inner), bos_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id, chat)

    @property
    def vocab_size(self) -> int:
        return self.backend.size

    def encode(self, text: str) -> list[int]:
        """The ids of a text as they stand: no <bos> is added. PromptError for a text that is no valid Unicode."""
        try:
            text.encode()
        except UnicodeEncodeError as error:  # json.loads and os.listdir make such texts
            half = text[error.start]
            raise PromptError(
                f"the text holds half a character, {half!r}, at {error.start}: it cannot be encoded"
            ) from error
        return self.backend.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these ids, special tokens included."""
        return self.backend.decode([int(i) for i in ids])

    def ids(self, prompt: str | Sequence[Message]) -> list[int]:
        """The ids of a prompt, <bos> in front unless the prompt already begins with it. PromptError for an empty one."""
        if not isinstance(prompt, str):
            return self.ids(self.chat(prompt))
        ids = self.encode(prompt)
        if not ids:
            raise PromptError("the prompt is empty: give at least one character of text")
        return ids if ids[0] == self.bos_id else [self.bos_id, *ids]

    def chat(self, messages: Sequence[Message]) -> str:
        """The text of a conversation, by the checkpoint's chat template, up to where the model is to answer."""
        if self._chat is None:
            raise PromptError(
                "this checkpoint has no chat template, so messages have no text: "
                "give the prompt as text, or load an instruction-tuned checkpoint"
            )
        for message in messages:
            if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
                raise PromptError(f"a message is {{'role': 'user', 'content': 'text'}}; given {message!r}")
        try:
            return self._chat(messages)
        except Exception as error:  # templates raise whatever they like, and jinja its own
            raise PromptError(f"the checkpoint's chat template refused the messages: {error}") from error

    def single(self, text: str) -> int:
        """The id of a text that is exactly one token, such as an answer. PromptError otherwise, with what it splits into."""
        ids = self.encode(text)
        if len(ids) == 1:
            return ids[0]
        if not ids:
            raise PromptError("an answer is one token; given an empty text")
        other = text[1:] if text.startswith(" ") else " " + text
        hint = f"; {other!r} is one token: was that meant?" if len(self.encode(other)) == 1 else ""
        raise PromptError(f"an answer is one token; {text!r} is {len(ids)}: {self.texts(ids)}{hint}")

    def text(self, token_id: int) -> str:
        """A token as text: ' Mary', '<bos>', '<0xE2>' for a lone byte."""
        return self.backend.piece(token_id)

    def texts(self, ids: Iterable[int]) -> list[str]:
        """Each token as text."""
        return [self.text(int(i)) for i in ids]

    def shown(self, ids: Iterable[int]) -> list[str]:
        """Each token as it is drawn: '·Mary', '⏎', '<0xE2>'. Text, never HTML: escape it where HTML is written."""
        return [shown(self.text(int(i))) for i in ids]

    def is_special(self, token_id: int) -> bool:
        """Whether the id is a control token such as <bos>, rather than text."""
        return self.backend.is_special(token_id)


def shown(text: str) -> str:
    """A token's text with every character visible: a space as ·, a newline as ⏎."""
    return "".join(SHOWN_AS.get(char, char) for char in text)


class JsonBackend:
    """tokenizer.json, read by the tokenizers library."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._special = {i for i, token in inner.get_added_tokens_decoder().items() if token.special}
        self.bos: int | None = inner.token_to_id("<bos>")
        self.size: int = inner.get_vocab_size(with_added_tokens=True)

    @classmethod
    def from_file(cls, path: Path) -> JsonBackend:
        import tokenizers

        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{path} is not a tokenizer that can be read: {error}") from error

    def encode(self, text: str) -> list[int]:
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        return str(self._inner.decode(ids, skip_special_tokens=False))

    def piece(self, token_id: int) -> str:
        piece = self._inner.id_to_token(token_id)
        return f"<id {token_id}>" if piece is None else _unspaced(piece)

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special


class PieceBackend:
    """tokenizer.model, read by the sentencepiece library."""

    def __init__(self, path: Path) -> None:
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            message = f"{path.parent} has only tokenizer.model, which needs sentencepiece: pip install sentencepiece"
            raise CheckpointError(message) from error
        try:
            self._inner: Any = SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{path} is not a tokenizer that can be read: {error}") from error
        bos = self._inner.bos_id()
        self.bos: int | None = bos if bos >= 0 else None
        self.size: int = self._inner.vocab_size()
        # sentencepiece reads "<bos>" in a text as letters; tokenizer.json reads it as the token. The latter is the rule.
        self._controls = {self._inner.id_to_piece(i): i for i in range(self.size) if self.is_special(i)}

    def encode(self, text: str) -> list[int]:
        for name, token_id in self._controls.items():
            if name and name in text:
                before, after = text.split(name, 1)
                return [*self.encode(before), token_id, *self.encode(after)]
        return list(self._inner.encode(text))

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


def _unspaced(piece: str) -> str:
    return piece.replace("▁", " ")


def _chat_of_folder(folder: Path) -> Callable[[Sequence[Message]], str] | None:
    if not _has_template(folder):
        return None

    @cache
    def loaded() -> Callable[[Sequence[Message]], str]:
        from transformers import AutoTokenizer

        return _chat_of(AutoTokenizer.from_pretrained(folder))

    return lambda messages: loaded()(messages)


def _has_template(folder: Path) -> bool:
    settings = folder / "tokenizer_config.json"
    if (folder / "chat_template.jinja").is_file() or not settings.is_file():
        return (folder / "chat_template.jinja").is_file()
    try:
        return bool(json.loads(settings.read_text(encoding="utf-8")).get("chat_template"))
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{settings} cannot be read as a JSON object: {error}") from error


def _chat_of(tokenizer: Any) -> Callable[[Sequence[Message]], str]:
    def render(messages: Sequence[Message]) -> str:
        to_answer = messages[-1]["role"] not in ("assistant", "model")
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=to_answer))

    return render

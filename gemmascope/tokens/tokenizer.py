"""Tokenizer: text to token ids and back, with `<bos>` in front, and how a token is displayed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path

from gemmascope.errors import CheckpointError, PromptError
from gemmascope.tokens.backends import Backend, JsonBackend
from gemmascope.tokens.chats import Message, Render, chat_of, chat_of_folder, plain_messages
from gemmascope.tokens.folder import has_tokenizer, read_tokenizer, settings_of, warn_of_wrapping

__all__ = ["SHOWN_AS", "Message", "Tokenizer", "visible_text"]

# How invisible characters are displayed, in Python and in the widgets.
SHOWN_AS = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍", "\u200b": "␣", "\u200e": "⟨lrm⟩", "\u200f": "⟨rlm⟩"}

# Tokens that stand for an image, and around one, in the tokenizers of multimodal Gemmas.
IMAGE_TOKENS = ("<start_of_image>", "<image_soft_token>", "<end_of_image>")


class Tokenizer:
    """Gemma's tokenizer: text <-> ids, always with `<bos>` in front of a text.

    chat: renders a list of messages to text, for instruction-tuned checkpoints; None without a chat template.
    """

    def __init__(self, backend: Backend, bos_id: int, chat: Render | None = None) -> None:
        self.backend, self.bos_id, self._chat = backend, bos_id, chat
        self._embedded: int | None = None

    @classmethod
    def from_folder(cls, folder: str | Path, bos_id: int = 2) -> Tokenizer:
        """From a checkpoint folder with tokenizer.json (read by tokenizers) or tokenizer.model (by sentencepiece).

        Includes tokens that only tokenizer_config.json, added_tokens.json or special_tokens_map.json names, as transformers
        does. bos_id: the id of `<bos>` if no file states it.
        """
        folder = Path(folder)
        if not has_tokenizer(folder):
            raise CheckpointError(f"no tokenizer in {folder}: neither tokenizer.json nor tokenizer.model is there")
        settings = settings_of(folder)
        backend, bos = read_tokenizer(folder, settings)
        tokenizer = cls(backend, bos_id if bos is None else bos, chat_of_folder(folder, settings))
        tokenizer._check_wrapping(folder)
        return tokenizer

    @classmethod
    def from_transformers(cls, tokenizer: object, bos_id: int = 2) -> Tokenizer:
        """From a fast transformers tokenizer, which is copied. PromptError for one without a fast backend."""
        inside = getattr(tokenizer, "tokenizer", None)  # of a processor, which wraps a tokenizer
        if not hasattr(tokenizer, "backend_tokenizer") and hasattr(inside, "backend_tokenizer"):
            tokenizer = inside
        inner = getattr(tokenizer, "backend_tokenizer", None)
        if inner is None:
            do = (
                ": save it with save_pretrained(folder), and give the folder"
                if hasattr(tokenizer, "save_pretrained")
                else ""
            )
            raise PromptError(f"a fast tokenizer of transformers is needed; given {type(tokenizer).__name__}{do}")
        chat = chat_of(tokenizer) if getattr(tokenizer, "chat_template", None) else None  # type: ignore[arg-type]
        bos = getattr(tokenizer, "bos_token_id", None)
        copied = cls(JsonBackend(inner), bos_id if bos is None else bos, chat)
        copied._check_wrapping(type(tokenizer).__name__)
        return copied

    def _check_wrapping(self, source: object) -> None:
        """Take the one token that transformers adds before a text as `<bos>`. Warn if it adds anything else."""
        if not isinstance(self.backend, JsonBackend):
            return
        front, behind = self.backend.wrapping()
        if len(front) == 1:  # overrides what other files call <bos>
            self.bos_id = front[0]
        places = ((front if front != [self.bos_id] else [], "in front of"), (behind, "behind"))
        added = [f"{''.join(self.texts(ids))!r} {place}" for ids, place in places if ids]
        if added:
            warn_of_wrapping(source, " and ".join(added), None)
        elif not front and self.backend.has_wrapping_rule():
            warn_of_wrapping(source, "no <bos> in front of", "give token ids to go without")

    def as_json(self) -> bytes:
        """The content of a tokenizer.json. Only of a tokenizer of the tokenizers library."""
        assert isinstance(self.backend, JsonBackend)
        return self.backend.as_json()

    @property
    def vocab_size(self) -> int:
        return self.backend.size

    @cached_property
    def image_tokens(self) -> dict[str, int]:
        """The tokens of this tokenizer that stand for an image or around one, by name; a Gemma 2's has none."""
        id_of = getattr(self.backend, "id_of", None)
        ids = {name: id_of(name) for name in IMAGE_TOKENS} if id_of else {}
        return {name: token_id for name, token_id in ids.items() if token_id is not None}

    @cached_property
    def digest(self) -> str:
        """A digest of everything that decides how a text is split."""
        content = getattr(self.backend, "content", None)
        pieces = content() if content else repr([self.backend.piece(i) for i in range(self.vocab_size)]).encode()
        return hashlib.sha256(f"{self.bos_id} ".encode() + pieces).hexdigest()

    def tokens_beyond(self, size: int) -> dict[str, int]:
        """The tokens, by name, whose ids an embedding of this size lacks."""
        if isinstance(self.backend, JsonBackend):
            return self.backend.tokens_beyond(size)
        return {self.text(i): i for i in range(size, self.vocab_size)}

    def limited_to(self, size: int) -> Tokenizer:
        """This tokenizer for a model whose embedding has this size: it refuses tokens beyond it."""
        limited = copy(self)
        limited._embedded = size
        return limited

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without `<bos>`. PromptError for a text that is not valid Unicode."""
        try:
            text.encode()
        except UnicodeEncodeError as error:  # json.loads and os.listdir can return such texts
            half = text[error.start]
            raise PromptError(
                f"the text holds half a character, {half!r}, at {error.start}: it cannot be encoded"
            ) from error
        return self.backend.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these ids, special tokens included."""
        return self.backend.decode([int(i) for i in ids])

    def ids(self, prompt: str | Sequence[Message]) -> list[int]:
        """The ids of a prompt, `<bos>` in front unless the prompt already begins with it. PromptError for an empty one."""
        if not isinstance(prompt, str):
            return self.ids(self.chat(prompt))
        ids = self.encode(prompt)
        if not ids:
            raise PromptError("the prompt is empty: give at least one character of text")
        self._require_embedded(ids)
        return ids if ids[0] == self.bos_id else [self.bos_id, *ids]

    def _require_embedded(self, ids: Sequence[int]) -> None:
        """PromptError for a token that the model has no embedding for."""
        if self._embedded is not None and (outside := [i for i in ids if i >= self._embedded]):
            raise PromptError(
                f"the tokenizer knows {self.text(outside[0])!r} as id {outside[0]}, and the model has an embedding for the "
                f"ids 0 to {self._embedded - 1} only: leave it out, or load a model whose embedding was resized for it"
            )

    def chat(self, messages: Sequence[Message]) -> str:
        """The text of a conversation by the checkpoint's chat template, up to where the model answers."""
        if self._chat is None:
            raise PromptError(
                "this checkpoint has no chat template, so messages have no text: "
                "give the prompt as text, or load an instruction-tuned checkpoint"
            )
        plain = plain_messages(messages)
        try:
            return self._chat(plain)
        except Exception as error:  # templates and jinja raise all kinds
            raise PromptError(f"the checkpoint's chat template refused the messages: {error}") from error

    def single(self, text: str) -> int:
        """The id of a text that is exactly one token, such as an answer. PromptError otherwise, with its tokens."""
        ids = self.encode(text)
        if len(ids) == 1:
            self._require_embedded(ids)
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

    def visible_texts(self, ids: Iterable[int]) -> list[str]:
        """Each token as it is displayed: '·Mary', '⏎', '<0xE2>'. Plain text: escape it for HTML."""
        return [visible_text(self.text(int(i))) for i in ids]

    def is_special(self, token_id: int) -> bool:
        """Whether the id is a control token such as `<bos>`, rather than text."""
        return self.backend.is_special(token_id)


def visible_text(text: str) -> str:
    """A token's text with every character visible: a space as ·, a newline as ⏎."""
    return "".join(SHOWN_AS.get(char, char) for char in text)

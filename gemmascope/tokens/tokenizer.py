"""Text to token ids and back, the BOS rule, and how a token is shown: all in one place."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

from gemmascope.errors import CheckpointError, PromptError
from gemmascope.tokens.backends import Backend, JsonBackend
from gemmascope.tokens.chats import Message, Render, chat_of, chat_of_folder, plain_messages
from gemmascope.tokens.folder import has_tokenizer, read_tokenizer, settings_of, warn_of_wrapping

__all__ = ["SHOWN_AS", "Message", "Tokenizer", "shown"]

# One table, for Python and for the widgets' module: what a character is drawn as.
SHOWN_AS = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍", "\u200b": "␣", "\u200e": "⟨lrm⟩", "\u200f": "⟨rlm⟩"}


class Tokenizer:
    """Gemma's tokenizer: text <-> ids, with <bos> always in front of a text.

    chat: renders a list of messages to text, for instruction-tuned checkpoints; None where there is no template.
    """

    def __init__(self, backend: Backend, bos_id: int, chat: Render | None = None) -> None:
        self.backend, self.bos_id, self._chat = backend, bos_id, chat
        self._embedded: int | None = None

    @classmethod
    def from_folder(cls, folder: str | Path, bos_id: int = 2) -> Tokenizer:
        """From a checkpoint folder with tokenizer.json (read by tokenizers) or tokenizer.model (by sentencepiece).

        Tokens that only tokenizer_config.json, added_tokens.json or special_tokens_map.json names count, as they do in
        transformers. bos_id: of <bos>, if no file says it.
        """
        folder = Path(folder)
        if not has_tokenizer(folder):
            raise CheckpointError(f"no tokenizer in {folder}: neither tokenizer.json nor tokenizer.model is there")
        settings = settings_of(folder)
        backend, bos = read_tokenizer(folder, settings)
        made = cls(backend, bos_id if bos is None else bos, chat_of_folder(folder, settings))
        made._look_around(folder)
        return made

    @classmethod
    def from_transformers(cls, tokenizer: Any, bos_id: int = 2) -> Tokenizer:
        """From a fast tokenizer of transformers, which is copied: later calls of it change nothing here.

        Raises PromptError for one without a fast backend.
        """
        inside = getattr(tokenizer, "tokenizer", None)  # of a processor, which is a tokenizer and more
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
        chat = chat_of(tokenizer) if getattr(tokenizer, "chat_template", None) else None
        made = cls(JsonBackend(inner), bos_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id, chat)
        made._look_around(type(tokenizer).__name__)
        return made

    def _look_around(self, where: object) -> None:
        """Find what a call of transformers puts in front of a text: <bos>. Warn if it puts anything else around it."""
        if not isinstance(self.backend, JsonBackend):
            return
        front, behind = self.backend.around()
        if len(front) == 1:  # what a call puts there counts, whatever other files call <bos>
            self.bos_id = front[0]
        places = ((front if front != [self.bos_id] else [], "in front of"), (behind, "behind"))
        said = [f"{''.join(self.texts(ids))!r} {place}" for ids, place in places if ids]
        if said:
            warn_of_wrapping(where, " and ".join(said), None)
        elif not front and self.backend.has_rule():
            warn_of_wrapping(where, "no <bos> in front of", "give token ids to go without")

    @property
    def vocab_size(self) -> int:
        return self.backend.size

    @cached_property
    def digest(self) -> str:
        """A digest of all that decides how a text is split, which tells tokenizers apart."""
        content = getattr(self.backend, "content", None)
        pieces = content() if content else repr([self.backend.piece(i) for i in range(self.vocab_size)]).encode()
        return hashlib.sha256(f"{self.bos_id} ".encode() + pieces).hexdigest()

    def beyond(self, size: int) -> dict[str, int]:
        """The tokens, by name, whose ids an embedding of this size does not have."""
        if isinstance(self.backend, JsonBackend):
            return self.backend.beyond(size)
        return {self.text(i): i for i in range(size, self.vocab_size)}

    def within(self, size: int) -> Tokenizer:
        """This tokenizer for a model whose embedding has this size: prompts and answers beyond it are refused."""
        made = copy(self)
        made._embedded = size
        return made

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
        self._require_embedded(ids)
        return ids if ids[0] == self.bos_id else [self.bos_id, *ids]

    def _require_embedded(self, ids: Sequence[int]) -> None:
        """PromptError for a token that the model has no embedding for, by its name."""
        if self._embedded is not None and (outside := [i for i in ids if i >= self._embedded]):
            raise PromptError(
                f"the tokenizer knows {self.text(outside[0])!r} as id {outside[0]}, and the model has an embedding for the "
                f"ids 0 to {self._embedded - 1} only: leave it out, or load a model whose embedding was resized for it"
            )

    def chat(self, messages: Sequence[Message]) -> str:
        """The text of a conversation, by the checkpoint's chat template, up to where the model is to answer."""
        if self._chat is None:
            raise PromptError(
                "this checkpoint has no chat template, so messages have no text: "
                "give the prompt as text, or load an instruction-tuned checkpoint"
            )
        plain = plain_messages(messages)
        try:
            return self._chat(plain)
        except Exception as error:  # templates raise whatever they like, and jinja its own
            raise PromptError(f"the checkpoint's chat template refused the messages: {error}") from error

    def single(self, text: str) -> int:
        """The id of a text that is exactly one token, such as an answer. PromptError otherwise, with what it splits into."""
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

    def shown(self, ids: Iterable[int]) -> list[str]:
        """Each token as it is drawn: '·Mary', '⏎', '<0xE2>'. Text, never HTML: escape it where HTML is written."""
        return [shown(self.text(int(i))) for i in ids]

    def is_special(self, token_id: int) -> bool:
        """Whether the id is a control token such as <bos>, rather than text."""
        return self.backend.is_special(token_id)


def shown(text: str) -> str:
    """A token's text with every character visible: a space as ·, a newline as ⏎."""
    return "".join(SHOWN_AS.get(char, char) for char in text)

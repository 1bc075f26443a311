"""Renders chat messages to text with a checkpoint's template, by transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from gemmascope.arguments import short_repr
from gemmascope.errors import PromptError
from gemmascope.files.json_reader import is_regular_file, refuse_pointer

# {"role": ..., "content": ...}; the content is text, or a list of parts {"type": "text", "text": ...}.
Message = Mapping[str, Any]
Render = Callable[[Sequence[Message]], str]


def chat_of_folder(folder: Path, settings: Mapping[str, object]) -> Render | None:
    """The chat template of a folder, given its tokenizer_config.json; None if it has none."""
    written = folder / "chat_template.jinja"
    if not (is_regular_file(written) or settings.get("chat_template")):
        return None
    if is_regular_file(written):
        refuse_pointer(written)

    return _OfFolder(folder)


class ChatTokenizer(Protocol):
    """A tokenizer of transformers that has a chat template."""

    def apply_chat_template(self, conversation: list[Message], *, tokenize: bool, add_generation_prompt: bool) -> object: ...


def chat_of(tokenizer: ChatTokenizer) -> Render:
    """The chat template of a transformers tokenizer."""
    return _OfTokenizer(tokenizer)


# Classes, not closures, so that a Tokenizer can be pickled.


@dataclass(frozen=True)
class _OfTokenizer:
    tokenizer: ChatTokenizer

    def __call__(self, messages: Sequence[Message]) -> str:
        to_answer = messages[-1]["role"] not in ("assistant", "model")
        return str(self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=to_answer))


@dataclass(frozen=True)
class _OfFolder:
    folder: Path

    @cached_property
    def _loaded(self) -> Render:
        from transformers import AutoTokenizer

        return chat_of(AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False, local_files_only=True))

    def __call__(self, messages: Sequence[Message]) -> str:
        return self._loaded(messages)


def plain_messages(messages: Sequence[Message]) -> list[Message]:
    """Messages with their text parts joined. PromptError for anything else, such as an image."""
    return [_plain(message) for message in messages]


def _plain(message: object) -> Message:
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
        raise PromptError(f"a message is {{'role': 'user', 'content': 'text'}}; given {short_repr(message)}")
    if not isinstance(message["role"], str):
        raise PromptError(f"the role of a message is text, such as 'user'; given {short_repr(message['role'])}")
    content = message["content"]
    if isinstance(content, Mapping):  # a single part
        content = [content]
    if isinstance(content, (list, tuple)):
        content = "".join(map(_text_of, content))
    if not isinstance(content, str):
        raise PromptError(f"the content of a message is text, or a list of text parts; given {short_repr(content)}")
    return {**message, "content": content}


def _text_of(part: object) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if isinstance(part, Mapping):
        kind = repr(part.get("type"))
    else:  # an array of pixels would fill the screen
        kind = f"type {type(part).__name__}" if hasattr(part, "__array__") else short_repr(part)
    is_text = kind in ("'text'", "None")
    alone = "" if is_text else ". The text model runs alone here, also of a multimodal Gemma: leave it out"
    raise PromptError(
        f"Gemma 2 reads text: a part of a message is {{'type': 'text', 'text': ...}}; given one of {kind}{alone}"
    )

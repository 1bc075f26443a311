"""Chat messages as text, by a checkpoint's own template, which transformers renders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gemmascope.errors import PromptError
from gemmascope.files.json_reader import is_regular_file, refuse_pointer

# A message: who speaks, and what; the content is text, or parts of which each is {"type": "text", "text": ...}.
Message = Mapping[str, Any]
Render = Callable[[Sequence[Message]], str]


def chat_of_folder(folder: Path, settings: Mapping[str, Any]) -> Render | None:
    """The template of a folder, given its tokenizer_config.json; None where there is none."""
    written = folder / "chat_template.jinja"
    if not (is_regular_file(written) or settings.get("chat_template")):
        return None
    if is_regular_file(written):
        refuse_pointer(written)

    return _OfFolder(folder)


def chat_of(tokenizer: Any) -> Render:
    """The template of a tokenizer of transformers."""
    return _OfTokenizer(tokenizer)


# Objects and no functions inside functions, so that a tokenizer can be pickled.


@dataclass(frozen=True)
class _OfTokenizer:
    tokenizer: Any

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


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages whose content is text: parts are joined. PromptError for what is no message, and for images and the like."""
    return [_plain(message) for message in messages]


def _plain(message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
        raise PromptError(f"a message is {{'role': 'user', 'content': 'text'}}; given {_shown(message)}")
    if not isinstance(message["role"], str):
        raise PromptError(f"the role of a message is text, such as 'user'; given {_shown(message['role'])}")
    content = message["content"]
    if isinstance(content, Mapping):  # one part alone
        content = [content]
    if isinstance(content, (list, tuple)):
        content = "".join(map(_text_of, content))
    if not isinstance(content, str):
        raise PromptError(f"the content of a message is text, or a list of text parts; given {_shown(content)}")
    return {**message, "content": content}


def _text_of(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = f"{part.get('type')!r}" if isinstance(part, Mapping) else _shown(part)
    raise PromptError(f"Gemma 2 reads text: a part of a message is {{'type': 'text', 'text': ...}}; given one of {kind}")


def _shown(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= 80 else f"{text[:77]}..."

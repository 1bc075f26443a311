"""What is typed for a setting: read as the setting that it is, and settings as they are typed."""

from __future__ import annotations

import ast

from gemmascope.edits.call_text import plain
from gemmascope.errors import PromptError
from gemmascope.model.model import Model


def read_typed(text: str, present: object, model: Model, *, is_optional: bool = False) -> object:
    """The setting that was typed: a text, or token ids where the present one holds ids or the model has no tokenizer.

    is_optional: whether an empty text means None. PromptError for ids that cannot be read.
    """
    if not text and is_optional:
        return None
    if (present is None or isinstance(present, str)) and model.has_tokenizer:
        return text
    try:
        value: object = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        if model.has_tokenizer:
            return text
        raise PromptError(f"{model.name!r} has no tokenizer: write token ids, such as [2, 5, 9]") from error
    return value


def as_typed(setting: object) -> str:
    """A setting as it is typed: a text as it is, token ids as Python, "" for None."""
    return setting if isinstance(setting, str) else "" if setting is None else repr(plain(setting))

"""JavaScript as tokens, for what makes it shorter: white space, comments, words, strings, and templates in parts."""

from __future__ import annotations

import re
from typing import NamedTuple

_TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<comment>//[^\n]*|/\*.*?\*/)|(?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')"""
    r"""|(?P<regex>/(?:[^/\\\[\n]|\\.|\[(?:[^\]\\\n]|\\.)*\])+/[a-z]*)|(?P<word>[\w$]+)|(?P<other>.)""",
    re.DOTALL,
)
_TEMPLATE = re.compile(r"(?:[^`\\$]|\\.|\$(?!\{))*(?:`|\$\{|\Z)", re.DOTALL)
# Where a slash begins a regular expression: after none of these it divides.
_ENDS_VALUE = re.compile(r"[\w$)\]}\"'`]\Z")
_KEYWORD = re.compile(r"(?<![\w$.])(?:return|typeof|case|in|of|delete|void|throw|new|else|do|instanceof|yield|await)\Z")


class Token(NamedTuple):
    """kind: "space", "comment", "string", "regex", "word", "other" (one character), or "template": a part of one.

    The parts of a template begin with its backtick or with the brace that closes a value in it, and end with the brace that
    opens the next value or with its backtick.
    """

    kind: str
    text: str


def tokens_of(text: str) -> list[Token]:
    """A program as tokens, which joined are the program."""
    tokens: list[Token] = []
    last = ""  # the end of the program so far, without comments and with one space for many
    open_braces = [0]  # of the program and of each value of a template that is open
    at = 0
    while at < len(text):
        token, at = _token_at(text, at, last, closes_value=len(open_braces) > 1 and open_braces[-1] == 0)
        tokens.append(token)
        if token.kind == "template":
            open_braces = _after_part(open_braces, token.text)
        elif token.kind == "other" and token.text in "{}":
            open_braces[-1] += 1 if token.text == "{" else -1
        last = (last[-16:] + (" " if token.kind in ("space", "comment") else token.text))[-16:]
    return tokens


def _token_at(text: str, at: int, last: str, *, closes_value: bool) -> tuple[Token, int]:
    """The token at a place, and where it ends. closes_value: whether a closing brace goes on with a template."""
    if text[at] == "`" or (text[at] == "}" and closes_value):
        part = _TEMPLATE.match(text, at + 1)
        assert part is not None
        return Token("template", text[at : part.end()]), part.end()
    match = _TOKEN.match(text, at)
    assert match is not None
    kind, token = str(match.lastgroup), match[0]
    written = last.rstrip(" ")
    if kind == "regex" and _ENDS_VALUE.search(written) and not _KEYWORD.search(written):
        kind, token = "other", "/"
    return Token(kind, token), at + len(token)


def _after_part(open_braces: list[int], part: str) -> list[int]:
    """The braces that are open after a part of a template."""
    outside = open_braces if part[0] == "`" else open_braces[:-1]
    return [*outside, 0] if part.endswith("${") else outside

"""JavaScript without comments and needless white space. Strings, templates and regular expressions stay as they are."""

from __future__ import annotations

import re

_TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<comment>//[^\n]*|/\*.*?\*/)|(?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')"""
    r"""|(?P<regex>/(?:[^/\\\[\n]|\\.|\[(?:[^\]\\\n]|\\.)*\])+/[a-z]*)|(?P<word>[\w$]+)|(?P<other>.)""",
    re.DOTALL,
)
_TEMPLATE = re.compile(r"(?:[^`\\$]|\\.|\$(?!\{))*", re.DOTALL)
# Where a slash begins a regular expression: after none of these it divides.
_ENDS_VALUE = re.compile(r"[\w$)\]}\"'`]\Z")
_KEYWORD = re.compile(r"(?<![\w$.])(?:return|typeof|case|in|of|delete|void|throw|new|else|do|instanceof|yield|await)\Z")
# A statement cannot end before or after these, so a line break beside them says nothing.
_OPENS, _CLOSES = frozenset("{([,:?=&|<>!*%^~."), frozenset(")],;:?=&|.}")


def minified(text: str) -> str:
    """The same program in fewer characters, names and statements as they were."""
    written, _ = _until_brace(text, 0)
    return written


def _until_brace(text: str, start: int) -> tuple[str, int]:
    """The program from a place up to the brace that closes it, or the end, and where it ends."""
    parts: list[str] = []
    last = gap = ""  # the end of what is written, and the white space since
    depth, at = 0, start
    while at < len(text):
        match = _TOKEN.match(text, at)
        assert match is not None
        token, kind = match[0], match.lastgroup
        if kind == "regex" and _ENDS_VALUE.search(last) and not _KEYWORD.search(last):
            token, kind = "/", "other"
        if kind in ("space", "comment"):
            gap += token if kind == "space" else " " if "\n" not in token else "\n"
            at += len(token)
            continue
        if token == "`":
            token, end = _template(text, at)
        else:
            end = at + len(token)
        if token == "}" and depth == 0:
            return "".join(parts), at
        depth -= token == "}"
        if token == "}" and parts[-1:] == [";"]:
            parts.pop()
        parts += [_gap(last, gap, token, depth), token]
        depth += token == "{"
        last, gap, at = (last[-1:] + (" " if gap else "") + token)[-16:], "", end
    return "".join(parts), at


def _gap(last: str, gap: str, token: str, depth: int) -> str:
    """What must stay of the white space between two tokens; between statements outside of all braces a line break does.

    A statement that ends with the brace of a value must end with a semicolon, and none before a brace may be empty: else the
    result is no program.
    """
    if not gap or not last:
        return ""
    before, after = last[-1], token[0]
    in_block = depth > 0 and (before == ";" or (before == "}" and after.isidentifier()))
    if "\n" in gap and before not in _OPENS and after not in _CLOSES and not in_block:
        return "\n"
    joins = re.match(r"[\w$]", before) and re.match(r"[\w$]", after)
    return " " if joins or (before == after and before in "+-/") else ""


def _template(text: str, start: int) -> tuple[str, int]:
    """A template from its first backtick on, and where it ends."""
    parts, at = ["`"], start + 1
    while True:
        match = _TEMPLATE.match(text, at)
        assert match is not None
        parts.append(match[0])
        at = match.end()
        if at >= len(text) or text[at] == "`":
            return "".join((*parts, "`")), at + 1
        inner, end = _until_brace(text, at + 2)
        parts.append("${" + inner + "}")
        at = end + 1

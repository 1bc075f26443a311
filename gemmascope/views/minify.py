"""JavaScript without comments, needless white space and functions that nothing calls. Strings, templates and regular
expressions stay as they are.
"""

from __future__ import annotations

import re
from collections import Counter

from gemmascope.views.javascript import tokens_of

# A statement cannot end before or after these, so a line break beside them says nothing.
_OPENS, _CLOSES = frozenset("{([,:?=&|<>!*%^~."), frozenset(")],;:?=&|.}")
# A function at the top level, as our files are written: it ends at the first brace that begins a line.
_FUNCTION = re.compile(r"^(?:async )?function (\w+)\(.*?^\}\n", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"\w+")


def minified(text: str) -> str:
    """The same program in fewer characters, names and statements as they were."""
    parts: list[str] = []
    last = gap = ""  # the end of what is written, and the white space since
    depth = 0
    for kind, token in tokens_of(text):
        if kind in ("space", "comment"):
            gap += token if kind == "space" else " " if "\n" not in token else "\n"
            continue
        depth -= token == "}"
        if token == "}" and parts[-1:] == [";"]:
            parts.pop()
        parts += [_gap(last, gap, token, depth), token]
        depth += token == "{"
        last, gap = (last[-1:] + (" " if gap else "") + token)[-16:], ""
    return "".join(parts)


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


def without_unused(text: str, *kept: str) -> str:
    """The same program without functions at the top level whose names stand nowhere else. kept: names that stay.

    A name in a string counts as a use: too much may stay, never too little.
    """
    text = "".join(token for kind, token in tokens_of(text) if kind != "comment")
    while True:
        uses = Counter(_NAME.findall(text))
        unused = [
            found
            for found in _FUNCTION.finditer(text)
            if found[1] not in kept and uses[found[1]] == len(re.findall(rf"\b{found[1]}\b", found[0]))
        ]
        if not unused:
            return text
        for found in reversed(unused):
            text = text[: found.start()] + text[found.end() :]

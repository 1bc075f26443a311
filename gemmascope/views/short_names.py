"""JavaScript with short names for what it declares inside its functions.

A name is shortened everywhere or nowhere, so scopes need no analysis: what two functions call by one name keeps one name.
The names at the top level of a file stay, as do properties: errors of a browser still say in which function they arose.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterator

from gemmascope.views.javascript import Token, tokens_of

_KEYWORDS = frozenset((
    "async", "await", "break", "case", "catch", "class", "const", "continue", "default", "delete", "do", "else", "export",
    "extends", "false", "finally", "for", "from", "function", "get", "if", "import", "in", "instanceof", "let", "new",
    "null", "of", "return", "set", "static", "super", "switch", "this", "throw", "true", "try", "typeof", "var", "void",
    "while", "with", "yield", "arguments", "undefined", "NaN", "Infinity",
))  # fmt: skip
# What a browser defines and the modules read: a function may have a parameter of such a name, which must not be shortened.
_OF_BROWSERS = frozenset((
    "atob", "clearInterval", "document", "getComputedStyle", "navigator", "parseFloat", "performance", "queueMicrotask",
    "requestAnimationFrame", "setInterval", "setTimeout", "window",
))  # fmt: skip
_DECLARES = frozenset(("const", "let", "var"))
_HEADS = frozenset(("if", "for", "while", "switch", "with"))  # keywords before brackets that hold no parameters
# Before a brace: what makes it that of a value or a pattern, and not of a block.
_BEFORE_VALUE = frozenset("(,=:[?&|.") | {"return", "const", "let", "var", "default", "import", "export", "of", "in"}
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_FIRST, _LATER = string.ascii_letters + "$_", string.ascii_letters + "$_" + string.digits


def short_names_of(text: str) -> dict[str, str]:
    """The names that become shorter, each with its short name."""
    return _Program(tokens_of(text)).short_names()


def with_short_names(text: str) -> str:
    """The same program with short names, where that makes it shorter."""
    program = _Program(tokens_of(text))
    short = program.short_names()
    return "".join(program.written(i, short) for i in range(len(program.tokens)))


class _Program:
    """tokens: all of them. code: the places of those that are no white space or comment. uses: by its place in tokens, how a
    word is used: as a "name", as a "key" of a value or pattern that names nothing, or as "both" of these in short.
    """

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.code = [i for i, (kind, _) in enumerate(tokens) if kind not in ("space", "comment")]
        self.partner, self.around = _brackets(self._texts())
        self.uses: dict[int, str] = {}
        self.listed: set[str] = set()  # words of imports and exports
        for n, place in enumerate(self.code):
            if tokens[place].kind == "word" and not tokens[place].text[0].isdigit():
                self._read_word(n)

    def short_names(self) -> dict[str, str]:
        """The short name of every name that gets one: the names that save most get the shortest."""
        declared = set(self._declared()) - self._top_level() - self.listed - _KEYWORDS - _OF_BROWSERS
        names: Counter[str] = Counter()
        expanded: Counter[str] = Counter()
        for place, use in self.uses.items():
            names[self.tokens[place].text] += use != "key"
            expanded[self.tokens[place].text] += use == "both"
        taken = {token.text for token in self.tokens if token.kind == "word"} | _KEYWORDS
        free = (name for name in _names() if name not in taken)
        short: dict[str, str] = {}
        candidate = next(free)
        for name in sorted(declared, key=lambda name: (-names[name], name)):
            cost = expanded[name] * (len(candidate) + 1)
            if (names[name] - expanded[name]) * (len(name) - len(candidate)) > cost:
                short[name], candidate = candidate, next(free)
        return short

    def written(self, place: int, short: dict[str, str]) -> str:
        """A token with its short name, if it has one: {a} becomes {a:b}."""
        text = self.tokens[place].text
        use = self.uses.get(place, "key")
        if use == "key" or text not in short:
            return text
        return f"{text}:{short[text]}" if use == "both" else short[text]

    def _texts(self) -> list[str]:
        return [self.tokens[place].text if self.tokens[place].kind in ("word", "other") else "" for place in self.code]

    def _at(self, n: int) -> str:
        """The text of the n-th token of code, "" for a string, a part of a template, and beyond the ends."""
        if not 0 <= n < len(self.code):
            return ""
        kind, text = self.tokens[self.code[n]]
        return text if kind in ("word", "other") else ""

    def _read_word(self, n: int) -> None:
        word, before, after = self._at(n), self._at(n - 1), self._at(n + 1)
        if word in _KEYWORDS:
            return
        place = self.code[n]
        if before == "." and self._at(n - 2) != ".":
            self.uses[place] = "key"
            return
        around = self.around[n]
        opens = self._at(around) if around is not None else ""
        self.uses[place] = "name"
        if around is None or opens != "{" or not self._is_value(around):
            return
        if self._at(around - 1) in ("import", "export") or self._at(around - 2) == "export":
            self.listed.add(word)
        elif before in ("get", "set", "async") or (before in ("{", ",") and (after == ":" or self._is_method(n))):
            self.uses[place] = "key"
        elif before in ("{", ",") and after in (",", "}", "="):
            self.uses[place] = "both"

    def _is_value(self, brace: int) -> bool:
        """Whether a brace opens a value or a pattern, and not a block."""
        return self._at(brace - 1) in _BEFORE_VALUE

    def _is_method(self, n: int) -> bool:
        """Whether the word is followed by brackets and those by a block."""
        closing = self.partner.get(n + 1)
        return self._at(n + 1) == "(" and closing is not None and self._at(closing + 1) == "{"

    def _top_level(self) -> set[str]:
        """The names that are declared outside of all brackets."""
        found: set[str] = set()
        for n in range(len(self.code)):
            if self.around[n] is None and self._at(n) in (*_DECLARES, "function", "class"):
                found.update(self._names_after(n))
        return found

    def _declared(self) -> Iterator[str]:
        """Every name that is declared anywhere, and the names in the defaults of parameters."""
        for n in range(len(self.code)):
            text = self._at(n)
            if text in (*_DECLARES, "function", "class"):
                yield from self._names_after(n)
            elif text == "=" and self._at(n + 1) == ">":
                yield from self._names_before_arrow(n)
            elif text == "(" and self._at(self.partner[n] + 1) == "{" and self._at(n - 1) not in _HEADS:
                yield from self._names_in(n, self.partner[n])

    def _names_before_arrow(self, n: int) -> Iterator[str]:
        opening = self.partner.get(n - 1)
        yield from self._names_in(n - 2 if opening is None else opening, n)

    def _names_after(self, n: int) -> Iterator[str]:
        """The names that a declaration declares: of each of its parts the pattern, up to its value."""
        end = n + 1
        is_pattern = True
        while end < len(self.code) and self._at(end) not in (";", "of", "in", ")", "{" if not is_pattern else ";"):
            closing = self.partner.get(end)
            if is_pattern and self._at(end) == "*":
                end += 1
                continue
            if is_pattern:
                last = closing if closing is not None else end
                yield from self._names_in(end - 1, last + 1)
                is_pattern = False
            if self._at(n) in ("function", "class"):
                return
            end = end + 1 if closing is None else closing + 1
            if self._at(end) == ",":
                is_pattern, end = True, end + 1

    def _names_in(self, start: int, end: int) -> Iterator[str]:
        """The words between two places of code that are names."""
        for n in range(start + 1, end):
            if self.uses.get(self.code[n], "key") != "key":
                yield self._at(n)


def _brackets(texts: list[str]) -> tuple[dict[int, int], list[int | None]]:
    """The other bracket of each bracket, and the bracket around each token; None outside of all."""
    partner: dict[int, int] = {}
    around: list[int | None] = []
    opened: list[int] = []
    for n, text in enumerate(texts):
        if text and text in ")]}":
            partner[n] = opened.pop()
            partner[partner[n]] = n
        around.append(opened[-1] if opened else None)
        if text in _CLOSING:
            opened.append(n)
    return partner, around


def _names() -> Iterator[str]:
    """Short names, the shortest first."""
    yield from _FIRST
    for first in _FIRST:
        yield from (first + later for later in _LATER)
    raise ValueError("a program with more names than there are short ones")

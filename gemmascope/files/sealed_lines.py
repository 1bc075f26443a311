"""Lines of JSON, each with a checksum of itself and of the lines before it.

The checksum shows a line that was changed, left out, doubled or moved.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping

from gemmascope.errors import GemmascopeError
from gemmascope.files.json_reader import parse_json

Line = Mapping[str, object]

_SEALED = re.compile(rb'(\{.*), "sum": "([0-9a-f]{16})"\}', re.DOTALL)


def sealed(content: Line, previous: str) -> tuple[bytes, str]:
    """A line with its newline, and its checksum. previous: the checksum of the line before; "" for the first."""
    text = json.dumps(content)
    checksum = _checksum(text.encode(), previous)
    return f'{text[:-1]}, "sum": "{checksum}"}}\n'.encode(), checksum


def is_sealed(line: bytes) -> bool:
    """Whether a line has the form of one that sealed wrote, whether or not its checksum fits."""
    line = line.removesuffix(b"\r")
    return line.endswith(b'"}') and _SEALED.fullmatch(line) is not None


def opened(line: bytes, previous: str, name: str, *, error: type[GemmascopeError], advice: str) -> tuple[Line, str]:
    """The content of a line, and its checksum.

    Args:
        line: The line, without its newline.
        previous: The checksum of the line before; "" for the first.
        name: What the line is called in an error.
        error: The class to raise.
        advice: What to do about a damaged line.

    Raises:
        error: The line is not as it was written.
    """
    match = _SEALED.fullmatch(line.removesuffix(b"\r"))  # a file that went through Windows
    if match is None or _checksum(match[1] + b"}", previous) != match[2].decode():
        raise error(f"{name} is damaged: its checksum does not fit. {advice}")
    content = parse_json(match[1] + b"}", name, error=error, finite=False)
    return dict(content), match[2].decode()


def _checksum(text: bytes, previous: str) -> str:
    return hashlib.sha256(previous.encode() + text).hexdigest()[:16]

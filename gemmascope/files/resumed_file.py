"""Files that a second call goes on with: a first line with what was asked, and a line for each part as it ends."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from gemmascope.files.line_file import LineFile
from gemmascope.files.sealed_lines import opened, sealed

# A JSON object, whose values are checked as they are read.
Json = Mapping[str, Any]


class ResumedFile(LineFile):
    """A file with the finished parts of one call's result; nowhere, if none is opened.

    Attributes:
        format: Its format, with a version after the last dot.
        writer: What writes such files, for errors: "out= of gs.attribution_graph".
        advice: What to do about a damaged file.
    """

    format: ClassVar[str]
    writer: ClassVar[str]
    advice: ClassVar[str]

    @property
    def is_open(self) -> bool:
        """Whether lines are written to a file."""
        return self._file is not None

    def resume(self, out: str | os.PathLike[str], first: Json) -> list[Json]:
        """Start a file with this first line, or read the lines of one that the same call began.

        Returns:
            All lines of the file, the first one too; none of a new file.

        Raises:
            error: It belongs to another call, another process is writing to it, or it is damaged.
        """
        is_new = self.start(out)
        assert self.path is not None
        head, checksum = sealed({"format": self.format, **first}, "")
        content, start = self.path.read_bytes(), self._start()
        if b"\n" not in content and (head.startswith(content) or start.startswith(content[: len(start)])):
            self.begin(head, checksum, is_new)  # empty, or what a crash left of the first line
            return []
        lines, size, checksum = self.lines_of(content, self.path)
        self.require_same(lines[0], first, self.path)
        self.go_on(content, size, checksum)
        return lines

    @abstractmethod
    def require_same(self, theirs: Json, ours: Json, path: Path) -> None:
        """Raises error for a first line of another call."""

    @classmethod
    def is_of(cls, path: Path) -> bool:
        """Whether a file begins as one of these."""
        with path.open("rb") as file:
            return file.read(len(cls._start())) == cls._start()

    @classmethod
    def lines_of(cls, content: bytes, path: Path) -> tuple[list[Json], int, str]:
        """The whole lines of a file, where the last one ends, and its checksum. A last line that was cut off is left out."""
        if not content.startswith(cls._start()):
            raise cls.error(f"{path} is no file that {cls.writer} wrote: give another file, or remove this one")
        *whole, cut_off = content.split(b"\n")
        lines: list[Json] = []
        checksum = ""
        for number, line in enumerate(whole or [cut_off], start=1):
            read, checksum = opened(line, checksum, f"line {number} of {path}", error=cls.error, advice=cls.advice)
            lines.append(read)
        if lines[0]["format"] != cls.format:
            raise cls.error(
                f"{path} has format {lines[0]['format']}, and this gemmascope writes {cls.format}: give another file"
            )
        return lines, len(content) - len(cut_off) if whole else len(content), checksum

    @classmethod
    def _start(cls) -> bytes:
        """How every version of the format begins."""
        return f'{{"format": "{cls.format.rpartition(".")[0]}.'.encode()

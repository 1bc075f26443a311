"""Digests: what went into a sweep, in sixteen letters that tell it from another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from torch import Tensor

from gemmascope.run.bound import BoundEdit


class Digest:
    """A digest in the making."""

    def __init__(self) -> None:
        self._found = hashlib.sha256()

    def text(self) -> str:
        return self._found.hexdigest()[:16]

    def add(self, part: str | Tensor) -> None:
        """Take a text or the numbers of a tensor in. Each with its length, so that two parts are not one."""
        data = part.encode() if isinstance(part, str) else part.cpu().float().contiguous().numpy().tobytes()
        self._found.update(f"{len(data)}:".encode() + data)

    def run(self, ids: Tensor, edits: Iterable[BoundEdit]) -> None:
        """Take a run in: its tokens, and each of its edits with what it writes."""
        self.add(repr(ids.tolist()))
        for edit in edits:
            self.add(repr(edit.edit))
            if isinstance(edit.values, Tensor):
                self.add(edit.values)

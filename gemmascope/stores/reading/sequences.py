"""LazySequence: a sequence whose items are read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, overload

import numpy as np

from gemmascope.legible import prints_legibly
from gemmascope.values import Array

T = TypeVar("T")


class LazySequence(Sequence[T], Generic[T]):
    """A sequence of items that a function reads by their numbers, [n] -> n items. A slice gives a list."""

    def __init__(self, length: int, read: Callable[[Array], list[T]], what: str) -> None:
        self._length, self._read, self._what = length, read, what

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return self._read(np.arange(*index.indices(self._length)))
        number = range(self._length)[index]  # IndexError, as of a list
        return self._read(np.array([number]))[0]

    @prints_legibly
    def __repr__(self) -> str:
        return f"{self._length:,} {self._what}, read when they are asked for"

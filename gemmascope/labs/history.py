"""History: the settings that a lab had before, for undo and redo."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

# How many earlier settings are kept; older ones are forgotten.
MOST = 200

SettingsT = TypeVar("SettingsT")


class History(Generic[SettingsT]):
    """Earlier settings of a lab, and those that an undo took back. Settings are values, which nobody changes."""

    def __init__(self) -> None:
        self._earlier: list[SettingsT] = []
        self._undone: list[SettingsT] = []
        self._key: Hashable = None

    @property
    def can_undo(self) -> bool:
        return bool(self._earlier)

    @property
    def can_redo(self) -> bool:
        return bool(self._undone)

    def record(self, present: SettingsT, key: Hashable = None) -> None:
        """Note the present settings before they change.

        key: changes in a row with the same key are undone at once, such as the steps of a slider that is dragged; None
        for a change by itself.
        """
        if key is None or key != self._key:
            self._earlier.append(present)
            del self._earlier[:-MOST]
        self._key = key
        self._undone.clear()

    def undo(self, present: SettingsT) -> SettingsT:
        """The settings before the last change. IndexError if there are none."""
        earlier = self._earlier.pop()
        self._undone.append(present)
        self._key = None
        return earlier

    def redo(self, present: SettingsT) -> SettingsT:
        """The settings that were undone last. IndexError if there are none."""
        undone = self._undone.pop()
        self._earlier.append(present)
        self._key = None
        return undone

    def clear(self) -> None:
        self._earlier.clear()
        self._undone.clear()
        self._key = None

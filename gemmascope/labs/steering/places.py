"""Where a steering lab adds its vector, as its page shows it and as a click on a token changes it."""

from __future__ import annotations

from dataclasses import dataclass

from gemmascope.edits.places import Pos, find_positions
from gemmascope.model.model import Model, Prompt


@dataclass(frozen=True)
class SteeredPlaces:
    """The positions of a prompt that are steered.

    positions: those of the prompt, in order. onward: whether everything that is generated after the prompt is steered, too.
    """

    positions: tuple[int, ...]
    onward: bool
    n_prompt: int

    @classmethod
    def of(cls, pos: Pos, prompt: Prompt, model: Model) -> SteeredPlaces:
        """Of positions as in gs.add. SiteError for one that the prompt does not have."""
        ids = model.ids(prompt)
        onward = pos is None or (isinstance(pos, slice) and pos.stop is None and pos.step in (None, 1))
        return cls(tuple(sorted(find_positions(pos, model, ids))), onward, len(ids))

    @property
    def pos(self) -> Pos:
        """The same positions counted from the first, so that they stay where they are in a longer text; None for all."""
        if self.onward:
            first = self.positions[0] if self.positions else self.n_prompt
            return None if first == 0 else slice(first, None)
        return list(self.positions)

    @property
    def text(self) -> str:
        """In words."""
        if self.onward:
            first = self.positions[0] if self.positions else self.n_prompt
            return "every position" if first == 0 else f"position {first} and all after it"
        listed = ", ".join(map(str, self.positions))
        return f"position {listed}" if len(self.positions) == 1 else f"positions {listed}"


def pos_after_click(places: SteeredPlaces, position: int, *, onward: bool) -> Pos:
    """The positions after a click on a token: it alone, or one more, or one fewer; onward: it and all that come after it.

    The last one that is taken away makes it every position again.
    """
    if onward:
        return None if position == 0 else slice(position, None)
    if places.onward:
        return [position]
    kept = set(places.positions) ^ {position}
    return sorted(kept) or None

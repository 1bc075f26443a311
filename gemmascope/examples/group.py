"""UnitExamples: the examples and statistics of one group of units, such as the neurons of a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gemmascope.arguments import is_whole, short_repr
from gemmascope.errors import ExamplesError
from gemmascope.legible import legible_line, prints_legibly
from gemmascope.values import Array

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True, eq=False, repr=False)
class UnitExamples:
    """The examples and statistics of one group of units. A part of gs.TopExamples: examples["neuron", 3].

    Attributes:
        kind: "head", "neuron", "feature" or "direction".
        site: The site whose rows were read.
        layer: Its layer; None outside the layers.
        name: What the group is called.
        measure: What a unit's value is, in words.
        data: All numbers, labelled by unit. Of each unit density (the share of rows with a value above 0), mean, std, low
            and high over all rows; histogram [unit, bin] with its edges [unit, edge], of features over rows where they are
            active. Of the strongest top_value, top_text and top_pos [unit, rank], and around them top_around (values, NaN
            where there is no row) and top_ids (token ids, -1 outside the text) [unit, rank, offset]. bottom_ for neurons
            and directions, and sample_ [unit, draw, ...] likewise. co_feature, co_rows, co_share [unit, co_rank]. A text of
            -1: there are no more.
        texts: The token ids of whole texts by number, of a head's strongest examples.

    Examples:
        >>> examples = gs.top_examples(["The cat sat on the mat", "Mary and John"], ("neuron", 3, [7, 12]), k=1)
        >>> examples["neuron", 3].data["top_value"].shape
        (2, 1)
    """

    kind: str
    site: str
    layer: int | None
    name: str
    measure: str
    data: xarray.Dataset
    texts: Mapping[int, Array] = field(default_factory=dict)

    @property
    def units(self) -> Array:
        """The numbers of the units, rising."""
        return np.asarray(self.data["unit"].values)

    def index(self, unit: object) -> int:
        """Where a unit stands in the arrays.

        Args:
            unit: Its number.

        Raises:
            ExamplesError: It is not one of the group.
        """
        if is_whole(unit):
            at = int(np.searchsorted(self.units, int(unit)))
            if at < len(self.units) and self.units[at] == int(unit):
                return at
        few = ", ".join(map(str, self.units[:8].tolist())) + (", ..." if len(self.units) > 8 else "")
        raise ExamplesError(f"{legible_line(self.name)} here are {few}; given {short_repr(unit)}")

    def __len__(self) -> int:
        return len(self.units)

    @prints_legibly
    def __repr__(self) -> str:
        return f"{len(self):,} {legible_line(self.name)}, by {self.measure}"

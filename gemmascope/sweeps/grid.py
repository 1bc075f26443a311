"""Grid: the cells of a sweep over one prompt, with the layers, heads and positions that each cell edits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from torch import Tensor

from gemmascope.arguments import short_repr, whole_number
from gemmascope.config import GemmaConfig
from gemmascope.errors import SiteError, SweepError
from gemmascope.model.model import Model
from gemmascope.sites import Site
from gemmascope.sweeps.spec import SweepSpec, grid_axes, numbers_along

# The numbers that a cell edits along every axis of its site, and its layers: {"layer": [3], "pos": [5], "head": [0, 1]}.
Cell = dict[str, list[int]]


@dataclass(frozen=True)
class Grid:
    """The cells of a sweep over one prompt. A cell is a choice along each axis of the grid.

    axes: the axes of the grid, with the numbers along each. spanned: the site's other axes, along which a cell edits all
    numbers together. window: how many neighbouring layers a cell edits, centred on its own.
    """

    site: Site
    axes: dict[str, list[int]]
    spanned: dict[str, list[int]]
    window: int
    config: GemmaConfig

    @classmethod
    def of(cls, spec: SweepSpec, model: Model, ids: Tensor) -> Grid:
        """The grid that a spec describes. SweepError for an axis the site does not have, SiteError for an unknown place."""
        site, layer, by = grid_axes(spec.site, spec.by)
        numbers = numbers_along(spec, site, layer, model, ids)
        window = whole_number(spec.window, "window", least=1, most=model.n_layers, error=SweepError)
        if window > 1 and "layer" not in by:
            raise SweepError(
                f"window needs layer in by: without it a cell edits all its layers; given by={short_repr(spec.by)}"
            )
        spanned = {axis: n for axis, n in numbers.items() if axis not in by}
        return cls(site, {axis: numbers[axis] for axis in by}, spanned, window, model.config)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(numbers) for numbers in self.axes.values())

    @property
    def numbers(self) -> Cell:
        """All that the cells cover, along every axis."""
        return {**self.spanned, **self.axes}

    @property
    def row_axis(self) -> str:
        """The axis of the positions whose rows a cell changes."""
        return "q_pos" if self.site.is_edges else "pos"

    @property
    def n_layers_at_once(self) -> int:
        """How many layers' values one cell needs."""
        return self.window if "layer" in self.axes else len(self.spanned["layer"])

    def cells(self) -> Iterator[Cell]:
        for choice in product(*self.axes.values()):
            yield {**self.spanned, **{axis: [number] for axis, number in zip(self.axes, choice, strict=True)}}

    def cell(self, number: int) -> Cell:
        """The cell of a number, in the order of cells()."""
        at = np.unravel_index(number, self.shape)
        return {**self.spanned, **{axis: [of[int(i)]] for (axis, of), i in zip(self.axes.items(), at, strict=True)}}

    def layers_of(self, cell: Cell) -> list[int]:
        """The layers that a cell edits: those of its window in which it names an edge that the mask lets through."""
        layers = cell["layer"]
        if "layer" in self.axes:
            first = layers[0] - (self.window - 1) // 2
            layers = [layer for layer in range(first, first + self.window) if 0 <= layer < self.config.n_layers]
        return [layer for layer in layers if self._reaches(layer, cell)]

    def _reaches(self, layer: int, cell: Cell) -> bool:
        """Whether the mask of a layer lets one of a cell's edges through; True at sites without edges."""
        if not self.site.is_edges:
            return True
        window = self.config.window_of(layer) or self.config.context + 1
        return any(0 <= q - k < window for q in cell["q_pos"] for k in cell["k_pos"])


def grids_of(spec: SweepSpec, model: Model, ids: Tensor) -> list[Grid]:
    """The grid of each site. SweepError for a site twice; the errors of a site among several say what to do."""
    if not isinstance(spec.site, list):
        return [Grid.of(spec, model, ids)]
    grids = [_grid_among_several(one, model, ids) for one in spec.each_site()]
    names = [grid.site.name for grid in grids]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise SweepError(f"site names {twice!r} twice: {short_repr(spec.site)}")
    return grids


def _grid_among_several(spec: SweepSpec, model: Model, ids: Tensor) -> Grid:
    try:
        return Grid.of(spec, model, ids)
    except (SweepError, SiteError) as error:
        raise type(error)(
            f"{error}. The sites of one sweep share by and the places: sweep {spec.site!r} in a call of its own"
        ) from error

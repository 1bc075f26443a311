"""What nodes wrote at a site of a layer, and the edges from them to directions that are read there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor


class Edges(NamedTuple):
    """Sources of one kind and their edges into targets.

    Attributes:
        keys: The nodes, [source].
        weights: [target, source].
        unit: The unit of features that write to several layers: an edge is the sum of what they wrote to all of them.
        has_more: Whether such features write to a layer that the pass has yet to meet.
    """

    keys: Tensor
    weights: Tensor
    unit: int = -1
    has_more: bool = False


class Written(Protocol):
    """What stands for a site's value: nodes and biases, which add up to it. A direction that meets it ends there."""

    def edges(self, v: Float[Tensor, "target pos d"]) -> Iterator[Edges]:
        """The edges from the features and errors to directions, each at the positions from 0 on."""

    def bias(self, v: Float[Tensor, "target pos d"]) -> Float[Tensor, " target"]:
        """What the biases give, and the site's whole value at position 0, where there are no features."""

    def contribution(self, key: int) -> Float[Tensor, " d"] | None:
        """What one feature or error wrote here, at its position, as it joins the stream; None if it wrote nothing."""

    def parts(self, pos: int, nodes: Int[Tensor, " node"]) -> tuple[Tensor, Tensor]:
        """What nodes wrote at a position: their keys [part] and what joined the stream [part, d].

        nodes: the graph's nodes at that position, rising; neurons that are not among them are left out.
        """


@dataclass(frozen=True)
class Active:
    """Active features that write to a site, sorted by position.

    Attributes:
        keys: The node of each, [active].
        pos: Its position.
        row: The row of its decoder in table.
        coefficient: What its decoder row is multiplied by: its activation, and a scale.
        table: [feature, d].
        unit, has_more: As in Edges.
    """

    keys: Int[Tensor, " active"]
    pos: Int[Tensor, " active"]
    row: Int[Tensor, " active"]
    coefficient: Float[Tensor, " active"]
    table: Float[Tensor, "feature d"]
    unit: int = -1
    has_more: bool = False

    @cached_property
    def spans(self) -> list[tuple[int, int, int]]:
        """For each position that has features: the position, and where its features begin and end."""
        positions, counts = torch.unique_consecutive(self.pos, return_counts=True)
        stops = counts.cumsum(0).tolist()
        return list(zip(positions.tolist(), [0, *stops[:-1]], stops, strict=True))

    def edges(self, v: Float[Tensor, "target pos d"]) -> Edges:
        """The edges from those at the positions of v."""
        spans = [span for span in self.spans if span[0] < v.shape[1]]
        n = spans[-1][2] if spans else 0
        edges = v.new_empty(len(v), n)
        for pos, start, stop in spans:
            edges[:, start:stop] = v[:, pos] @ self.table[self.row[start:stop]].T
        return Edges(self.keys[:n], edges.mul_(self.coefficient[:n]), self.unit, self.has_more)


@dataclass(frozen=True)
class DictionaryWritten:
    """What dictionaries' features, an error and biases wrote at one site of one layer.

    Attributes:
        active: The features; several sets where those of earlier layers write here too.
        error: The site's value less what features and biases wrote, [pos, d]; 0 at position 0.
        error_keys: The nodes of the errors, [pos].
        biases: What the decoder's bias wrote, [pos, d]; at position 0 the site's whole value.
        gain: What is written is multiplied by this before it joins the stream, [pos, d]; None: it joins as it is.
    """

    active: tuple[Active, ...]
    error: Float[Tensor, "pos d"]
    error_keys: Int[Tensor, " pos"]
    biases: Float[Tensor, "pos d"]
    gain: Float[Tensor, "pos d"] | None = None

    def edges(self, v: Float[Tensor, "target pos d"]) -> Iterator[Edges]:
        stop = v.shape[1]
        read = v if self.gain is None else v * self.gain[:stop]
        for active in self.active:
            yield active.edges(read)
        yield Edges(self.error_keys[:stop], einsum(read, self.error[:stop], "target pos d, pos d -> target pos"))

    def bias(self, v: Float[Tensor, "target pos d"]) -> Float[Tensor, " target"]:
        read = v if self.gain is None else v * self.gain[: v.shape[1]]
        return einsum(read, self.biases[: v.shape[1]], "target pos d, pos d -> target")

    def contribution(self, key: int) -> Float[Tensor, " d"] | None:
        at = torch.nonzero(self.error_keys == key).flatten().tolist()
        written = self.error[at[0]] if at else None
        pos = at[0] if at else -1
        for active in self.active:
            if found := torch.nonzero(active.keys == key).flatten().tolist():
                pos = int(active.pos[found[0]])
                written = active.coefficient[found[0]] * active.table[active.row[found[0]]]
        return written if written is None or self.gain is None else written * self.gain[pos]

    def parts(self, pos: int, nodes: Int[Tensor, " node"]) -> tuple[Tensor, Tensor]:
        found: list[tuple[Tensor, Tensor]] = [(self.error_keys[pos : pos + 1], self.error[pos : pos + 1])]
        for active in self.active:
            here = active.pos == pos
            found.append((active.keys[here], active.coefficient[here, None] * active.table[active.row[here]]))
        keys, rows = (torch.cat(part) for part in zip(*found, strict=True))
        return keys, rows if self.gain is None else rows * self.gain[pos]

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

# Edges that are computed at once, in elements: 16 MB.
EDGE_ELEMENTS = 2**22


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

    def edges(self, v: Float[Tensor, "target pos d"], gain: Float[Tensor, "pos d"] | None) -> Iterator[Edges]:
        """The edges from those at the positions of v, some positions at a time. gain: what multiplies what is written."""
        spans = [span for span in self.spans if span[0] < v.shape[1]]
        for part in self._parts(spans, len(v)):
            first, last = part[0][1], part[-1][2]
            edges = v.new_empty(len(v), last - first)
            for pos, start, stop in part:
                read = v[:, pos] if gain is None else v[:, pos] * gain[pos]
                edges[:, start - first : stop - first] = read @ self.table[self.row[start:stop]].T
            edges.mul_(self.coefficient[first:last])
            yield Edges(self.keys[first:last], edges, self.unit, self.has_more)

    def _parts(self, spans: list[tuple[int, int, int]], n: int) -> Iterator[list[tuple[int, int, int]]]:
        """Spans in parts of at most EDGE_ELEMENTS edges; all at once where other layers add to the same edges."""
        part: list[tuple[int, int, int]] = []
        for span in spans:
            if part and self.unit < 0 and n * (span[2] - part[0][1]) > EDGE_ELEMENTS:
                yield part
                part = []
            part.append(span)
        if part or self.unit >= 0:
            yield part or [(0, 0, 0)]


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

    @cached_property
    def joined(self) -> tuple[Float[Tensor, "pos d"], Float[Tensor, "pos d"]]:
        """The error and the biases as they join the stream."""
        return (self.error, self.biases) if self.gain is None else (self.error * self.gain, self.biases * self.gain)

    def edges(self, v: Float[Tensor, "target pos d"]) -> Iterator[Edges]:
        stop = v.shape[1]
        for active in self.active:
            yield from active.edges(v, None if self.gain is None else self.gain[:stop])
        yield Edges(self.error_keys[:stop], einsum(v, self.joined[0][:stop], "target pos d, pos d -> target pos"))

    def bias(self, v: Float[Tensor, "target pos d"]) -> Float[Tensor, " target"]:
        return einsum(v, self.joined[1][: v.shape[1]], "target pos d, pos d -> target")

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
            found.append((active.keys[here].cpu(), active.coefficient[here, None] * active.table[active.row[here]]))
        keys, rows = (torch.cat(part) for part in zip(*found, strict=True))
        return keys, rows if self.gain is None else rows * self.gain[pos]

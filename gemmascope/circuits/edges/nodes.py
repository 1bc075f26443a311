"""The nodes of a model: what writes to the stream (senders) and what reads it (receivers), by name and by number.

Senders: the embedding, every head, every MLP. Receivers: the queries of every head, the keys and values of every kv head,
every MLP, and the logits. The names are those of EAP-IG and of MIB's circuits: "a2.h3", "m2", "a4.h1<q>", "logits"; the
embedding is "embed" here, and keys and values are those of kv heads, "a4.kv0<k>".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gemmascope.config import GemmaConfig
from gemmascope.errors import SweepError
from gemmascope.sites import did_you_mean
from gemmascope.values import Array

# The site at which a reader's value is written, by its kind. Queries and keys are those before Gemma 3's norms.
SITE_OF_KIND = {"q": "q_raw", "k": "k_raw", "v": "v", "mlp": "mlp_in", "logits": "resid_post"}


@dataclass(frozen=True)
class Node:
    """A sender or a receiver: its name, kind, layer and head (a kv head at "k" and "v"); -1 where it has none."""

    name: str
    kind: str
    layer: int = -1
    head: int = -1


@dataclass(frozen=True)
class Nodes:
    """The senders and receivers of a model's shape, in the order of the forward pass."""

    n_layers: int
    n_heads: int
    n_kv_heads: int

    @classmethod
    def of(cls, config: GemmaConfig) -> Nodes:
        return cls(config.n_layers, config.n_heads, config.n_kv_heads)

    @cached_property
    def senders(self) -> tuple[Node, ...]:
        def of_layer(layer: int) -> Iterator[Node]:
            yield from (Node(f"a{layer}.h{head}", "head", layer, head) for head in range(self.n_heads))
            yield Node(f"m{layer}", "mlp", layer)

        return (Node("embed", "embed"), *(node for layer in range(self.n_layers) for node in of_layer(layer)))

    @cached_property
    def receivers(self) -> tuple[Node, ...]:
        def of_layer(layer: int) -> Iterator[Node]:
            yield from (Node(f"a{layer}.h{head}<q>", "q", layer, head) for head in range(self.n_heads))
            for kind in "kv":
                yield from (Node(f"a{layer}.kv{head}<{kind}>", kind, layer, head) for head in range(self.n_kv_heads))
            yield Node(f"m{layer}", "mlp", layer)

        last = Node("logits", "logits", self.n_layers - 1)
        return (*(node for layer in range(self.n_layers) for node in of_layer(layer)), last)

    # -- numbers --

    def n_before(self, kind: str, layer: int) -> int:
        """How many senders come before the receivers of a kind in a layer; they are the first ones."""
        if kind == "logits":
            return len(self.senders)
        before_layer = 1 + layer * (self.n_heads + 1)
        return before_layer + self.n_heads if kind == "mlp" else before_layer

    def heads_at(self, layer: int) -> slice:
        """The numbers of a layer's heads among the senders."""
        first = self.n_before("q", layer)
        return slice(first, first + self.n_heads)

    def mlp_at(self, layer: int) -> int:
        """The number of a layer's MLP among the senders."""
        return self.n_before("mlp", layer)

    def reading(self, kind: str, layer: int) -> slice:
        """The numbers of a layer's receivers of one kind among the receivers."""
        if kind == "logits":
            return slice(len(self.receivers) - 1, len(self.receivers))
        sizes = {"q": self.n_heads, "k": self.n_kv_heads, "v": self.n_kv_heads, "mlp": 1}
        first = layer * sum(sizes.values())
        for name, size in sizes.items():
            if name == kind:
                break
            first += size
        return slice(first, first + sizes[kind])

    @cached_property
    def has_edge(self) -> Array:
        """Which senders come before which receivers, bool [sender, receiver]."""
        before = np.array([self.n_before(node.kind, node.layer) for node in self.receivers])
        mask: Array = np.arange(len(self.senders))[:, None] < before
        return mask

    @property
    def n_edges(self) -> int:
        """How many pairs there are of a sender and a receiver that it comes before."""
        return int(self.has_edge.sum())

    @cached_property
    def owners(self) -> Array:
        """For each sender its own receivers, bool [sender, receiver]: a head's queries and its kv head's keys and values."""
        group = self.n_heads // self.n_kv_heads
        own = np.zeros((len(self.senders), len(self.receivers)), bool)
        for i, sender in enumerate(self.senders):
            if sender.kind == "mlp":
                own[i, self.reading("mlp", sender.layer)] = True
            elif sender.kind == "head":
                own[i, self.reading("q", sender.layer).start + sender.head] = True
                for kind in "kv":
                    own[i, self.reading(kind, sender.layer).start + sender.head // group] = True
        return own

    # -- names --

    def find_edges(self, names: Iterable[str]) -> Array:
        """The edges of these names, "a2.h3->a4.h1<q>", bool [sender, receiver]. SweepError for what is no edge."""
        senders = {node.name: i for i, node in enumerate(self.senders)}
        receivers = {node.name: i for i, node in enumerate(self.receivers)}
        chosen = np.zeros_like(self.has_edge)
        for name in names:
            if not isinstance(name, str) or name.count("->") != 1:
                raise SweepError(f"an edge is written 'a2.h3->a4.h1<q>', 'm2->m5' or 'm2->logits'; given {name!r}")
            sender, receiver = (part.strip() for part in name.split("->"))
            sender = "embed" if sender == "input" else sender
            for part, known, what in ((sender, senders, "writes to"), (receiver, receivers, "reads")):
                if part not in known:
                    raise SweepError(f"nothing named {part!r} {what} the stream.{did_you_mean(part, list(known))}")
            at = senders[sender], receivers[receiver]
            if not self.has_edge[at]:
                raise SweepError(f"there is no edge {name!r}: {sender} does not come before {receiver}")
            chosen[at] = True
        return chosen

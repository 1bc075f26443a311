"""How much memory a reversed pass takes, so that its targets fit a budget."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from gemmascope.circuits.frozen import PART_ROWS, keeps_patterns
from gemmascope.circuits.graph.bases.basis import Basis
from gemmascope.circuits.graph.bases.neurons import ACT_BYTES
from gemmascope.circuits.graph.bases.written import EDGE_ELEMENTS
from gemmascope.circuits.graph.nodes import NodeKeys
from gemmascope.circuits.graph.rows import WAITING
from gemmascope.config import GemmaConfig
from gemmascope.errors import BudgetError
from gemmascope.memory.placement import free_bytes, parse_bytes
from gemmascope.model.attention import CHUNK_ELEMENTS, CHUNK_ROWS
from gemmascope.model.model import Model

# Into how many groups the targets of a chunk are split by position: those of a group share a number of rows.
GROUPS = 8
# The most positions of directions in memory at once where no layer streams: more would be no faster, and a chunk is what an
# interrupt loses and after which the next features are chosen.
RESIDENT_ROWS = 2**16


def width_of_groups(n_pos: int) -> int:
    """How many neighbouring positions share a group."""
    return max(4, -(-n_pos // GROUPS))


def groups_of(pos: Int[Tensor, " target"], n_pos: int) -> list[Tensor]:
    """The indices of targets at these positions, in groups of similar ones; in each the order stays."""
    group = pos // width_of_groups(n_pos)
    return [torch.nonzero(group == each).flatten() for each in torch.unique(group).tolist()]


@dataclass(frozen=True)
class PassMemory:
    """What a reversed pass takes, in bytes.

    Attributes:
        n_pos: The positions of the run.
        fixed: What it takes whatever the targets: a layer's gains and pattern, and directions that are between two products.
        per_row: For each position of each target's directions.
        per_row_between: For each of those that go through a product at once.
        per_target: For each target: its strongest edges, and those that wait.
        edges_per_target: The most edges into a target that are computed at once.
        max_rows: The most positions of directions that a pass carries, whatever the budget.
    """

    n_pos: int
    fixed: int
    per_row: int
    per_row_between: int
    per_target: int
    edges_per_target: int
    max_rows: int

    def bytes_of(self, n_targets: Int[Tensor, "*n"], n_rows: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        """The bytes of passes of so many targets and rows."""
        edges = (n_targets * self.edges_per_target).clamp(max=max(EDGE_ELEMENTS, self.edges_per_target))
        between = n_rows.clamp(max=max(PART_ROWS, self.n_pos)) * self.per_row_between
        return self.fixed + n_rows * self.per_row + between + n_targets * self.per_target + 24 * edges

    def rows_of(self, pos: Int[Tensor, " target"]) -> Int[Tensor, " target"]:
        """How many rows each target has: those of its group."""
        width = width_of_groups(self.n_pos)
        return ((pos // width + 1) * width).clamp(max=self.n_pos)

    def fitting(self, pos: Int[Tensor, " target"], budget: int) -> int:
        """How many of the first targets fit a budget; one at least."""
        rows = self.rows_of(pos).cumsum(0)
        fits = (self.bytes_of(torch.arange(1, len(pos) + 1), rows) <= budget) & (rows <= self.max_rows)
        return max(1, int(fits.sum()))

    def require(self, budget: int) -> None:
        """BudgetError for a budget that is less than one target takes."""
        needed = int(self.bytes_of(torch.tensor(1), torch.tensor(self.n_pos)))
        if budget < needed:
            raise BudgetError(
                f"memory of {budget:,} bytes is too little for a graph of {self.n_pos} positions: one target takes "
                f"{needed:,}"
            )


def budget_of(memory: object, model: Model) -> int:
    """The bytes that a pass may take. memory: as a user gives it; None: what the model was loaded to leave, or a quarter of
    what is free. BudgetError for what is no amount.
    """
    if memory is not None:
        return parse_bytes(memory)
    return model.network.work_bytes or min(map(free_bytes, {model.device, *model.layer_devices})) // 4


def pass_memory(model: Model, n_pos: int, keep: int, basis: Basis | None = None, keys: NodeKeys | None = None) -> PassMemory:
    """What a pass takes. basis, keys: once the basis is encoded; before, what it takes at least."""
    config = model.config
    d, of_q, of_kv = config.d_model, config.n_heads * config.d_head, config.n_kv_heads * config.d_head
    n_edges = _edges_at_once(config, n_pos, basis, keys)
    n_sources = n_pos * (1 + config.n_layers) + config.n_layers * n_edges
    fixed = _of_attention(model, n_pos)
    per_row = 4 * d if keeps_patterns(config, n_pos) else 4 * (d + of_kv)
    between = 4 * (3 * d + 3 * of_q + 3 * of_kv)
    per_target = 4 * 6 * d + 128 + min(keep, n_sources) * (32 + 12 * (1 + 2 * WAITING))
    if basis is not None and {basis.reads(i) for i in range(len(basis.units))} & {"attn_out", "z"}:
        per_row += 4 * (3 * of_q + 2 * of_kv + 3 * d)
    if basis is not None and basis.reads_mlps:
        fixed += _of_mlp(model, n_pos)
        between = max(between, 4 * (4 * config.d_mlp + 3 * d)) if basis.passes_mlp else between
    if basis is not None and keys is not None and basis.spans_layers:
        active = basis.active(keys)
        per_target += 8 * (0 if active is None else len(active))
    max_rows = 2**62 if model.network.layer_source is not None else max(n_pos, RESIDENT_ROWS)
    return PassMemory(n_pos, fixed, per_row, between, per_target, n_edges, max_rows)


def _of_attention(model: Model, n_pos: int) -> int:
    """What a layer's gains and its pattern take."""
    config = model.config
    d, of_heads = config.d_model, (config.n_heads + config.n_kv_heads) * config.d_head
    per_query = config.n_heads * n_pos
    scores = per_query * min(n_pos, CHUNK_ROWS, max(1, CHUNK_ELEMENTS // per_query))
    found = 4 * (8 * n_pos * d + 3 * n_pos * of_heads + 6 * scores)
    if keeps_patterns(config, n_pos):
        found += 4 * config.n_layers * config.n_heads * n_pos**2
    return found + (0 if model.dtype == torch.float32 else 4 * d * of_heads)


def _of_mlp(model: Model, n_pos: int) -> int:
    """What an MLP with held gates takes, and the neurons that are kept."""
    config = model.config
    found = 4 * 9 * n_pos * config.d_mlp + min(4 * config.n_layers * n_pos * config.d_mlp, ACT_BYTES)
    return found + (0 if model.dtype == torch.float32 else 4 * 3 * config.d_model * config.d_mlp)


def _edges_at_once(config: GemmaConfig, n_pos: int, basis: Basis | None, keys: NodeKeys | None) -> int:
    """The most edges into a target from one layer: from its active features, or from its neurons."""
    if basis is None or keys is None:
        return n_pos
    active = basis.active(keys)
    if active is None:
        return max(n_pos, min(n_pos * config.d_mlp, max(config.d_mlp, EDGE_ELEMENTS)))
    _, unit, _, _ = keys.decode(active)
    return max(n_pos, int(torch.bincount(unit, minlength=1).max()))

"""Path patching: a sender's effect on the answer through one receiver only, everything between them frozen.

What the sender writes in the other run is added to the stream that the receiver reads; nothing else between the two sees
it. The receiver's queries, keys or values are computed from that stream and patched, and the run goes on from there.
Source: Wang et al., "Interpretability in the wild" (arXiv 2211.00593); Goldowsky-Dill et al. (arXiv 2304.05969).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from gemmascope.errors import SweepError
from gemmascope.model.gemma2 import Layer
from gemmascope.model.model import Model
from gemmascope.run.bound import BoundEdit
from gemmascope.run.code import call_text
from gemmascope.run.default import model_or_nano
from gemmascope.run.edits import Patch
from gemmascope.run.grid import Grid, Places
from gemmascope.run.memory import rows_within
from gemmascope.run.pairs import Plan, pairs_of, question_of
from gemmascope.run.result import SweepResult
from gemmascope.run.sweep import Sweeping, run_all
from gemmascope.run.trace import Trace, trace
from gemmascope.run.where import find_heads
from gemmascope.sites import find, read_name

SENDERS = ("z", "attn_out", "mlp_out")
RECEIVERS = ("q", "k", "v")


@dataclass(frozen=True)
class Receiver:
    """Heads of a layer that read the sender's change at q, k or v; or the end of the stream ("resid_post" of the last)."""

    site: str
    layer: int
    heads: list[int] | None

    def hears(self, layer: int) -> bool:
        """Whether what a sender writes in this layer comes before it."""
        return layer < self.layer or self.site == "resid_post"


def path_sweep(
    clean: Any,
    corrupt: Any,
    metric: Any,
    *,
    sender: str = "z",
    receiver: Any = "final",
    by: Sequence[str] | None = None,
    into: str = "corrupt",
    layer: Any = None,
    pos: Any = None,
    head: Any = None,
    model: Model | None = None,
    memory: int | str | None = None,
    progress: bool = True,
) -> SweepResult:
    """Patch every cell of a grid of senders, and measure its effect through the receivers alone.

    sender: "z" (heads), "attn_out" or "mlp_out". receiver: ("q" | "k" | "v", layer, head or heads or None for all; kv heads
    at k and v), a list of such, or "final": the sender's own words to the unembedding. TransformerLens' names are read
    as well; "blocks.5.attn.hook_q" alone is a receiver. by: ("layer", "head") for z, else ("layer", "pos"). into, layer,
    pos, head, memory, progress, the other arguments and the result: as in gs.sweep. A sender that comes at or after the
    layer of every receiver has no path: its cell stays NaN. SweepError if none has one.
    """
    if read_name(sender)[0].name not in SENDERS:
        raise SweepError(f"a sender writes to the stream: {', '.join(SENDERS)}; given {sender!r}")
    model = model_or_nano(model)
    receivers = _receivers(receiver, model)
    by = by or (("layer", "head") if read_name(sender)[0].name == "z" else ("layer", "pos"))
    pairs = pairs_of(clean, corrupt, metric, into, None, model)
    places = Places(layer=layer, pos=pos, head=head)
    plans = [Plan.of(pair, Grid.over(sender, by, places, 1, model, pair.base), model, (), traced=True) for pair in pairs]
    asked = {"sender": sender, "receiver": receiver, "by": by, "into": into, "layer": layer, "pos": pos, "head": head}
    code = call_text("path_sweep", model, (clean, corrupt, metric), asked)
    n_cells = sum(_has_path(cell, receivers) for plan in plans for cell in plan.grid.cells())
    if not n_cells:
        raise SweepError(f"no sender comes before the receiver {receiver!r}: take a later receiver, or earlier layers")
    result = SweepResult.empty(question_of(plans, metric, into, code, model, n_cells), len(plans))
    result.source_metric[:] = [plan.traced_metric() for plan in plans]
    paths = [_Paths(plan, receivers, model) for plan in plans]
    run_all(Sweeping(plans, [path.of for path in paths], result, model, rows_within(memory, model)), progress)
    return result


class _Paths:
    """Makes the edits of a cell: at each receiver after the sender, what it reads with the sender's change."""

    def __init__(self, plan: Plan, receivers: Sequence[Receiver], model: Model) -> None:
        self.plan, self.receivers, self.model = plan, receivers, model
        self.base: Trace = trace(plan.base.ids, model=model)
        self.layer = lru_cache(maxsize=2)(model.layer)  # a sender's and a receiver's: a layer that streams is read anew

    def of(self, cell: dict[str, list[int]]) -> tuple[BoundEdit, ...]:
        if not _has_path(cell, self.receivers):
            return ()
        changes = {layer: self._change(layer, cell) for layer in cell["layer"]}
        return tuple(edit for r in self.receivers if (edit := self._read(r, changes)) is not None)

    def _change(self, layer: int, cell: dict[str, list[int]]) -> Tensor:
        """What the sender adds to the stream in the source's run less what it adds in the base's. [pos, d_model]"""
        name = self.plan.grid.site.name
        index = self.plan.edits.index_of(cell)
        value = self.base[name, layer]
        value[index] = self.plan.edits.whole(layer)[index]
        if name != "z":
            return value - self.base[name, layer]
        with torch.no_grad():
            return _attn_out(self.layer(layer), value) - self.base["attn_out", layer]

    def _read(self, receiver: Receiver, changes: dict[int, Tensor]) -> BoundEdit | None:
        """The receiver's value with the changes before it, as an edit of its rows from the first change on."""
        before = [change for layer, change in changes.items() if receiver.hears(layer)]
        if not before:
            return None
        change = torch.stack(before).sum(0)
        rows = torch.nonzero(change.any(-1))[:, 0]
        if not len(rows):
            rows = torch.tensor([len(change) - 1], device=change.device)
        if receiver.site == "resid_post":
            value = (self.base.stream[-1] + change)[rows]
            places: tuple[Tensor, ...] = (rows,)
        else:
            value, places = self._projected(receiver, change, rows)
        words = {"head": receiver.heads} if receiver.heads else {}
        edit = Patch(site=receiver.site, source=value, layer=receiver.layer, pos=rows.tolist(), **words)
        address = find((receiver.site, receiver.layer), self.model.n_layers)
        return BoundEdit(edit, address, places, value)

    def _projected(self, receiver: Receiver, change: Tensor, rows: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        layer = self.layer(receiver.layer)
        project = getattr(layer.self_attn, f"{receiver.site}_proj")
        with torch.no_grad():
            flat = project(layer.input_layernorm((self.base.stream[receiver.layer] + change)[rows]))
        heads = torch.tensor(receiver.heads, device=flat.device)
        value = rearrange(flat, "pos (head d) -> pos head d", d=self.model.config.d_head)[:, receiver.heads]
        return value, (rows, heads)


def _has_path(cell: dict[str, list[int]], receivers: Sequence[Receiver]) -> bool:
    return any(receiver.hears(layer) for layer in cell["layer"] for receiver in receivers)


def _attn_out(layer: Layer, z: Tensor) -> Tensor:
    """What attention adds to the stream for given z: W_O and the post-norm, its scale as it comes out."""
    raw = layer.self_attn.o_proj(rearrange(z, "pos head d -> pos (head d)"))
    out: Tensor = layer.post_attention_layernorm(raw)
    return out


def _receivers(given: Any, model: Model) -> list[Receiver]:
    listed = given if isinstance(given, list) else [given]
    if not listed:
        raise SweepError("receiver is an empty list: name at least one")
    return [receiver for one in listed for receiver in _receiver(one, model)]


def _receiver(given: Any, model: Model) -> Iterator[Receiver]:
    if given == "final":
        yield Receiver("resid_post", model.n_layers - 1, None)
        return
    parts = (given,) if isinstance(given, str) else given
    if not isinstance(parts, tuple) or not 1 <= len(parts) <= 3 or read_name(parts[0])[0].name not in RECEIVERS:
        raise SweepError(f"a receiver is ('q' | 'k' | 'v', layer, head) or 'final'; given {given!r}")
    if len(parts) == 2 and read_name(parts[0])[1] is not None:  # is the number its layer once more, or a head?
        raise SweepError(f"{parts[0]!r} names its layer: give it alone, or as ({parts[0]!r}, None, head); given {given!r}")
    address = find(parts[0], model.n_layers, parts[1] if len(parts) > 1 else None)
    heads = find_heads(parts[2] if len(parts) == 3 else None, address.site, model)
    assert address.layer is not None
    yield Receiver(address.site.name, address.layer, heads)

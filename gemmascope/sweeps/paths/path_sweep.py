"""Path patching: a sender's effect on the answer through one receiver only, the other heads between them frozen.

In one run the sender has the value of the other prompt's, and the receiver's queries, keys or values are read; in a second
run the receiver alone is patched with them, and the run goes on from there. Between the two MLPs are live or frozen.
Source: Wang et al., "Interpretability in the wild" (arXiv 2211.00593); Goldowsky-Dill et al. (arXiv 2304.05969).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from gemmascope.arguments import one_of, shown
from gemmascope.edits.bound import BoundEdit
from gemmascope.edits.call_text import call_text
from gemmascope.errors import SweepError
from gemmascope.loading.default import model_or_nano
from gemmascope.memory.limits import rows_within
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.run.metric import try_metric
from gemmascope.run.trace import Trace, trace
from gemmascope.sites import parse_site_name
from gemmascope.sweeps.grid import Grid, Places
from gemmascope.sweeps.pairs import Plan, pairs_of, prompts_of, question_of
from gemmascope.sweeps.paths.live import LivePaths
from gemmascope.sweeps.paths.receivers import Receiver, attn_out, has_path, receivers_of
from gemmascope.sweeps.remarks import raise_or_warn, sweep_remarks
from gemmascope.sweeps.result import SweepResult
from gemmascope.sweeps.sweep import SweepRunner, run_all

SENDERS = ("z", "attn_out", "mlp_out")
MLPS = ("live", "frozen")


@computes
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
    mlps: str = "live",
    model: Model | None = None,
    memory: int | str | None = None,
    progress: bool = True,
) -> SweepResult:
    """Patch every cell of a grid of senders, and measure its effect through the receivers alone.

    Two runs stand for a cell. In the first the sender has the value of the other run, every other attention head keeps its
    z of the base run, and the receiver is read. In the second, a run of the base, the receiver alone has that value.
    mlps="live": in the first run MLPs and norms compute anew from the stream that reaches them, and only heads are frozen:
    path patching as in Wang et al. (arXiv 2211.00593), whose paths go through MLPs. Heads are frozen at z, so that the
    sender's post-norm, which is of all heads' sum, computes anew as well. mlps="frozen": MLPs keep what they wrote, too:
    the direct path alone, from the sender to the receiver through the stream (Goldowsky-Dill et al., arXiv 2304.05969).
    sender: "z" (heads), "attn_out" or "mlp_out". receiver: ("q" | "k" | "v", layer, head or heads or None for all; kv heads
    at k and v), a list of such, or "final": the sender's way to the unembedding. TransformerLens' names are read
    as well; "blocks.5.attn.hook_q" alone is a receiver. by: ("layer", "head") for z, else ("layer", "pos"). into, layer,
    pos, head, memory, progress, the other arguments and the result: as in gs.sweep. A sender that comes at or after the
    layer of every receiver has no path: its cell stays NaN. SweepError if none has one.
    """
    if parse_site_name(sender)[0].name not in SENDERS:
        raise SweepError(f"a sender writes to the stream: {', '.join(SENDERS)}; given {shown(sender)}")
    one_of(mlps, "mlps", MLPS, error=SweepError)
    model = model_or_nano(model)
    receivers, max_rows = receivers_of(receiver, model), rows_within(memory, model)
    if by is None:
        by = ("layer", "head") if parse_site_name(sender)[0].name == "z" else ("layer", "pos")
    clean, corrupt = prompts_of(clean, corrupt)
    pairs = pairs_of(clean, corrupt, metric, into, None, model)
    places = Places(layer=layer, pos=pos, head=head)
    plans = [Plan.of(pair, Grid.over(sender, by, places, 1, model, pair.base), model, (), traced=True) for pair in pairs]
    asked = {"sender": sender, "receiver": receiver, "by": by, "into": into, "layer": layer, "pos": pos, "head": head}
    asked["mlps"] = mlps
    code = call_text("path_sweep", model, (clean, corrupt, metric), asked)
    n_cells = sum(has_path(cell, receivers) for plan in plans for cell in plan.grid.cells())
    if not n_cells:
        raise SweepError(f"no sender comes before the receiver {receiver!r}: take a later receiver, or earlier layers")
    for plan in plans:
        try_metric(plan.pair.metric, model, plan.base.ids)
    raise_or_warn(sweep_remarks(plans, metric, model), SweepError)
    result = SweepResult.empty(question_of(plans, metric, into, code, model, n_cells, said=f"mlps={mlps}"), len(plans))
    result.source_metric[:] = [plan.traced_metric() for plan in plans]
    made = [
        (_FrozenPaths(plan, receivers, model) if mlps == "frozen" else LivePaths(plan, receivers, model, max_rows)).of
        for plan in plans
    ]
    run_all(SweepRunner(plans, made, result, model, max_rows), progress)
    return result


class _FrozenPaths:
    """Makes the edits of a cell with everything between frozen: at each receiver, what it reads with the change added."""

    def __init__(self, plan: Plan, receivers: Sequence[Receiver], model: Model) -> None:
        self.plan, self.receivers, self.model = plan, receivers, model
        self.base: Trace = trace(plan.base.ids, model=model)
        self.layer = lru_cache(maxsize=2)(model.layer)  # a sender's and a receiver's: a layer that streams is read anew

    def of(self, cell: dict[str, list[int]]) -> tuple[BoundEdit, ...]:
        if not has_path(cell, self.receivers):
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
            return attn_out(self.layer(layer), value) - self.base["attn_out", layer]

    def _read(self, receiver: Receiver, changes: dict[int, Tensor]) -> BoundEdit | None:
        """The receiver's value with the changes before it, as an edit of its rows from the first change on."""
        before = [change for layer, change in changes.items() if receiver.hears(layer)]
        if not before:
            return None
        change = torch.stack(before).sum(0)
        rows = torch.nonzero(change.any(-1))[:, 0]
        if not len(rows):
            rows = torch.tensor([len(change) - 1], device=change.device)
        entry = self.model.n_layers if receiver.heads is None else receiver.layer
        stream = (self.base.residuals[entry] + change)[rows]
        read = stream if receiver.heads is None else receiver.read(self.layer(receiver.layer), stream)
        return receiver.edit(self.model, rows, read)

"""gs.path_sweep: a sender's effect on the answer through chosen receivers only, the other heads between them frozen.

In the first run the sender has the value of the other prompt's run, and the receiver's queries, keys or values are read; in
the second the receiver alone is patched with them, and the run goes on from there. MLPs between the two are live or frozen.
"""

from __future__ import annotations

from collections.abc import Sequence

from gemmascope.arguments import one_of, shown
from gemmascope.edits.call_text import call_text
from gemmascope.edits.places import Head, Pos
from gemmascope.errors import SweepError
from gemmascope.loading.default import model_or_nano
from gemmascope.memory.limits import rows_within
from gemmascope.model.model import Model, Prompt
from gemmascope.model.modes import computes
from gemmascope.run.metric import try_metric
from gemmascope.sites import parse_site_name
from gemmascope.sweeps.metadata import metadata_of
from gemmascope.sweeps.metrics import MetricLike
from gemmascope.sweeps.pairs import listed_pairs, pairs_of
from gemmascope.sweeps.paths.frozen import FrozenPaths
from gemmascope.sweeps.paths.live import LivePaths
from gemmascope.sweeps.paths.receivers import ReceiverLike, has_path, receivers_of
from gemmascope.sweeps.remarks import raise_or_warn, sweep_remarks
from gemmascope.sweeps.result import SweepResult
from gemmascope.sweeps.spec import Layers, SweepSpec
from gemmascope.sweeps.sweep import SweepRunner, run_all

SENDERS = ("z", "attn_out", "mlp_out")
MLPS = ("live", "frozen")


@computes
def path_sweep(
    clean: Prompt | Sequence[Prompt],
    corrupt: Prompt | Sequence[Prompt],
    metric: MetricLike | Sequence[MetricLike],
    *,
    sender: str = "z",
    receiver: ReceiverLike | list[ReceiverLike] = "final",
    by: Sequence[str] | None = None,
    into: str = "corrupt",
    layer: Layers = None,
    pos: Pos = None,
    head: Head = None,
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
    sender_site = parse_site_name(sender)[0].name
    if sender_site not in SENDERS:
        raise SweepError(f"a sender writes to the stream: {', '.join(SENDERS)}; given {shown(sender)}")
    one_of(mlps, "mlps", MLPS, error=SweepError)
    model = model_or_nano(model)
    receivers, max_rows = receivers_of(receiver, model), rows_within(memory, model)
    if by is None:
        by = ("layer", "head") if sender_site == "z" else ("layer", "pos")
    spec = SweepSpec(sender, by, into, layer=layer, pos=pos, head=head)
    listed_clean, listed_corrupt = listed_pairs(clean, corrupt)
    pairs = pairs_of(listed_clean, listed_corrupt, metric, spec, model, trace_sources=True)
    n_cells = sum(has_path(cell, receivers) for pair in pairs for cell in pair.grid.cells())
    if not n_cells:
        raise SweepError(f"no sender comes before the receiver {receiver!r}: take a later receiver, or earlier layers")
    for pair in pairs:
        try_metric(pair.metric, model, pair.base.ids)
    raise_or_warn(sweep_remarks(pairs, metric, model), SweepError)
    named = {"sender": sender, "receiver": receiver, "by": by, "into": into, "layer": spec.layer, "pos": spec.pos}
    named |= {"head": spec.head, "mlps": mlps}
    code = call_text("path_sweep", model, (listed_clean, listed_corrupt, metric), named)
    metadata = metadata_of(pairs, metric, spec, code, model, n_cells=n_cells, extra=f"mlps={mlps}")
    result = SweepResult.empty(metadata, len(pairs))
    result.source_metric[:] = [pair.source_metric() for pair in pairs]
    paths: list[FrozenPaths] | list[LivePaths]
    if mlps == "frozen":
        paths = [FrozenPaths(pair, receivers, model) for pair in pairs]
    else:
        paths = [LivePaths(pair, receivers, model, max_rows) for pair in pairs]
    run_all(SweepRunner(pairs, [path.edits_of for path in paths], result, model, max_rows), progress)
    return result

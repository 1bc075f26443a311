"""gs.path_sweep: a sender's effect on the answer through chosen receivers only, the other heads between them frozen.

In the first run the sender has the value of the other prompt's run, and the receiver's queries, keys or values are
read; in the second the receiver alone is patched with them, and the run goes on from there. MLPs between the two are
live or frozen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gemmascope.arguments import one_of, short_repr
from gemmascope.edits.call_text import call_text
from gemmascope.edits.places import Head, Pos
from gemmascope.errors import SweepError
from gemmascope.loading.default import model_or_nano
from gemmascope.memory.limits import rows_within
from gemmascope.model.model import Model, Prompt
from gemmascope.model.modes import computes
from gemmascope.sites import parse_site_name
from gemmascope.sweeps.metrics import MetricLike
from gemmascope.sweeps.pairs import listed_pairs, pairs_of, sweep_remarks
from gemmascope.sweeps.paths.edited import EditedPaths
from gemmascope.sweeps.paths.frozen import FrozenPaths
from gemmascope.sweeps.paths.live import LivePaths
from gemmascope.sweeps.paths.receivers import ReceiverLike, has_path, receivers_of
from gemmascope.sweeps.remarks import raise_or_warn
from gemmascope.sweeps.result import SweepResult
from gemmascope.sweeps.running.runner import SweepRunner, run_all
from gemmascope.sweeps.sets.filling import empty_result, try_metrics
from gemmascope.sweeps.sets.result import SweepSet
from gemmascope.sweeps.spec import Layers, SweepSpec

SENDERS = ("z", "attn_out", "mlp_out")
MLPS = ("live", "frozen")


@computes
def path_sweep(
    clean: Prompt | Sequence[Prompt],
    corrupt: Prompt | Sequence[Prompt],
    metric: MetricLike | Sequence[MetricLike] | Mapping[str, MetricLike | Sequence[MetricLike]],
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
) -> SweepResult | SweepSet:
    """Patch every cell of a grid of senders, and measure its effect through chosen receivers only.

    Path patching. Each cell takes two runs. In the first the sender has its value of the other prompt's run, all other
    attention heads keep their z of the base run, and the value that arrives at the receiver is read. In the second, a
    run of the base, only the receiver has that value. A cell whose sender does not come before any receiver has no
    path: it is NaN.

    Args:
        clean: The prompt that has the answer: text (`<bos>` is put in front), token ids (taken as they are) or chat
            messages; or a list of prompts, for several pairs.
        corrupt: The prompt to compare with, of as many tokens; or a list of as many prompts.
        metric: What to measure, as in gs.sweep: a function of the soft-capped logits of the last position, [run, vocab]
            -> [run], or gs.logit_diff(...). For several pairs one for all, or a list with one for each. Several in the
            same passes: a mapping of names to such, or for one pair a list.
        sender: What sends: "z" (heads), "attn_out" or "mlp_out", or the name in TransformerLens.
        receiver: What receives: "final" (the unembedding), or (site, layer, head) with the site "q", "k" or "v", the
            head a number, a list or left out for all, counted in kv heads at k and v; or a list of such. Names in
            TransformerLens are read as well: "blocks.5.attn.hook_q".
        by: The axes of the grid. None: ("layer", "head") for z, ("layer", "pos") for the others.
        into: The run that is patched: "corrupt" with values of the clean run, or "clean" with values of the corrupted
            run.
        layer: The senders' layers: a number or a list; negative ones count from the end. None: all.
        pos: The senders' positions: a number, a slice, a list, or a token that occurs once in the prompt. None: all.
        head: The senders' heads: a number or a list. None: all.
        mlps: What the MLPs between sender and receiver do in the first run. "live": they and the norms compute anew
            from the stream that reaches them, so that paths through MLPs count (Wang et al.). "frozen": they keep what
            they wrote, so that only the direct path through the stream counts (Goldowsky-Dill et al.).
        model: The model. None: nano. In one that `model.edited` made, the edits are in both runs of a cell, before what is
            patched and frozen; its first run is then a run of its own, which takes longer.
        memory: How much the runs of one pass may take, in bytes or as text ("2GiB"). None: as in gs.sweep.
        progress: Show a progress bar when the sweep takes more than a second.

    Returns:
        A SweepResult, as from gs.sweep, over the senders; for several metrics a SweepSet.

    Raises:
        PromptError: A prompt or an answer cannot be read, or is longer than the model's context.
        SiteError: A site, layer, position or head does not exist.
        MetricError: The metric does not give one number for each run, or mixes runs.
        BudgetError: memory is not an amount of memory.
        SweepError: A sender or receiver is not one, no sender comes before a receiver, or the arguments do not fit
            together.

    Examples:
        >>> clean = "When Mary and John went to the store, John gave a drink to"
        >>> corrupt = "When Mary and John went to the store, Mary gave a drink to"
        >>> metric = gs.logit_diff(" Mary", " John")
        >>> paths = gs.path_sweep(clean, corrupt, metric, sender="z", receiver=("q", 3), progress=False)
        >>> round(paths.effect.sel(layer=2, head=3).item(), 1)  # of 23.8 by all paths
        19.8
        >>> bool(paths.effect.sel(layer=3).isnull().all())  # layer 3 does not come before its own queries
        True

    References:
        Wang et al., "Interpretability in the wild: a circuit for indirect object identification", arXiv 2211.00593.
        Goldowsky-Dill et al., "Localizing model behavior with path patching", arXiv 2304.05969.
    """
    sender_site = parse_site_name(sender)[0].name
    if sender_site not in SENDERS:
        raise SweepError(f"a sender writes to the stream: {', '.join(SENDERS)}; given {short_repr(sender)}")
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
        try_metrics(pair, model)
    raise_or_warn(sweep_remarks(pairs, metric, model), SweepError)
    named = {"sender": sender, "receiver": receiver, "by": by, "into": into, "layer": spec.layer, "pos": spec.pos}
    named |= {"head": spec.head, "mlps": mlps}
    code = call_text("path_sweep", model, (listed_clean, listed_corrupt, metric), named)
    result = empty_result(pairs, metric, spec, code, model, n_cells=n_cells, extra=f"mlps={mlps}")
    for number, grid in enumerate([result] if isinstance(result, SweepResult) else result.grids):
        grid.source_metric[:] = [pair.source_metric(number) for pair in pairs]
    paths: list[EditedPaths] | list[FrozenPaths] | list[LivePaths]
    if model.edits:
        paths = [EditedPaths(pair, receivers, model, mlps) for pair in pairs]
    elif mlps == "frozen":
        paths = [FrozenPaths(pair, receivers, model) for pair in pairs]
    else:
        paths = [LivePaths(pair, receivers, model, max_rows) for pair in pairs]
    run_all(SweepRunner(pairs, [path.edits_of for path in paths], result, model, max_rows), progress)
    return result

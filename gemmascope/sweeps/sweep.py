"""gs.sweep: a grid of runs, each one edit away from a base run, and a metric; all of them in one pass.

Activation patching (Vig et al. 2020; Meng et al. 2022; Heimersheim and Nanda 2024) in both directions, and ablation.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, overload

from gemmascope.edits.call_text import call_text
from gemmascope.edits.edit import Edit
from gemmascope.edits.places import Head, Pos
from gemmascope.errors import SweepError
from gemmascope.loading.default import model_or_nano
from gemmascope.memory.limits import microbatch_rows, rows_within
from gemmascope.model.model import Model, Prompt
from gemmascope.model.modes import computes
from gemmascope.run.trace import Trace
from gemmascope.sweeps.final_logits import refuse_wide_functions
from gemmascope.sweeps.journal import Journal
from gemmascope.sweeps.metrics import MetricLike
from gemmascope.sweeps.pairs import listed_pairs, pairs_of, sweep_remarks
from gemmascope.sweeps.remarks import raise_or_warn
from gemmascope.sweeps.result import SweepResult
from gemmascope.sweeps.running.runner import SweepRunner, run_all
from gemmascope.sweeps.running.sharing import SweepTask, chunks_on_workers
from gemmascope.sweeps.sets.filling import empty_result, try_metrics
from gemmascope.sweeps.sets.result import SweepSet
from gemmascope.sweeps.spec import Layers, SweepOptions, SweepSpec
from gemmascope.workers.choice import RayWorkers, chosen_workers

if TYPE_CHECKING:
    from typing_extensions import Unpack


@overload
def sweep(
    clean: Prompt | Sequence[Prompt],
    corrupt: Prompt | Sequence[Prompt] | None,
    metric: MetricLike | Sequence[MetricLike],
    *,
    site: str,
    **options: Unpack[SweepOptions],
) -> SweepResult: ...
@overload
def sweep(
    clean: Prompt | Sequence[Prompt],
    corrupt: Prompt | Sequence[Prompt] | None,
    metric: MetricLike | Sequence[MetricLike] | Mapping[str, MetricLike | Sequence[MetricLike]],
    *,
    site: str | Sequence[str],
    **options: Unpack[SweepOptions],
) -> SweepResult | SweepSet: ...
@computes
def sweep(
    clean: Prompt | Sequence[Prompt],
    corrupt: Prompt | Sequence[Prompt] | None,
    metric: MetricLike | Sequence[MetricLike] | Mapping[str, MetricLike | Sequence[MetricLike]],
    *,
    site: str | Sequence[str],
    by: Sequence[str] = ("layer", "pos"),
    into: str = "corrupt",
    ablate: float | str | None = None,
    reference: Sequence[Trace] = (),
    layer: Layers = None,
    pos: Pos = None,
    head: Head = None,
    q_pos: Pos = None,
    k_pos: Pos = None,
    window: int = 1,
    edits: Sequence[Edit] = (),
    model: Model | None = None,
    memory: int | str | None = None,
    progress: bool = True,
    out: str | os.PathLike[str] | None = None,
    workers: RayWorkers | int | None = None,
) -> SweepResult | SweepSet:
    """Patch every cell of a grid, each in a run of its own, and measure what that changes: all runs in one pass.

    Activation patching. The run of a cell is the run of one prompt, with the values of a site at the cell's places
    taken from the run of the other prompt; in an ablation a number or a mean is written instead. All runs go through
    the layers together: a pass reads each layer's weights once, and a run takes only the rows from its first change on.

    Interrupting (Ctrl-C) gives a warning and returns the cells that are finished; the others are NaN.

    Args:
        clean: The prompt that has the answer: text (`<bos>` is put in front), token ids (taken as they are) or chat
            messages; or a list of prompts, for several pairs.
        corrupt: The prompt to compare with, of as many tokens; or a list of as many prompts. None for an ablation.
        metric: What to measure: gs.logit_diff(...) or another metric of gs, or a function of the soft-capped logits of
            the last position, [run, vocab] -> [run]. For several pairs one for all, or a list with one for each. Several
            in the same pass: a mapping of names to such, or for one pair a list.
        site: What to patch, by its name here ("resid_pre", "z", "pattern", ...) or in TransformerLens; the name may say
            the layer as well ("blocks.5.attn.hook_z"). A list patches several sites, each in runs of its own, in the
            same pass.
        by: The axes of the grid, of those that the site has: "layer", "pos" and "head"; at attention edges "q_pos" and
            "k_pos" in place of "pos". Along the axes that are left out a cell patches all places together. The default
            suits sites with positions; at scores, scores_capped and pattern give by.
        into: The run that is patched. "corrupt", with values of the clean run: what restores the answer? "clean", with
            values of the corrupted run: what breaks it?
        ablate: What to write in place of another run's values, for an ablation of the clean run: a number, or "mean" or
            "mean_by_pos" over reference. None: patch.
        reference: Traces to take the mean over, as in gs.ablate.
        layer: The layers to cover: a number or a list; negative ones count from the end. None: all.
        pos: The positions: a number, a slice, a list, or a token that occurs once in the prompt; negative ones count
            from the end. None: all.
        head: The heads: a number or a list; kv heads at k, k_raw, k_rot and v. None: all.
        q_pos: At attention edges, the query positions, written like pos. None: all.
        k_pos: At attention edges, the key positions, written like pos. None: all.
        window: How many neighbouring layers a cell patches, centred on its own. Above 1 it needs "layer" in by.
        edits: Edits of the run that is patched: of its baseline and of every cell's run, but not of the run that the
            values come from.
        model: The model. None: nano.
        memory: How much the runs of one pass may take, in bytes or as text ("2GiB"); a larger sweep is run in several
            passes. None: what the model was loaded to leave for it, or a quarter of what is free.
        progress: Show a progress bar when the sweep takes more than a second.
        out: A file for the finished cells. Written as JSON lines, a chunk at a time; gs.open_sweep reads it, finished or
            not. A second call with the same file continues where the first stopped. The question must be the same;
            memory, progress and workers may differ. Another sweep's file is refused, never overwritten. None: no file.
        workers: gs.ray(...), among which the passes are shared, or how many on this machine. Numbers and file are the same
            as without. None: this process alone.

    Returns:
        A SweepResult. Its .effect is an xarray.DataArray with the axes of by, float64: the metric of each cell's run
        less that of the run that is patched, the mean over pairs. .clean and .corrupt are the baselines, .normalized is
        the effect as a share of the gap between them. For several sites or metrics a SweepSet: a mapping of SweepResults,
        whose .effect has the axes "site" and "metric" as well.

    Raises:
        PromptError: A prompt or an answer cannot be read, or is longer than the model's context.
        SiteError: A site, layer, position or head does not exist.
        EditError: An edit or the reference does not fit.
        MetricError: The metric does not give one number for each run, or mixes runs; two metrics have one name.
        BudgetError: memory is not an amount of memory.
        SweepError: The arguments do not fit together (prompts of different lengths, axes that the site does not have),
            memory is too small, or the file belongs to another sweep. What can be checked is checked before anything is
            run.
        WorkersError: The workers cannot be reached, cannot load the model, or end again and again; or the metric, the edits
            or the reference cannot be sent to them.

    Examples:
        >>> clean = "When Mary and John went to the store, John gave a drink to"
        >>> corrupt = "When Mary and John went to the store, Mary gave a drink to"
        >>> metric = gs.logit_diff(" Mary", " John")
        >>> result = gs.sweep(clean, corrupt, metric, site="z", by=("layer", "head"), progress=False)
        >>> result.effect.dims, result.effect.shape
        (('layer', 'head'), (6, 4))
        >>> round(result.normalized.sel(layer=2, head=3).item(), 2)  # this head restores the answer
        1.02
        >>> ablated = gs.sweep(clean, None, metric, site="mlp_out", by=("layer",), ablate=0.0, progress=False)
        >>> ablated.effect.dims
        ('layer',)

    References:
        Vig et al., "Investigating gender bias in language models using causal mediation analysis", arXiv 2004.12265.
        Meng et al., "Locating and editing factual associations in GPT", arXiv 2202.05262.
        Heimersheim and Nanda, "How to use and interpret activation patching", arXiv 2404.15255.
    """
    spec = SweepSpec(site, by, into, ablate, reference, layer, pos, head, q_pos, k_pos, window, edits)
    shared = chosen_workers(workers)
    clean, corrupt = listed_pairs(clean, corrupt)  # type: ignore[assignment]
    runner = prepare(clean, corrupt, metric, spec, model=model, memory=memory)
    raise_or_warn(sweep_remarks(runner.pairs, metric, runner.model), SweepError)
    journal = Journal()
    try:
        try:
            journal.open(out, runner.numbers)
            runner = replace(runner, journal=journal)
            task = SweepTask(clean, corrupt, metric, spec, memory, runner.numbers.question)
            run_all(runner, progress, None if shared is None else chunks_on_workers(runner, task, shared))
        finally:
            journal.close()
    finally:  # again, because an interrupt may have come in the line before, and the file would stay locked
        journal.close()
    return runner.result


def prepare(
    clean: object,
    corrupt: object,
    metric: object,
    spec: SweepSpec,
    *,
    model: Model | None = None,
    memory: int | str | None = None,
) -> SweepRunner:
    """A sweep that is checked and has not run. The arguments and errors are those of gs.sweep.

    It gives no warnings: gs.sweep and the labs each show the remarks on a sweep in their own way.
    """
    model = model_or_nano(model)
    clean, corrupt = listed_pairs(clean, corrupt)
    pairs = pairs_of(clean, corrupt, metric, spec, model)
    max_rows = rows_within(memory, model)
    code = call_text("sweep", model, (clean, corrupt, metric), spec.as_arguments())
    result = empty_result(pairs, metric, spec, code, model)
    for pair in pairs:
        refuse_wide_functions(pair.base)
        try_metrics(pair, model)
    n_at_once = microbatch_rows(model, memory)
    return SweepRunner(pairs, [pair.edits_of for pair in pairs], result, model, max_rows, n_at_once=n_at_once)

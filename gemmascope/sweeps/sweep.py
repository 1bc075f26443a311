"""Sweeps: a grid of runs, each one edit away from a base run, and a metric; all of them in one pass.

Activation patching (Vig et al. 2020; Meng et al. 2022; Heimersheim and Nanda 2024) in both directions, and ablation.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gemmascope.edits.call_text import call_text
from gemmascope.edits.edit import Edit, listed_edits
from gemmascope.edits.sources import listed_reference
from gemmascope.edits.text import traces_said
from gemmascope.errors import SweepError, warn
from gemmascope.loading.default import model_or_nano
from gemmascope.memory.limits import rows_within
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.run.finite import require_sound_end
from gemmascope.run.metric import measure, try_metric
from gemmascope.run.trace import Trace
from gemmascope.sweeps.cells import Cost, Job, Maker, chunked, jobs_of, pending_cells
from gemmascope.sweeps.final_rows import ending_logits, refuse_wide_functions
from gemmascope.sweeps.grid import EVERYWHERE, Grid, Places
from gemmascope.sweeps.journal import NOWHERE, Journal, JournalStopped
from gemmascope.sweeps.pairs import Ablation, Plan, pairs_of, prompts_of, question_of
from gemmascope.sweeps.remarks import raise_or_warn, sweep_remarks
from gemmascope.sweeps.result import Array, SweepResult
from gemmascope.sweeps.variants import Variant, final_rows

# Logits held at once, in elements: 64 MB.
LOGIT_ELEMENTS = 2**24


@computes
def sweep(
    clean: Any,
    corrupt: Any,
    metric: Any,
    *,
    site: str,
    by: Sequence[str] = ("layer", "pos"),
    into: str = "corrupt",
    ablate: float | str | None = None,
    reference: Sequence[Trace] = (),
    layer: Any = None,
    pos: Any = None,
    head: Any = None,
    q_pos: Any = None,
    k_pos: Any = None,
    window: int = 1,
    edits: Sequence[Edit] = (),
    model: Model | None = None,
    memory: int | str | None = None,
    progress: bool = True,
    out: str | os.PathLike[str] | None = None,
) -> SweepResult:
    """Patch every cell of a grid, each in a run of its own, and measure what it changes: all runs in one pass.

    clean, corrupt: two prompts of equal length, or lists of them (pairs). metric: gs.logit_diff(...) or a function of
    soft-capped logits [run, vocab] -> [run]; for pairs, a list with one for each. site: where to patch, by its name here
    or in TransformerLens, which may say the layer ("blocks.5.attn.hook_z"). by: the axes of the grid, of layer, pos, head
    (kv heads at k and v), q_pos and k_pos; along the others all places are patched together.
    into: the run that is patched: "corrupt" (with clean values: what restores the answer?) or "clean" (with corrupted
    ones: what breaks it?). ablate: what to write instead, the clean run then being changed and corrupt None: a number, or
    "mean" or "mean_by_pos" over reference, a list of traces, as in gs.ablate.
    layer, pos, head, q_pos, k_pos: a subset, written as in gs.patch. window: layers that a cell patches, centred on its
    own. edits: made to the base run and to all its variants. memory: how much the variants may take, such as "2GiB"; by
    default a quarter of what is free. progress: whether to show a bar. out: a file for the finished cells; a second call
    with the same file goes on where it stopped. Interrupting returns what is finished, the other cells NaN.
    Raises PromptError, SiteError, EditError, MetricError, BudgetError or SweepError for what does not fit, before
    anything is run.
    """
    asked = SweepSpec(site, by, into, ablate, listed_reference(reference), Places(layer, pos, head, q_pos, k_pos), window)
    sweeping = prepare(clean, corrupt, metric, asked, edits=edits, model=model, memory=memory)
    raise_or_warn(sweep_remarks(sweeping.plans, metric, sweeping.model), SweepError)
    journal = Journal()
    try:
        try:
            journal.open(out, sweeping.result)
            run_all(replace(sweeping, journal=journal), progress)
        finally:
            journal.close()
    finally:  # again, because an interrupt may have come in the line before, and the file would stay locked
        journal.close()
    return sweeping.result


@dataclass(frozen=True)
class SweepSpec:
    """What a sweep is asked for, but for its runs and metric. Each as an argument of gs.sweep."""

    site: str
    by: Sequence[str] = ("layer", "pos")
    into: str = "corrupt"
    ablate: float | str | None = None
    reference: tuple[Trace, ...] = ()
    places: Places = EVERYWHERE
    window: int = 1

    def as_arguments(self) -> dict[str, Any]:
        """As they stand in the call that repeats it."""
        plain = {"site": self.site, "by": self.by, "into": self.into, "ablate": self.ablate, **vars(self.places)}
        return plain | {"window": self.window, "reference": traces_said(self.reference)}


def prepare(
    clean: Any,
    corrupt: Any,
    metric: Any,
    asked: SweepSpec,
    *,
    edits: Sequence[Edit] = (),
    model: Model | None = None,
    memory: int | str | None = None,
) -> SweepRunner:
    """A sweep that has been checked and not run: its cells are counted. The arguments and errors are those of gs.sweep.

    It gives no warning of what may not be meant: whoever asks tells, as gs.sweep does and a lab in its own way.
    """
    model, edits = model_or_nano(model), listed_edits(edits)
    clean, corrupt = prompts_of(clean, corrupt)
    pairs = pairs_of(clean, corrupt, metric, asked.into, Ablation.of(asked.ablate, asked.reference), model)
    grids = [Grid.over(asked.site, asked.by, asked.places, asked.window, model, pair.base) for pair in pairs]
    plans = [Plan.of(pair, grid, model, edits) for pair, grid in zip(pairs, grids, strict=True)]
    max_rows = rows_within(memory, model)
    code = call_text("sweep", model, (clean, corrupt, metric), {**asked.as_arguments(), "edits": list(edits)})
    n_cells = sum(plan.n_cells for plan in plans)
    result = SweepResult.empty(question_of(plans, metric, asked.into, code, model, n_cells), len(plans))
    for plan in plans:
        refuse_wide_functions(plan.base)
        try_metric(plan.pair.metric, model, plan.base.ids)
    return SweepRunner(plans, [plan.edits.of for plan in plans], result, model, max_rows)


@dataclass(frozen=True)
class SweepRunner:
    """A sweep that is ready to run, all of it or some of its cells, chunk by chunk into one result.

    makers: for each plan, what gives a cell its edits. max_rows: how many rows one pass may carry. journal: where
    finished cells are written.
    """

    plans: Sequence[Plan]
    makers: Sequence[Maker]
    result: SweepResult
    model: Model
    max_rows: int
    journal: Journal = NOWHERE

    def chunks(self, cells: Array | None = None, rows: Callable[[], int] | None = None) -> Iterator[list[tuple[int, int]]]:
        """Run the cells that the result lacks, and fill it: each step runs a chunk and gives its cells (pair, number).

        cells: which to run, bool [*grid]; None for all. rows: how many rows the next chunk may carry, asked before each;
        never more than max_rows. Whoever takes the steps may stop after any of them: what is done is done.
        """
        limit = rows or (lambda: self.max_rows)
        jobs = jobs_of(self.plans, self.makers, self.result, cells)
        for chunk in chunked(jobs, self.plans, lambda: min(limit(), self.max_rows)):
            _run_chunk(chunk, self.plans, self.model, self.result)
            done = [(job.pair, job.cell) for job in chunk]
            self.journal.write(self.result, done)
            yield done

    def cost(self, cells: Array | None = None) -> Cost:
        """What the cells that the result lacks would take; those of `cells`, bool [*grid], or all."""
        return sum((self.cost_of(i, cell) for i, _, cell in pending_cells(self.plans, self.result, cells)), Cost())

    def cost_of(self, pair: int, cell: dict[str, list[int]]) -> Cost:
        """What one cell takes; nothing where it cannot be run."""
        plan = self.plans[pair]
        if not plan.edits.can_run(cell):
            return Cost()
        n_rows = len(plan.base.ids) - min(cell["q_pos" if plan.grid.site.is_edges else "pos"])
        n_layers = self.model.n_layers
        return Cost(1, n_rows, n_rows * (n_layers - min(plan.grid.layers_of(cell, n_layers))))


def run_all(sweeping: SweepRunner, progress: bool) -> None:
    """Run the cells that a sweep's result lacks; an interrupt ends it with what is done. progress: whether to show a bar."""
    try:
        run_cells(sweeping, progress)
    except KeyboardInterrupt:
        warn(f"interrupted: {sweeping.result.progress_text()}; the other cells are NaN")
    except JournalStopped as stopped:
        journal, result = sweeping.journal, sweeping.result
        warn(
            f"{journal.path} stopped at {journal.n_cells} of {result.question.n_cells} cells: {stopped}. The sweep "
            f"ended there: {result.progress_text()}; the other cells are NaN. A second call with the same file goes on"
        )


def run_cells(sweeping: SweepRunner, progress: bool) -> None:
    """Run the cells that a sweep's result lacks. progress: whether to show a bar."""
    from tqdm.auto import tqdm

    # A bar that appears after a second and takes the place of none: a quick sweep shows nothing.
    result = sweeping.result
    with tqdm(total=result.question.n_cells, desc="sweep", unit="cell", delay=1.0, leave=False, disable=not progress) as bar:
        bar.update(int(result.finished.sum()))
        for done in sweeping.chunks():
            bar.update(len(done))


def _run_chunk(chunk: Sequence[Job], plans: Sequence[Plan], model: Model, result: SweepResult) -> None:
    pairs = sorted({job.pair for job in chunk})
    place = {pair: at for at, pair in enumerate(pairs)}
    variants = [Variant(place[job.pair], job.variant.edits) for job in chunk]
    sourced = {pair: source for pair in pairs if (source := plans[pair].source) is not None}
    ends = final_rows(model, [plans[pair].base for pair in pairs], variants, list(sourced.values()))
    for pair, row in zip(sourced, ends.sources, strict=True):
        if np.isnan(result.source_metric[pair]):
            with torch.no_grad():
                logits = model.network.unembed(row[None])
            result.source_metric[pair] = measure(plans[pair].pair.metric, logits)[0].item()
    for pair in pairs:
        plan = plans[pair]
        mine = [at for at, job in enumerate(chunk) if job.pair == pair]
        base = ends.bases[[place[pair]]]
        require_sound_end(model, plan.base.ids, base[0], plan.base.edits)
        result.base_metric[pair] = _measured(model, plan, base)[0]
        result.values[pair].flat[[chunk[at].cell for at in mine]] = _measured(model, plan, ends.variants[mine])


def _measured(model: Model, plan: Plan, rows: Tensor) -> np.ndarray[Any, Any]:
    """The metric of a plan's runs whose stream ends in these rows, unembedded a few at a time."""
    step = max(1, LOGIT_ELEMENTS // model.config.vocab_size)
    with torch.no_grad():
        parts = [measure(plan.pair.metric, ending_logits(model, plan.base, part)) for part in torch.split(rows, step)]
    found: np.ndarray[Any, Any] = torch.cat(parts).cpu().numpy()
    return found

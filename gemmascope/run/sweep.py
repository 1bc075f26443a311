"""Sweeps: a grid of runs, each one edit away from a base run, and a metric; all of them in one pass.

Activation patching (Vig et al. 2020; Meng et al. 2022; Heimersheim and Nanda 2024) in both directions, and ablation.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gemmascope.errors import SweepError
from gemmascope.model.layout import Block, Layout
from gemmascope.model.model import Model
from gemmascope.model.tap import SILENT
from gemmascope.run.bound import BoundEdit
from gemmascope.run.code import call_text
from gemmascope.run.default import model_or_nano
from gemmascope.run.edits import Edit, listed_edits, traces_said
from gemmascope.run.grid import Grid, Places
from gemmascope.run.journal import Journal
from gemmascope.run.memory import rows_within
from gemmascope.run.metric import measure, try_metric
from gemmascope.run.pairs import Ablation, Plan, pairs_of, question_of
from gemmascope.run.passes import Editing
from gemmascope.run.result import SweepResult
from gemmascope.run.sources import listed_reference
from gemmascope.run.trace import Trace
from gemmascope.run.variants import Base, Variant, final_rows

# What gives a cell its edits.
Maker = Callable[[dict[str, list[int]]], tuple[BoundEdit, ...]]

# Logits held at once, in elements: 64 MB.
LOGIT_ELEMENTS = 2**24


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
    out: str | Path | None = None,
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
    model, edits, reference = model_or_nano(model), listed_edits(edits), listed_reference(reference)
    places = Places(layer, pos, head, q_pos, k_pos)
    pairs = pairs_of(clean, corrupt, metric, into, Ablation.of(ablate, reference), model)
    plans = [Plan.of(pair, Grid.over(site, by, places, window, model, pair.base), model, edits) for pair in pairs]
    max_rows = rows_within(memory, model)
    asked: dict[str, Any] = {"site": site, "by": by, "into": into, "ablate": ablate, **vars(places), "window": window}
    asked |= {"reference": traces_said(reference), "edits": list(edits)}
    code = call_text("sweep", model, (clean, corrupt, metric), asked)
    n_cells = sum(plan.n_cells for plan in plans)
    result = SweepResult.empty(question_of(plans, metric, into, code, model, n_cells), len(plans))
    for plan in plans:
        _refuse_wide_functions(_after_layers(plan.base))
        try_metric(plan.pair.metric, model, plan.base.ids)
    run_cells(plans, [plan.edits.of for plan in plans], result, model, How(max_rows, progress, Journal.open(out, result)))
    return result


@dataclass(frozen=True)
class _Job:
    """One cell of one pair."""

    pair: int
    cell: int
    variant: Variant

    def rows(self, plans: Sequence[Plan]) -> int:
        return len(plans[self.pair].base.ids) - min(edit.reach[0] for edit in self.variant.edits)


@dataclass(frozen=True)
class How:
    """How cells are run: rows that one pass may carry, whether a bar is shown, and where finished cells are written."""

    max_rows: int
    progress: bool
    journal: Journal


def run_cells(plans: Sequence[Plan], makers: Sequence[Maker], result: SweepResult, model: Model, how: How) -> None:
    """Run the cells that a result lacks, and fill it. makers: for each plan, what gives a cell its edits."""
    from tqdm.auto import tqdm

    # A bar that appears after a second and takes the place of none: a quick sweep shows nothing.
    n_cells = result.question.n_cells
    with tqdm(total=n_cells, desc="sweep", unit="cell", delay=1.0, leave=False, disable=not how.progress) as bar:
        bar.update(int(result.finished.sum()))
        try:
            for chunk in _chunks(_jobs(plans, makers, result), plans, how.max_rows):
                _run_chunk(chunk, plans, model, result)
                how.journal.write(result, [(job.pair, job.cell) for job in chunk])
                bar.update(len(chunk))
        except KeyboardInterrupt:
            warnings.warn(f"interrupted: {result.progress_text()}; the other cells are NaN", stacklevel=3)


def _jobs(plans: Sequence[Plan], makers: Sequence[Maker], result: SweepResult) -> Iterator[_Job]:
    """The cells still to be run. Those without edits, which name only edges that the mask hides, stay NaN."""
    for i, (plan, edits_of) in enumerate(zip(plans, makers, strict=True)):
        # Layer by layer, whatever the order of the axes: the source's values are read a layer at a time.
        for number, cell in sorted(enumerate(plan.grid.cells()), key=lambda pair: pair[1]["layer"][0]):
            if not result.finished[i].flat[number] and (edits := edits_of(cell)):
                yield _Job(i, number, Variant(i, edits))


def _chunks(jobs: Iterator[_Job], plans: Sequence[Plan], max_rows: int) -> Iterator[list[_Job]]:
    """Jobs in lists of at most max_rows rows, and of one job at least."""
    chunk: list[_Job] = []
    n_rows = 0
    for job in jobs:
        rows = job.rows(plans)
        if chunk and n_rows + rows > max_rows:
            yield chunk
            chunk, n_rows = [], 0
        chunk.append(job)
        n_rows += rows
    if chunk:
        yield chunk


def _run_chunk(chunk: Sequence[_Job], plans: Sequence[Plan], model: Model, result: SweepResult) -> None:
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
        result.base_metric[pair] = _measured(model, plan, ends.bases[[place[pair]]])[0]
        result.values[pair].flat[[chunk[at].cell for at in mine]] = _measured(model, plan, ends.variants[mine])


def _measured(model: Model, plan: Plan, rows: Tensor) -> np.ndarray[Any, Any]:
    """The metric of a plan's runs whose stream ends in these rows, unembedded a few at a time."""
    step = max(1, LOGIT_ELEMENTS // model.config.vocab_size)
    with torch.no_grad():
        parts = [measure(plan.pair.metric, _logits(model, plan.base, part)) for part in torch.split(rows, step)]
    found: np.ndarray[Any, Any] = torch.cat(parts).cpu().numpy()
    return found


def _logits(model: Model, base: Base, rows: Tensor) -> Tensor:
    """The soft-capped logits of runs at the base's wanted position, with the edits that come after the layers."""
    edits = _after_layers(base)
    layout = Layout.of_blocks([Block(0, len(rows), 1, start=base.pos)], model.device)
    tap = Editing([edits] * len(rows)) if edits else SILENT
    return model.network.unembed(rows, tap.at(None, layout))


def _after_layers(base: Base) -> list[BoundEdit]:
    """The base's edits of final and of the logits, as far as they name the wanted position."""
    after = [edit for edit in base.edits if edit.address.layer is None and edit.address.site.name != "embed"]
    return [edit for edit in after if base.pos in edit.positions.tolist()]


def _refuse_wide_functions(edits: Sequence[BoundEdit]) -> None:
    for edit in edits:
        if edit.edit.needs_all and len(edit.positions) > 1:
            raise SweepError(
                f"after the layers a sweep computes the last position only, and the function of {edit.edit!r} names "
                f"{len(edit.positions)}: give it pos=-1"
            )

"""From a chunk of texts to the rows that a shard holds, encoded: what a harvest computes, in this process or in another."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

import torch
from torch import Tensor

from gemmascope.model.model import Model
from gemmascope.stores.encoding import Encoded, encode
from gemmascope.stores.spec import ArraySpec, StoreSpec
from gemmascope.stores.texts.runs import TextRun
from gemmascope.stores.writing.passes import Pass, SiteRows, groups_of, passes_of


class Part(NamedTuple):
    """The rows of one array of one run, in the CPU's memory.

    run: the number of the run in its chunk. rows: as a shard holds them. norms: of each row, [row], where outliers are left
    out; else None.
    """

    array: ArraySpec
    run: int
    rows: Encoded
    norms: Tensor | None


def harvest_parts(
    model: Model, spec: StoreSpec, runs: Sequence[TextRun], max_rows: int
) -> Generator[tuple[list[Part], float]]:
    """Run a chunk of texts through the model, and give the rows of every array, part by part.

    Args:
        model: The model.
        spec: What is asked.
        runs: The runs of the chunk.
        max_rows: How many rows one pass may carry. The parts do not depend on it.

    Yields:
        Parts, and the share of the chunk's work that they took; the shares add up to 1.

    Raises:
        EditError, CheckpointError: A run holds NaN or infinity. BudgetError: The device ran out of memory.
    """
    lengths = [len(run.ids) for run in runs]
    n_all = sum(lengths)
    for groups in passes_of(groups_of(lengths, spec.exact, spec.rows_at_once), lengths, max_rows):
        numbers = [run for group in groups for run in group]
        place = {run: at for at, run in enumerate(numbers)}
        ids = [torch.from_numpy(runs[run].ids).long().to(model.device) for run in numbers]
        share = sum(lengths[run] for run in numbers) / n_all
        of_pass = Pass(model, ids, spec.arrays, [[place[run] for run in group] for group in groups])
        with closing(of_pass.steps()) as steps:
            for step in steps:
                parts = [part for rows in step.rows for part in _parts(rows, [runs[numbers[at]] for at in rows.runs], spec)]
                yield [part._replace(run=numbers[part.run]) for part in parts], share * step.share


def _parts(rows: SiteRows, runs: Sequence[TextRun], spec: StoreSpec) -> Iterator[Part]:
    """The rows of some runs, without those of a `<bos>` that is left out."""
    values = rows.values
    if any(run.skipped for run in runs):
        values = values[runs[0].skipped :] if len(runs) == 1 else values[_kept(runs, values.device)]
    encoded = encode(values, spec.dtype).cpu()
    norms = None if spec.outliers is None else values.reshape(len(values), -1).float().norm(dim=1).cpu()
    first = 0
    for number, run in zip(rows.runs, runs, strict=True):
        span = slice(first, first + run.n_rows)
        yield Part(rows.array, number, encoded.rows(span), None if norms is None else norms[span])
        first = span.stop


def _kept(runs: Sequence[TextRun], device: torch.device) -> Tensor:
    kept = torch.ones(sum(len(run.ids) for run in runs), dtype=torch.bool)
    first = 0
    for run in runs:
        kept[first : first + run.skipped] = False
        first += len(run.ids)
    return kept.nonzero()[:, 0].to(device)

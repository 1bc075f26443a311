"""The rows of chunk after chunk of texts: computed in this process, or shared among workers, a chunk each."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from gemmascope.memory.limits import text_rows_within
from gemmascope.model.model import Model
from gemmascope.stores.spec import StoreSpec
from gemmascope.stores.texts.runs import TextRun
from gemmascope.stores.writing.chunks import Chunk
from gemmascope.stores.writing.parts import Part, harvest_parts
from gemmascope.workers.choice import RayWorkers
from gemmascope.workers.driver import run_jobs
from gemmascope.workers.packing import ModelSource, pack, pack_task

# A chunk of texts, and its parts, each with its share of the chunk's work.
Computed = tuple[Chunk, Iterator[tuple[list[Part], float]]]


def computed_here(model: Model, spec: StoreSpec, chunks: Iterable[Chunk], max_rows: int) -> Generator[Computed]:
    """Run chunk after chunk in this process. See harvest_parts."""
    for chunk in chunks:
        with closing(harvest_parts(model, spec, chunk.runs, max_rows)) as parts:
            yield chunk, parts


def computed_by_workers(
    model: Model, spec: StoreSpec, chunks: Iterable[Chunk], memory: int | str | None, workers: RayWorkers
) -> Generator[Computed]:
    """Have workers run the chunks. The same, in the same order; two chunks for each worker are held in memory at most."""
    sent = deque[Chunk]()

    def jobs_of(_: None) -> Iterator[Sequence[TextRun]]:
        for chunk in chunks:
            sent.append(chunk)
            if chunk.runs:
                yield chunk.runs

    with workers.pool() as pool:
        source = pack(ModelSource.of(model, pool.n_gpus), None)
        task = pack_task(HarvestTask(spec, memory), model, pool.pickler_class)
        with closing(run_jobs(pool, source, task, jobs_of, _named, ahead=2)) as answers:
            for parts in answers:
                yield sent.popleft(), iter([(parts, 1.0)])
    yield from ((chunk, iter(())) for chunk in sent)  # the texts' end, which has no runs


def _named(runs: Sequence[TextRun]) -> str:
    return f"texts {runs[0].source} to {runs[-1].source}"


@dataclass(frozen=True)
class HarvestTask:
    """What a worker needs to run any chunk of a harvest."""

    spec: StoreSpec
    memory: int | str | None

    def open(self, model: Model) -> HarvestWorker:
        return HarvestWorker(model, self.spec, text_rows_within(self.memory, model))


@dataclass(frozen=True)
class HarvestWorker:
    """A harvest in a worker, with its model. max_rows: how many rows one pass may carry there."""

    model: Model
    spec: StoreSpec
    max_rows: int
    about: None = None

    def run(self, job: Sequence[TextRun]) -> list[Part]:
        """The rows of a chunk's runs."""
        return [part for parts, _ in harvest_parts(self.model, self.spec, job, self.max_rows) for part in parts]

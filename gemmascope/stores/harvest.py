"""gs.harvest: activations of chosen sites over many texts, in one pass of many texts at a time, into a store."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from gemmascope.arguments import finite_number, one_of, true_or_false, whole_number
from gemmascope.errors import StoreError, warn
from gemmascope.files.paths import user_path
from gemmascope.loading.default import model_or_nano
from gemmascope.memory.limits import microbatch_rows, text_rows_within
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.stores.manifest import MANIFEST, Manifest, ShardLine, read_manifest
from gemmascope.stores.reading.opening import open_store
from gemmascope.stores.reading.store import Store
from gemmascope.stores.spec import EMPTY, LONG, StoreSpec, arrays_of, require_dtype
from gemmascope.stores.texts.runs import Runs
from gemmascope.stores.texts.sources import read_texts
from gemmascope.stores.writing.chunks import Chunk, Chunks
from gemmascope.stores.writing.journal import StoreJournal, open_journal
from gemmascope.stores.writing.parts import Part
from gemmascope.stores.writing.shard_writer import ShardWriter
from gemmascope.stores.writing.sharing import Computed, computed_by_workers, computed_here
from gemmascope.stores.writing.tables import RunTables
from gemmascope.workers.choice import RayWorkers, chosen_workers

# A shard ends with the text that brings it to so many rows. It is what a kill can lose, and what shares one stream of the
# weights: of 2B it has 151 MB at one site in bfloat16.
ROWS_PER_SHARD = 32_768


@computes
def harvest(
    model: Model | None,
    texts: Iterable[object] | str | os.PathLike[str],
    sites: object,
    *,
    out: str | os.PathLike[str],
    layers: object = None,
    dtype: str | torch.dtype = "bfloat16",
    max_tokens: int | None = None,
    long: str = "error",
    empty: str = "error",
    field: str = "text",
    bos: bool = False,
    outliers: float | None = None,
    exact: bool = True,
    rows_per_shard: int = ROWS_PER_SHARD,
    memory: int | str | None = None,
    progress: bool = True,
    workers: RayWorkers | int | None = None,
) -> Store:
    """Run many texts and store their activations at chosen sites: a row for every token.

    Many texts share a pass, without padding, so the weights of streamed layers are read once for all of them; layers after
    the last one that is asked for do not run. Rows go to the disk as they are made. A run that is killed at any moment goes
    on after its last finished shard when it is called again, and the store is then the same, byte for byte.

    Args:
        model: The model; None: nano. Edits that it keeps (model.edited) are part of every run.
        texts: A list or another iterable of texts, token ids or chat messages, or of mappings with a text (a data set of
            Hugging Face, streaming too); or a path, or a list of pathlib.Path: .txt (a text on each line; blank lines are
            left out), .jsonl (an object on each line) or .parquet (needs pyarrow). Read once, and never held as a whole.
        sites: A site or a list of them: "resid_post" (at layers), ("z", 5), "final", or names of TransformerLens. All of
            gs.SITES but those with a value for each pair of positions.
        out: The folder of the store. It must be new, empty, or hold a store of the same question, which is then continued.
        layers: The layers of sites that name none themselves: a number or a list; negative ones count from the end. None:
            all.
        dtype: How numbers are stored. "bfloat16": rounded to 8 bits. "float32": as they are. "int8": each row in steps of a
            127th of its largest number.
        max_tokens: The most tokens of one run, `<bos>` included. None: the model's context.
        long: What to do with longer texts. "error": say which. "cut": run the first max_tokens tokens. "split": run them in
            pieces of max_tokens, each with `<bos>` in front, which are runs of their own.
        empty: What to do with texts without tokens. "error": say which. "skip": leave them out, and count them.
        field: Where texts are mappings, JSON lines or Parquet, the field or column that holds the text.
        bos: Keep the rows of leading `<bos>` tokens, whose norm is often hundreds of times that of others. Default False.
        outliers: Leave out each row whose norm, at one of the arrays, is more than so many times the median norm of its
            shard there, such as 10. None: leave out none.
        exact: Let each text go through a layer by itself: its rows are those of gs.trace(text), bit for bit. False: rows of
            several texts share products, which is up to twice as fast for short texts, and rounds otherwise.
        rows_per_shard: A shard ends with the text that brings it to so many rows.
        memory: How much the rows of one pass may take, in bytes or as text ("2GiB"). It changes no number. None: what the
            model was loaded to leave for it, or a quarter of what is free.
        progress: Show a bar with tokens a second and the time left when it takes more than a second.
        workers: gs.ray(...), among which the shards are shared, or how many on this machine; they send their rows to this
            process, which writes them. The store is the same as without. None: this process alone.

    Returns:
        The Store. After an interrupt (Ctrl-C) a warning, and the store of the shards that are finished.

    Raises:
        SiteError: There is no such site or layer, or it has no rows.
        StoreError: The texts, an argument or the folder do not fit, or the disk takes no more.
        PromptError: A text cannot be read. Says which.
        BudgetError: The store does not fit the disk, as far as its size is known; or memory is too small.
        MissingPackageError: The texts are Parquet, and pyarrow is not installed; or workers are asked for, and Ray is not.
        WorkersError: The workers cannot be reached, cannot load the model, or end again and again.

    Examples:
        >>> texts = ["Mary and John went to the store", "The cat sat on the mat"]
        >>> store = gs.harvest(None, texts, "resid_post", layers=[2, 5], out="acts", dtype="float32", progress=False)
        >>> store
        Store of nano: 2 texts, 15 rows of resid_post (layers 2, 5), float32
        >>> store["resid_post", 5].sizes["row"]
        15
        >>> t = gs.trace(texts[1])
        >>> bool((store.read("resid_post", 5, store.rows(text=1)) == t["resid_post", 5][1:]).all())  # without <bos>
        True
    """
    model = model_or_nano(model)
    context = model.config.context
    spec = StoreSpec(
        arrays=arrays_of(sites, layers, model),
        dtype=require_dtype(dtype),
        bos=true_or_false(bos, "bos", error=StoreError),
        outliers=None if outliers is None else _outliers(outliers),
        max_tokens=whole_number(
            context if max_tokens is None else max_tokens, "max_tokens", least=2, most=context, error=StoreError
        ),
        long=one_of(long, "long", LONG, error=StoreError),
        empty=one_of(empty, "empty", EMPTY, error=StoreError),
        exact=true_or_false(exact, "exact", error=StoreError),
        rows_at_once=microbatch_rows(model),
        rows_per_shard=whole_number(rows_per_shard, "rows_per_shard", least=1, most=2**31, error=StoreError),
    )
    shared, folder = chosen_workers(workers), user_path(out, error=StoreError, what="a store")
    max_rows = text_rows_within(memory, model)

    def compute(spec: StoreSpec, chunks: Chunks) -> Generator[Computed]:
        if shared is None:
            return computed_here(model, spec, chunks, max_rows)
        return computed_by_workers(model, spec, chunks, memory, shared)

    return _harvest(model, texts, field, spec, folder, compute, progress)


# The rows of chunk after chunk.
Compute = Callable[[StoreSpec, Chunks], Generator[Computed]]


def _harvest(
    model: Model, texts: object, field: str, spec: StoreSpec, folder: Path, compute: Compute, progress: bool
) -> Store:
    if model.network.n_processes > 1:
        raise StoreError("this model's layers are shared by several processes, and a harvest needs a model in one process")
    source = read_texts(texts, field)
    if (folder / MANIFEST).is_file():  # how many rows share a product follows the memory that was free when it began
        spec = replace(spec, rows_at_once=read_manifest(folder).spec.rows_at_once)
    manifest = Manifest.of(model, spec)
    chunks = Chunks(source, Runs(model, spec), spec)
    with closing(open_journal(folder, manifest)) as journal:
        if chunks.n_rows is not None:
            done = sum(shard.n_rows + shard.n_outliers for shard in journal.shards)
            journal.require_room((chunks.n_rows - done) * spec.bytes_per_row, f"a store of {chunks.n_rows:,} rows")
        try:
            _write_all(model, spec, chunks, journal, compute, progress)
        except KeyboardInterrupt:
            n_rows = sum(shard.n_rows for shard in journal.shards)
            warn(
                f"interrupted: {len(journal.shards)} shards with {n_rows:,} rows are finished in {folder}. A second call "
                "with the same folder goes on after them"
            )
    return open_store(folder)


def _write_all(
    model: Model, spec: StoreSpec, chunks: Chunks, journal: StoreJournal, compute: Compute, progress: bool
) -> None:
    """Write the shards that are not there yet."""
    from tqdm.auto import tqdm

    bar_of = partial(tqdm, desc="harvest", unit="token", unit_scale=True, delay=1.0, leave=False, disable=not progress)
    done, total = journal.n_rows_run, chunks.n_rows
    chunks.skip(journal.lines, journal.folder)
    if journal.finished:
        return chunks.require_end(journal.folder)
    with bar_of(total=total, initial=done) as bar, closing(compute(spec, chunks)) as computed:
        for chunk, parts in computed:
            if total is None and not journal.shards and (about := chunks.estimate(chunk)) is not None:
                journal.require_room(about * spec.bytes_per_row, f"a store of about {about:,} rows")
                bar.total = about
            journal.require_room(chunk.n_rows * spec.bytes_per_row, f"the next shard, of {chunk.n_rows:,} rows,")
            if not chunk.runs and not journal.shards:
                raise StoreError("no text has a row to store: each is empty, or holds <bos> alone")
            line = _write_shard(model, spec, chunk, journal, parts, bar.update) if chunk.runs else chunk.line()
            with journal.explained():
                journal.append(line)


def _write_shard(
    model: Model,
    spec: StoreSpec,
    chunk: Chunk,
    journal: StoreJournal,
    steps: Iterator[tuple[list[Part], float]],
    update: Callable[[float], object],
) -> ShardLine:
    """Write the shard of a chunk. steps: its rows, as they come. update: told how many more tokens have gone through."""
    tables = RunTables.of(model, chunk.runs, sum(shard.n_runs for shard in journal.shards))
    with journal.explained():
        writer = ShardWriter(journal.folder, len(journal.shards), tables, spec)
    with closing(writer):
        for parts, share in steps:
            with journal.explained():
                for part in parts:
                    writer.put(part)
            update(share * chunk.n_rows)
        with journal.explained():
            return chunk.line(writer.finish())


def _outliers(outliers: object) -> float:
    number = finite_number(outliers, "outliers", error=StoreError)
    if number <= 1:
        raise StoreError(f"outliers is more than 1: how many times the median norm a row may have; given {number:g}")
    return number

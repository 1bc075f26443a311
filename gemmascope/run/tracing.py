"""gs.trace runs prompts through the model and records their residual streams; gs.open_trace reads a run from a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, overload

import torch
from torch import Tensor

from gemmascope.edits.edit import BoundEdit, Edit, listed_edits, with_write_record
from gemmascope.edits.of_run import all_edits
from gemmascope.edits.reach import warn_of_no_effect
from gemmascope.loading.default import model_or_nano
from gemmascope.model.model import Model, Prompt
from gemmascope.model.modes import computes
from gemmascope.model.prompts import listed_prompts
from gemmascope.run.logits import record_final_edits
from gemmascope.run.passes import streams
from gemmascope.run.reading.keep import Keep, Kept, KeptRun, keep_outside, kept_sites, require_room, run_and_keep
from gemmascope.run.save import read_run
from gemmascope.run.trace import Trace


@overload
def trace(prompt: str, *, model: Model | None = None, edits: Sequence[Edit] = (), keep: Keep = ()) -> Trace: ...
@overload
def trace(
    prompt: Prompt | Sequence[Prompt], *, model: Model | None = None, edits: Sequence[Edit] = (), keep: Keep = ()
) -> Any: ...
@computes
def trace(
    prompt: Prompt | Sequence[Prompt], *, model: Model | None = None, edits: Sequence[Edit] = (), keep: Keep = ()
) -> Trace | list[Trace]:
    """Run a prompt through the model once, and record what is needed to look at any site of the run.

    Args:
        prompt: Text (`<bos>` is put in front), token ids (a list or tensor, taken as they are), chat messages, or a list of
            prompts, which share one pass.
        model: What gs.load returned; None means nano.
        edits: Changes to the run, or to each of the runs, such as gs.patch(...). Default: none.
        keep: Sites to keep while the run goes on, so that reading them later runs nothing: "pattern" (of every layer),
            ("pattern", 5), or names of TransformerLens. Several prompts then go through a layer one by one, so that what is
            kept is what a layer that runs again would give, bit for bit. Default: none; the residual stream is always kept.

    Returns:
        A Trace, from which every site of the run can be read: t["z", 3], t.top(3), t.logits; help(gs.Trace) lists the rest.
        For a list of prompts, a list of them.

    Raises:
        PromptError: The prompt is empty, too long, or not one.
        SiteError, EditError: An edit does not fit the run. An edit that makes NaN is an EditError that names it.
        SiteError: A site to keep does not exist.
        BudgetError: The sites to keep would not fit the free memory.
        CheckpointError: The run holds NaN or infinity without any edit.

    Examples:
        >>> t = gs.trace("When Mary and John went to the store, John gave a drink to")
        >>> t.top(1)[0][0]
        ' Mary'
        >>> t["resid_post", -1].shape
        torch.Size([15, 128])
        >>> kept = gs.trace("When Mary and John went to the store", keep=["pattern", ("z", 3)])
        >>> kept["pattern"].dims  # of all layers, and nothing runs again
        ('layer', 'head', 'q_pos', 'k_pos')
    """
    model = model_or_nano(model)
    edits = listed_edits(edits)
    kept = kept_sites(keep, model)
    prompts, is_list = listed_prompts(prompt)
    results = traces(model, prompts, edits, kept)
    return results if is_list else results[0]


@computes
def open_trace(path: str | os.PathLike[str], *, model: Model | None = None) -> Trace:
    """Open a trace that t.save(path) wrote.

    Args:
        path: The file, "~" being the home folder.
        model: The model that wrote it; None means nano.

    Returns:
        The Trace, with the same stream, edits and kept sites, on the model's device.

    Raises:
        TraceError: The file is not a trace, is damaged, or was written by another model (the error names both).

    Examples:
        >>> t = gs.trace("Mary and John")
        >>> t.save("mary.trace")
        >>> bool((gs.open_trace("mary.trace").logits == t.logits).all())
        True
    """
    model = model_or_nano(model)
    run = read_run(path, model)
    return Trace(model, run.ids, run.stream, run.edits, kept=run.kept)


def traces(
    model: Model, prompts: Sequence[Prompt], edits: Sequence[Edit] = (), kept: Kept = MappingProxyType({})
) -> list[Trace]:
    """Traces of several prompts from one pass, each with the edits. kept: sites that they keep, by layer."""
    with torch.inference_mode(False):
        ids = model.each_ids(prompts)
        edits = all_edits(model, edits)
        bound = [[edit.bind(model, i) for edit in edits] for i in ids]
        for run_edits, i in zip(bound, ids, strict=True):
            warn_of_no_effect(run_edits, model, i)
        return run_traced(model, ids, bound, kept)


def run_traced(
    model: Model, ids: Sequence[Tensor], edits: Sequence[Sequence[BoundEdit]], kept: Kept = MappingProxyType({})
) -> list[Trace]:
    """Traces of runs whose edits are bound, from one pass."""
    bound = [[with_write_record(edit) for edit in run_edits] for run_edits in edits]
    marks = model.weights.marks()
    with torch.inference_mode(False):  # a trace outlives the caller's inference mode, and gradients start from its stream
        if kept:
            require_room(model, [len(one) for one in ids], kept)
        if kept or len(ids) == 1:
            runs = run_and_keep(model, ids, bound, kept)
        else:  # many runs in large products, which round otherwise than those of a layer that runs again
            runs = [KeptRun(stream) for stream in streams(model, ids, bound)]
        results = []
        for run_ids, run, of_run in zip(ids, runs, bound, strict=True):
            results.append(Trace(model, run_ids, run.stream, of_run, marks, run.kept))
            results[-1].layer_cache.add_layers(run.to_cache)
        for one in results:
            record_final_edits(one)
            keep_outside(one, kept.get(None, ()))
    return results

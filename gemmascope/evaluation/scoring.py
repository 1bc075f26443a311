"""Log-likelihoods of continuations. Requests of any length share a pass without padding, and equal contexts run once.

A context's rows go through a layer first. Its continuations, each of them the rows after the context, read its keys and
values from there, as variants in a sweep read their base's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
from torch import Tensor

from gemmascope.edits.edit import BoundEdit, Edit
from gemmascope.edits.of_run import all_edits
from gemmascope.generation.edits import bind_for_generation
from gemmascope.memory.limits import explain_oom, microbatch_rows, rows_within
from gemmascope.model.gemma2 import Layer
from gemmascope.model.layout import Block, Layout
from gemmascope.model.model import Model
from gemmascope.model.tap import SILENT, Chain, Tap
from gemmascope.run.finite import require_logits
from gemmascope.run.logits import rows_to_unembed
from gemmascope.run.passes import require_finite_end
from gemmascope.run.taps import EditTap, KeysTap
from gemmascope.values import chunks, moved


@dataclass(frozen=True)
class Request:
    """A continuation to score: token ids of its context, one at least, and of itself, one at least."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass
class _Group:
    """Requests with one context. edits: bound to the longest of their runs. numbers: of the requests, for the caller."""

    context: tuple[int, ...]
    continuations: list[tuple[int, ...]]
    numbers: list[int]
    edits: tuple[BoundEdit, ...] = ()

    def sort(self) -> None:
        """Put the requests in the order of their lengths, so that equal ones share a block."""
        order = sorted(range(len(self.numbers)), key=lambda i: len(self.continuations[i]))
        self.continuations = [self.continuations[i] for i in order]
        self.numbers = [self.numbers[i] for i in order]

    @property
    def n_rows(self) -> int:
        return len(self.context) + sum(len(one) - 1 for one in self.continuations)

    @property
    def longest(self) -> tuple[int, ...]:
        """The input of the longest run: its last token is only predicted."""
        return (*self.context, *max(self.continuations, key=len)[:-1])


def score(
    model: Model, requests: Sequence[Request], edits: Sequence[Edit] = (), done: Callable[[int], object] = lambda n: None
) -> list[tuple[float, bool]]:
    """For each request, the log-likelihood of its continuation in nats, and whether it is what greedy decoding would write.

    Positions of edits are counted as in gs.generate: negative ones from the end of the context, larger ones are positions of
    the continuation, and a token is looked up in the context. done: called with the number of requests that a pass finished.

    Raises:
        SiteError, EditError: An edit does not fit a run.
        CheckpointError: A run holds NaN or infinity without any edit.
    """
    every = all_edits(model, edits)
    shares = not any(edit.needs_all for edit in every)
    results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
    model.network.check()
    for groups in _passes(_groups(requests, shares=shares), rows_within(None, model)):
        for group in groups:
            group.edits = _bound(group, model, every)
        with torch.no_grad(), explain_oom(model):
            for group, scores in zip(groups, _run(model, groups), strict=True):
                for number, one in zip(group.numbers, scores, strict=True):
                    results[number] = one
        done(sum(len(group.numbers) for group in groups))
    return results


def _groups(requests: Sequence[Request], *, shares: bool) -> list[_Group]:
    """Requests by context, long contexts first. shares: whether equal contexts may be run once."""
    groups: dict[object, _Group] = {}
    for number, request in enumerate(requests):
        key = request.context if shares else number
        group = groups.setdefault(key, _Group(request.context, [], []))
        group.continuations.append(request.continuation)
        group.numbers.append(number)
    return sorted(groups.values(), key=lambda group: -len(group.context))


def _passes(groups: Sequence[_Group], most_rows: int) -> Iterator[list[_Group]]:
    """Groups in passes of at most this many rows, or of one larger group."""
    chosen: list[_Group] = []
    n_rows = 0
    for group in groups:
        if chosen and n_rows + group.n_rows > most_rows:
            yield chosen
            chosen, n_rows = [], 0
        chosen.append(group)
        n_rows += group.n_rows
    if chosen:
        yield chosen


def _bound(group: _Group, model: Model, edits: Sequence[Edit]) -> tuple[BoundEdit, ...]:
    if not edits:
        return ()
    context = torch.tensor(group.context, device=model.device)
    return tuple(bind_for_generation(edit, model, context, len(group.longest)) for edit in edits)


def _run(model: Model, groups: Sequence[_Group]) -> list[list[tuple[float, bool]]]:
    """The scores of each group's requests, from one pass. The layers are the outer loop: each is read once."""
    batches = [_Batch(model, each) for each in _passes(groups, microbatch_rows(model))]
    with closing(model.layers()) as layers:
        for layer in layers:
            for batch in batches:
                batch.through(layer)
    return [scores for batch in batches for scores in batch.scores()]


class _Batch:
    """Groups whose rows go through a layer together: those of the contexts, and those of all continuations."""

    def __init__(self, model: Model, groups: Sequence[_Group]) -> None:
        self.model, self.groups, device = model, groups, model.device
        for group in groups:
            group.sort()
        self.layout = Layout.of_lengths([len(group.context) for group in groups], device)
        self.tap = _edit_tap([group.edits for group in groups])
        blocks: list[Block] = []
        self.owners: list[int] = []  # the group of each block of continuations
        edits: list[tuple[BoundEdit, ...]] = []
        ids: list[int] = []
        for owner, group in enumerate(groups):
            longer = [one[:-1] for one in group.continuations if len(one) > 1]
            for length, same in groupby(longer, len):
                alike = list(same)
                blocks.append(Block(len(ids), len(alike), length, len(edits), len(group.context)))
                self.owners.append(owner)
                edits += [group.edits] * len(alike)
                ids += [token for one in alike for token in one]
        self.rest_layout, self.rest_tap = Layout.of_blocks(blocks, device), _edit_tap(edits)
        embed = model.network.embed
        context_ids = [token for group in groups for token in group.context]
        self.context = embed(torch.tensor(context_ids, device=device), self.layout, self.tap)
        self.rest = self.context[:0]
        if ids:
            self.rest = embed(torch.tensor(ids, device=device), self.rest_layout, self.rest_tap)

    def through(self, layer: Layer) -> None:
        """Carry the rows through a layer: the contexts, then the continuations, which read the contexts' keys and values."""
        keys, layout = KeysTap(), self.layout.on(layer.device)
        tap = Chain(self.tap, keys) if self.owners else self.tap
        self.context = layer(moved(self.context, layer.device), layout, tap.at(layer.index, layout))
        if self.owners:
            prefixes = keys.prefixes(self.layout.spans)
            rest = self.rest_layout.on(layer.device).with_prefixes([prefixes[owner] for owner in self.owners])
            self.rest = layer(moved(self.rest, layer.device), rest, self.rest_tap.at(layer.index, rest))

    def scores(self) -> Iterator[list[tuple[float, bool]]]:
        """The scores of each group's requests."""
        context, rest = moved(self.context, self.model.device), moved(self.rest, self.model.device)
        most, first = rows_to_unembed(self.model, bytes_per_logit=12), 0
        for group, span in zip(self.groups, self.layout.spans, strict=True):
            lengths = [len(one) - 1 for one in group.continuations if len(one) > 1]
            rows = torch.cat((context[span.stop - 1 : span.stop], rest[first : first + sum(lengths)]))
            first += sum(lengths)
            n, starts = len(group.context), [0]
            blocks = [Block(0, 1, 1, 0, n - 1)]
            for length in lengths:
                starts.append(blocks[-1].rows.stop)
                blocks.append(Block(starts[-1], 1, length, len(blocks), n))
            yield self._of_group(group, rows, Layout.of_blocks(blocks, rows.device), starts, most)

    def _of_group(
        self, group: _Group, rows: Tensor, layout: Layout, starts: Sequence[int], most: int
    ) -> list[tuple[float, bool]]:
        """rows: of the stream, which predict tokens: the context's last, then those of each continuation but its last."""
        # Each token with the row that predicts it.
        which: list[int] = []
        tokens: list[int] = []
        longer = iter(starts[1:])
        for one in group.continuations:
            which += [0, *(range(at := next(longer), at + len(one) - 1) if len(one) > 1 else ())]
            tokens += one
        token_of, row_of = torch.tensor(tokens), torch.tensor(which)
        logprobs, likeliest = torch.empty(len(tokens), dtype=torch.float64), torch.empty(len(tokens), dtype=torch.bool)
        edited = any(edit.address.is_after_layers for edit in group.edits)
        step = len(rows) if edited else most  # the edits of a whole layout are written at once
        tap = EditTap([[e for e in group.edits if e.address.layer is None]] * len(layout.spans)) if edited else SILENT
        for part in chunks(len(rows), step):
            logits = self.model.network.unembed(rows[part], tap.at(None, layout))
            self._require_valid(group, rows[part], logits, int(layout.positions[part.start]))
            here = (row_of >= part.start) & (row_of < part.stop)
            at, token = (row_of[here] - part.start).to(logits.device), token_of[here].to(logits.device)
            logprobs[here] = logits.log_softmax(-1)[at, token].double().cpu()
            likeliest[here] = (logits.argmax(-1)[at] == token).cpu()
        ends = list(accumulate(map(len, group.continuations)))
        return [
            (float(logprobs[end - len(one) : end].sum()), bool(likeliest[end - len(one) : end].all()))
            for one, end in zip(group.continuations, ends, strict=True)
        ]

    def _require_valid(self, group: _Group, rows: Tensor, logits: Tensor, pos: int) -> None:
        """EditError or CheckpointError for rows or logits that hold NaN or infinity; minus infinity may rule a token out."""
        if bool(torch.isfinite(logits.amax(-1)).all()) and bool(torch.isfinite(rows).all()):
            return
        ids = torch.tensor(group.longest, device=self.model.device)
        wrong = next(
            i for i, row in enumerate(logits) if not bool(torch.isfinite(row.amax()) & torch.isfinite(rows[i]).all())
        )
        require_finite_end(self.model, ids, rows[wrong], group.edits)
        require_logits(self.model, ids, logits[wrong], rows[wrong], pos, group.edits)


def _edit_tap(edits: Sequence[Sequence[BoundEdit]]) -> Tap:
    return EditTap(edits) if any(edits) else SILENT

"""Decoding: runs that go on one position at a time, reading the keys and values kept from the passes before.

Edits apply at absolute positions, in the prompts' pass and in those of one new position alike. The stream at the entry of
every layer is kept, as a trace keeps it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import torch
from torch import Tensor

from gemmascope.edits.bound import BoundEdit
from gemmascope.memory.limits import explain_oom
from gemmascope.model.finite import can_normalize, is_finite, valid_logits
from gemmascope.model.kv_cache import KVCache
from gemmascope.model.layout import Block, Layout, PrefixKV
from gemmascope.model.model import Model
from gemmascope.model.tap import Chain, Tap
from gemmascope.run.finite import require_finite, require_logits
from gemmascope.run.passes import EditTap
from gemmascope.sites import EDGE_SITES


class Decoder:
    """Some runs, with the keys and values that are kept of them.

    prompts: the token ids of each run. edits: those of each, bound to as many positions as it may come to have. n_total:
    the most positions that any of them may come to have.
    """

    def __init__(self, model: Model, prompts: Sequence[Tensor], edits: Sequence[Sequence[BoundEdit]], n_total: int) -> None:
        self.model, self.prompts, self.edits = model, prompts, edits
        self.lengths = [len(ids) for ids in prompts]
        self.going = list(range(len(prompts)))  # the number of the run that each row of a step is of
        self._passes: list[tuple[dict[int, slice], list[Tensor]]] = []
        # Layers whose scores or patterns are edited make them whole, over all keys: no key may leave them.
        self._whole = {e.address.layer for of_run in edits for e in of_run if e.address.site.name in EDGE_SITES}
        self._kept = [self._empty(layer, n_total) for layer in range(model.n_layers)]

    def prefill(self) -> Tensor:
        """The prompts in one pass; the soft-capped logits after each, [run, vocab]."""
        order = sorted(self.going, key=lambda run: self.lengths[run])
        layout = Layout.of_lengths([self.lengths[run] for run in order], self.model.device)
        storing = _Prefilling(self._kept, order)
        x = self._pass(torch.cat([self.prompts[run] for run in order]), order, [layout] * self.model.n_layers, storing)
        ends = {run: span.stop - 1 for run, span in zip(order, layout.spans, strict=True)}
        return self._logits(x[[ends[run] for run in self.going]])

    def step(self, tokens: Sequence[int]) -> Tensor:
        """One more position for every run that goes on; the soft-capped logits after it, [run, vocab]."""
        layout = self._next_rows()
        layouts = [self._reading(layout, layer) for layer in range(self.model.n_layers)]
        storing = _Stepping(self._kept) if self._whole else None
        x = self._pass(torch.tensor(tokens, device=self.model.device), self.going, layouts, storing)
        for run in self.going:
            self.lengths[run] += 1
        return self._logits(x)

    def keep(self, places: Sequence[int]) -> None:
        """Go on with some of the runs only, by their places among those that go on."""
        if len(places) < len(self.going):
            self.going = [self.going[place] for place in places]
            chosen = torch.tensor(places, dtype=torch.long, device=self.model.device)
            for kept in self._kept:
                kept.keep_runs(chosen)

    def stream(self, run: int) -> list[Tensor]:
        """The stream of a run's positions that went through the layers: n_layers + 1 tensors [pos, d_model]."""
        parts = [[x[spans[run]] for x in stream] for spans, stream in self._passes if run in spans]
        return [torch.cat(entry) for entry in zip(*parts, strict=True)]

    def _pass(self, ids: Tensor, runs: Sequence[int], layouts: Sequence[Layout], storing: Tap | None) -> Tensor:
        """Carry rows through the layers, and keep the stream at the entry of each. layouts: one for each layer."""
        # Without edits nothing is asked at every site: of one row, that is a cost.
        editing = [EditTap([self.edits[run] for run in runs])] if any(self.edits[run] for run in runs) else []
        tap = Chain(*editing, *([storing] if storing else []))
        with torch.no_grad(), explain_oom(self.model), closing(self.model.layers()) as layers:
            stream = [self.model.network.embed(ids, layouts[0], tap)]
            for layer in layers:
                layout = layouts[layer.index]
                stream.append(layer(stream[-1], layout, tap.at(layer.index, layout)))
            self._passes.append((dict(zip(runs, layouts[0].spans, strict=True)), stream))
            if not is_finite(stream[-1]) or (editing and not can_normalize(stream[-1])):
                for run in runs:
                    require_finite(self.model, self.prompts[run], self.stream(run), self.edits[run])
        return stream[-1]

    def _next_rows(self, back: int = 0) -> Layout:
        """The layout of one row for every run that goes on: its next position, or one that many positions back."""
        blocks = [Block(at, 1, 1, at, start=self.lengths[run] - back) for at, run in enumerate(self.going)]
        return Layout(tuple(blocks), torch.tensor([b.start for b in blocks], device=self.model.device))

    def _reading(self, layout: Layout, layer: int) -> Layout:
        """The layout of a step with what the rows read in a layer."""
        kept, dtype = self._kept[layer], self.model.dtype
        if layer not in self._whole:
            return layout.with_kv_cache(kept)
        found = [kept.of_run(at, self.lengths[run]) for at, run in enumerate(self.going)]
        return layout.with_prefixes([PrefixKV(k.to(dtype), v.to(dtype)) for k, v in found])

    def _empty(self, layer: int, n_total: int) -> KVCache:
        config, norm = self.model.config, self.model.network.model.norm
        window = None if layer in self._whole else config.window_of(layer)
        n_slots = n_total if window is None else min(window, n_total)
        return KVCache(len(self.prompts), config.n_kv_heads, n_slots, config.d_head, norm.weight)

    def _logits(self, rows: Tensor) -> Tensor:
        """The soft-capped logits after the newest row of every run, with the edits that come after the layers."""
        layout = self._next_rows(back=1)
        tap = EditTap([[e for e in self.edits[run] if e.address.layer is None] for run in self.going])
        with torch.no_grad():
            logits = self.model.network.unembed(rows, tap.at(None, layout))
            if not valid_logits(logits):
                for at, run in enumerate(self.going):
                    require_logits(
                        self.model, self.prompts[run], logits[at], rows[at], self.lengths[run] - 1, self.edits[run]
                    )
            return logits


class _Prefilling(Tap):
    """Puts the keys and values of whole prompts where they are kept. runs: the number of each run of the pass."""

    def __init__(self, kept: Sequence[KVCache], runs: Sequence[int]) -> None:
        self.kept, self.runs = kept, runs

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        if site == "v":
            self.v = value
        elif site == "k_rot":  # which comes after v
            assert layer is not None
            for run, span in zip(self.runs, layout.spans, strict=True):
                self.kept[layer].fill(run, value[span], self.v[span])
        return value


class _Stepping(Tap):
    """Puts the keys and values of one position of every run there, in layers where the attention itself does not."""

    def __init__(self, kept: Sequence[KVCache]) -> None:
        self.kept = kept

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        if site == "v":
            self.v = value
        elif site == "k_rot" and layout.kv_cache is None:
            assert layer is not None
            self.kept[layer].append(value, self.v, layout.positions, layout.pass_cache)
        return value

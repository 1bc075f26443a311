"""Trace: what a run leaves behind.

It keeps the residual stream; whatever else is asked for is had by re-running one layer from its kept input.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gemmascope.arguments import is_whole, shown
from gemmascope.edits.bound import BoundEdit, with_write_record
from gemmascope.edits.edit import Edit, listed_edits
from gemmascope.edits.places import Head, Pos, find_positions
from gemmascope.edits.reach import warn_of_no_effect
from gemmascope.errors import SiteError
from gemmascope.legible import legibly
from gemmascope.loading.default import model_or_nano
from gemmascope.model.layout import Layout
from gemmascope.model.model import Model, Prompt
from gemmascope.model.modes import computes
from gemmascope.model.prompts import listed_prompts
from gemmascope.model.tap import Chain, Tap
from gemmascope.model.weight_digests import UNVERIFIED
from gemmascope.run.logits import logit_lens, logits_at, record_final_edits
from gemmascope.run.passes import EditTap, streams
from gemmascope.run.replay import (
    LayerCache,
    is_single,
    read_edges,
    reproduces_run,
    rerun_layer,
    sites_to_record,
    weights_changed_error,
)
from gemmascope.sites import EDGE_SITES, Site, find

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class LayerInfo:
    """What is known of a layer: its number, "local" or "global", and how many keys a query sees (None: all)."""

    index: int
    kind: str
    window: int | None


class Trace:
    """A run and its residual stream. Made by gs.trace.

    t["pattern", 5] reads a site of a layer, with the axes of the table of sites; negative layers count from the end;
    dotted strings and TransformerLens' names are read as well. stream: n_layers + 1 tensors [pos, d_model], the stream at
    the entry of each layer and after the last. Threads may share a trace.
    """

    def __init__(
        self,
        model: Model,
        ids: Int[Tensor, " pos"],
        stream: Sequence[Tensor],
        edits: Sequence[BoundEdit] = (),
        marks: Sequence[str] | None = None,
    ) -> None:
        """marks: of the weights that the run was made with (WeightDigests.marks); None for those that are there now."""
        self.model, self._ids, self.residuals, self.bound_edits = model, ids, tuple(stream), tuple(edits)
        self.marks = tuple(model.weights.marks() if marks is None else marks)
        self.layout = Layout.of_lengths([len(ids)], model.device)
        self.layer_cache = LayerCache()

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """For pickles: what the run kept, and its model. TraceError if the weights changed since the run."""
        for part in self.model.weights.parts:  # what arrives vouches for the run with the model as it is then
            self.require_weights(part)
        return _from_pickle, (self.model, self._ids.cpu(), [x.cpu() for x in self.residuals], self.bound_edits)

    def __copy__(self) -> Trace:
        return Trace(self.model, self._ids, self.residuals, self.bound_edits, self.marks)

    def __deepcopy__(self, memo: dict[int, Any]) -> Trace:
        """A trace with numbers of its own, of the same model."""
        stream = [x.clone() for x in self.residuals]
        return Trace(self.model, self.ids, stream, deepcopy(self.bound_edits, memo), self.marks)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def stream(self) -> tuple[Float[Tensor, "pos d_model"], ...]:
        """The residual stream at the entry of each layer and after the last. Copies: writing to them changes no trace."""
        return tuple(x.clone() for x in self.residuals)

    @property
    def ids(self) -> Int[Tensor, " pos"]:
        """The token ids. A copy: writing to it changes nothing here."""
        return self._ids.clone()

    @computes
    def __getitem__(self, key: Any) -> Tensor:
        """The value of a site: t["pattern", 5], t["layers.5.pattern"], t["blocks.5.attn.hook_pattern"], t["logits"].

        Raises SiteError for a site or layer that is not there, with the near names.
        """
        address = find(key, self.model.n_layers)
        return self.read(address.site, address.layer)

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The edits of the run, in the order given."""
        return tuple(bound.edit for bound in self.bound_edits)

    @property
    def tokens(self) -> list[str]:
        """Each token as text: '<bos>', ' Mary'."""
        return self.model.texts(self.ids)

    @property
    def layers(self) -> tuple[LayerInfo, ...]:
        config = self.model.config
        return tuple(LayerInfo(i, kind, config.window_of(i)) for i, kind in enumerate(config.kinds))

    @property
    @computes
    def logits(self) -> Float[Tensor, "pos vocab"]:
        """The soft-capped logits at every position, float32."""
        return self["logits"]

    @property
    @computes
    def next_logits(self) -> Float[Tensor, " vocab"]:
        """The soft-capped logits of the next token, after the last position. Float32. Unembeds that position only."""
        return self._last.clone()

    @computes
    def top(self, k: int = 5, pos: int | str = -1) -> list[tuple[str, int, float]]:
        """The k likeliest tokens to follow a position: (token, id, probability), the likeliest first."""
        at = self._position(pos)
        size = self.model.config.vocab_size
        if not is_whole(k) or not 0 < int(k) <= size:
            raise SiteError(f"k is a whole number from 1 to {size}, the size of the vocabulary; given {shown(k)}")
        logits = self._last if at == len(self) - 1 else logits_at(self, at)
        probs, ids = logits.softmax(-1).topk(int(k))
        return [(text, int(i), float(p)) for text, i, p in zip(self.model.texts(ids), ids, probs, strict=True)]

    @computes
    def lens(self, pos: int | str | None = -1) -> xarray.DataArray:
        """The logit lens: soft-capped logits read from the stream after every layer, through the last norm.

        pos: the position to read, -1 for the last; None for all. Axes (layer, vocab) or (layer, pos, vocab); the last
        layer's are the logits, unless an edit comes after the layers. Source: nostalgebraist, "interpreting GPT: the logit
        lens" (2020).
        """
        rows = list(range(len(self))) if pos is None else [self._position(pos)]
        lens = logit_lens(self, rows)
        return lens if pos is None else lens.isel(pos=0)

    @computes
    def edges(self, site: str, layer: int, *, head: Head = None, q_pos: Pos = None) -> Float[Tensor, "*head_q k_pos"]:
        """Some heads' rows of an edge site (scores, scores_capped, pattern), without building the others.

        A single head or query position drops its axis, as in indexing; otherwise [head, q_pos, k_pos]. SiteError for
        another kind of site, or a place that is not there.
        """
        address = find((site, layer), self.model.n_layers)
        if not address.site.is_edges:
            name = address.site.name
            raise SiteError(
                f"'{name}' has no edges; those that do are {', '.join(EDGE_SITES)}. Read it as t[{name!r}, {layer}]"
            )
        return read_edges(self, address, head, q_pos)

    @computes
    def grad(self, metric: Any, sites: Any) -> Any:
        """The gradient of a metric of the next token with respect to sites of the run.

        metric: as in gs.sweep. sites: one site, as in t[...], which gives a tensor of the shape of its value; or a list of
        them, which gives a dict. SiteError for a site that is not there, or that comes after the layers.
        """
        from gemmascope.run.gradients import gradient

        return gradient(self, metric, sites)

    def save(self, path: Any) -> None:
        """Write the trace to a file for gs.open_trace: safetensors with JSON, no pickle. An existing file is replaced."""
        from gemmascope.run.save import save_trace

        save_trace(self, path)

    @legibly
    def __repr__(self) -> str:
        from gemmascope.run.show import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        from gemmascope.run.show import as_html

        return as_html(self)

    def _position(self, pos: Any) -> int:
        if not is_single(pos) and not isinstance(pos, float):
            raise SiteError(f"one position is read at a time: its number, or a token that occurs once; given {shown(pos)}")
        return find_positions(pos, self.model, self.ids)[0]

    @cached_property
    def _last(self) -> Tensor:
        return logits_at(self, len(self) - 1)

    def read(self, site: Site, layer: int | None) -> Tensor:
        """The value of a site, as t[site, layer] has it."""
        kept = self._kept(site.name, layer)
        if kept is not None:
            return kept.clone()
        found = self.layer_cache.get(layer)
        if site.name not in found:
            made = rerun_layer(self, layer, sites_to_record(self, site, layer))
            if not self.layer_cache.fits({**found, **made}):
                return made[site.name]  # the caller's alone: too large to keep, and to copy
            found = self.layer_cache.add(layer, made)
        return found[site.name].clone()  # so that writing to what was read changes no number read later

    def require_weights(self, part: int | None) -> None:
        """TraceError if the weights of a layer (None: embedding and last norm) are no longer those of the run.

        Whatever runs again from the kept stream asks before it does.
        """
        self.model.network.check()
        place = -1 if part is None else part
        mark, now = self.marks[place], self.model.weights.mark(part)
        if now == mark.removeprefix(UNVERIFIED):
            return
        if part is not None and mark.startswith(UNVERIFIED) and reproduces_run(self, part):
            self.marks = tuple(now if at == part else one for at, one in enumerate(self.marks))  # changed before the run
        else:
            raise weights_changed_error(self.model, part)

    def _kept(self, site: str, layer: int | None) -> Tensor | None:
        """A site that is an entry of the stream, which is kept as it stood before the edits at resid_pre."""
        if site == "embed":
            return self.residuals[0]
        if layer is None or site not in ("resid_pre", "resid_post"):
            return None
        if site == "resid_post":
            return self.residuals[layer + 1]
        return None if self.edits_at(layer, ("resid_pre",)) else self.residuals[layer]

    def edits_at(self, layer: int, sites: Sequence[str]) -> bool:
        """Whether an edit of the run is at one of these sites of a layer."""
        return any(edit.address.layer == layer and edit.address.site.name in sites for edit in self.bound_edits)

    def tap(self, keeping: Tap) -> Tap:
        """The edits of the run, and what keeps values on the way."""
        return Chain(EditTap([self.bound_edits]), keeping)


def _from_pickle(model: Model, ids: Tensor, stream: Sequence[Tensor], edits: Sequence[BoundEdit]) -> Trace:
    return Trace(model, ids.to(model.device), [x.to(model.device) for x in stream], edits)


@overload
def trace(prompt: str, *, model: Model | None = None, edits: Sequence[Edit] = ()) -> Trace: ...
@overload
def trace(prompt: Any, *, model: Model | None = None, edits: Sequence[Edit] = ()) -> Any: ...
@computes
def trace(prompt: Any, *, model: Model | None = None, edits: Sequence[Edit] = ()) -> Any:
    """Run a prompt through the model once, and keep what is needed to look at any site of the run.

    prompt: text (<bos> is put in front), token ids (a list or tensor, taken as they are), chat messages, or a list of
    prompts, which are carried through the layers in one pass and give a list of traces. model: None means nano.
    edits: changes to the run, or to each of the runs.
    Raises PromptError for a bad prompt, SiteError or EditError for an edit that does not fit.
    """
    model = model_or_nano(model)
    edits = listed_edits(edits)
    prompts, many = listed_prompts(prompt)
    found = traces(model, prompts, edits)
    return found if many else found[0]


def traces(model: Model, prompts: Sequence[Prompt], edits: Sequence[Edit] = ()) -> list[Trace]:
    """Traces of several prompts from one pass, each with the edits."""
    with torch.inference_mode(False):
        ids = model.each_ids(prompts)
        bound = [[edit.bind(model, i) for edit in edits] for i in ids]
        for of_run, i in zip(bound, ids, strict=True):
            warn_of_no_effect(of_run, model, i)
        return run_traced(model, ids, bound)


def run_traced(model: Model, ids: Sequence[Tensor], edits: Sequence[Sequence[BoundEdit]]) -> list[Trace]:
    """Traces of runs whose edits are bound, from one pass."""
    bound = [[with_write_record(edit) for edit in of_run] for of_run in edits]
    marks = model.weights.marks()
    with torch.inference_mode(False):  # what a trace keeps outlives the caller's inference mode: gradients start from it
        found = [Trace(model, *run, marks) for run in zip(ids, streams(model, ids, bound), bound, strict=True)]
        for one in found:
            record_final_edits(one)
    return found

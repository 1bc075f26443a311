"""Trace: a run with its residual stream. Any other value is computed by running one layer again from its stored input."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

from jaxtyping import Float, Int
from torch import Tensor

from gemmascope.arguments import short_repr
from gemmascope.edits.edit import BoundEdit, Edit
from gemmascope.edits.places import Head, Pos, find_positions
from gemmascope.errors import SiteError
from gemmascope.legible import prints_legibly
from gemmascope.model.layout import Layout
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.model.tap import Chain, Tap
from gemmascope.run.backward.gradients import gradient
from gemmascope.run.logits import logit_lens, logits_at, top_tokens
from gemmascope.run.losses import TraceLoss
from gemmascope.run.reading.all_layers import read_all_layers
from gemmascope.run.reading.layer_cache import LayerCache
from gemmascope.run.reading.peer_hints import CacheHints
from gemmascope.run.recorded import LayerInfo
from gemmascope.run.replay import is_single, read_edges, read_site, require_run_weights
from gemmascope.run.save import save_trace
from gemmascope.run.show import as_html, as_text
from gemmascope.run.taps import EditTap
from gemmascope.sites import Site, SiteKey, find, in_every_layer

if TYPE_CHECKING:
    import xarray


class Trace(TraceLoss, CacheHints):
    """A run: its tokens, its edits and its residual stream. Made by gs.trace.

    t["pattern", 5] reads a site of a layer, with the axes of gs.SITES and no batch axis. Negative layers count from the end;
    dotted strings and TransformerLens' names work too. The stream is stored, and the sites of gs.trace(keep=); any other is
    cached from the run or from running its layer again: 1 GiB for all traces. Threads may share a trace.

    Examples:
        >>> t = gs.trace("When Mary and John went to the store, John gave a drink to")
        >>> t
        Trace of nano: 15 tokens
        ...
        >>> t["pattern", 5].shape
        torch.Size([4, 15, 15])
        >>> t.top(1)[0][:2]
        (' Mary', 2292)
    """

    def __init__(
        self,
        model: Model,
        ids: Int[Tensor, " pos"],
        stream: Sequence[Tensor],
        edits: Sequence[BoundEdit] = (),
        marks: Sequence[str] | None = None,
        kept: Mapping[SiteKey, Tensor] | None = None,
    ) -> None:
        """marks: identify the weights of the run (WeightDigests.marks); None for the present ones. kept: values of sites."""
        self.model, self._ids, self.residuals, self.bound_edits = model, ids, tuple(stream), tuple(edits)
        self.marks = tuple(model.weights.marks() if marks is None else marks)
        self.layout = Layout.of_lengths([len(ids)], model.device)
        self.layer_cache = LayerCache()
        self.kept_values: dict[SiteKey, Tensor] = dict(kept or {})

    def __reduce__(self) -> tuple[Callable[..., Trace], tuple[object, ...]]:
        """For pickles: the recorded stream and the model. TraceError if the weights changed since the run."""
        for part in self.model.weights.parts:  # the unpickled trace takes the weights it meets for those of the run
            self.require_weights(part)
        kept = {key: value.cpu() for key, value in self.kept_values.items()}
        return _from_pickle, (self.model, self._ids.cpu(), [x.cpu() for x in self.residuals], self.bound_edits, kept)

    def __copy__(self) -> Trace:
        return Trace(self.model, self._ids, self.residuals, self.bound_edits, self.marks, self.kept_values)

    def __deepcopy__(self, memo: dict[int, object]) -> Trace:
        """A trace with its own numbers, of the same model."""
        stream = [x.clone() for x in self.residuals]
        kept = {key: value.clone() for key, value in self.kept_values.items()}
        return Trace(self.model, self.ids, stream, deepcopy(self.bound_edits, memo), self.marks, kept)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def stream(self) -> tuple[Float[Tensor, "pos d_model"], ...]:
        """The residual stream at the entry of each layer and after the last. Copies: writing to them changes no trace."""
        return tuple(x.to(self.model.device, copy=True) for x in self.residuals)

    @property
    def ids(self) -> Int[Tensor, " pos"]:
        """The token ids. A copy: writing to it changes nothing here."""
        return self._ids.clone()

    @overload
    def __getitem__(self, key: tuple[str, int | None]) -> Tensor: ...
    @overload
    def __getitem__(self, key: object) -> Any: ...
    @computes
    def __getitem__(self, key: object) -> Tensor | xarray.DataArray:
        """The value of a site: t["pattern", 5], t["layers.5.pattern"], t["blocks.5.attn.hook_pattern"], t["logits"].

        A site of the layers without one, t["pattern"], is an array of all layers with labels, [layer, ...], float32 on the
        CPU, from one pass over the layers or from what the trace has.

        Raises:
            SiteError: The site or layer does not exist. Names similar sites. BudgetError: The values do not fit the memory.
        """
        if isinstance(key, str) and (site := in_every_layer(key)) is not None:
            return read_all_layers(self, site)
        return self.read(*find(key, self.model.n_layers).parts)

    @property
    def kept(self) -> tuple[SiteKey, ...]:
        """The sites that gs.trace(keep=) had the trace keep: (site, layer), the layer None outside the layers."""
        return tuple(self.kept_values)

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The edits of the run, in the order given."""
        return tuple(bound.edit for bound in self.bound_edits)

    @property
    def tokens(self) -> list[str]:
        """Each token as text: `'<bos>'`, `' Mary'`."""
        return self.model.texts(self.ids)

    @property
    def layers(self) -> tuple[LayerInfo, ...]:
        """For each layer its index, its kind ("local" or "global") and its window."""
        config = self.model.config
        return tuple(LayerInfo(i, kind, config.window_of(i)) for i, kind in enumerate(config.kinds))

    @property
    @computes
    def logits(self) -> Float[Tensor, "pos vocab"]:
        """The soft-capped logits at every position, float32."""
        return self["logits", None]

    @property
    @computes
    def next_logits(self) -> Float[Tensor, " vocab"]:
        """The soft-capped logits of the next token, after the last position. Float32. Unembeds that position only."""
        return self._last.clone()

    @computes
    def top(self, k: int = 5, pos: int | str = -1) -> list[tuple[str, int, float]]:
        """The k likeliest tokens to follow a position.

        Args:
            k: How many tokens. Default 5.
            pos: The position to read, or a token that occurs once; -1 is the last.

        Returns:
            (token, id, probability) for each, the likeliest first.

        Raises:
            SiteError: k or pos does not exist.
        """
        at = self._position(pos)
        return top_tokens(self.model, k, lambda: self._last if at == len(self) - 1 else logits_at(self, at))

    @computes
    def lens(self, pos: int | str | None = -1) -> xarray.DataArray:
        """The logit lens: logits read from the stream after every layer. gs.lens keeps only the top tokens.

        Args:
            pos: The position to read, or a token that occurs once; -1 is the last, None means all.

        Returns:
            Soft-capped logits through the last norm, float32, [layer, vocab], or [layer, pos, vocab] for all positions. The
            last layer's are the run's logits, unless an edit comes after the layers.

        Raises:
            SiteError: The position does not exist.
            BudgetError: The logits do not fit the free memory.

        References:
            nostalgebraist, "interpreting GPT: the logit lens" (2020).
        """
        lens = logit_lens(self, list(range(len(self))) if pos is None else [self._position(pos)])
        return lens if pos is None else lens.isel(pos=0)

    @computes
    def edges(self, site: str, layer: int, *, head: Head = None, q_pos: Pos = None) -> Float[Tensor, "*head_q k_pos"]:
        """Some heads' rows of an edge site (scores, scores_capped, pattern), without computing the others.

        Args:
            site: "scores", "scores_capped" or "pattern".
            layer: The layer, counted from the end if negative.
            head: A query head or a list of them; None for all.
            q_pos: Query positions: a number, slice, list, or a token that occurs once; None for all.

        Returns:
            [head, q_pos, k_pos], without the axis of a single head or query position.

        Raises:
            SiteError: The site has no edges, or a place does not exist.
        """
        return read_edges(self, find((site, layer), self.model.n_layers), head, q_pos)

    @computes
    def grad(self, metric: object, sites: object = None) -> Tensor | dict[object, Tensor]:
        """The gradient of a metric with respect to sites of the run.

        Args:
            metric: As in gs.sweep, such as gs.logit_diff(" Mary", " John").
            sites: One site, as in t[...], or a list of them; a site without a layer means that of every layer. None means
                every site in the layers, and embed. All of them come from one backward pass.

        Returns:
            A tensor with the shape of the site's value, [layer, ...] for every layer; for a list, a dict of tensors by site.

        Raises:
            SiteError: A site does not exist, or comes after the layers.
            MetricError: The metric is not one, or has no gradient.
        """
        return gradient(self, metric, sites)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trace to a file for gs.open_trace: safetensors with JSON, no pickle.

        Args:
            path: The file, "~" being the home folder. An existing file is replaced.

        Raises:
            TraceError: The place cannot be written, or the run has an edit by a function.
        """
        save_trace(self, path)

    @prints_legibly
    def __repr__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)

    def _position(self, pos: object) -> int:
        if not is_single(pos) and not isinstance(pos, float):
            raise SiteError(
                f"one position is read at a time: its number, or a token that occurs once; given {short_repr(pos)}"
            )
        return find_positions(pos, self.model, self.ids)[0]

    @cached_property
    def _last(self) -> Tensor:
        return logits_at(self, len(self) - 1)

    def read(self, site: Site, layer: int | None) -> Tensor:
        """The value of a site, as t[site, layer] returns it. A copy: writing to it changes no later read.

        Args:
            site: The site.
            layer: Its layer, from 0; None for a site outside the layers.
        """
        return read_site(self, site, layer)

    def require_weights(self, part: int | None) -> None:
        """Check that the weights are those of the run. Called before a layer runs again.

        Args:
            part: The layer; None for the embedding and the last norm.

        Raises:
            TraceError: They changed since the run.
        """
        require_run_weights(self, part)

    def edits_at(self, layer: int, sites: Sequence[str]) -> bool:
        """Whether an edit of the run is at one of these sites of a layer.

        Args:
            layer, sites: The layer, from 0, and names of sites.
        """
        return any(edit.address.layer == layer and edit.address.site.name in sites for edit in self.bound_edits)

    def tap(self, keeping: Tap) -> Tap:
        """The run's edits followed by a tap that sees what they wrote.

        Args:
            keeping: The tap that follows.
        """
        return Chain(EditTap([self.bound_edits]), keeping)


def _from_pickle(
    model: Model, ids: Tensor, stream: Sequence[Tensor], edits: Sequence[BoundEdit], kept: Mapping[SiteKey, Tensor]
) -> Trace:
    at_home = [replace(edit, home=model.device) for edit in edits]  # it may be another device than the run's
    found = {key: value.to(model.device) for key, value in kept.items()}
    return Trace(model, ids.to(model.device), [x.to(model.device) for x in stream], at_home, kept=found)

"""Gradients of metrics carried down the layers, those of several runs side by side, with each layer's weights read once.

Each layer runs again from its stored input with gradients on, the last layer first. So no graph spans two layers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

import torch
from torch import Tensor

from gemmascope.errors import EditError, MetricError
from gemmascope.memory.limits import explain_oom
from gemmascope.model.gemma2 import Layer
from gemmascope.model.layout import NO_ROWS, Block, Layout
from gemmascope.model.tap import SILENT, Tap
from gemmascope.run.backward.relp import RelevanceTap
from gemmascope.run.bound_metric import BoundMetric, RunMetric, measure_stream
from gemmascope.run.logits import rows_to_unembed
from gemmascope.run.recorded import RecordedRun
from gemmascope.sites import SiteKey
from gemmascope.values import chunks, moved

# What is carried down: the gradient, or what RelP puts in its place.
GRADIENT, RELP = "gradient", "relp"
RULES = (GRADIENT, RELP)


class AtLayer(NamedTuple):
    """The gradients of one run at the requested sites of a layer, and the values there."""

    gradients: dict[SiteKey, Tensor]
    values: dict[SiteKey, Tensor]


class CarriedGradients:
    """The gradient of each run's metric at the stream, carried down layer by layer.

    rules: "gradient", or "relp". stream: of each run [pos, d_model], at first after the last layer, then at the entry of the
    layer that layers() gave last.
    """

    def __init__(self, runs: Sequence[RecordedRun], metrics: Sequence[BoundMetric], rules: str = GRADIENT) -> None:
        self.runs, self.rules = runs, rules
        with torch.inference_mode(False), explain_oom(runs[0].model):
            self.stream = [_at_final_stream(run, metric, rules) for run, metric in zip(runs, metrics, strict=True)]

    def layers(self, requested: Collection[SiteKey]) -> Iterator[tuple[Layer, list[AtLayer]]]:
        """The layers from the last one down to the lowest requested, each with every run's gradients at its sites.

        A layer is valid until the next one is requested.
        """
        model = self.runs[0].model
        lowest = min((layer or 0 for _, layer in requested), default=model.n_layers)
        if lowest == model.n_layers:
            return
        with explain_oom(model), closing(model.layers(reverse=True)) as layers:
            for layer in layers:
                keys = [key for key in requested if key[1] == layer.index]
                found = []
                for number, run in enumerate(self.runs):
                    with torch.inference_mode(False):
                        self.stream[number], at_sites = self._through(run, layer, self.stream[number], keys)
                    found.append(at_sites)
                yield layer, found
                if layer.index == lowest:
                    return

    def _through(self, run: RecordedRun, layer: Layer, grad: Tensor, keys: Collection[SiteKey]) -> tuple[Tensor, AtLayer]:
        run.require_weights(layer.index)
        copies = _GradientTap(keys)
        tap = run.tap(RelevanceTap(copies, layer) if self.rules == RELP else copies)
        with torch.enable_grad():
            x = run.residuals[layer.index].detach().requires_grad_()
            y = layer(x, run.layout, tap.at(layer.index, run.layout))
            inputs = [x, *copies.copies.values()]
            grads = torch.autograd.grad(y, inputs, moved(grad, y.device), allow_unused=True)
        down, *at_sites = (torch.zeros_like(v) if g is None else g for g, v in zip(grads, inputs, strict=True))
        values = {key: value.detach() for key, value in copies.copies.items()}
        return down, AtLayer(dict(zip(copies.copies, at_sites, strict=True)), values)


class _GradientTap(Tap):
    """Replaces the value of each requested site by a copy that autograd can differentiate with respect to."""

    def __init__(self, requested: Collection[SiteKey]) -> None:
        self.requested, self.copies = frozenset(requested), dict[SiteKey, Tensor]()

    def wants(self, site: str, layer: int | None) -> bool:
        return (site, layer) in self.requested

    def reads(self, site: str, layer: int | None) -> bool:
        return (site, layer) in self.requested

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        return self._copy(site, layer, value) if (site, layer) in self.requested else value

    def edges(self, site: str, layer: int, value: Tensor, block: Block) -> Tensor:
        return self._copy(site, layer, value[0])[None]

    def _copy(self, site: str, layer: int | None, value: Tensor) -> Tensor:
        copy = value.clone()
        if not copy.requires_grad:  # an edit overwrote it, so it depends on nothing before it
            copy.requires_grad_()
        self.copies[site, layer] = copy
        return copy


def _at_final_stream(run: RecordedRun, metric: BoundMetric, rules: str) -> Tensor:
    """The gradient at the stream after the last layer, which is zero where the metric does not read."""
    if any(edit.address.is_after_layers for edit in run.bound_edits):
        raise EditError("the run has an edit after its layers (final, logits_raw or logits), which gradients do not pass")
    run.require_weights(None)
    gradient = torch.zeros_like(run.residuals[-1])
    tap = RelevanceTap(SILENT, None) if rules == RELP else SILENT

    def unembed(rows: Tensor, _: Sequence[int]) -> Tensor:
        return run.model.network.unembed(rows[0], tap.at(None, NO_ROWS))[None]

    for part, positions, share in _parts(run, metric):
        at = list(positions)
        with torch.enable_grad():
            rows = run.residuals[-1][at].detach().requires_grad_()
            value = measure_stream([part], positions, rows[None], unembed, len(at))
            if not value.requires_grad:
                raise MetricError("the metric has no gradient: it detaches its numbers, or counts, as gs.rank does")
            (grad,) = torch.autograd.grad(value.sum() * share, rows)
        gradient[at] = grad
    return gradient


def _parts(run: RecordedRun, metric: BoundMetric) -> Iterator[tuple[BoundMetric, tuple[int, ...], float]]:
    """The metric at a few positions at a time, those positions, and their share of its mean; a function's all together."""
    if isinstance(metric, RunMetric):
        yield metric, metric.positions, 1.0
        return
    for part in chunks(len(metric.positions), rows_to_unembed(run.model, bytes_per_logit=32)):
        some = metric.at(part)
        yield some, some.positions, len(some.positions) / len(metric.positions)

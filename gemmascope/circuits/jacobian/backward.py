"""The Jacobians of one text: every coordinate of the last stream is carried down the layers, many at a time.

Each layer runs again from its stored input with gradients on, once a text, and all coordinates go backward through it. So no
graph spans two layers, and the weights are asked for once in reverse order, or once a chunk where memory is short.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

import torch
from jaxtyping import Float
from torch import Tensor

from gemmascope.memory.limits import explain_oom
from gemmascope.memory.placement import DEVICE_MICROBATCH_ROWS, MICROBATCH_ROWS
from gemmascope.model.gemma2 import Layer
from gemmascope.model.layout import Layout
from gemmascope.model.model import Model
from gemmascope.model.tap import SILENT
from gemmascope.values import chunks, moved

# Gradients of all coordinates of a text in memory at once, in bytes.
STATE_BYTES = 2**29


def jacobians_of(
    model: Model, ids: Tensor, used: slice, layers: Sequence[int]
) -> dict[int, Float[Tensor, "d_model d_model"]]:
    """The Jacobian of each layer on one text, float32 on the model's device.

    [i, j] is the sum over target positions of d resid_post[last][target, i] / d resid_post[layer][source, j], averaged over
    source positions. Both are the used positions; a target before its source adds nothing.

    Args:
        model: The model.
        ids: The token ids of the text.
        used: The positions.
        layers: The layers, without the last one.
    """
    d_model, lowest = model.config.d_model, min(layers)
    layout = Layout.of_lengths([len(ids)], model.device)
    with torch.inference_mode(False), explain_oom(model):
        inputs = _stream(model, ids, layout)
        parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        step = max(1, STATE_BYTES // (len(ids) * d_model * inputs[-1].element_size()))
        for part in chunks(d_model, step):
            rows = torch.arange(part.start, min(part.stop, d_model), device=model.device)
            for layer, grads in _down(model, inputs, layout, _one_hot(rows, len(ids), used, inputs[-1]), lowest):
                if layer in parts:
                    parts[layer].append(moved(grads[:, used].float().mean(1), model.device))
    return {layer: torch.cat(rows) for layer, rows in parts.items()}


def _stream(model: Model, ids: Tensor, layout: Layout) -> list[Tensor]:
    """The stream before each layer."""
    inputs = []
    with torch.no_grad(), closing(model.layers()) as layers:
        x = model.network.embed(ids, layout)
        for layer in layers:
            inputs.append(x)
            x = layer(x, layout, SILENT.at(layer.index, layout))
    return inputs


def _one_hot(rows: Tensor, n_pos: int, used: slice, like: Tensor) -> Float[Tensor, "coordinate pos d_model"]:
    """The gradients at the last stream: 1 at a coordinate of every used position."""
    start = like.new_zeros(len(rows), n_pos, like.shape[1])
    start[torch.arange(len(rows)), used.start : used.stop, rows] = 1.0
    return start


def _down(
    model: Model, inputs: Sequence[Tensor], layout: Layout, grads: Tensor, lowest: int
) -> Iterator[tuple[int, Float[Tensor, "coordinate pos d_model"]]]:
    """The gradients at the stream after each layer but the last, from there down to the lowest."""
    with closing(model.layers(reverse=True)) as layers:
        for layer in layers:
            if layer.index == lowest:
                break
            grads = _through(layer, inputs[layer.index], layout, grads)
            yield layer.index - 1, grads


def _through(
    layer: Layer, x: Tensor, layout: Layout, grads: Float[Tensor, "coordinate pos d_model"]
) -> Float[Tensor, "coordinate pos d_model"]:
    """The gradients before a layer, from those after it: a few coordinates at a time, through one graph of the layer."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = layer(x, layout, SILENT.at(layer.index, layout))
    at_once = MICROBATCH_ROWS if y.device.type == "cpu" else DEVICE_MICROBATCH_ROWS
    parts = list(chunks(len(grads), max(1, at_once // len(x))))
    found = []
    for part in parts:
        (down,) = torch.autograd.grad(y, x, moved(grads[part], y.device), retain_graph=True, is_grads_batched=True)
        found.append(down)
    return torch.cat(found)

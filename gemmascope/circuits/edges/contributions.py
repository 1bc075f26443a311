"""What every sender adds to the stream of a run, and what stands in its place: another run's, a number, or a mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gemmascope.circuits.edges.nodes import Nodes
from gemmascope.edits.sources import check_reference, mean_of
from gemmascope.edits.target import Target
from gemmascope.memory.limits import require_free_memory
from gemmascope.model.model import Model
from gemmascope.run.replay import replay
from gemmascope.run.trace import Trace
from gemmascope.sites import Address, find_site
from gemmascope.sweeps.sources import Ablation
from gemmascope.values import moved


@dataclass(frozen=True, eq=False)
class Contributions:
    """written: what every sender adds to the stream, through the post-norms, [sender, pos, d_model] in float32.

    middles: the stream between attention and MLP of each layer, [pos, d_model]; empty for what is not a run.
    """

    written: Tensor
    middles: Sequence[Tensor] = ()


def of_run(run: Trace) -> Contributions:
    """What every sender adds to a run's stream. One stream of the layers."""
    nodes, model = Nodes.of(run.model.config), run.model
    written = _empty(nodes, model, len(run))
    written[0] = run.residuals[0]
    middles = []
    for layer, values in replay(run, ["head_out", "mlp_out", "resid_mid"]):
        written[nodes.heads_at(layer.index)] = moved(values["head_out"].transpose(0, 1).float(), model.device)
        written[nodes.mlp_at(layer.index)] = moved(values["mlp_out"].float(), model.device)
        middles.append(moved(values["resid_mid"], model.device))
    return Contributions(written, middles)


def of_ablation(ablation: Ablation, model: Model, ids: Tensor) -> Contributions:
    """What an ablation puts in the place of every sender's output in a run of these ids."""
    nodes = Nodes.of(model.config)
    written = _empty(nodes, model, len(ids))
    if not isinstance(ablation.value, str):
        return Contributions(written.fill_(ablation.value))
    n_layers = model.n_layers
    places = [(0, "embed", None)]
    places += [(nodes.heads_at(layer), "head_out", layer) for layer in range(n_layers)]  # type: ignore[misc]
    places += [(nodes.mlp_at(layer), "mlp_out", layer) for layer in range(n_layers)]  # type: ignore[misc]
    for at, site, layer in places:
        target = _everywhere(model, ids, site, layer)
        mean = mean_of(ablation.value, ablation.reference, target, ablation.means).float()
        written[at] = mean.transpose(0, 1) if mean.dim() == 3 else mean
    return Contributions(written)


def check_ablation(ablation: Ablation, model: Model, ids: Tensor) -> None:
    """EditError for a reference that does not fit a run of these ids."""
    if isinstance(ablation.value, str):
        check_reference(ablation.value, ablation.reference, _everywhere(model, ids, "mlp_out", 0))


def _everywhere(model: Model, ids: Tensor, site: str, layer: int | None) -> Target:
    of_site = find_site(site)
    sizes = [model.config.size_of(axis, len(ids)) for axis in of_site.axes if not axis.startswith("d_")]
    return Target(model, ids, Address(of_site, layer), tuple(torch.arange(size) for size in sizes))


def _empty(nodes: Nodes, model: Model, n_pos: int) -> Tensor:
    shape = (len(nodes.senders), n_pos, model.config.d_model)
    n_bytes = 4 * shape[0] * shape[1] * shape[2]
    advice = "take a shorter prompt, or a smaller model"
    require_free_memory(n_bytes, model.device, f"what {shape[0]} senders write at {n_pos} positions", advice)
    return torch.empty(shape, device=model.device)

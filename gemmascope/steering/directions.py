"""Directions from contrasting prompts: the difference of means at a site, and a linear probe with its held-out accuracy.

Source: the difference of means as a steering vector, Turner et al. (arXiv 2308.10248), Rimsky et al. (arXiv 2312.06681).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import closing
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gemmascope.arguments import shown, whole_number
from gemmascope.edits.places import Pos, find_heads, find_positions
from gemmascope.errors import GemmascopeError, PromptError, SiteError
from gemmascope.loading.default import model_or_nano
from gemmascope.memory.limits import explain_oom
from gemmascope.model.finite import is_finite, require_sound_weights
from gemmascope.model.layout import Layout
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.model.prompts import as_prompts, listed_prompts
from gemmascope.model.tap import Tap
from gemmascope.run.microbatches import embed_in_microbatches
from gemmascope.sites import Address, find
from gemmascope.steering.direction import Direction
from gemmascope.steering.probe import fit_probe, held_out
from gemmascope.values import in_float64

# A difference of means shorter than this share of the cases' length is rounding.
NO_DIFFERENCE = 1e-6


@computes
def direction(
    positive: Any,
    negative: Any,
    *,
    site: str = "resid_post",
    layer: int,
    pos: Pos = -1,
    head: int | None = None,
    model: Model | None = None,
    seed: int = 0,
) -> Direction:
    """The direction at a site from the mean over some prompts (negative) to the mean over others (positive).

    positive, negative: lists of prompts as in gs.trace; they may differ in number and in length. site, layer: a row site
    in the layers. pos: the position to read in each prompt, -1 for the last, or a token that occurs once; of several, or
    of a slice, the mean is taken; None is all but the first (<bos> carries a huge value of its own). head: which head, at
    the sites that have them. model: None means nano. seed: of the folds in which the probe's accuracy is measured.
    All prompts share one pass, which ends at the layer. The probe is logistic regression; its held-out accuracy needs
    two prompts a class, and is NaN with fewer.
    Raises PromptError for an empty list, and for a prompt of one class that reads the same as one of the other;
    SiteError for a place that is not there.
    """
    model = model_or_nano(model)
    seed = whole_number(seed, "seed", error=GemmascopeError)
    address, at_head = _address(site, layer, head, model)
    positive_ids = _listed(as_prompts(positive), "positive", model)
    ids = [*positive_ids, *_listed(as_prompts(negative), "negative", model)]
    is_positive = torch.arange(len(ids)) < len(positive_ids)
    places = [_positions(pos, model, prompt) for prompt in ids]
    groups = [_read_up_to(prompt, at) for prompt, at in zip(ids, places, strict=True)]
    _refuse_both(groups, is_positive, ids, model)
    x = _values(model, ids, places, address, at_head)
    if not is_finite(x):
        for prompt in ids:
            require_sound_weights(model.network, model.name, prompt)
    means = torch.stack([x[is_positive].mean(0), x[~is_positive].mean(0)])
    if float((means[0] - means[1]).norm()) <= NO_DIFFERENCE * float(x.norm(dim=1).mean()):
        raise PromptError(f"the positive and the negative prompts have the same mean at '{address}': there is no direction")
    return Direction.of(
        model=model,
        address=address,
        head=at_head,
        pos=pos,
        prompts=ids,
        positive=is_positive,
        values=x,
        probe=fit_probe(x, is_positive),
        held_out=held_out(x, is_positive, groups, seed),
    )


def _address(site: str, layer: Any, head: Any, model: Model) -> tuple[Address, int | None]:
    """Where the direction is. SiteError for a site without rows in the layers, or one with heads and no head named."""
    found = find(site, model.n_layers, layer)
    if found.site.is_edges or found.layer is None:
        where = "lives on attention edges" if found.site.is_edges else "is outside the layers"
        raise SiteError(f"'{found.site.name}' {where}: a direction is of a site with rows in the layers, such as resid_post")
    heads = find_heads(head, found.site, model)
    if heads is None:
        return found, None
    if head is None or len(heads) != 1:
        name = "kv head" if found.site.heads == "kv_head" else "head"
        n_heads = len(find_heads(None, found.site, model) or ())
        raise SiteError(
            f"'{found.site.name}' has {n_heads} {name}s: say which one, head=0 to {n_heads - 1}; given {shown(head)}"
        )
    return found, heads[0]


def _listed(prompts: Any, name: str, model: Model) -> list[Tensor]:
    """The token ids of every prompt of a class. PromptError where there is none."""
    if isinstance(prompts, Sequence) and not isinstance(prompts, str) and not len(prompts):
        raise PromptError(f"the list of {name} prompts is empty: give at least one, and two to measure a probe by")
    return model.each_ids(listed_prompts(prompts)[0], f"{name} prompt")


def _positions(pos: Pos, model: Model, ids: Tensor) -> list[int]:
    if pos is not None:
        return find_positions(pos, model, ids)
    if len(ids) < 2:
        raise PromptError(
            f"the prompt {model.texts(ids)} has a single position, which pos=None leaves out: give longer prompts, or pos=0"
        )
    return list(range(1, len(ids)))


def _read_up_to(ids: Tensor, positions: Sequence[int]) -> Hashable:
    """What decides the values read from a prompt: prompts alike in this are one case given twice."""
    return (tuple(ids[: max(positions) + 1].tolist()), tuple(positions))


def _refuse_both(groups: Sequence[Hashable], positive: Tensor, ids: Sequence[Tensor], model: Model) -> None:
    first = {group: i for i, (group, p) in enumerate(zip(groups, positive.tolist(), strict=True)) if p}
    for i, (group, p) in enumerate(zip(groups, positive.tolist(), strict=True)):
        if not p and group in first:
            n_positive = int(positive.sum())
            raise PromptError(
                f"positive prompt {first[group]} and negative prompt {i - n_positive} are the same as far as they are read: "
                f"{model.texts(ids[i])}. Give prompts that differ at or before the position read"
            )


class _Reading(Tap):
    """Takes the mean over some positions of each run's values of a site, and of one head where there are heads."""

    def __init__(self, address: Address, head: int | None, places: Sequence[Sequence[int]]) -> None:
        self.address, self.head, self.places = address, head, places
        self.read: list[Tensor] = []

    def wants(self, site: str, layer: int | None) -> bool:
        return site == self.address.site.name and layer == self.address.layer

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        if self.wants(site, layer):
            of_head = value if self.head is None else value[:, self.head]
            for places, span in zip(self.places, layout.spans, strict=True):
                self.read.append(in_float64(of_head[span][places]).mean(0).cpu())
        return value


def _values(
    model: Model, ids: Sequence[Tensor], places: Sequence[Sequence[int]], address: Address, head: int | None
) -> Float[Tensor, "case d"]:
    """What each prompt has at the site, float64 on the CPU. One pass, which ends at the layer."""
    found: list[Any] = [None] * len(ids)
    with torch.no_grad(), explain_oom(model), closing(model.layers()) as layers:
        bins = embed_in_microbatches(model, ids)
        for one in bins:
            one.tap = _Reading(address, head, [places[run] for run in one.runs])
        for layer in layers:
            for one in bins:
                one.through(layer)
            if layer.index == address.layer:
                break
    for one in bins:
        assert isinstance(one.tap, _Reading)
        for run, value in zip(one.runs, one.tap.read, strict=True):
            found[run] = value
    return torch.stack(found)

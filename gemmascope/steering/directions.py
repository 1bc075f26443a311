"""gs.direction: the difference of means of two classes of prompts, and a linear probe with its held-out accuracy."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from contextlib import closing

import torch
from jaxtyping import Float
from torch import Tensor

from gemmascope.arguments import short_repr, whole_number
from gemmascope.edits.places import Head, Pos, find_heads, find_positions
from gemmascope.errors import GemmascopeError, PromptError, SiteError
from gemmascope.loading.default import model_or_nano
from gemmascope.memory.limits import explain_oom
from gemmascope.model.finite import is_finite, require_sound_weights
from gemmascope.model.layout import Layout
from gemmascope.model.model import Model, Prompt
from gemmascope.model.modes import computes
from gemmascope.model.prompts import as_prompts, listed_prompts
from gemmascope.model.tap import Chain, Tap
from gemmascope.run.microbatches import embed_in_microbatches
from gemmascope.sites import Address, find
from gemmascope.steering.direction import Direction, Provenance
from gemmascope.steering.probe import fit_probe, held_out
from gemmascope.values import in_float64

# A difference of means shorter than this share of the values' mean length is rounding.
NO_DIFFERENCE = 1e-6


@computes
def direction(
    positive: Prompt | Iterable[Prompt],
    negative: Prompt | Iterable[Prompt],
    *,
    site: str = "resid_post",
    layer: int,
    pos: Pos = -1,
    head: int | None = None,
    model: Model | None = None,
    seed: int = 0,
) -> Direction:
    """The direction at a site from the mean over the negative prompts to the mean over the positive ones.

    All prompts share one pass, which ends at the layer. A logistic regression on the same values is fitted beside the
    difference of means, and its accuracy is measured on held-out prompts.

    Args:
        positive: Prompts of the positive class, as in gs.trace.
        negative: Prompts of the negative class; the classes may differ in number and length.
        site: A site with rows in the layers, such as "resid_post".
        layer: Its layer; a negative one counts from the end.
        pos: The position to read in each prompt: -1 for the last, or a token that occurs once. Of several positions, or a
            slice, the mean is taken. None means all but the first, because `<bos>` carries a huge value.
        head: The head to read, at sites with heads only.
        model: The model; None means nano.
        seed: The seed of the folds in which the probe's accuracy is measured.

    Returns:
        The direction, with its probe, held-out accuracy, and each prompt's projection.

    Raises:
        PromptError: For an empty list, classes with the same mean, or a prompt of one class that reads the same as one of
            the other.
        SiteError: For a site, layer, position or head that is not there.

    Examples:
        >>> gs.direction(["Mary gave", "Mary went"], ["John gave", "John went"], layer=2)
        direction at resid_post of layer 2, pos -1, nano: 2 positive and 2 negative prompts...

    References:
        Turner et al., "Activation Addition" (arXiv 2308.10248).
        Rimsky et al., "Steering Llama 2 via Contrastive Activation Addition" (arXiv 2312.06681).
        Alain and Bengio, "Understanding intermediate layers using linear classifier probes" (arXiv 1610.01644).
    """
    model = model_or_nano(model)
    seed = whole_number(seed, "seed", error=GemmascopeError)
    address, head_number = _address(site, layer, head, model)
    hint = "give at least one, and two to measure a probe by"
    positive, negative = as_prompts(positive), as_prompts(negative)
    positive_ids = ids_of_prompts(positive, "positive prompt", hint, model)
    ids = [*positive_ids, *ids_of_prompts(negative, "negative prompt", hint, model)]
    is_positive = torch.arange(len(ids)) < len(positive_ids)
    positions = [_positions(pos, model, prompt) for prompt in ids]
    groups = [_read_tokens(prompt, at) for prompt, at in zip(ids, positions, strict=True)]
    _refuse_shared_prompts(groups, is_positive, ids, model)
    x = _values(model, ids, positions, address, head_number)
    if not is_finite(x):
        for prompt in ids:
            require_sound_weights(model.network, model.name, prompt)
    means = torch.stack([x[is_positive].mean(0), x[~is_positive].mean(0)])
    if float((means[0] - means[1]).norm()) <= NO_DIFFERENCE * float(x.norm(dim=1).mean()):
        raise PromptError(f"the positive and the negative prompts have the same mean at '{address}': there is no direction")
    return Direction.of(
        model=model,
        address=address,
        head=head_number,
        pos=pos,
        prompts=ids,
        positive=is_positive,
        values=x,
        probe=fit_probe(x, is_positive),
        held_out=held_out(x, is_positive, groups, seed),
        provenance=Provenance.of(model, positive, negative, address, head_number, pos, seed),
    )


def ids_of_prompts(prompts: Prompt | Iterable[Prompt], one: str, hint: str, model: Model) -> list[Tensor]:
    """The token ids of every prompt. PromptError for an empty list. one: what one prompt is called, such as "text"."""
    prompts = as_prompts(prompts)
    if isinstance(prompts, Sequence) and not isinstance(prompts, str) and not prompts:
        raise PromptError(f"the list of {one}s is empty: {hint}")
    return model.each_ids(listed_prompts(prompts)[0], one)


def layer_of(address: Address, rule: str) -> int:
    """The layer of a site with rows in the layers. SiteError, which ends in the rule, for any other site."""
    if address.site.is_edges or address.layer is None:
        why = "lives on attention edges" if address.site.is_edges else "is outside the layers"
        raise SiteError(f"'{address.site.name}' {why}: {rule}")
    return address.layer


def _address(site: str, layer: int, head: Head, model: Model) -> tuple[Address, int | None]:
    """The site and layer, and the head. SiteError at a site without rows in the layers, or with heads and none named."""
    address = find(site, model.n_layers, layer)
    layer_of(address, "a direction is of a site with rows in the layers, such as resid_post")
    heads = find_heads(head, address.site, model)
    if heads is None:
        return address, None
    if head is None or len(heads) != 1:
        name = "kv head" if address.site.heads == "kv_head" else "head"
        n_heads = len(find_heads(None, address.site, model) or ())
        raise SiteError(
            f"'{address.site.name}' has {n_heads} {name}s: say which one, head=0 to {n_heads - 1}; given {short_repr(head)}"
        )
    return address, heads[0]


def _positions(pos: Pos, model: Model, ids: Tensor) -> list[int]:
    if pos is not None:
        return find_positions(pos, model, ids)
    if len(ids) < 2:
        raise PromptError(
            f"the prompt {model.texts(ids)} has a single position, which pos=None leaves out: give longer prompts, or pos=0"
        )
    return list(range(1, len(ids)))


def _read_tokens(ids: Tensor, positions: Sequence[int]) -> Hashable:
    """What the values that are read depend on. Prompts that agree in it are the same case."""
    return (tuple(ids[: max(positions) + 1].tolist()), tuple(positions))


def _refuse_shared_prompts(groups: Sequence[Hashable], positive: Tensor, ids: Sequence[Tensor], model: Model) -> None:
    """PromptError for a positive and a negative prompt that are the same case."""
    first = {group: i for i, (group, p) in enumerate(zip(groups, positive.tolist(), strict=True)) if p}
    for i, (group, p) in enumerate(zip(groups, positive.tolist(), strict=True)):
        if not p and group in first:
            n_positive = int(positive.sum())
            raise PromptError(
                f"positive prompt {first[group]} and negative prompt {i - n_positive} are the same as far as they are read: "
                f"{model.texts(ids[i])}. Give prompts that differ at or before the position read"
            )


class _MeanOverPositions(Tap):
    """Keeps each run's mean over some positions at a site, of one head where there are heads."""

    def __init__(self, address: Address, head: int | None, positions: Sequence[Sequence[int]]) -> None:
        self.address, self.head, self.positions = address, head, positions
        self.means: list[Tensor] = []

    def wants(self, site: str, layer: int | None) -> bool:
        return site == self.address.site.name and layer == self.address.layer

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        if self.wants(site, layer):
            rows = value if self.head is None else value[:, self.head]
            for positions, span in zip(self.positions, layout.spans, strict=True):
                self.means.append(in_float64(rows[span][positions]).mean(0).cpu())
        return value


def _values(
    model: Model, ids: Sequence[Tensor], positions: Sequence[Sequence[int]], address: Address, head: int | None
) -> Float[Tensor, "case d"]:
    """Each prompt's mean over its positions at the site, float64 on the CPU. One pass, which ends at the layer."""
    values: dict[int, Tensor] = {}
    with torch.no_grad(), explain_oom(model), closing(model.layers()) as layers:
        batches = embed_in_microbatches(model, ids)
        taps = [_MeanOverPositions(address, head, [positions[run] for run in batch.runs]) for batch in batches]
        for batch, tap in zip(batches, taps, strict=True):
            batch.tap = Chain(batch.tap, tap)
        for layer in layers:
            for batch in batches:
                batch.through(layer)
            if layer.index == address.layer:
                break
    for batch, tap in zip(batches, taps, strict=True):
        values |= zip(batch.runs, tap.means, strict=True)
    return torch.stack([values[run] for run in range(len(ids))])

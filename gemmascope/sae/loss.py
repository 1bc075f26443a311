"""How much of a model's next-token loss a dictionary keeps when its reconstruction stands in the place of the site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gemmascope.edits.edit import Ablate, Edit
from gemmascope.errors import DictionaryError
from gemmascope.legible import legibly
from gemmascope.loading.default import model_or_nano
from gemmascope.model.model import Model
from gemmascope.model.prompts import listed_prompts
from gemmascope.run.tracing import traces
from gemmascope.sae.dictionary import Dictionary
from gemmascope.sae.splice import splice

# Rows that are unembedded at once, in elements of logits: 64 MB.
LOGIT_ELEMENTS = 2**24


@dataclass(frozen=True)
class LossRecovered:
    """Mean next-token losses in nats: of the model as it is, with the reconstruction in the place of the site, with zeros.

    A <bos> in front keeps its value in all three, and what it predicts is not counted. n_tokens: how many are.
    """

    clean: float
    spliced: float
    zeroed: float
    n_tokens: int

    @property
    def recovered(self) -> float:
        """(zeroed - spliced) / (zeroed - clean): 1 where the reconstruction is as good as the site, 0 as bad as zeros."""
        return (self.zeroed - self.spliced) / (self.zeroed - self.clean)

    @property
    def added(self) -> float:
        """The loss that the reconstruction adds, in nats a token."""
        return self.spliced - self.clean

    @legibly
    def __repr__(self) -> str:
        return (
            f"loss recovered {self.recovered:.1%} over {self.n_tokens:,} tokens: clean {self.clean:.4f}, "
            f"spliced {self.spliced:.4f}, zeroed {self.zeroed:.4f} nats"
        )


def loss_recovered(sae: Dictionary, prompts: Any, model: Model | None) -> LossRecovered:
    """The losses over prompts, in three passes. DictionaryError where no prompt has a token to predict."""
    model = model_or_nano(model)
    sae.require_fit(model)
    ids = model.each_ids(listed_prompts(prompts)[0])
    ids = [one for one in ids if len(one) - _first(one, model) >= 2]
    if not ids:
        raise DictionaryError("no prompt has two tokens after <bos>: there is nothing to predict")
    losses = [
        torch.cat([_losses(model, one, _after_bos(edit, one, model)) for one in ids])
        for edit in (None, splice(sae, keep_error=False), Ablate(site=sae.writes, layer=sae.layer))
    ]
    clean, spliced, zeroed = (loss.cpu().double().mean().item() for loss in losses)
    return LossRecovered(clean, spliced, zeroed, len(losses[0]))


def _first(ids: Tensor, model: Model) -> int:
    """The first position that <bos> does not take."""
    return int(ids[0] == model.config.bos_id)


def _after_bos(edit: Edit | None, ids: Tensor, model: Model) -> list[Edit]:
    return [] if edit is None else [replace(edit, pos=slice(_first(ids, model), None))]


def _losses(model: Model, ids: Tensor, edits: Sequence[Edit]) -> Tensor:
    """The loss of each token that follows a position after <bos>."""
    (trace,) = traces(model, [ids], edits)
    first = _first(ids, model)
    step = max(1, LOGIT_ELEMENTS // model.config.vocab_size)
    rows = zip(torch.split(trace.residuals[-1][first:-1], step), torch.split(ids[first + 1 :], step), strict=True)
    with torch.no_grad():
        return torch.cat([cross_entropy(model.network.unembed(x), after, reduction="none") for x, after in rows])

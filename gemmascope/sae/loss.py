"""How much of a model's next-token loss is kept when a dictionary's reconstruction replaces the site."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gemmascope.edits.edit import Edit
from gemmascope.edits.kinds import Ablate
from gemmascope.errors import DictionaryError
from gemmascope.legible import prints_legibly
from gemmascope.loading.default import model_or_nano
from gemmascope.model.model import Model, Prompt
from gemmascope.model.prompts import listed_prompts
from gemmascope.run.logits import rows_to_unembed
from gemmascope.run.tracing import traces
from gemmascope.sae.features import first_after_bos
from gemmascope.sae.splice import splice
from gemmascope.sae.weights import DictionaryWeights


@dataclass(frozen=True)
class LossRecovered:
    """Mean next-token losses in nats over n_tokens tokens, from Dictionary.loss_recovered.

    clean: of the model as it is. spliced: with the reconstruction in place of the site. zeroed: with zeros in its place. A
    `<bos>` at the start keeps its value in all three, and the token after it is not counted.
    """

    clean: float
    spliced: float
    zeroed: float
    n_tokens: int

    @property
    def recovered(self) -> float:
        """(zeroed - spliced) / (zeroed - clean): 1 if the reconstruction is as good as the site, 0 if as bad as zeros.

        NaN if zeros change nothing.
        """
        gap = self.zeroed - self.clean
        return (self.zeroed - self.spliced) / gap if gap else float("nan")

    @property
    def added(self) -> float:
        """The loss that the reconstruction adds, in nats a token."""
        return self.spliced - self.clean

    @prints_legibly
    def __repr__(self) -> str:
        return (
            f"loss recovered {self.recovered:.1%} over {self.n_tokens:,} tokens: clean {self.clean:.4f}, "
            f"spliced {self.spliced:.4f}, zeroed {self.zeroed:.4f} nats"
        )


def loss_recovered(dictionary: DictionaryWeights, prompts: Prompt | Iterable[Prompt], model: Model | None) -> LossRecovered:
    """The losses over prompts, in three passes. DictionaryError if no prompt has a token to predict."""
    model = model_or_nano(model)
    dictionary.require_fit(model)
    ids = model.each_ids(listed_prompts(prompts)[0])
    ids = [prompt for prompt in ids if len(prompt) - first_after_bos(prompt, model) >= 2]
    if not ids:
        raise DictionaryError("no prompt has two tokens after <bos>: there is nothing to predict")
    edits = (None, splice(dictionary, keep_error=False), Ablate(site=dictionary.writes, layer=dictionary.layer))
    losses = [torch.cat([_losses(model, prompt, edit) for prompt in ids]) for edit in edits]
    clean, spliced, zeroed = (loss.cpu().double().mean().item() for loss in losses)
    return LossRecovered(clean, spliced, zeroed, len(losses[0]))


def _losses(model: Model, ids: Tensor, edit: Edit | None) -> Tensor:
    """The loss of each token that follows a position after `<bos>`, with an edit of these positions."""
    first = first_after_bos(ids, model)
    edits = [] if edit is None else [replace(edit, pos=slice(first, None))]
    (trace,) = traces(model, [ids], edits)
    step = rows_to_unembed(model)
    rows = zip(torch.split(trace.residuals[-1][first:-1], step), torch.split(ids[first + 1 :], step), strict=True)
    with torch.no_grad():
        return torch.cat([cross_entropy(model.network.unembed(x), after, reduction="none") for x, after in rows])

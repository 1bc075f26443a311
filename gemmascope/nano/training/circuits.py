"""Circuits that nano must have: heads with a known role, and the attention edges that long recall depends on."""

from __future__ import annotations

import torch
from torch import Tensor

from gemmascope.analysis.heads import head_scores
from gemmascope.config_json import Kind
from gemmascope.model.model import Model
from gemmascope.prompts import ioi, recall
from gemmascope.run.tracing import trace

# Random prompts for head scores: longer than the window, so that only global layers can complete the repetition.
PROMPTS, LENGTH = 20, 24


def circuits(model: Model) -> dict[str, float]:
    """The score of the best head for each role, and the accuracy of long recall with edges cut."""
    scores = head_scores(model, ["induction", "previous_token"], n=PROMPTS, length=LENGTH, seed=1)
    return {
        "induction score of the best head": float(scores["induction"].scores.max()),
        "previous-token score of the best head": float(scores["previous_token"].scores.max()),
        "attention to the indirect object of the best head": float(indirect_object_scores(model).max()),
        "long recall, global layers cut": recall_with_cut(model, "global"),
        "long recall, local layers cut": recall_with_cut(model, "local"),
    }


def indirect_object_scores(model: Model, n: int = 100, seed: int = 1) -> Tensor:
    """Mean attention [layer, head] from the last position of an indirect-object prompt to the indirect object."""
    scores = []
    for pair in ioi(n, seed, model.tokenizer):
        ids = model.tokenizer.ids(pair.clean)
        name = model.tokenizer.single(pair.answer)
        if name in ids:  # at the start of a prompt a name has no space, and is another token
            t = trace(ids, model=model)
            attention = [t["pattern", layer][:, -1, ids.index(name)] for layer in range(model.n_layers)]
            scores.append(torch.stack(attention))
    return torch.stack(scores).mean(0)


def recall_with_cut(model: Model, kind: Kind, n: int = 200, seed: int = 1) -> float:
    """Accuracy of long recall when the last position of `kind` layers cannot attend to the statement it must recall."""
    n_right = 0
    for pair in recall(n, seed, model.tokenizer):
        ids, other = model.tokenizer.ids(pair.clean), model.tokenizer.ids(pair.corrupt)
        key = next(i for i, (a, b) in enumerate(zip(ids, other, strict=True)) if a != b)
        # The whole statement, "The key of Anna is seven.": its full stop may have read the key.
        logits = _logits_with_cut(model, ids, kind, slice(key - 5, key + 2))
        n_right += int(logits[-1].argmax()) == model.tokenizer.single(pair.answer)
    return n_right / n


def _logits_with_cut(model: Model, ids: list[int], kind: Kind, keys: slice) -> Tensor:
    """Logits [pos, vocab] with the last position's edges to `keys` cut; its other probabilities are scaled to sum to 1.

    gs.knockout would refuse this in a local layer, whose window hides these keys already.
    """

    def cut(site: str, layer: int | None, value: Tensor) -> Tensor:
        if site != "pattern" or layer is None or model.config.kinds[layer] != kind:
            return value
        pattern = value.clone()
        pattern[:, -1, keys] = 0
        pattern[:, -1] /= pattern[:, -1].sum(-1, keepdim=True)
        return pattern

    return model.run(ids, tap=cut)

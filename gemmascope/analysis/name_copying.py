"""Name copying: whether a head that reads a name writes that name, from its weights and the stream at the name."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import torch

from gemmascope.analysis.head_kinds import NAME_COPYING
from gemmascope.analysis.heads import HeadScores, labelled_scores
from gemmascope.arguments import as_list, true_or_false, whole_number
from gemmascope.edits.places import find_position
from gemmascope.errors import PromptError, SiteError
from gemmascope.loading.default import model_or_nano
from gemmascope.model.maths import rms_scale
from gemmascope.model.model import Model, Prompt
from gemmascope.model.modes import computes
from gemmascope.model.prompts import listed_prompts
from gemmascope.run.tracing import trace
from gemmascope.sweeps.metadata import words_of


@computes
def name_copying(
    prompts: Prompt | Sequence[Prompt],
    names: str | Sequence[str],
    *,
    k: int = 5,
    negative: bool = False,
    model: Model | None = None,
) -> HeadScores:
    """How often the name that a head reads is among the k tokens that it raises most.

    The copy score of name movers. For every prompt, the stream after the first layer at the name's position goes through a
    head's input norm, W_OV, the post-norm, the last norm and the unembedding, without the rest of the model. No scale of
    these norms changes the order of the tokens, so none has to be frozen: gains are all that is left of them.

    Args:
        prompts: Prompts with names, as text or token ids.
        names: The name in each prompt, a token that occurs in it; the first place counts. One for all, or a list.
        k: How many of the tokens that are raised most count.
        negative: Turn the sign of W_OV, for heads that lower the name (negative name movers).
        model: The model; None means nano.

    Returns:
        The share of prompts, (layer, head), from 0 to 1.

    Raises:
        PromptError: For another number of names than prompts.
        SiteError: For a name that is no token of its prompt, or a k that is not there.

    Examples:
        >>> family = gs.prompts.ioi(8)
        >>> scores = gs.name_copying([pair.clean for pair in family], [pair.answer for pair in family])
        >>> scores.scores.dims
        ('layer', 'head')

    References:
        Wang et al., "Interpretability in the Wild" (arXiv 2211.00593), section 3.1.
    """
    model = model_or_nano(model)
    k = whole_number(k, "k", least=1, most=model.config.vocab_size, error=SiteError)
    sign = -1.0 if true_or_false(negative, "negative", error=SiteError) else 1.0
    listed, _ = listed_prompts(prompts)
    each = [names] * len(listed) if isinstance(names, str) else as_list(names, "names", error=PromptError)
    if len(each) != len(listed):
        raise PromptError(f"there are {len(listed)} prompts and {len(each)} names: give one for all, or one for each")
    runs = trace(listed, model=model)
    places = [_first_place(name, run.tokens, model, run.ids) for name, run in zip(each, runs, strict=True)]
    ids = torch.stack([run.ids[pos] for run, pos in zip(runs, places, strict=True)])
    rows = torch.stack([run.residuals[1][pos] for run, pos in zip(runs, places, strict=True)]).float()
    rows = rows * rms_scale(rows, model.config.norm_eps)
    final_gain = 1.0 + model.network.model.norm.weight.float()
    scores = torch.zeros(model.n_layers, model.config.n_heads)
    with torch.no_grad(), closing(model.layers()) as layers:
        for layer in layers:
            for head in range(model.config.n_heads):
                ov = layer.ov(head)
                written = sign * (rows @ ov.left @ ov.right) * final_gain
                logits = model.network.model.embed_tokens.logits(written.to(model.dtype)).float()
                own = logits.gather(-1, ids[:, None])
                scores[layer.index, head] = ((logits > own).sum(-1) < k).float().mean()
    over = f"{len(listed)} prompt{'s' if len(listed) != 1 else ''}, top {k}{', sign turned' if negative else ''}"
    return HeadScores(NAME_COPYING, labelled_scores(model, scores), model.name, over, words_of(model, runs[0].ids))


def _first_place(name: object, tokens: Sequence[str], model: Model, ids: torch.Tensor) -> int:
    """The first position of a token in a prompt. SiteError for one that is not there."""
    if isinstance(name, str) and name in tokens:
        return tokens.index(name)
    return find_position(name, model, ids, "a name is one token of its prompt")

"""Runs many prompts through a network at once and compares its most likely next tokens with the answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gemmascope.model.gemma2 import Gemma2
from gemmascope.model.layout import Layout
from gemmascope.prompts.pairs import Pair
from gemmascope.tokens.tokenizer import Tokenizer


class Evaluator:
    """A network and its tokenizer, with the measures that the skills share."""

    def __init__(self, net: Gemma2, tokenizer: Tokenizer) -> None:
        self.net, self.tokenizer = net, tokenizer
        self.device = net.model.embed_tokens.weight.device
        self.ordinary = ordinary_ids(tokenizer)

    @torch.no_grad()
    def last_logits(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Soft-capped logits at the last position of every prompt [run, vocab], in one pass."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        lengths = [len(prompts[i]) for i in order]
        ids = torch.tensor([i for run in order for i in prompts[run]], device=self.device)
        rows = self.net(ids, Layout.of_lengths(lengths, self.device))
        last = torch.tensor(lengths).cumsum(0) - 1
        return self.net.unembed(rows[last.to(self.device)]).cpu()[torch.tensor(order).argsort()]

    def top(self, prompts: Sequence[str]) -> list[int]:
        """The most likely next token of every prompt."""
        best: list[int] = self.last_logits([self.tokenizer.ids(prompt) for prompt in prompts]).argmax(-1).tolist()
        return best

    def top_is_answer(self, pairs: Sequence[Pair]) -> float:
        """Share of the clean prompts after which the answer is the most likely token."""
        tops = self.top([pair.clean for pair in pairs])
        ids = [self.tokenizer.ids(pair.clean + pair.answer)[-1] for pair in pairs]
        return sum(top == answer for top, answer in zip(tops, ids, strict=True)) / len(pairs)


def ordinary_ids(tokenizer: Tokenizer) -> list[int]:
    """Every token that is text, for random sequences."""
    return [i for i in range(tokenizer.vocab_size) if not tokenizer.is_special(i)]

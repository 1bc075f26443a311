"""Sampling: which token comes next, given its logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import torch
from jaxtyping import Float
from torch import Tensor

from gemmascope.arguments import finite_number, short_repr, whole_number
from gemmascope.errors import GenerationError, warn


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    temperature: 0 for the likeliest token. top_p: the share of probability to draw from. top_k: how many of the likeliest
    tokens to draw from; None for all. min_p: the least probability of a drawn token, as a share of the likeliest's.
    repetition_penalty: what the logits of tokens in the text so far are divided by, or multiplied where they are negative.

    The logits go through these in the order of transformers: repetition penalty, temperature, top_k, top_p, min_p.
    """

    temperature: float
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        temperature = _number(self.temperature)
        if not temperature >= 0:
            raise GenerationError(
                f"temperature is a number from 0 (the likeliest token, always) upwards; given {short_repr(self.temperature)}"
            )
        top_p = _number(self.top_p)
        if not 0 < top_p <= 1:
            raise GenerationError(
                f"top_p is a number above 0 and up to 1 (all tokens), a share of probability; given {short_repr(self.top_p)}"
            )
        if self.top_k is not None:
            object.__setattr__(self, "top_k", whole_number(self.top_k, "top_k", least=1, error=GenerationError))
        min_p = _number(self.min_p)
        if not 0 <= min_p <= 1:
            raise GenerationError(
                "min_p is a number from 0 (all tokens) to 1, a share of the likeliest token's probability; given "
                f"{short_repr(self.min_p)}"
            )
        penalty = _number(self.repetition_penalty)
        if not penalty > 0:
            raise GenerationError(
                f"repetition_penalty is a number above 0, and 1 is none; given {short_repr(self.repetition_penalty)}"
            )
        if temperature == 0 and (self.top_k is not None or min_p):
            warn("top_k and min_p change nothing at temperature 0, which takes the likeliest token: say temperature=1.0")
        numbers = {"temperature": temperature, "top_p": top_p, "min_p": min_p, "repetition_penalty": penalty}
        for name, number in numbers.items():
            object.__setattr__(self, name, number)

    @property
    def takes_the_likeliest(self) -> bool:
        """Whether the next token is the largest logit's, as it is."""
        return self.temperature == 0 and self.repetition_penalty == 1

    def penalised(self, logits: Float[Tensor, " vocab"], seen: Sequence[int]) -> Float[Tensor, " vocab"]:
        """Logits with the repetition penalty. seen: the ids of the text so far, the prompt's among them.

        References:
            Keskar et al., "CTRL: A Conditional Transformer Language Model for Controllable Generation" (arXiv 1909.05858).
        """
        if self.repetition_penalty == 1:
            return logits
        tokens = torch.tensor(sorted(set(seen)), device=logits.device)
        values = logits[tokens]
        lowered = torch.where(values < 0, values * self.repetition_penalty, values / self.repetition_penalty)
        return logits.index_copy(0, tokens, lowered)

    def log_probabilities(self, logits: Float[Tensor, " vocab"], seen: Sequence[int] = ()) -> Float[Tensor, " vocab"]:
        """The natural logs of the probabilities to draw with, float64 on the CPU: minus infinity for tokens left out.

        References:
            Fan et al., "Hierarchical Neural Story Generation" (arXiv 1805.04833), for top_k.
            Holtzman et al., "The Curious Case of Neural Text Degeneration" (arXiv 1904.09751), for top_p.
            Nguyen et al., "Turning Up the Heat: Min-p Sampling" (arXiv 2407.01082).
        """
        logits = self.penalised(logits.cpu().double(), seen)
        if self.temperature == 0:
            return torch.nn.functional.one_hot(logits.argmax(), len(logits)).double().log()
        logits = (logits - logits.max()) / self.temperature
        if self.top_k is not None and self.top_k < len(logits):  # of tokens as likely as the last one, all stay
            logits = logits.masked_fill(logits < logits.topk(self.top_k).values[-1], -torch.inf)
        if self.top_p < 1:
            likeliest, order = logits.softmax(-1).sort(descending=True, stable=True)
            before = likeliest.cumsum(-1) - likeliest
            logits = logits.index_fill(0, order[before >= self.top_p], -torch.inf)
        if self.min_p:
            probs = logits.softmax(-1)
            logits = logits.masked_fill(probs < self.min_p * probs.max(), -torch.inf)
        return logits.log_softmax(-1)

    def probabilities(self, logits: Float[Tensor, " vocab"], seen: Sequence[int] = ()) -> Float[Tensor, " vocab"]:
        """The distribution to draw from, float64 on the CPU."""
        return self.log_probabilities(logits, seen).exp()

    def draw(
        self, logits: Float[Tensor, "run vocab"], generators: Sequence[torch.Generator], texts: Sequence[Sequence[int]]
    ) -> list[int]:
        """A token id for each run. texts: the ids of each so far."""
        if self.temperature == 0:
            if self.repetition_penalty != 1:
                logits = torch.stack([self.penalised(row, seen) for row, seen in zip(logits, texts, strict=True)])
            return [int(token) for token in logits.argmax(-1).tolist()]
        drawn = zip(logits, generators, texts, strict=True)
        return [int(torch.multinomial(self.probabilities(row, ids), 1, generator=one)) for row, one, ids in drawn]


def _number(value: object) -> float:
    """A finite number as a float; NaN for anything else."""
    try:
        return finite_number(value, "it", error=GenerationError)
    except GenerationError:
        return nan

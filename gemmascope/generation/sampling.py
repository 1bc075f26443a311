"""Sampling: which token comes next, given its logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import torch
from jaxtyping import Float
from torch import Tensor

from gemmascope.arguments import finite_number, short_repr
from gemmascope.errors import GenerationError


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature: 0 for the likeliest token. top_p: the share of probability to draw from."""

    temperature: float
    top_p: float

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
        object.__setattr__(self, "temperature", temperature)
        object.__setattr__(self, "top_p", top_p)

    def probabilities(self, logits: Float[Tensor, " vocab"]) -> Float[Tensor, " vocab"]:
        """The distribution to draw from, float64 on the CPU: softmax(logits / temperature), cut to top_p.

        References:
            Holtzman et al., "The Curious Case of Neural Text Degeneration" (arXiv 1904.09751).
        """
        logits = logits.cpu().double()
        if self.temperature == 0:
            return torch.nn.functional.one_hot(logits.argmax(), len(logits)).double()
        probs = ((logits - logits.max()) / self.temperature).softmax(-1)
        if self.top_p < 1:
            likeliest, order = probs.sort(descending=True, stable=True)
            before = likeliest.cumsum(-1) - likeliest
            probs = probs.index_fill(0, order[before >= self.top_p], 0.0)
        return probs / probs.sum()

    def draw(self, logits: Float[Tensor, "run vocab"], generators: Sequence[torch.Generator]) -> list[int]:
        """A token id for each run."""
        if self.temperature == 0:
            return [int(token) for token in logits.argmax(-1).tolist()]
        drawn = zip(logits, generators, strict=True)
        return [int(torch.multinomial(self.probabilities(row), 1, generator=generator)) for row, generator in drawn]


def _number(value: object) -> float:
    """A finite number as a float; NaN for anything else."""
    try:
        return finite_number(value, "it", error=GenerationError)
    except GenerationError:
        return nan

"""Random inputs for the exercises: small models whose soft caps and windows matter, prompts, and numbers."""

from __future__ import annotations

from functools import lru_cache

import torch

from gemmascope.config import GemmaConfig
from gemmascope.model.gemma2 import Gemma2
from gemmascope.model.model import Model

SHAPE = GemmaConfig(
    d_model=24, n_heads=4, n_kv_heads=2, d_head=8, d_mlp=32, vocab_size=40, kinds=("local", "global", "local"), window=4,
    context=32, query_scalar=12.0, attn_cap=5.0, final_cap=6.0,
)  # fmt: skip


@lru_cache(maxsize=8)
def small_model(seed: int) -> Model:
    """A random model of three layers, without a tokenizer. Its weights are large enough for both soft caps to matter."""
    generator = torch.Generator().manual_seed(seed)
    network = Gemma2(SHAPE).to_empty(device="cpu")
    with torch.no_grad():
        for name, weight in network.named_parameters():
            scale = 1.0 if "embed" in name else 0.3 if weight.dim() == 1 else 2 * weight.shape[1] ** -0.5
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return Model(network.eval(), None, f"random {seed}")


def random_ids(seed: int, length: int = 11) -> list[int]:
    """Token ids of a random prompt."""
    generator = torch.Generator().manual_seed(seed + 1)
    return [SHAPE.bos_id, *torch.randint(3, SHAPE.vocab_size, (length - 1,), generator=generator).tolist()]


def two_prompts(seed: int, length: int = 11) -> tuple[list[int], list[int]]:
    """Token ids of two prompts that differ in one token, and not in the last."""
    clean = random_ids(seed, length)
    pos = 2 + seed % (length - 4)
    corrupt = list(clean)
    corrupt[pos] = 3 + (clean[pos] - 3 + 1 + seed % 5) % (SHAPE.vocab_size - 3)
    return clean, corrupt


def normal(seed: int, *shape: int) -> torch.Tensor:
    """Normal random numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

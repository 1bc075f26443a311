"""transformers as an able user would drive it: one run at a time, and many runs in one batch.

The batch is the honest rival of a sweep. It has a row for each cell, and hooks that patch each row at its own layer and
position; only the last position's logits are asked, nothing is copied that need not be, and its size is the quickest found.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from measuring import CPU, seconds
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM

from gemmascope.config import GemmaConfig

Cell = tuple[int, int]

SHAPE: dict[str, Any] = {
    "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 32,
}  # fmt: skip
SMALL: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8,
}  # fmt: skip


def checkpoint(
    shape: dict[str, Any], device: torch.device = CPU, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Gemma2ForCausalLM:
    """Random weights of a shape. Attention is eager: transformers has no other for Gemma 2's soft cap."""
    torch.manual_seed(seed)
    config = Gemma2Config(**{"max_position_embeddings": 8192, **shape}, attn_implementation="eager", eos_token_id=None)
    with torch.device(device):
        model = Gemma2ForCausalLM._from_config(config, dtype=dtype).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def config_of(source: Gemma2ForCausalLM) -> GemmaConfig:
    return GemmaConfig.from_dict(source.config.to_dict())


def prompt(length: int, vocab_size: int, seed: int) -> Tensor:
    return torch.randint(vocab_size, (length,), generator=torch.Generator().manual_seed(seed))


@contextlib.contextmanager
def hooked(pairs: Sequence[tuple[torch.nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Forward pre-hooks, taken away at the end."""
    handles = [module.register_forward_pre_hook(hook) for module, hook in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def patched_module(source: Gemma2ForCausalLM, site: str, layer: int) -> torch.nn.Module:
    """The module whose first argument is the site."""
    found: torch.nn.Module = source.model.layers[layer]
    return found if site == "resid_pre" else found.self_attn.o_proj


class PatchedRuns:
    """A grid of patches of one prompt with another's values: resid_pre by layer and position, or z by layer and head."""

    def __init__(
        self, source: Gemma2ForCausalLM, clean: Tensor, corrupt: Tensor, site: str, tokens: tuple[int, int]
    ) -> None:
        self.source, self.site, self.tokens = source, site, tokens
        self.device = source.device
        self.corrupt = corrupt.to(self.device)
        self.d_head = source.config.head_dim
        self.n_layers = source.config.num_hidden_layers
        n_places = len(corrupt) if site == "resid_pre" else source.config.num_attention_heads
        self.cells: list[Cell] = [(layer, place) for layer in range(self.n_layers) for place in range(n_places)]
        self.modules = [patched_module(source, site, layer) for layer in range(self.n_layers)]
        self.clean: dict[int, Tensor] = {}

        def keep(layer: int) -> Callable[..., None]:
            return lambda module, args: self.clean.__setitem__(layer, self._places(args[0])[0].clone())

        with torch.inference_mode(), hooked([(module, keep(layer)) for layer, module in enumerate(self.modules)]):
            source(clean.to(self.device)[None], use_cache=False, logits_to_keep=1)

    def _places(self, x: Tensor) -> Tensor:
        """[row, place, ...], a view."""
        return x if self.site == "resid_pre" else x.unflatten(-1, (-1, self.d_head)).transpose(1, 2)

    def run(self, cells: Sequence[Cell], size: int) -> list[float]:
        """The metric of each cell, in batches of size."""
        with torch.inference_mode():
            found = [self._batch(cells[start : start + size]) for start in range(0, len(cells), size)]
        return [float(number) for part in found for number in part.tolist()]

    def _batch(self, cells: Sequence[Cell]) -> Tensor:
        by_layer: dict[int, list[tuple[int, int]]] = {}
        for row, (layer, place) in enumerate(cells):
            by_layer.setdefault(layer, []).append((row, place))

        def patch(layer: int) -> Callable[..., None]:
            rows, places = torch.tensor(by_layer[layer], device=self.device).T

            def write(module: Any, args: Any) -> None:
                self._places(args[0])[rows, places] = self.clean[layer][places]  # in place: nobody else holds it

            return write

        with hooked([(self.modules[layer], patch(layer)) for layer in by_layer]):
            ids = self.corrupt[None].expand(len(cells), -1)
            logits = self.source(ids, use_cache=False, logits_to_keep=1).logits[:, -1].float()
        return logits[:, self.tokens[0]] - logits[:, self.tokens[1]]

    def quickest_size(self, sizes: Sequence[int]) -> int:
        """The size of a batch that takes the least time a cell; each is warmed first."""
        costs = {}
        for size in sorted({min(size, len(self.cells)) for size in sizes}):
            cells = self.sample(size)
            self.run(cells, size)
            costs[size] = min(seconds(lambda c=cells, s=size: self.run(c, s), self.device) for _ in range(2)) / size
        return min(costs, key=lambda size: costs[size])

    def sample(self, count: int) -> list[Cell]:
        """So many cells, spread evenly over the grid."""
        count = min(count, len(self.cells))
        return [self.cells[i * len(self.cells) // count] for i in range(count)]


Hooks = Sequence[tuple[torch.nn.Module, Callable[..., Any]]]


def edit_hooks(source: Gemma2ForCausalLM, layer: int, head: int, vector: Tensor) -> Hooks:
    """z of one head set to zero, and a vector added to the stream before the layer above, at every position."""
    places = slice(head * source.config.head_dim, (head + 1) * source.config.head_dim)
    moved = vector.to(source.device, source.dtype)

    def zero(module: Any, args: Any) -> None:
        args[0][..., places] = 0

    def add(module: Any, args: Any) -> None:
        args[0].add_(moved)

    return [(patched_module(source, "z", layer), zero), (patched_module(source, "resid_pre", layer + 1), add)]


def greedy(source: Gemma2ForCausalLM, ids: Tensor, n_new: int, hooks: Hooks = ()) -> Tensor:
    """transformers' own generate, with its default cache: [prompt, position]."""
    ids = ids.to(source.device)
    with torch.inference_mode(), hooked(hooks):
        found: Tensor = source.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n_new, do_sample=False)
    return found


def short_of_the_likeliest(source: Gemma2ForCausalLM, ids: Tensor, n_prompt: int, hooks: Hooks = ()) -> float:
    """How far below the likeliest logit a generated token lies at the most, in transformers' run of the whole text.

    As a part of the largest logit. Texts part where rounding makes two tokens change places, and are equally right: this
    tells it from a mistake.
    """
    with torch.inference_mode(), hooked(hooks):
        logits = source(ids.to(source.device), use_cache=False).logits[:, n_prompt - 1 : -1].float()
    chosen = logits.gather(-1, ids[:, n_prompt:, None].to(source.device))[..., 0]
    return float(((logits.amax(-1) - chosen).amax() / logits.abs().amax()).item())

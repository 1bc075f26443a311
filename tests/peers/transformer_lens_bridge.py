"""TransformerLens beside us: a bridge over a small random checkpoint, and our model over the same weights.

TransformerLens 4 is needed; the fixture skips where it cannot be imported.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import checkpoint, checkpoint_3, model_of
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import Gemma2ForCausalLM, Gemma3ForCausalLM, PreTrainedTokenizerFast

import gemmascope as gs
import gemmascope.nano
from gemmascope.model.model import Model


def transformer_bridge() -> Any:
    """The class, or a skip."""
    module = pytest.importorskip("transformer_lens.model_bridge", reason="TransformerLens 4 is not installed")
    return module.TransformerBridge


@cache
def side_by_side(kinds: str = "lgl", seed: int = 0, **shape: Any) -> tuple[Any, Model]:
    """Their bridge and our model over the same random weights of a Gemma 2, in float32."""
    return bridged(checkpoint(kinds, seed, **shape))


@cache
def side_by_side_3(kinds: str, seed: int = 0, **shape: Any) -> tuple[Any, Model]:
    """The same for a Gemma 3."""
    return bridged(checkpoint_3(kinds, seed, **shape))


@cache
def nano_side_by_side() -> tuple[Any, Model]:
    """Their bridge and our model of the trained weights in the package."""
    transformer_bridge()
    folder = Path(gemmascope.nano.__file__).parent / "checkpoint"
    return bridged(Gemma2ForCausalLM.from_pretrained(folder, dtype=torch.float32))[0], gs.load()


def bridged(source: Gemma2ForCausalLM | Gemma3ForCausalLM) -> tuple[Any, Model]:
    """Their bridge and our model over the weights of a source."""
    boot = transformer_bridge().boot_transformers
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(source.config.vocab_size)}, unk_token="t3"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="t2", eos_token="t1", pad_token="t0", unk_token="t3"
    )
    with tempfile.TemporaryDirectory() as folder:  # the bridge loads by name; the tokenizer is asked for, and not used
        source.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        bridge = boot(str(Path(folder)), device="cpu", dtype=torch.float32)
    return bridge, model_of(source)


def cache_of(bridge: Any, ids: Sequence[int], **arguments: Any) -> Any:
    """Their cache of a run: an ActivationCache."""
    with torch.no_grad():
        return bridge.run_with_cache(torch.tensor([list(ids)]), **arguments)[1]


def unbatched(value: Tensor, ours: Tensor) -> Tensor:
    """Their value of one prompt with our axes: without the batch axis, and a norm's scale without its axis of one."""
    return value[0, :, 0] if ours.dim() == 1 and value.dim() == 3 else value[0]

"""Models of transformers in memory that are no plain Gemma2ForCausalLM, but hold one: compiled, wrapped, without a head."""

from __future__ import annotations

import sys
from typing import Any

import torch

from gemmascope.errors import CheckpointError

CAUSAL, BODY = "Gemma2ForCausalLM", "Gemma2Model"
# Heads on top of the body, which a language model leaves out, as transformers does when it loads such a checkpoint.
_HEADED = ("Gemma2ForSequenceClassification", "Gemma2ForTokenClassification")
_AROUND = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}


def kinds_of(source: object) -> set[str]:
    """The names of the classes of an object. By name, so that nothing need be imported."""
    return {kind.__name__ for kind in type(source).__mro__}


def unwrapped(source: Any) -> Any:
    """The Gemma2ForCausalLM that an object holds or stands for; any other object as it is.

    Raises:
        CheckpointError: It has adapters, is sharded, or is quantised; says what to do.
    """
    kinds = kinds_of(source)
    if around := next((attribute for kind, attribute in _AROUND.items() if kind in kinds), None):
        return unwrapped(getattr(source, around))
    if kinds & {"PeftModel", "PeftMixedModel"}:
        if getattr(getattr(source, "active_peft_config", None), "is_prompt_learning", False):
            raise CheckpointError(
                f"this is a {type(source).__name__} whose adapter is learned tokens or keys, which cannot be merged and are "
                "not read: give the base model without it"
            )
        raise CheckpointError(
            f"this is a {type(source).__name__}, a model with adapters: give model.merge_and_unload(), or the base model "
            "without them"
        )
    if "FullyShardedDataParallel" in kinds:
        raise CheckpointError("this model is sharded (FSDP): save it whole with save_pretrained, and load that folder")
    if not kinds & {CAUSAL, BODY, *_HEADED}:
        return source
    _refuse_quantised(source)
    return source if CAUSAL in kinds else _with_head(source if BODY in kinds else source.model)


def _with_head(body: Any) -> Any:
    """A Gemma2ForCausalLM around a body that is in memory. Its head is the embedding, to which Gemma 2 ties it."""
    whole: Any = sys.modules["transformers"].Gemma2ForCausalLM
    with torch.device("meta"):
        made = whole(body.config)
    made.model = body
    made.lm_head.weight = body.embed_tokens.weight
    return made.eval()


def _refuse_quantised(source: Any) -> None:
    for name, parameter in source.named_parameters():
        kind = type(parameter).__name__
        if kind in ("Params4bit", "Int8Params") or parameter.dtype.itemsize == 1:
            raise CheckpointError(
                f"the model is quantised in memory: parameter {name!r} is {kind} of {parameter.dtype}. Give the original "
                "model, or model.dequantize(); weights='int8' quantises a folder or hub id here"
            )
        if kind == "DTensor":
            raise CheckpointError(
                "this model is sharded (DTensor): save it whole with save_pretrained, and load that folder"
            )

"""Transformers models in memory that contain a Gemma 2 or 3: compiled, wrapped, with another head or none, multimodal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import nn

from gemmascope.errors import CheckpointError

# The classes of whole language models, by that of their bodies.
CAUSAL_OF = {"Gemma2Model": "Gemma2ForCausalLM", "Gemma3TextModel": "Gemma3ForCausalLM"}
CAUSAL = frozenset(CAUSAL_OF.values())
# Models with another head on top of the body, which is left out, as transformers does when it loads such a checkpoint.
_HEADED = ("Gemma2ForSequenceClassification", "Gemma2ForTokenClassification", "Gemma3TextForSequenceClassification")
# Models of text and images, whose text model is taken.
_MULTIMODAL = ("Gemma3ForConditionalGeneration", "Gemma3Model")
_WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}


class TransformersConfig(Protocol):
    """A transformers configuration."""

    def to_dict(self) -> dict[str, object]:
        """Its content, as config.json has it."""


class TransformersBody(Protocol):
    """A transformers Gemma2Model or Gemma3TextModel."""

    embed_tokens: nn.Module
    layers: nn.ModuleList
    norm: nn.Module


class TransformersGemma2(Protocol):
    """What is used of a transformers Gemma2ForCausalLM or Gemma3ForCausalLM."""

    config: TransformersConfig
    model: TransformersBody
    dtype: torch.dtype

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every parameter and its name."""

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Every module and its name."""

    def get_output_embeddings(self) -> nn.Linear:
        """The head."""


def unwrap(source: object) -> object:
    """The Gemma2ForCausalLM or Gemma3ForCausalLM that a model contains; any other object is returned as it is.

    Raises:
        CheckpointError: The model has adapters, is sharded, or is quantised. The message says what to do.
    """
    kinds = {kind.__name__ for kind in type(source).__mro__}  # compared by name, so that nothing need be imported
    if attribute := next((attribute for kind, attribute in _WRAPPERS.items() if kind in kinds), None):
        return unwrap(getattr(source, attribute))
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
    if not kinds & {*CAUSAL, *CAUSAL_OF, *_HEADED, *_MULTIMODAL}:
        return source
    model: Any = source
    _refuse_quantised(model.named_parameters())
    if kinds & CAUSAL:
        return model
    if kinds & {*_MULTIMODAL}:
        return _with_head(getattr(model, "model", model).language_model)
    return _with_head(model if kinds & CAUSAL_OF.keys() else model.model)


def _with_head(body: nn.Module) -> object:
    """A whole language model around a body in memory. Its head is the embedding, to which Gemma ties it."""
    name = next(CAUSAL_OF[kind.__name__] for kind in type(body).__mro__ if kind.__name__ in CAUSAL_OF)
    with torch.device("meta"):
        model = getattr(sys.modules["transformers"], name)(body.config)
    model.model = body
    model.lm_head.weight = body.get_submodule("embed_tokens").weight
    return model.eval()


def _refuse_quantised(parameters: Iterator[tuple[str, nn.Parameter]]) -> None:
    for name, parameter in parameters:
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

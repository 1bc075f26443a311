"""The names of a checkpoint's tensors: wrappers' prefixes are removed, and foreign tensors are refused or left out."""

from __future__ import annotations

import re
from collections.abc import Iterable

from gemmascope.errors import CheckpointError

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

# The prefixes that torch.compile, DataParallel, FSDP and checkpointing add to names.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PEFT = "base_model.model."
# The text model within a multimodal checkpoint, and what is beside it and left out.
_TEXT = ("model.language_model.", "language_model.model.", "language_model.")
_OTHER = re.compile(r"^(model\.)?(vision_tower|multi_modal_projector)\.")
_ADAPTED = re.compile(r"(^|\.)(lora_\w+|base_layer|modules_to_save|ia3_\w+|oft_\w+|vera_\w+|prompt_encoder)(\.|$)")
_QUANTISED = re.compile(
    r"(\.weight\.(absmax|quant_map|nested_\w+|quant_state\w*)|\.(SCB|qweight|qzeros|g_idx|weight_scale\w*|weight_format"
    r"|weight_packed|input_scale))(\.|$)"
)
# Recomputed from the configuration, or heads on top of the network: transformers also leaves them out of a language model.
_LEFT_OUT = re.compile(
    r"(^|\.)rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)$|^(model\.)?score\.(weight|bias)$"
    r"|^v_head\.(summary\.)?(weight|bias)$"
)


def canonical_names(names: Iterable[str], source: object) -> dict[str, str]:
    """A mapping from each tensor's name in Gemma2ForCausalLM or Gemma3ForCausalLM to its name in the checkpoint.

    Names may lack the prefix "model.", as Gemma2Model saves them, and may contain wrappers' prefixes. The head of a reward
    model, RoPE's frequencies and what a multimodal checkpoint has beside its text model are left out. A checkpoint
    with only lm_head.weight uses it as the embedding, to which Gemma ties it.

    Args:
        names: The names in the checkpoint.
        source: What the checkpoint is, for the error.

    Raises:
        CheckpointError: A name belongs to an adapter or to quantised weights, or two names mean the same tensor.
    """
    stored: dict[str, str] = {}
    for name in names:
        _refuse_foreign(name, source)
        canonical = _canonical(name)
        if canonical is None:
            continue
        if canonical in stored:
            raise CheckpointError(
                f"{source}: {stored[canonical]!r} and {name!r} both stand for {canonical!r}: leave one of them out"
            )
        stored[canonical] = name
    if EMBEDDING not in stored and HEAD in stored:
        stored[EMBEDDING] = stored[HEAD]
    return stored


def _canonical(stored: str) -> str | None:
    name = _WRAPPERS.sub("", stored).removeprefix(_PEFT)
    if _LEFT_OUT.search(name) or _OTHER.search(name):
        return None
    if prefix := next((prefix for prefix in _TEXT if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return f"model.{name}" if name.startswith(("embed_tokens.", "layers.", "norm.")) else name


def _refuse_foreign(name: str, source: object) -> None:
    if _ADAPTED.search(name):
        raise CheckpointError(
            f"{source} holds parameters of an adapter ({name!r}). Merge it first: with peft, "
            "model.merge_and_unload().save_pretrained(folder), and load that folder"
        )
    if _QUANTISED.search(name):
        raise CheckpointError(
            f"{source} holds quantised weights ({name!r}), which are not read: give the original checkpoint. "
            "weights='int8' quantises it here"
        )

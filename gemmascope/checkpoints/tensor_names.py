"""The names of a checkpoint's tensors: what wrappers put around them, and which of them are no part of the network."""

from __future__ import annotations

import re
from collections.abc import Iterable

from gemmascope.errors import CheckpointError

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

# What torch.compile, DataParallel, FSDP and checkpointing put into the names of what they wrap.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PEFT = "base_model.model."
_ADAPTED = re.compile(r"(^|\.)(lora_\w+|base_layer|modules_to_save|ia3_\w+|oft_\w+|vera_\w+|prompt_encoder)(\.|$)")
_QUANTISED = re.compile(
    r"(\.weight\.(absmax|quant_map|nested_\w+|quant_state\w*)|\.(SCB|qweight|qzeros|g_idx|weight_scale\w*|weight_format"
    r"|weight_packed|input_scale))(\.|$)"
)
# Made anew from the configuration, or heads on top of the network: transformers leaves them out of a language model too.
_LEFT_OUT = re.compile(
    r"(^|\.)rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)$|^(model\.)?score\.(weight|bias)$"
    r"|^v_head\.(summary\.)?(weight|bias)$"
)


def by_plain_name(names: Iterable[str], where: object) -> dict[str, str]:
    """The names of the network's tensors as Gemma2ForCausalLM has them -> as they are given.

    Names may lack the prefix "model.", as Gemma2Model saves them, and hold the marks of what wrapped the model. The head
    of a reward model and RoPE's frequencies are left out. If only lm_head.weight is there, it is the embedding too: the
    two are tied.

    Raises:
        CheckpointError: A name is of an adapter or of quantised weights, or two stand for the same tensor.
    """
    found: dict[str, str] = {}
    for given in names:
        _refuse_foreign(given, where)
        plain = _plain(given)
        if plain is None:
            continue
        if plain in found:
            raise CheckpointError(f"{where}: {found[plain]!r} and {given!r} both stand for {plain!r}: leave one of them out")
        found[plain] = given
    if EMBEDDING not in found and HEAD in found:
        found[EMBEDDING] = found[HEAD]
    return found


def _plain(given: str) -> str | None:
    name = _WRAPPERS.sub("", given).removeprefix(_PEFT)
    if _LEFT_OUT.search(name):
        return None
    return f"model.{name}" if name.startswith(("embed_tokens.", "layers.", "norm.")) else name


def _refuse_foreign(name: str, where: object) -> None:
    if _ADAPTED.search(name):
        raise CheckpointError(
            f"{where} holds parameters of an adapter ({name!r}). Merge it first: with peft, "
            "model.merge_and_unload().save_pretrained(folder), and load that folder"
        )
    if _QUANTISED.search(name):
        raise CheckpointError(
            f"{where} holds quantised weights ({name!r}), which are not read: give the original checkpoint. "
            "weights='int8' quantises it here"
        )

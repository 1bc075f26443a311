"""gs.load: a Gemma 2 from the package, a folder, the hub, or memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gemmascope.arguments import equals_text, shown, true_or_false
from gemmascope.checkpoints.device import asked_dtype, choose_device, choose_dtype
from gemmascope.checkpoints.folder import Checkpoint, require_finite, require_tied
from gemmascope.checkpoints.from_transformers import empty_network, from_transformers, is_gemma, put
from gemmascope.checkpoints.hub import fetch_tokenizer, is_hub_id
from gemmascope.checkpoints.load_arguments import asked_of
from gemmascope.checkpoints.source import in_hub_cache, resolve_source
from gemmascope.checkpoints.wrappers import unwrapped
from gemmascope.config import GemmaConfig
from gemmascope.errors import CheckpointError, DeviceError, warn
from gemmascope.loading import pickling as pickling  # models can be pickled from here on
from gemmascope.loading.network import Wanted, int8_store, network_of_checkpoint, network_of_store, require_weights
from gemmascope.memory.placement import parse_bytes
from gemmascope.model.gemma2 import Gemma2
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.streaming.store import Store, is_store
from gemmascope.tokens.folder import has_tokenizer
from gemmascope.tokens.tokenizer import Tokenizer

# A token that transformers adds to every Gemma tokenizer that has none, whether or not the model has room for it.
_UNSAID = {"<mask>"}


@computes
def load(
    source: Any = "nano",
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    weights: str = "auto",
    memory: int | str | None = None,
    cache: str | os.PathLike[str] | None = None,
    tokenizer: Any = None,
    check: bool = False,
    revision: str | None = None,
) -> Model:
    """A Gemma 2, ready to be looked into.

    source: "nano" (or None), the small trained model inside the package; a folder in the transformers layout; a hub id
        such as "google/gemma-2-2b", fetched once into the hub's cache (HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE
        count); or a transformers Gemma2ForCausalLM, whose parameters are shared, not copied (a
        Gemma2Model and a compiled model too; the head of a reward model is left out). A folder that exists is
        taken before a hub id of the same name.
    device: "auto" is cuda if there is one, else the CPU; for a model in memory, where it is. "meta" builds the network
        and checks names and shapes, and reads no values.
    dtype: "auto" is float32 if any tensor is stored in float16, else what config.json names if that is bfloat16 or
        float32, else bfloat16 if every tensor is stored so, else float32; for a model in memory, what it is in.
        float16 is refused: Gemma 2 overflows in it.
    weights: "auto" is what is stored; "int8" quantises the layers' matrices (groups of 128, symmetric), once, into a cache
        folder, and computes in dtype with the numbers that they stand for. A folder that gemmascope quantize wrote is
        a source, and is int8.
    memory: bytes that the model may take on the device, such as "20GiB". What fits stays there; the other layers are
        brought as a pass goes, from host memory or from their files. None: everything stays.
    cache: the folder for the int8 weights; by default one in GEMMASCOPE_CACHE or ~/.cache/gemmascope.
    tokenizer: a folder, a hub id or a fast tokenizer of transformers, instead of the source's own. A source without
        any loads as well; its prompts are then token ids.
    check: look at every value for NaN and infinity.
    revision: of a hub id, the branch, tag or commit to take, such as "main"; a commit pins the numbers.

    Memory while loading: at most the model's own size and one tensor; while quantising, one layer in int8 and two tensors.
    Raises CheckpointError, ConfigError (another architecture), DeviceError (a device, dtype or weights that cannot be) or
    BudgetError (too little memory, with the least; no room on the disk); nothing half loaded stays behind.
    """
    check = true_or_false(check, "check", error=CheckpointError)
    if revision is not None and not isinstance(revision, str):
        raise CheckpointError(f"revision is a branch, a tag or a commit, as a text; given {shown(revision)}")
    if check and equals_text(device, "meta"):
        raise DeviceError("check=True looks at the values, and device='meta' reads none: leave one of them out")
    require_weights(weights)
    budget = None if memory is None else parse_bytes(memory)
    asked = asked_of(
        device=device, dtype=dtype, weights=weights, memory=memory, cache=cache, tokenizer=tokenizer, revision=revision
    )
    plain = unwrapped(source)
    if is_gemma(plain):
        _refuse_in_memory(weights, memory, revision)
        model = _from_memory(plain, device, dtype, tokenizer, check, asked)
        model.network.keep_alive = (plain,) if plain is not source else ()  # a head made here lives as long as the network
        return model
    folder, name = resolve_source(source, revision)
    if weights == "int8" or is_store(folder):
        store = int8_store(folder, name, cache, Wanted(choose_device(device), asked_dtype(dtype), budget))
        return _in_int8(store, name, device, dtype, tokenizer, budget, asked)
    with Checkpoint(folder) as checkpoint:
        words = _own_words(folder, checkpoint.config) if tokenizer is None else _words(tokenizer, checkpoint.config)
        place, numbers = choose_device(device), choose_dtype(dtype, checkpoint.dtype_name, checkpoint.dtypes)
        if budget is not None and place.type != "meta":
            if check:
                raise DeviceError(
                    "check=True looks at every value, and with memory= most of them stay in their files: leave one out"
                )
            require_tied(checkpoint)
            return Model(network_of_checkpoint(checkpoint, place, numbers, budget), words, name, asked, name)
        network = _network(checkpoint, place, numbers, check)
    return Model(network, words, name, asked, name)


def _in_int8(
    store: Store,
    name: str,
    device: str | torch.device,
    dtype: str | torch.dtype,
    tokenizer: Any,
    budget: int | None,
    asked: dict[str, Any],
) -> Model:
    words = _own_words(store.beside, store.config) if tokenizer is None else _words(tokenizer, store.config)
    numbers = choose_dtype(dtype, store.dtype_name, {store.dtype})
    return Model(network_of_store(store, choose_device(device), numbers, budget), words, name, asked, name)


def _refuse_in_memory(weights: str, memory: int | str | None, revision: str | None) -> None:
    if revision is not None:
        raise CheckpointError("revision= is of a hub id, and a model that is in memory has none: leave it out")
    if weights != "auto" or memory is not None:
        raise DeviceError(
            "a model that is in memory is shared as it is: for int8 weights or a memory budget, call "
            "model.save_pretrained(folder) and load the folder"
        )


_LOADED: dict[str, Model] = {}


def nano() -> Model:
    """The model inside the package: what functions take for model=None. Always the same one, in every thread."""
    found = _LOADED.get("nano")
    return _LOADED.setdefault("nano", load("nano")) if found is None else found


def _from_memory(
    source: Any, device: str | torch.device, dtype: str | torch.dtype, tokenizer: Any, check: bool, asked: dict[str, Any]
) -> Model:
    network = from_transformers(source, device, dtype)
    words = None if tokenizer is None else _words(tokenizer, network.config)
    if check:
        for name, parameter in network.named_parameters():
            require_finite(parameter, f"parameter {name!r}")
    return Model(network, words, getattr(source.config, "name_or_path", "") or type(source).__name__, asked)


def _network(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, check: bool) -> Gemma2:
    """The network of a checkpoint: built without memory, then filled tensor by tensor."""
    network = empty_network(checkpoint.config)
    network.owned = True
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    checkpoint.require(shapes)
    if device.type == "meta":
        return network.to(dtype)
    require_tied(checkpoint)
    for name in shapes:
        tensor = checkpoint.read(name)
        if check:
            require_finite(tensor, f"tensor {name!r} of {checkpoint.stored[name].shard}")
        moved = tensor.to(device, dtype)
        if tensor.dtype == torch.float64:
            _require_held(tensor, moved, f"tensor {name!r} of {checkpoint.stored[name].shard}")
        put(network, name, nn.Parameter(moved, requires_grad=False))
    return network


def _require_held(tensor: Tensor, moved: Tensor, what: str) -> None:
    """CheckpointError for a number that is finite in float64 and infinite in the dtype that is computed in."""
    if bool((tensor.isfinite() & moved.isinf().to(tensor.device)).any()):
        largest = float(tensor.abs().nan_to_num(posinf=0).max())
        raise CheckpointError(f"{what} holds {largest:.3g} in float64, which {moved.dtype} cannot hold")


def _own_words(folder: Path, config: GemmaConfig) -> Tokenizer | None:
    """The tokenizer in a checkpoint's folder; None if there is none: the model then takes token ids."""
    if not has_tokenizer(folder):
        return None
    return _words(folder, config)


def _words(given: Any, config: GemmaConfig) -> Tokenizer:
    """The tokenizer that was given as a folder, a hub id or an object. Warns of tokens that the model cannot embed."""
    if isinstance(given, Tokenizer):
        words = given
    elif isinstance(given, (str, os.PathLike)):
        folder = Path(os.path.expanduser(given))
        if os.path.isdir(folder):
            folder = in_hub_cache(folder)
        elif is_hub_id(str(given)):
            folder = fetch_tokenizer(str(given))
        else:
            what = (
                "is a file: give the folder that holds it"
                if os.path.isfile(folder)
                else "is no folder that exists and no hub id"
            )
            raise CheckpointError(f"tokenizer={str(given)!r} {what}")
        words = Tokenizer.from_folder(folder, config.bos_id)
    else:
        words = Tokenizer.from_transformers(given, config.bos_id)
    beyond = words.tokens_beyond(config.vocab_size)
    if beyond.keys() - _UNSAID:
        first = ", ".join(f"{name!r} ({i})" for name, i in list(beyond.items())[:3])
        warn(
            f"the tokenizer has {words.vocab_size} tokens and the model an embedding for {config.vocab_size}: {first}"
            f"{' and others' if len(beyond) > 3 else ''} cannot be embedded, and a prompt with such a token is refused. "
            "If it is another model's tokenizer, give the model's own"
        )
    _warn_of_bos(words, config)
    return words.limited_to(config.vocab_size)


def _warn_of_bos(words: Tokenizer, config: GemmaConfig) -> None:
    if words.bos_id != config.bos_id:
        warn(
            f"the tokenizer's <bos> is {words.text(words.bos_id)!r} (id {words.bos_id}) and the model's configuration says "
            f"bos_token_id {config.bos_id}: prompts begin with the tokenizer's"
        )

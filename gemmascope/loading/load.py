"""gs.load: a Gemma 2 or 3 from the package, a folder, a GGUF file, the hub, or memory."""

from __future__ import annotations

import copyreg
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from torch import nn

from gemmascope.arguments import equals_text, short_repr, true_or_false
from gemmascope.checkpoints.device import (
    DeviceChoice,
    choose_devices,
    choose_dtype,
    one_device,
    parse_dtype,
    warn_of_slow_bfloat16,
)
from gemmascope.checkpoints.folder import Checkpoint, require_finite, require_tied
from gemmascope.checkpoints.from_transformers import from_transformers, is_gemma
from gemmascope.checkpoints.hub import fetch_tokenizer, is_hub_id
from gemmascope.checkpoints.source import hub_snapshot, resolve_source
from gemmascope.checkpoints.wrappers import TransformersGemma2, unwrap
from gemmascope.config import GemmaConfig
from gemmascope.errors import CheckpointError, DeviceError, warn
from gemmascope.loading.network import (
    LoadRequest,
    dense_network,
    int8_store,
    network_of_checkpoint,
    network_of_store,
    require_weights,
    warn_of_wide_window,
)
from gemmascope.loading.pickling import FromSource, FromWeights, as_pickled, from_weights, load_arguments, require_same
from gemmascope.memory.limits import explain_oom_in_loading
from gemmascope.memory.placement import parse_bytes
from gemmascope.model.gemma2 import Gemma2
from gemmascope.model.mixins.lasting_edits import LastingEdit
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.streaming.store import is_store
from gemmascope.tokens.folder import has_tokenizer
from gemmascope.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# transformers adds this token to every Gemma tokenizer without one, whether or not the model can embed it.
_ADDED = {"<mask>"}


@computes
def load(
    source: str | os.PathLike[str] | nn.Module | None = "nano",
    *,
    device: DeviceChoice = "auto",
    dtype: str | torch.dtype = "auto",
    weights: str = "auto",
    memory: int | str | None = None,
    cache: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | Tokenizer | PreTrainedTokenizerFast | None = None,
    check: bool = False,
    revision: str | None = None,
) -> Model:
    """Load a Gemma 2, or the text model of a Gemma 3.

    Loading takes at most the model's own size and one tensor in memory; quantising takes one layer in int8 and two tensors.
    A load that fails leaves nothing behind.

    Args:
        source: One of
            "nano" or None, a small trained Gemma 2 inside the package;
            a folder in the transformers layout, or one that gs.quantize wrote;
            a GGUF file, as llama.cpp, Ollama and LM Studio keep them (with the gguf package; memory= needs weights="int8");
            a hub id such as "google/gemma-2-2b", downloaded once into the hub's cache (HF_HOME, HF_ENDPOINT, HF_TOKEN and
            HF_HUB_OFFLINE apply). A folder of the same name comes first;
            a transformers Gemma2ForCausalLM or Gemma3ForCausalLM, whose parameters are shared rather than copied. A compiled
            model and one without head work too; another head, and what is beside the text model, is left out.
        device: The device to load to. "auto" is cuda if there is one, else the CPU; a model in memory stays where it is.
            Several GPUs, such as ["cuda:0", "cuda:1"], share the layers, the first ones on the first of them, which also has
            the embedding, and to which results come. "auto" uses further GPUs only if a model does not fit on one. "meta"
            builds the network and checks names and shapes, without reading any values.
        dtype: The dtype to compute in, "float32" or "bfloat16". "auto" is float32 if any tensor is stored in float16; else
            the dtype in config.json; else bfloat16 if every tensor is stored in it; else float32. A model in memory keeps
            its own. float16 is refused, because Gemma 2 overflows in it.
        weights: "auto" takes the weights as they are stored. "int8" quantises the layers' matrices (symmetric, in groups of
            128 along the input) once, into a cache folder, and dequantises them to dtype as they are used.
        memory: Bytes that the model may take on the device, on each of several, as a number or a text such as "20GiB". As
            many layers as fit stay there; the others stream from host memory or from their files in every pass. None:
            everything stays.
        cache: The folder for the int8 weights. None: a folder in GEMMASCOPE_CACHE or ~/.cache/gemmascope.
        tokenizer: A folder, a hub id or a fast tokenizer of transformers, instead of the source's own. None: the source's
            own; without one, prompts are token ids.
        check: Whether to look at every value for NaN and infinity.
        revision: The branch, tag or commit of a hub id; a commit pins the numbers. None: the main branch.

    Returns:
        The model.

    Raises:
        CheckpointError: The source cannot be found, read or trusted.
        ConfigError: It is of another architecture.
        DeviceError: The device, dtype or weights are not available.
        BudgetError: The memory is too little, of a device or of several together, or the disk has no room; the message says
            how much is needed.

    Examples:
        >>> model = gs.load()
        >>> model.name, model.n_layers, model.dtype
        ('nano', 6, torch.float32)
        >>> gs.load("nano", dtype="bfloat16").dtype
        torch.bfloat16
    """
    check = true_or_false(check, "check", error=CheckpointError)
    if revision is not None and not isinstance(revision, str):
        raise CheckpointError(f"revision is a branch, a tag or a commit, as a text; given {short_repr(revision)}")
    if check and equals_text(device, "meta"):
        raise DeviceError("check=True looks at the values, and device='meta' reads none: leave one of them out")
    require_weights(weights)
    budget = None if memory is None else parse_bytes(memory)
    arguments = load_arguments(
        device=device, dtype=dtype, weights=weights, memory=memory, cache=cache, tokenizer=tokenizer, revision=revision
    )
    outer: object = source
    inner = unwrap(outer)
    if is_gemma(inner):
        _refuse_in_memory(weights, memory, revision)
        model = _from_memory(inner, device, dtype, tokenizer, check, arguments)
        warn_of_wide_window(model.config)
        model.network.keep_alive = (inner,) if inner is not outer else ()  # keeps a head that was made here alive
        return model
    folder, name = resolve_source(source, revision)
    with explain_oom_in_loading(name, device):
        network, reader = _from_folder(folder, name, LoadOptions(device, dtype, weights, budget, cache, tokenizer, check))
    warn_of_slow_bfloat16(network.model.norm.weight)
    warn_of_wide_window(network.config)
    return Model(network, reader, name, arguments, "nano" if source is None else str(source))


@dataclass(frozen=True)
class LoadOptions:
    """Arguments of load, as the user gave them. memory: the budget in bytes."""

    device: DeviceChoice
    dtype: str | torch.dtype
    weights: str
    memory: int | None
    cache: str | os.PathLike[str] | None
    tokenizer: object
    check: bool


def _from_folder(folder: Path, name: str, options: LoadOptions) -> tuple[Gemma2, Tokenizer | None]:
    """The network and the tokenizer of an int8 store or a checkpoint."""
    target, dtype, budget = choose_devices(options.device), options.dtype, options.memory
    own: object
    if options.weights == "int8" or is_store(folder):
        store = int8_store(folder, name, options.cache, LoadRequest(target, parse_dtype(dtype), budget))
        chosen_dtype = choose_dtype(dtype, store.dtype_name, {store.dtype})
        own = store.companions if has_tokenizer(store.companions) else None
        reader = read_tokenizer(own if options.tokenizer is None else options.tokenizer, store.config)
        return network_of_store(store, target, chosen_dtype, budget), reader
    with Checkpoint(folder) as checkpoint:
        own = checkpoint.tokenizer() if checkpoint.gguf else folder if has_tokenizer(folder) else None
        reader = read_tokenizer(own if options.tokenizer is None else options.tokenizer, checkpoint.config)
        chosen_dtype = choose_dtype(dtype, checkpoint.dtype_name, checkpoint.dtypes)
        if budget is None or target.first.type == "meta":
            return dense_network(checkpoint, target, chosen_dtype, options.check), reader
        if options.check:
            raise DeviceError(
                "check=True looks at every value, and with memory= most of them stay in their files: leave one out"
            )
        if checkpoint.gguf is not None:
            raise DeviceError(
                "the layers of a GGUF file do not stream as they are stored: with memory= give weights='int8' as well, "
                "which converts it once, into the cache"
            )
        require_tied(checkpoint)
        return network_of_checkpoint(checkpoint, target, chosen_dtype, budget), reader


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
    """The model inside the package, which functions use for model=None. The same object in every thread."""
    loaded = _LOADED.get("nano")
    return _LOADED.setdefault("nano", load("nano")) if loaded is None else loaded


def _from_memory(
    source: TransformersGemma2,
    device: DeviceChoice,
    dtype: str | torch.dtype,
    tokenizer: object,
    check: bool,
    arguments: dict[str, object],
) -> Model:
    network = from_transformers(source, one_device(device), dtype)
    reader = read_tokenizer(tokenizer, network.config)
    if check:
        for name, parameter in network.named_parameters():
            require_finite(parameter, f"parameter {name!r}")
    return Model(network, reader, getattr(source.config, "name_or_path", "") or type(source).__name__, arguments)


def read_tokenizer(source: object, config: GemmaConfig) -> Tokenizer | None:
    """A tokenizer from a folder, a hub id or an object; None for None. Warns of tokens that the model cannot embed."""
    if source is None:
        return None
    if isinstance(source, Tokenizer):
        tokenizer = source
    elif isinstance(source, (str, os.PathLike)):
        tokenizer = Tokenizer.from_folder(_tokenizer_folder(source), config.bos_id)
    else:
        tokenizer = Tokenizer.from_transformers(source, config.bos_id)
    _warn_of_unembedded(tokenizer, config)
    if tokenizer.bos_id != config.bos_id:
        warn(
            f"the tokenizer's <bos> is {tokenizer.text(tokenizer.bos_id)!r} (id {tokenizer.bos_id}) and the model's "
            f"configuration says bos_token_id {config.bos_id}: prompts begin with the tokenizer's"
        )
    return tokenizer.limited_to(config.vocab_size)


def _tokenizer_folder(source: str | os.PathLike[str]) -> Path:
    folder = Path(os.path.expanduser(source))
    if os.path.isdir(folder):
        return hub_snapshot(folder)
    if is_hub_id(str(source)):
        return fetch_tokenizer(str(source))
    is_file = os.path.isfile(folder)
    problem = "is a file: give the folder that holds it" if is_file else "is no folder that exists and no hub id"
    raise CheckpointError(f"tokenizer={str(source)!r} {problem}")


def _warn_of_unembedded(tokenizer: Tokenizer, config: GemmaConfig) -> None:
    beyond = tokenizer.tokens_beyond(config.vocab_size)
    if beyond.keys() - _ADDED:
        first = ", ".join(f"{name!r} ({i})" for name, i in list(beyond.items())[:3])
        warn(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model an embedding for {config.vocab_size}: {first}"
            f"{' and others' if len(beyond) > 3 else ''} cannot be embedded, and a prompt with such a token is refused. "
            "If it is another model's tokenizer, give the model's own"
        )


# -- pickling --

# The models that this process has unpickled, so that each is loaded once.
_UNPICKLED: WeakValueDictionary[str, Model] = WeakValueDictionary()


def _reduce(model: Model) -> tuple[Callable[..., Model], tuple[object, ...]]:
    return _rebuild, (as_pickled(model.unedited()), *([model.edits] if model.edits else []))


def _rebuild(pickled: FromSource | FromWeights, edits: tuple[LastingEdit, ...] = ()) -> Model:
    model = load_again(pickled) if isinstance(pickled, FromSource) else from_weights(pickled)
    return model.edited(edits) if edits else model


def load_again(pickled: FromSource) -> Model:
    """The pickled model, loaded from its source. Raises CheckpointError if that now gives a different model."""
    is_nano = pickled.source == "nano" and not pickled.arguments
    key = repr((pickled.source, pickled.name, sorted(pickled.arguments.items()), pickled.fingerprint))
    model = nano() if is_nano else _UNPICKLED.get(key)
    if model is None or model.fingerprint != pickled.fingerprint:
        arguments: dict[str, Any] = dict(pickled.arguments)
        if pickled.tokenizer is not None:
            arguments["tokenizer"] = pickled.tokenizer
        model = load(pickled.source, **arguments)
        model.name, model.asked = pickled.name, dict(pickled.arguments)
        require_same(model, pickled)
        _UNPICKLED[key] = model
    return model


copyreg.pickle(Model, _reduce)

"""gs.load_sae: a sparse dictionary from the package, a folder or the hub, in any format that is read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
import torch
from torch import Tensor

from gemmascope.arguments import short_repr, true_or_false, whole_number
from gemmascope.checkpoints.device import choose_device
from gemmascope.edits.call_text import plain
from gemmascope.errors import DictionaryError, warn
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.sae.about import ABOUT, About, concepts_of, read_about, sites_of
from gemmascope.sae.catalogue import EMBEDDING, DictionaryRequest
from gemmascope.sae.dictionary import Dictionary
from gemmascope.sae.files import DictionaryFile, find_dictionary
from gemmascope.sae.formats.circuit_tracer import read_transcoder
from gemmascope.sae.formats.common import require_k
from gemmascope.sae.formats.dictionary_learning import read_dictionary_learning
from gemmascope.sae.formats.listing import DICTIONARY_LEARNING, GEMMA_SCOPE, SAELENS
from gemmascope.sae.formats.saelens import read_saelens
from gemmascope.sae.npz import read_params
from gemmascope.sae.weights import TrainedFor


@computes
def load_sae(
    source: str | os.PathLike[str] = "nano",
    sae_id: str | None = None,
    *,
    layer: int | str | None = None,
    width: int | str | None = None,
    l0: int | str | None = None,
    site: str | None = None,
    model: Model | None = None,
    device: str | torch.device = "auto",
    any_model: bool = False,
    revision: str | None = None,
) -> Dictionary:
    """Load a dictionary of features: a sparse autoencoder or transcoder.

    Read are Gemma Scope's params.npz; cfg.json with sae_weights.safetensors (SAELens); ae.pt with config.json
    (dictionary_learning, SAEBench); and layer_N.safetensors (circuit-tracer). No code in them runs. A dictionary of Gemma
    Scope at site embed was trained on embeddings as they are stored. In a pass they are multiplied by sqrt(d_model), so its
    weights are rescaled to match.

    Args:
        source: "nano", the dictionary inside the package; "nano-transcoders", nano's transcoders, one a layer; a hub id
            such as "google/gemma-scope-2b-pt-res", of which one dictionary is fetched; a release of SAELens, such as
            "gemma-scope-2b-pt-res-canonical" (gs.saes lists them); a copy of a repository in a folder; or the folder or file
            of one dictionary.
        sae_id: Which one: its path in the source, or SAELens' id of it, such as "layer_20/width_16k/canonical". None leaves
            it open.
        layer: The layer, counted from 0 (negative ones are refused), or "embedding". None leaves it open, and so do width
            and l0: if several dictionaries still fit, the error lists them.
        width: The number of features, such as 16384 or "16k". None leaves it open.
        l0: The average L0, such as 71; or "canonical", the one nearest to 100. None leaves it open.
        site: The site that it reconstructs, if its files do not say it: "resid_post", "mlp_out", "z" (all heads side by
            side), another site with rows, or "transcoder" (reads resid_mid divided by its root mean square, writes mlp_out).
        model: The model that it is for, to have it checked at once. None checks it when it is first used.
        device: The device of its arrays. "auto" means that of model if it is given, else CUDA if there is a GPU, else the
            CPU.
        any_model: Whether it may be used with models that it was not trained for, if the shapes fit. A dictionary of a
            pretrained Gemma 2 fits the instruction-tuned model of its size without this, and the other way round.
        revision: The branch, tag or commit of a hub id; None means the default branch.

    Returns:
        The dictionary, in float32.

    Raises:
        DictionaryError: For a source or choice that is not there, a file that is no such dictionary, or a model that it was
            not trained for.
        CheckpointError: If fetching fails.

    Examples:
        >>> gs.load_sae()
        Dictionary(gs.load_sae('nano'): 'resid_post' of layer 3, 128 -> 1,024 features -> 128; trained for nano; ...)

    References:
        Lieberum et al., "Gemma Scope: Open Sparse Autoencoders Everywhere All At Once on Gemma 2" (arXiv 2408.05147).
    """
    _check_arguments(layer, site, model, revision, sae_id)
    any_model = true_or_false(any_model, "any_model", error=DictionaryError)
    request = DictionaryRequest(layer, width, l0)
    file = find_dictionary(source, request, revision, sae_id)
    place = model.device if model is not None and str(device) == "auto" else choose_device(device)
    call = _call(source, sae_id, request, site, any_model, revision)
    if file.format == GEMMA_SCOPE:
        dictionary = _from_params(file, layer, site, place, torch.float32 if model is None else model.dtype)
    else:
        dictionary = _from_contents(file, layer, site, place)
    dictionary = replace(dictionary, call=call, any_model=any_model)
    if model is not None:
        dictionary.require_fit(model)
    return dictionary


def _from_params(
    file: DictionaryFile, layer: int | str | None, site: str | None, device: torch.device, dtype: torch.dtype
) -> Dictionary:
    """The dictionary of a params.npz. dtype: of the model, to which the scale of embeddings is rounded."""
    path = file.path.with_name(ABOUT)
    about = read_about(path)
    site_name = _site(file, site, about)
    arrays = read_params(file.path)
    k = require_k(float(arrays.pop("k")), arrays["b_enc"].size) if "k" in arrays else None
    tensors = as_tensors(arrays, device, file.path)
    if site_name == "embed" and "site" not in about:  # gemmascope's own training sees embeddings as a pass does
        tensors = for_scaled_embeddings(tensors, dtype)
    return Dictionary(
        **tensors,
        site=site_name,
        layer=_layer(file, layer, about),
        trained_for=_trained_for(file, about),
        concepts=concepts_of(about, path),
        k=k,
        **sites_of(about, path),
    )


def _from_contents(file: DictionaryFile, layer: int | str | None, site: str | None, device: torch.device) -> Dictionary:
    """The dictionary of a file of another library."""
    if file.format == SAELENS:
        contents = read_saelens(file.path)
    elif file.format == DICTIONARY_LEARNING:
        contents = read_dictionary_learning(file.path)
    else:
        contents = read_transcoder(file.path, 0 if file.layer is None else file.layer)
    site_name = contents.site or site
    if site_name is None:
        raise DictionaryError(
            f"nothing in {file.path} says what it reconstructs: say site='resid_post', 'mlp_out', 'z' or 'transcoder'"
        )
    if site not in (None, site_name):
        raise DictionaryError(f"{file.name} is of '{site_name}', and site={site!r} was given: leave it out, or load another")
    number = contents.layer if contents.layer is not None else None if layer == EMBEDDING else layer
    if layer is not None and layer != (EMBEDDING if number is None else number):
        raise DictionaryError(f"{file.name} was trained for layer {number}, and layer={layer!r} was given")
    if number is None and site_name != "embed":
        raise DictionaryError(f"nothing in {file.path} says which layer it is of: say layer=")
    if contents.remark:
        warn(f"{file.name} {contents.remark}")
    return Dictionary(
        **vars(contents.arrays.to(device)),
        site=site_name,
        layer=None if number is None else int(number),
        input_site=contents.input_site,
        output_site=contents.output_site,
        trained_for=TrainedFor.of_name(contents.model),
    )


def _check_arguments(layer: object, site: object, model: object, revision: object, sae_id: object) -> None:
    """DictionaryError for arguments of types that load_sae does not take, before they are compared with anything."""
    if layer is not None and not isinstance(layer, str):
        whole_number(layer, "a dictionary's layer ('embedding' for none)", least=0, error=DictionaryError)
    for name, value in (("site", site), ("revision", revision), ("sae_id", sae_id)):
        if value is not None and not isinstance(value, str):
            raise DictionaryError(f"{name} is a text; given {short_repr(value)}")
    if model is not None and not isinstance(model, Model):
        raise DictionaryError(f"model is what gs.load returns; given {short_repr(model)}")


class DictionaryTensors(TypedDict, total=False):
    """The arrays of a Dictionary, by the names of its fields."""

    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor
    b_dec: Tensor
    threshold: Tensor
    W_skip: Tensor


def as_tensors(arrays: Mapping[str, np.ndarray], device: str | torch.device, path: Path | None = None) -> DictionaryTensors:
    """The arrays as float32 tensors on a device. DictionaryError for numbers that float32 cannot hold."""
    tensors = {name: torch.from_numpy(array).to(device, torch.float32) for name, array in arrays.items()}
    for name, tensor in tensors.items():
        if arrays[name].dtype == np.float64 and not bool(tensor.isfinite().all()):
            raise DictionaryError(f"{path or 'the dictionary'}: {name} holds numbers in float64 that float32 cannot hold")
    return cast(DictionaryTensors, tensors)


def for_scaled_embeddings(tensors: DictionaryTensors, dtype: torch.dtype) -> DictionaryTensors:
    """A dictionary of stored embeddings, rescaled to the site embed, where they are multiplied by sqrt(d_model).

    The encoder is divided by the factor, and the decoder and its bias are multiplied. Pre-activations stay, and with them
    b_enc and the thresholds. dtype: the model's, to which the factor is rounded: in bfloat16 sqrt(2304) stays 48 and
    sqrt(3584) becomes 60.
    """
    factor = float(torch.tensor(len(tensors["W_enc"]) ** 0.5, dtype=dtype))
    W_enc, W_dec, b_dec = tensors["W_enc"] * (1 / factor), tensors["W_dec"] * factor, tensors["b_dec"] * factor
    return {**tensors, "W_enc": W_enc, "W_dec": W_dec, "b_dec": b_dec}


def _site(file: DictionaryFile, site_argument: str | None, about: About) -> str:
    """The site of the path or file, or the user's. DictionaryError if they differ, or if none of them says it."""
    if file.entry and file.entry.layer == EMBEDDING:
        site: str | None = "embed"
    else:
        site = file.suite.site if file.suite else about.get("site")
    if site is None and site_argument is None:
        raise DictionaryError(
            f"nothing in the path of {file.path} says what it reconstructs: say site='resid_post', 'mlp_out', 'z' or "
            "'transcoder'"
        )
    if None not in (site, site_argument) and site != site_argument:
        raise DictionaryError(
            f"{file.name} is of '{site}', and site={site_argument!r} was given: leave it out, or load another"
        )
    return str(site or site_argument)


def _layer(file: DictionaryFile, layer_argument: int | str | None, about: About) -> int | None:
    layer = file.entry.layer if file.entry else about.get("layer", layer_argument)
    if layer is None:
        raise DictionaryError(
            f"nothing in the path of {file.path}, and no {ABOUT} beside it, says which layer it is of: say layer="
        )
    if layer_argument is not None and layer != layer_argument:
        raise DictionaryError(f"{file.name} was trained for layer {layer}, and layer={layer_argument!r} was given")
    if layer == EMBEDDING:
        return None
    return whole_number(layer, "a dictionary's layer ('embedding' for none)", least=0, error=DictionaryError)


def _trained_for(file: DictionaryFile, about: About) -> TrainedFor:
    if file.suite is not None:
        return TrainedFor(file.suite.model, file.suite.size)
    return TrainedFor(about.get("model"), None, about.get("fingerprint"))


def _call(
    source: str | os.PathLike[str],
    sae_id: str | None,
    request: DictionaryRequest,
    site: str | None,
    any_model: bool,
    revision: str | None,
) -> str:
    """The call that loads this dictionary again."""
    arguments = [repr(str(source)), *([] if sae_id is None else [repr(sae_id)])]
    named = {**vars(request), "site": site, "revision": revision}
    arguments += [f"{name}={plain(value)!r}" for name, value in named.items() if value is not None]
    return f"gs.load_sae({', '.join(arguments)}{', any_model=True' if any_model else ''})"

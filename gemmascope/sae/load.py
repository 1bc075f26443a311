"""gs.load_sae: a sparse dictionary from the package, a folder or the hub, in Gemma Scope's format."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import torch
from torch import Tensor

from gemmascope.arguments import finite_number, short_repr, true_or_false, whole_number
from gemmascope.checkpoints.device import choose_device
from gemmascope.edits.call_text import plain
from gemmascope.errors import DictionaryError, SiteError
from gemmascope.files.json_reader import is_regular_file, read_json
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.sae.catalogue import EMBEDDING, PARAMS, TRANSCODER, DictionaryRequest
from gemmascope.sae.dictionary import Dictionary
from gemmascope.sae.files import DictionaryFile, find_dictionary
from gemmascope.sae.npz import read_params
from gemmascope.sae.weights import Tie, TrainedFor
from gemmascope.sites import find_site

# The file beside the params.npz of a dictionary that gemmascope.nano.training.train_sae trained.
ABOUT = "about.json"


class About(TypedDict, total=False):
    """What ABOUT says of a dictionary. concepts: ties of features, which are checked as they are read."""

    model: str
    fingerprint: str
    site: str
    layer: int | str
    concepts: object


@computes
def load_sae(
    source: str | os.PathLike[str] = "nano",
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
    """Load a dictionary of features: a JumpReLU sparse autoencoder or transcoder.

    A dictionary of Gemma Scope at site embed was trained on embeddings as they are stored. In a pass they are multiplied by
    sqrt(d_model), so its weights are rescaled to match. Files are read without pickle.

    Args:
        source: "nano", the dictionary inside the package; a hub id such as "google/gemma-scope-2b-pt-res" (or -mlp, -att,
            -transcoders, and their -canonical), of which one file is fetched; a copy of such a repository in a folder; or a
            folder with params.npz.
        layer: The layer, counted from 0 (negative ones are refused), or "embedding". None leaves it open, and so do width
            and l0: if several dictionaries still fit, the error lists them.
        width: The number of features, such as 16384 or "16k". None leaves it open.
        l0: The average L0, such as 71, or "canonical". None leaves it open.
        site: The site that it reconstructs, if the names of its folders do not say it: "resid_post", "mlp_out", "z" (all
            heads side by side), another site with rows, or "transcoder" (reads the MLP's input, writes mlp_out).
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
    _check_arguments(layer, site, model, revision)
    any_model = true_or_false(any_model, "any_model", error=DictionaryError)
    request = DictionaryRequest(layer, width, l0)
    file = find_dictionary(source, request, revision)
    about = _about(file.path.with_name(ABOUT))
    place = model.device if model is not None and str(device) == "auto" else choose_device(device)
    site_name = _site(file, site, about)
    tensors = as_tensors(read_params(file.path), place, file.path)
    if site_name == "embed" and "site" not in about:  # gemmascope's own training sees embeddings as a pass does
        tensors = for_scaled_embeddings(tensors, torch.float32 if model is None else model.dtype)
    dictionary = Dictionary(
        **tensors,
        site=site_name,
        layer=_layer(file, layer, about),
        call=_call(source, request, site, any_model, revision),
        trained_for=_trained_for(file, about),
        concepts=_concepts(about, file.path.with_name(ABOUT)),
        any_model=any_model,
    )
    if model is not None:
        dictionary.require_fit(model)
    return dictionary


def _check_arguments(layer: object, site: object, model: object, revision: object) -> None:
    """DictionaryError for arguments of types that load_sae does not take, before they are compared with anything."""
    if layer is not None and not isinstance(layer, str):
        whole_number(layer, "a dictionary's layer ('embedding' for none)", least=0, error=DictionaryError)
    for name, value in (("site", site), ("revision", revision)):
        if value is not None and not isinstance(value, str):
            raise DictionaryError(f"{name} is a text; given {short_repr(value)}")
    if model is not None and not isinstance(model, Model):
        raise DictionaryError(f"model is what gs.load returns; given {short_repr(model)}")


class DictionaryTensors(TypedDict):
    """The arrays of a Dictionary, by the names of its fields."""

    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor
    b_dec: Tensor
    threshold: Tensor


def as_tensors(arrays: Mapping[str, np.ndarray], device: str | torch.device, path: Path | None = None) -> DictionaryTensors:
    """The five arrays as float32 tensors on a device. DictionaryError for numbers that float32 cannot hold."""
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
    source: str | os.PathLike[str], request: DictionaryRequest, site: str | None, any_model: bool, revision: str | None
) -> str:
    """The call that loads this dictionary again."""
    arguments = [repr(str(source))]
    named = {**vars(request), "site": site, "revision": revision}
    arguments += [f"{name}={plain(value)!r}" for name, value in named.items() if value is not None]
    return f"gs.load_sae({', '.join(arguments)}{', any_model=True' if any_model else ''})"


def _about(path: Path) -> About:
    """The file that training writes beside a dictionary, checked but for its concepts; empty if there is none."""
    if not is_regular_file(path, error=DictionaryError):
        return {}
    try:
        about = read_json(path, error=DictionaryError)
        for name in ("model", "fingerprint", "site"):
            if not isinstance(about.get(name, ""), str):
                raise DictionaryError(f"{name} is a text; it has {short_repr(about[name])}")
        if about.get("site", TRANSCODER) != TRANSCODER:
            find_site(about["site"])
        if about.get("layer", EMBEDDING) != EMBEDDING:
            whole_number(about["layer"], "layer", least=0, error=DictionaryError)
    except (DictionaryError, SiteError) as error:
        raise DictionaryError(f"{path} is not what training writes beside a {PARAMS}: {error}") from error
    return cast(About, about)


def _concepts(about: About, path: Path) -> dict[int, Tie]:
    """The ties of features to concepts. DictionaryError for anything else in their place."""
    ties: Any = about.get("concepts", ())
    try:
        return {whole_number(tie["feature"], "feature", least=0, error=DictionaryError): _tie(tie) for tie in ties}
    except (DictionaryError, TypeError, KeyError, AttributeError, ValueError) as error:
        raise DictionaryError(f"{path}: concepts hold something else than ties of features: {error!r}") from error


def _tie(tie: Mapping[str, object]) -> Tie:
    numbers = (finite_number(tie[name], name, error=DictionaryError) for name in ("above", "precision", "recall"))
    return Tie(str(tie["concept"]), *numbers)

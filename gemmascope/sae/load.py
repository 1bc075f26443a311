"""gs.load_sae: a sparse dictionary from the package, a folder or the hub, in Gemma Scope's format."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gemmascope.arguments import finite_number, shown, true_or_false, whole_number
from gemmascope.checkpoints.device import choose_device
from gemmascope.edits.call_text import plain
from gemmascope.errors import DictionaryError, SiteError
from gemmascope.files.json_reader import is_regular_file, read_json
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.sae.catalogue import EMBEDDING, PARAMS, TRANSCODER
from gemmascope.sae.dictionary import Dictionary, Tie, TrainedFor
from gemmascope.sae.files import DictionaryRequest, Found, locate
from gemmascope.sae.npz import read_params
from gemmascope.sites import find_site

# Beside the params.npz of a dictionary that gemmascope.nano.training.train_sae made.
ABOUT = "about.json"


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
    """A dictionary of features (a JumpReLU autoencoder or transcoder), ready to encode traces.

    source: "nano", the one inside the package; a hub id such as "google/gemma-scope-2b-pt-res" (-mlp, -att, -transcoders;
        -canonical), of which one file is fetched; a copy of such a repository in a folder; or a folder with params.npz.
    layer, width, l0: which one, where there are several: 20 (or "embedding"), 16384 or "16k", 71 (or "canonical").
    site: what it reconstructs, where the names of its folders do not say it: "resid_post", "mlp_out", "z" (all heads side by
        side), another site with rows, or "transcoder" (reads the MLP's input, writes mlp_out).
    model: the model that it is to be used with, to have it checked now rather than at the first use.
    device: "auto" is the model's if one is given, else cuda if there is one, else the CPU. Numbers are kept in float32.
    any_model: let it be used with other models than the one it was trained for, where the shapes fit. A dictionary of a
        pretrained Gemma 2 may be used with the instruction-tuned one of its size, and the other way round, without that.
    revision: of a hub id, the branch, tag or commit to take.
    A dictionary of Gemma Scope at site embed was trained on embeddings as they are stored; here, as in a pass, they are
    multiplied by sqrt(d_model), and the dictionary's weights are rescaled to match.
    The files are read without pickle. Raises DictionaryError for a source or a choice that is not there, a file that is no
    such dictionary, or a model it was not trained for; CheckpointError where fetching fails.
    """
    _refuse_odd(layer, site, model, revision)
    any_model = true_or_false(any_model, "any_model", error=DictionaryError)
    found = locate(source, DictionaryRequest(layer, width, l0), revision)
    about = _about(found.path.with_name(ABOUT))
    place = model.device if model is not None and str(device) == "auto" else choose_device(device)
    where = _site(found, site, about)
    tensors = as_tensors(read_params(found.path), place, found.path)
    if where == "embed" and "site" not in about:  # gemmascope's own training sees embeddings as a pass does
        tensors = for_scaled_embeddings(tensors, torch.float32 if model is None else model.dtype)
    made = Dictionary(
        **tensors,
        site=where,
        layer=_layer(found, layer, about),
        call=_call(source, DictionaryRequest(layer, width, l0), site, any_model, revision),
        trained_for=_trained_for(found, about),
        concepts=_concepts(about, found.path.with_name(ABOUT)),
        any_model=any_model,
    )
    if model is not None:
        made.require_fit(model)
    return made


def _refuse_odd(layer: Any, site: Any, model: Any, revision: Any) -> None:
    """DictionaryError for arguments of other kinds than load_sae takes, before they are compared with anything."""
    if layer is not None and not isinstance(layer, str):
        whole_number(layer, "a dictionary's layer ('embedding' for none)", least=0, error=DictionaryError)
    for name, given in (("site", site), ("revision", revision)):
        if given is not None and not isinstance(given, str):
            raise DictionaryError(f"{name} is a text; given {shown(given)}")
    if model is not None and not isinstance(model, Model):
        raise DictionaryError(f"model is what gs.load returns; given {shown(model)}")


def as_tensors(arrays: Mapping[str, Any], device: str | torch.device, path: Path | None = None) -> dict[str, Any]:
    """The arrays of a dictionary as it keeps them: by name, in float32, on a device. DictionaryError for one too large."""
    made = {name: torch.from_numpy(array).to(device, torch.float32) for name, array in arrays.items()}
    for name, tensor in made.items():
        if arrays[name].dtype == np.float64 and not bool(tensor.isfinite().all()):
            raise DictionaryError(f"{path or 'the dictionary'}: {name} holds numbers in float64 that float32 cannot hold")
    return made


def for_scaled_embeddings(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Any]:
    """A dictionary of embeddings as they are stored, made one of the site embed, where they are times sqrt(d_model).

    What it reads is divided by the factor, what it writes is multiplied; pre-activations, and with them b_enc and the
    thresholds, stay. dtype: the model's, which rounds the factor: in bfloat16 sqrt(2304) stays 48, sqrt(3584) becomes 60.
    """
    factor = float(torch.tensor(len(tensors["W_enc"]) ** 0.5, dtype=dtype))
    scaled = {"W_enc": 1 / factor, "W_dec": factor, "b_dec": factor}
    return {name: tensor * scaled.get(name, 1) for name, tensor in tensors.items()}


def _site(found: Found, given: str | None, about: Mapping[str, Any]) -> str:
    """The site that the names say, or that was given. DictionaryError if they differ, or if neither says it."""
    told = (
        "embed" if found.entry and found.entry.layer == EMBEDDING else found.suite.site if found.suite else about.get("site")
    )
    if told is None and given is None:
        raise DictionaryError(
            f"nothing in the path of {found.path} says what it reconstructs: say site='resid_post', 'mlp_out', 'z' or "
            "'transcoder'"
        )
    if None not in (told, given) and told != given:
        raise DictionaryError(f"{found.name} is of '{told}', and site={given!r} was given: leave it out, or load another")
    return str(told or given)


def _layer(found: Found, given: int | str | None, about: Mapping[str, Any]) -> int | None:
    layer = found.entry.layer if found.entry else about.get("layer", given)
    if layer is None:
        raise DictionaryError(f"nothing in the path of {found.path} says which layer it is of: say layer=")
    if given is not None and layer != given:
        raise DictionaryError(f"{found.name} was trained for layer {layer}, and layer={given!r} was given")
    if layer == EMBEDDING:
        return None
    return whole_number(layer, "a dictionary's layer ('embedding' for none)", least=0, error=DictionaryError)


def _trained_for(found: Found, about: Mapping[str, Any]) -> TrainedFor:
    if found.suite is not None:
        return TrainedFor(found.suite.model, found.suite.size)
    return TrainedFor(about.get("model"), None, about.get("fingerprint"))


def _call(source: Any, asked: DictionaryRequest, site: str | None, any_model: bool, revision: str | None) -> str:
    """The call that loads this dictionary again."""
    said = [repr(str(source))]
    given = {**vars(asked), "site": site, "revision": revision}
    said += [f"{name}={plain(value)!r}" for name, value in given.items() if value is not None]
    return f"gs.load_sae({', '.join(said)}{', any_model=True' if any_model else ''})"


def _about(path: Path) -> dict[str, Any]:
    """What stands in the file that training writes beside a dictionary; nothing where there is none."""
    if not is_regular_file(path, error=DictionaryError):
        return {}
    try:
        about = read_json(path, error=DictionaryError)
        for name in ("model", "fingerprint", "site"):
            if not isinstance(about.get(name, ""), str):
                raise DictionaryError(f"{name} is a text; it has {shown(about[name])}")
        if about.get("site", TRANSCODER) != TRANSCODER:
            find_site(about["site"])
        if about.get("layer", EMBEDDING) != EMBEDDING:
            whole_number(about["layer"], "layer", least=0, error=DictionaryError)
    except (DictionaryError, SiteError) as error:
        raise DictionaryError(f"{path} is not what training writes beside a {PARAMS}: {error}") from error
    return about


def _concepts(about: Mapping[str, Any], path: Path) -> dict[int, Tie]:
    """The ties of features to concepts. DictionaryError if the file holds something else in their place."""
    ties = about.get("concepts", ())
    try:
        return {whole_number(tie["feature"], "feature", least=0, error=DictionaryError): _tie(tie) for tie in ties}
    except (DictionaryError, TypeError, KeyError, AttributeError, ValueError) as error:
        raise DictionaryError(f"{path}: concepts hold something else than ties of features: {error!r}") from error


def _tie(given: Mapping[str, Any]) -> Tie:
    numbers = (finite_number(given[name], name, error=DictionaryError) for name in ("above", "precision", "recall"))
    return Tie(str(given["concept"]), *numbers)

"""Writes nano's dictionaries: small files in Gemma Scope's layout, with what was measured and their features' ties."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np

from gemmascope.model.model import Model
from gemmascope.nano.training.corpus import texts
from gemmascope.nano.training.ties import N_TEXTS, Texts, ties_of
from gemmascope.sae.dictionary import Dictionary
from gemmascope.sae.load import as_tensors
from gemmascope.training.files import folder_of, write_dictionary

Float16 = np.ndarray[tuple[int, ...], np.dtype[np.float16]]
MANTISSA = 10  # bits of a float16


def rounded(array: Float16, bits: int) -> Float16:
    """Numbers with so many bits after the leading one, as float16: the zeros at their ends take no room in a zip."""
    drop = MANTISSA - bits
    whole = array.view(np.uint16).astype(np.uint32)
    return ((whole + ((1 << drop) >> 1)) >> drop << drop).astype(np.uint16).view(np.float16)


def small_arrays(dictionary: Dictionary, bits: int = MANTISSA) -> dict[str, Float16]:
    """A dictionary's arrays as the package holds them. bits: how many bits of the weights' mantissas are kept."""
    names = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
    arrays = {name: getattr(dictionary, name).cpu().numpy().astype(np.float16) for name in names}
    return {name: rounded(array, bits) if array.ndim == 2 else array for name, array in arrays.items()}


def write(trained: Dictionary, model: Model, folder: Path, bits: int = MANTISSA, n_texts: int = N_TEXTS) -> Path:
    """Write a dictionary, with a file about its model and site, its measurements, and its features' ties to concepts.

    bits: how many bits of the weights' mantissas are kept. n_texts: how many texts ties are chosen on, and confirmed on.
    """
    arrays = small_arrays(trained, bits)
    dictionary = Dictionary(**as_tensors(arrays, "cpu"), site=trained.site, layer=trained.layer)
    measured = [Texts.of(dictionary, model, seed, n_texts) for seed in ("ties", "ties again")]
    l0 = len(measured[1].pos) / measured[1].n_rows
    target = folder / folder_of(trained.layer, trained.n_features, l0)
    loss = dictionary.loss_recovered(list(islice(texts("dictionary measured"), n_texts // 6)), model=model)
    about = {
        "model": model.name,
        "fingerprint": model.network_fingerprint,
        "site": trained.site,
        "layer": trained.layer,
        "measured": {
            "active features a position": round(l0, 2),
            "explained variance": round(measured[1].explained, 4),
            "loss recovered": round(loss.recovered, 4),
            "loss clean, spliced, zeroed": [round(x, 4) for x in (loss.clean, loss.spliced, loss.zeroed)],
            "features that are active at all": len(set(measured[1].feature.tolist())),
        },
        "concepts": [{"feature": feature, **vars(tie)} for feature, tie in ties_of(*measured).items()],
    }
    write_dictionary(target, arrays, about)
    return target

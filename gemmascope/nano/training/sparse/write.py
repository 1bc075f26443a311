"""Writes a trained dictionary in Gemma Scope's layout, with what it is of, what it was measured to do, and its ties."""

from __future__ import annotations

import io
import json
from itertools import islice
from pathlib import Path

import numpy as np

from gemmascope.files.writing import make_folder, write_file
from gemmascope.nano.training.corpus import texts
from gemmascope.nano.training.sparse.run import Run
from gemmascope.nano.training.ties import N_TEXTS, Texts, ties_of
from gemmascope.sae.about import ABOUT
from gemmascope.sae.catalogue import PARAMS, width_name
from gemmascope.sae.dictionary import Dictionary
from gemmascope.sae.load import as_tensors

Float16 = np.ndarray[tuple[int, ...], np.dtype[np.float16]]
MANTISSA = 10  # bits of a float16


def rounded(array: Float16, bits: int) -> Float16:
    """Numbers with so many bits after the leading one, as float16: the zeros at their ends take no room in a zip."""
    drop = MANTISSA - bits
    whole = array.view(np.uint16).astype(np.uint32)
    return ((whole + ((1 << drop) >> 1)) >> drop << drop).astype(np.uint16).view(np.float16)


def write(run: Run, folder: Path, bits: int = MANTISSA, n_texts: int = N_TEXTS) -> Path:
    """Write the dictionary, with a file about its model and site, its measurements, and its features' ties to concepts.

    bits: how many bits of the weights' mantissas are kept. n_texts: how many texts ties are chosen on, and confirmed on.
    """
    recipe, model = run.recipe, run.model
    arrays = {name: rounded(array, bits) if array.ndim == 2 else array for name, array in run.arrays().items()}
    dictionary = Dictionary(**as_tensors(arrays, "cpu"), site=recipe.site, layer=recipe.layer)
    measured = [Texts.of(dictionary, model, seed, n_texts) for seed in ("ties", "ties again")]
    l0 = len(measured[1].pos) / measured[1].n_rows
    target = folder / f"layer_{recipe.layer}" / f"width_{width_name(recipe.features)}" / f"average_l0_{l0:.0f}"
    make_folder(target)
    with io.BytesIO() as packed:
        np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
        write_file(target / PARAMS, packed.getvalue())
    loss = dictionary.loss_recovered(list(islice(texts("dictionary measured"), n_texts // 6)), model=model)
    about = {
        "model": model.name,
        "fingerprint": model.network_fingerprint,
        "site": recipe.site,
        "layer": recipe.layer,
        "measured": {
            "active features a position": round(l0, 2),
            "explained variance": round(measured[1].explained, 4),
            "loss recovered": round(loss.recovered, 4),
            "loss clean, spliced, zeroed": [round(x, 4) for x in (loss.clean, loss.spliced, loss.zeroed)],
            "features that are active at all": len(set(measured[1].feature.tolist())),
        },
        "concepts": [{"feature": feature, **vars(tie)} for feature, tie in ties_of(*measured).items()],
    }
    write_file(target / ABOUT, json.dumps(about, indent=1) + "\n")
    return target

"""Writes a dictionary in Gemma Scope's layout: layer_3/width_16k/average_l0_71/params.npz, with about.json beside it."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gemmascope.errors import DictionaryError
from gemmascope.files.writing import make_folder, write_file
from gemmascope.sae.about import ABOUT
from gemmascope.sae.catalogue import EMBEDDING, PARAMS, width_name

Arrays = Mapping[str, np.ndarray[Any, Any]]


def folder_of(layer: int | None, features: int, l0: float) -> Path:
    """Where Gemma Scope puts a dictionary. layer: None for the site embed."""
    place = EMBEDDING if layer is None else f"layer_{layer}"
    return Path(place) / f"width_{width_name(features)}" / f"average_l0_{l0:.0f}"


def write_dictionary(folder: Path, arrays: Arrays, about: Mapping[str, object], *, k: int | None = None) -> None:
    """Write params.npz and about.json. gs.load_sae reads them back, bit for bit.

    Args:
        folder: The dictionary's folder; it is made if need be.
        arrays: W_enc, W_dec, b_enc, b_dec, threshold and what there is of W_skip, by name.
        about: What it is of, and what it was measured to do.
        k: How many features a TopK dictionary keeps of a row.
    """
    make_folder(folder, error=DictionaryError)
    stored = dict(arrays) if k is None else {**arrays, "k": np.array(k, dtype=np.float32)}
    with io.BytesIO() as packed:
        np.savez_compressed(packed, **stored)  # type: ignore[arg-type]
        content = packed.getvalue()
    write_file(folder / ABOUT, json.dumps(about, indent=1) + "\n", error=DictionaryError)
    write_file(folder / PARAMS, content, error=DictionaryError)

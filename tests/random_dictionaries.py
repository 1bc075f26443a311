"""Random dictionaries in Gemma Scope's format, and what they compute written out plainly in numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from gemmascope.sae.dictionary import Dictionary

Arrays = dict[str, np.ndarray[Any, Any]]
FEATURES = 40


def arrays(d_in: int, d_out: int | None = None, n: int = FEATURES, seed: int = 0) -> Arrays:
    """Random arrays of a dictionary: about a third of the features are active on rows of length about sqrt(d_in)."""
    draw = np.random.default_rng(seed)
    d_out = d_in if d_out is None else d_out
    params = {
        "W_enc": draw.normal(size=(d_in, n)) / d_in**0.5,
        "W_dec": draw.normal(size=(n, d_out)) / n**0.5,
        "b_enc": draw.normal(size=n) * 0.1,
        "b_dec": draw.normal(size=d_out) * 0.1,
        "threshold": draw.uniform(0.2, 0.6, size=n),
    }
    return {name: array.astype(np.float32) for name, array in params.items()}


def dictionary(d_in: int, site: str, layer: int | None, d_out: int | None = None, seed: int = 0, **more: Any) -> Dictionary:
    params = {name: torch.from_numpy(array) for name, array in arrays(d_in, d_out, seed=seed).items()}
    return Dictionary(**params, site=site, layer=layer, **more)


def write(folder: Path, params: Arrays) -> Path:
    """The arrays as a params.npz in a folder, as numpy writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **params)
    return folder / "params.npz"


def plain_acts(params: Arrays, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """JumpReLU, number by number, in float64."""
    acts = np.zeros((len(x), len(params["b_enc"])))
    for pos, row in enumerate(x.astype(np.float64)):
        for feature in range(acts.shape[1]):
            pre = float(row @ params["W_enc"][:, feature].astype(np.float64)) + float(params["b_enc"][feature])
            if pre > params["threshold"][feature]:
                acts[pos, feature] = pre
    return acts


def plain_decode(params: Arrays, acts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    decoded: np.ndarray[Any, Any] = acts @ params["W_dec"].astype(np.float64) + params["b_dec"]
    return decoded

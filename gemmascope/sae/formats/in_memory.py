"""Arrays in memory, of any library that numpy can read, as the arrays of a dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from gemmascope.arguments import short_repr
from gemmascope.errors import DictionaryError
from gemmascope.sae.arrays import DictionaryArrays
from gemmascope.sae.formats.common import relu_arrays, with_input_bias
from gemmascope.sae.formats.tensors import require_tensors
from gemmascope.values import real_tensor

_AXES = {
    "W_enc": ("d_in", "feature"),
    "W_dec": ("feature", "d_out"),
    "b_enc": ("feature",),
    "b_dec": ("d_out",),
    "threshold": ("feature",),
    "W_skip": ("d_in", "d_out"),
}


def arrays_in_memory(arrays: Mapping[str, object], k: int | None, subtract_b_dec: bool) -> DictionaryArrays:
    """Copies of arrays by name, in float32. DictionaryError for what is no such set of arrays.

    Args:
        arrays: W_enc, W_dec and what there is of b_enc, b_dec, threshold and W_skip.
        k: How many features are kept of each row; None for all above their threshold.
        subtract_b_dec: Whether b_dec is subtracted from rows before they are encoded.
    """
    if not isinstance(arrays, Mapping):
        raise DictionaryError(f"arrays are given by name, {{'W_enc': ..., 'W_dec': ...}}; given {short_repr(arrays)}")
    tensors = {str(name): _copied(name, array) for name, array in arrays.items()}
    require_tensors(tensors, _AXES, "what was given", optional=("b_enc", "b_dec", "threshold", "W_skip"))
    W_enc, W_dec = tensors["W_enc"], tensors["W_dec"]
    b_enc, b_dec = tensors.get("b_enc", torch.zeros(len(W_dec))), tensors.get("b_dec", torch.zeros(W_dec.shape[1]))
    if k is not None and "threshold" in tensors:
        raise DictionaryError("a dictionary keeps the k largest features or those above a threshold: give one of them")
    whole = replace(relu_arrays(W_enc, W_dec, b_enc, b_dec, tensors.get("threshold"), k=k), W_skip=tensors.get("W_skip"))
    if not subtract_b_dec:
        return whole
    if whole.d_in != whole.d_out:
        raise DictionaryError(f"subtract_b_dec takes b_dec [{whole.d_out}] from rows of {whole.d_in} numbers: leave it out")
    return with_input_bias(whole, b_dec)


def _copied(name: object, array: object) -> Tensor:
    return real_tensor(array, f"the array {name!r}", DictionaryError).detach().float().cpu().clone()

"""Arrays in the form that the canvas module reads (js/arrays.js): bytes with their dtype, shape and scale."""

from __future__ import annotations

import base64
import zlib
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

# Probabilities are stored as whole multiples of this, so their error is below 0.00001.
STEP = 1 / 65535


class PackedArray(TypedDict):
    """An array as JSON. data: its bytes, deflated, in base64. scale: what each number is to be multiplied by."""

    dtype: str
    shape: list[int]
    scale: float
    data: str


def pack(array: NDArray[np.generic], scale: float = 1.0) -> PackedArray:
    """An array (float32, uint16 or uint8) for a static page."""
    if array.dtype not in (np.float32, np.uint16, np.uint8):
        raise TypeError(f"arrays travel as float32, uint16 or uint8; given {array.dtype}")
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = compressor.compress(np.ascontiguousarray(array).tobytes()) + compressor.flush()
    text = base64.b64encode(data).decode()
    return {"dtype": str(array.dtype), "shape": list(array.shape), "scale": scale, "data": text}


def pack_probabilities(array: NDArray[np.floating]) -> PackedArray:
    """Probabilities, two bytes each."""
    return pack(np.round(array.astype(np.float64) / STEP).astype(np.uint16), STEP)


def count_visible(n_pos: int, window: int | None) -> int:
    """How many values `visible_values` returns for one head: the keys that each query sees, summed over queries."""
    width = min(window or n_pos, n_pos)
    return n_pos * width - width * (width - 1) // 2


def visible_values(pattern: NDArray[np.floating], window: int | None) -> NDArray[np.floating]:
    """The part of patterns [head, q_pos, k_pos] that queries see: keys max(0, q - window + 1) to q, flat, head by head."""
    n_pos = pattern.shape[-1]
    positions = np.arange(n_pos)
    distance = positions[:, None] - positions
    visible = (distance >= 0) & (distance < (window or n_pos))
    return pattern[:, visible].reshape(-1)

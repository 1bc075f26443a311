"""Arrays as the canvas module reads them: bytes, raw or deflated into base64, with what they mean."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
PackedLayer = dict[str, Any]

# Probabilities travel as whole steps of this size: an error of less than 0.00001.
STEP = 1 / 65535


def packed(array: Array, scale: float = 1.0) -> PackedLayer:
    """An array (float32, uint16 or uint8) for a static page: deflated, in base64. scale: what its numbers are times."""
    if array.dtype not in (np.float32, np.uint16, np.uint8):
        raise TypeError(f"arrays travel as float32, uint16 or uint8; given {array.dtype}")
    squeezed = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = squeezed.compress(np.ascontiguousarray(array).tobytes()) + squeezed.flush()
    text = base64.b64encode(data).decode()
    return {"dtype": str(array.dtype), "shape": list(array.shape), "scale": scale, "data": text}


def probabilities(array: Array) -> PackedLayer:
    """Probabilities in two bytes each."""
    return packed(np.round(array.astype(np.float64) / STEP).astype(np.uint16), STEP)


def seen_numbers(n_pos: int, window: int | None) -> int:
    """How many numbers one head's pattern has: the keys that each query sees."""
    width = min(window or n_pos, n_pos)
    return n_pos * width - width * (width - 1) // 2


def seen_rows(pattern: Array, window: int | None) -> Array:
    """Of patterns [head, q_pos, k_pos] what each query sees: keys max(0, q - window + 1) to q, flat, head by head."""
    n_pos = pattern.shape[-1]
    at = np.arange(n_pos)
    distance = at[:, None] - at
    seen = (distance >= 0) & (distance < (window or n_pos))
    flat: Array = pattern[:, seen]
    return flat.reshape(-1)

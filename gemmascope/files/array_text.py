"""Arrays as text, for lines of JSON: their bytes, little-endian, in base 64."""

from __future__ import annotations

import base64

import numpy as np

from gemmascope.values import Array


def little_endian(array: Array) -> bytes:
    """The bytes of an array, in the same order on every machine."""
    return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def array_text(array: Array) -> str:
    """An array as text. Its dtype and its shape are not in it."""
    return base64.b64encode(little_endian(array)).decode()


def array_of(text: str, dtype: str) -> Array:
    """The array [item] of a text, as this dtype, such as "f8"."""
    return np.frombuffer(base64.b64decode(text), f"<{dtype}").astype(dtype)

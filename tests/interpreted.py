"""bfloat16 in Triton's interpreter, mended: its casts cut off where a card rounds, its products take bits for integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch


def mend_bfloat16(patch: pytest.MonkeyPatch) -> None:
    """Let casts round to nearest, as on a card, and products read bfloat16 as numbers."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    cast, dot = builder.cast_impl, builder.create_dot

    def numbers(x: Any) -> np.ndarray:
        if x.dtype.scalar != tl.bfloat16:
            return x.data
        return (x.data.astype(np.uint32) << 16).view(np.float32)

    def cast_rounding(self: Any, x: Any, to: Any) -> Any:
        if to.scalar == tl.bfloat16:
            rounded = torch.from_numpy(np.array(numbers(x), dtype=np.float32)).bfloat16()
            return handle(rounded.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)
        return cast(self, x if x.dtype.scalar != tl.bfloat16 else handle(numbers(x), tl.float32), to)

    def dot_of_numbers(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        a, b = (x if x.dtype.scalar != tl.bfloat16 else handle(numbers(x), tl.float32) for x in (a, b))
        return dot(self, a, b, *rest)

    patch.setattr(builder, "cast_impl", cast_rounding)
    patch.setattr(builder, "create_dot", dot_of_numbers)

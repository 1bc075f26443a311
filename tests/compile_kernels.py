"""Compiles the Triton kernels for cards that are not here, and prints the registers and shared memory that each takes.

`python tests/compile_kernels.py CACHE`: Triton keeps what it compiled in that folder. Raises if a kernel does not compile,
keeps numbers in slow memory for want of registers, takes more shared memory than every card has, or rounds to TF32.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
os.environ["TRITON_CACHE_DIR"] = sys.argv[1]
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gemmascope.kernels import int8, pointwise

# Compute capabilities, and bytes of shared memory that a block may take: what runs on an RTX 3090 runs on an A100.
SHARED = {86: 99 * 1024, 90: 227 * 1024}
TYPES = {"bf16": "*bf16", "fp32": "*fp32"}


def sources(dtype: str) -> Iterator[tuple[Any, dict[str, int], dict[str, str], dict[str, int]]]:
    """Each kernel with its constants, the types of pointers that are not of dtype, and its options, in the sizes of 27B."""
    yield pointwise._rms_norm, {"TILE": 8192}, {}, {"num_warps": 8}
    yield pointwise._gelu_gate, {"TILE": 1024}, {}, {}
    yield pointwise._soft_cap, {"TILE": 1024}, {}, {}
    yield pointwise._rotate, {"HEADS": 32, "HALF": 64}, {"cos": "*fp32", "sin": "*fp32"}, {}
    packed = {"numbers": "*i8", "scale": "*fp16"}
    yield int8._dequantise, {"OUTS": int8.DEQUANTISED_ROWS, "GROUP": 128}, packed, {}
    yield int8._add_parts, {"PARTS": 4, "TILE": 1024}, {"sums": "*fp32"}, {}
    for rows, outs in ((16, 32), (32, 64), (64, 64)):
        chunk = int8.CHUNK[getattr(int8.torch, {"bf16": "bfloat16", "fp32": "float32"}[dtype])]
        if dtype == "bf16" or rows == 16:
            sizes = {"ROWS": rows, "OUTS": outs, "GROUP": 128, "CHUNK": chunk}
            yield int8._product, sizes, packed, {"num_warps": 4, "num_stages": 4}


def compiled(kernel: Any, card: int, dtype: str, constants: dict[str, int], others: dict[str, str], options: Any) -> Any:
    signature = {}
    for name in kernel.arg_names:
        annotation = str(kernel.fn.__annotations__[name])
        pointer = others.get(name, TYPES[dtype])
        signature[name] = {"tl.tensor": pointer, "int": "i32", "float": "fp32", "tl.constexpr": "constexpr"}[annotation]
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if signature[name][0] == "*"}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", card, 32), options={"enable_fp_fusion": True, **options})


for card, shared in SHARED.items():
    for dtype in TYPES:
        for kernel, constants, others, options in sources(dtype):
            largest = kernel is int8._product and (dtype == "fp32" or constants["ROWS"] == 64)
            if not largest and (card, dtype) != (90, "bf16"):
                continue  # small enough for one card and dtype to stand for all
            found = compiled(kernel, card, dtype, constants, others, options)
            assembly = found.asm["ptx"]
            assert found.metadata.shared <= shared, f"{kernel.fn.__name__} takes {found.metadata.shared} bytes"
            assert not re.search(r"\.tf32|ld\.local|st\.local", assembly), f"{kernel.fn.__name__} rounds or spills"
            multiplies = bool(re.search(r"\bw?g?mma\.\S*bf16", assembly))
            assert multiplies == (kernel is int8._product and dtype == "bf16"), kernel.fn.__name__
            print(card, dtype, kernel.fn.__name__, constants, f"{found.metadata.shared} bytes of shared memory")

"""Compiles the Triton kernels for cards that are not here, and prints the registers and shared memory that each takes.

`python tests/compile_kernels.py CACHE`: Triton keeps what it compiled in that folder. Raises if a kernel does not compile,
keeps numbers in slow memory for want of registers, takes more shared memory than every card has, or rounds to TF32, and if
a product does not load ahead.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
os.environ["TRITON_CACHE_DIR"] = sys.argv[1]
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gemmascope.kernels import attention, int8, pointwise
from gemmascope.kernels.attention_tiles import FEW_ROWS, many_rows

# Compute capabilities, and bytes of shared memory that a block may take: what runs on an RTX 3090 runs on an A100.
SHARED = {86: 99 * 1024, 90: 227 * 1024}
ANY_NUMBER = ("n_rows", "n_slots", "n_splits", "window")
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
        if dtype == "bf16" or rows == 16:
            sizes = {"ROWS": rows, "OUTS": outs, "GROUP": 128}
            yield int8._product, sizes, packed, {"num_warps": 4, "num_stages": 4}

    yield attention._append, {"HEADS": 16, "DIM": 128}, {"positions": "*i64"}, {}
    yield attention._add_splits, {"DIM": 128}, {"parts": "*fp32"}, {}
    torch_dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    for d_head in (128, 256):
        for rows in {FEW_ROWS, many_rows(torch_dtype, d_head)}:
            sizes = attention._sizes(torch_dtype, d_head, rows)
            options = {name: sizes.pop(name) for name in ("num_warps", "num_stages")}
            shared = {"CAPPED": 1, "GROUP": 2, "ROWS": rows, **sizes}
            yield attention._attend_runs, shared, {"tiles": "*i32"}, options
            if rows == FEW_ROWS:
                others = {"parts": "*fp32", "positions": "*i64"}
                yield attention._attend_cache, {**shared, "SPLIT": attention.SPLIT}, others, options


def compiled(kernel: Any, card: int, dtype: str, constants: dict[str, int], others: dict[str, str], options: Any) -> Any:
    signature = {}
    for name in kernel.arg_names:
        annotation = str(kernel.fn.__annotations__[name])
        pointer = others.get(name, TYPES[dtype])
        signature[name] = {"tl.tensor": pointer, "int": "i32", "float": "fp32", "tl.constexpr": "constexpr"}[annotation]
    # Multiples of 16, as all sizes of real models are, but for the numbers of rows, slots and splits.
    multiples = [i for i, name in enumerate(kernel.arg_names) if signature[name][0] in "*i" and name not in ANY_NUMBER]
    aligned = {(i,): [["tt.divisibility", 16]] for i in multiples}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", card, 32), options={"enable_fp_fusion": True, **options})


def resources(cubin: bytes) -> tuple[int, int]:
    """The registers of a compiled kernel, and the bytes of its stack, where numbers go that have no register."""
    path = Path(sys.argv[1]) / "kernel.cubin"
    path.write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    told = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", told)
    assert found is not None, told
    return int(found[1]), int(found[2])


for card, shared in SHARED.items():
    for dtype in TYPES:
        for kernel, constants, others, options in sources(dtype):
            largest = kernel is int8._product and (dtype == "fp32" or constants["ROWS"] == 64)
            largest |= kernel is attention._attend_runs and constants["DIM"] == 256
            if not largest and (card, dtype) != (90, "bf16"):
                continue  # small enough for one card and dtype to stand for all
            found = compiled(kernel, card, dtype, constants, others, options)
            assembly = found.asm["ptx"]
            assert found.metadata.shared <= shared, f"{kernel.fn.__name__} takes {found.metadata.shared} bytes"
            assert ".tf32" not in assembly, f"{kernel.fn.__name__} rounds to TF32"
            registers, stack = resources(found.asm["cubin"])
            assert stack == 0, f"{kernel.fn.__name__} keeps {stack} bytes in slow memory"
            products = kernel in (int8._product, attention._attend_runs, attention._attend_cache)
            assert ("cp.async" in assembly) == products, f"{kernel.fn.__name__}: loads ahead"
            multiplies = bool(re.search(r"\bw?g?mma\.\S*bf16", assembly))
            assert multiplies == (products and dtype == "bf16"), kernel.fn.__name__
            print(card, dtype, kernel.fn.__name__, constants, f"{registers} registers, {found.metadata.shared} bytes shared")

"""The Triton kernels on a card, beside plain torch and beside the time that reading the bytes takes, at the shapes of 27B.

Each line has the time on the card and the time that the host takes to start it, in microseconds, and how far the numbers are
from plain torch's (the norm of the difference over the norm).

Run on a machine with a CUDA device: python tests/benchmarks/kernels.py
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from gemmascope.kernels import switch
from gemmascope.model import maths
from gemmascope.streaming.int8 import GROUP, n_groups

CUDA = torch.device("cuda", 0)
MATRICES = {"gate, up": (36864, 4608), "down": (4608, 36864), "q": (4096, 4608), "k, v": (2048, 4608), "o": (4608, 4096)}
ROUNDS = 50


def times(compute: Callable[[], object]) -> tuple[float, float]:
    """Microseconds of a call on the card and on the host; between calls the card's cache is overwritten."""
    cache = torch.empty(2**28, dtype=torch.int8, device=CUDA)
    device, host = [], []
    for _ in range(ROUNDS):
        cache.zero_()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        began = time.perf_counter()
        compute()
        host.append(1e6 * (time.perf_counter() - began))
        stop.record()
        torch.cuda.synchronize()
        device.append(1e3 * start.elapsed_time(stop))
    return sorted(device)[ROUNDS // 2], sorted(host)[ROUNDS // 2]


def line(what: str, compute: Callable[[], Tensor], plain: Tensor | None = None, n_bytes: int = 0, rate: float = 0.0) -> None:
    found = compute()
    error = "" if plain is None else f"{float((found.double() - plain.double()).norm() / plain.double().norm()):.1e}"
    device, host = times(compute)
    least = f"{1e6 * n_bytes / rate:8.1f}" if rate else ""
    print(f"{what:44} {device:8.1f} {host:8.1f} {error:>9} {least:>9}", flush=True)


def copy_rate() -> float:
    """Bytes a second that the card reads and writes when it copies."""
    x = torch.empty(2**28, dtype=torch.float32, device=CUDA)
    y = torch.empty_like(x)
    device, _ = times(lambda: y.copy_(x))
    return 2e6 * x.nbytes / device


def int8_products(dtype: torch.dtype, rate: float) -> None:
    from gemmascope.kernels.int8 import FEW_ROWS, dequantise, product

    for name, (n_out, n_in) in MATRICES.items():
        numbers = torch.randint(-127, 128, (n_out, n_in), dtype=torch.int8, device=CUDA)
        scale = (torch.rand(n_out, n_groups(n_in), device=CUDA) * 0.01 + 0.001).half()
        weight = torch.empty(n_out, n_in, dtype=dtype, device=CUDA)

        def unpack(numbers: Tensor = numbers, scale: Tensor = scale, weight: Tensor = weight) -> Tensor:
            dequantise(numbers, scale, weight, GROUP)
            return weight

        line(f"{name}: dequantise", unpack, None, numbers.nbytes + weight.nbytes, rate)
        for rows in (1, 16, 64, 256):
            x = torch.randn(rows, n_in, dtype=dtype, device=CUDA)
            plain = F.linear(x, weight)
            if rows <= FEW_ROWS[dtype]:
                fused = lambda x=x, numbers=numbers, scale=scale: product(x, numbers, scale, GROUP)  # noqa: E731
                line(f"{name}: int8 product, {rows} rows", fused, plain, numbers.nbytes, rate)
            line(f"{name}: cuBLAS, {rows} rows", lambda x=x, weight=weight: F.linear(x, weight), None, weight.nbytes, rate)


def pointwise_functions(dtype: torch.dtype, rate: float) -> None:
    from gemmascope.kernels import pointwise

    for rows in (1, 512, 4096):
        x, gate, up = (torch.randn(rows, width, dtype=dtype, device=CUDA) for width in (4608, 36864, 36864))
        gain = torch.randn(4608, dtype=dtype, device=CUDA)
        heads = torch.randn(rows, 32, 128, dtype=dtype, device=CUDA)
        cos, sin = maths.rope_table(torch.arange(rows, device=CUDA), 128, 10000.0)
        raw = torch.randn(rows, 16384, dtype=torch.float32, device=CUDA) * 30
        calls = {"rms_norm": (x, gain, 1e-6), "gelu_gate": (gate, up), "rotate": (heads, cos, sin), "soft_cap": (raw, 30.0)}
        for name, arguments in calls.items():
            plain = getattr(maths, name).__wrapped__
            n_bytes = sum(a.nbytes for a in arguments if isinstance(a, Tensor)) + arguments[0].nbytes  # type: ignore[union-attr]
            numbers = plain(*[a.clone() if isinstance(a, Tensor) else a for a in arguments])
            line(f"{name}, {rows} rows: torch", lambda p=plain, a=arguments: p(*a), None, n_bytes, rate)
            line(
                f"{name}, {rows} rows: Triton", lambda n=name, a=arguments: getattr(pointwise, n)(*a), numbers, n_bytes, rate
            )


@torch.no_grad()
def main() -> None:
    if not torch.cuda.is_available() or not switch.runs_triton(CUDA):
        sys.exit("needs a CUDA device" + (switch.describe(CUDA) if torch.cuda.is_available() else ""))
    rate = copy_rate()
    print(f"{torch.cuda.get_device_name(CUDA)}, torch {torch.__version__}, copies at {rate / 1e9:.0f} GB/s")
    for dtype in (torch.bfloat16, torch.float32):
        print(f"\n{dtype!s:44} {'card us':>8} {'host us':>8} {'error':>9} {'bytes us':>9}")
        int8_products(dtype, rate)
        pointwise_functions(dtype, rate)


if __name__ == "__main__":
    main()

"""How many kernels and synchronisations 2B's layers, heads and positions ask of a GPU, counted on an emulated one.

No GPU is needed, and nothing is timed: the widths are small, and only the numbers of layers, heads and positions are true.
Each work is counted without Triton and with it, where a kernel is counted and its numbers are made up.

Run: python tests/benchmarks/count.py [--work trace sweep_resid sweep_z tokens gradient] [--lines 8]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("TRITON_INTERPRET", "1")  # no card compiles kernels here

import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

import gemmascope as gs
from gemmascope.generation.untapped import UntappedLayer
from gemmascope.model.gemma2 import Layer
from gemmascope.model.model import Model

sys.path.insert(0, str(Path(__file__).parents[1]))
from emulated_cuda import EmulatedCuda

N_LAYERS, N_POS, N_TOKENS = 26, 64, 8
METRIC = gs.logit_diff(5, 9)


def prompt(seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 500, (N_POS,), generator=torch.Generator().manual_seed(seed))


def model_in(folder: Path) -> Model:
    """2B's numbers of layers and heads, d_model 128, bfloat16, on the emulated device."""
    config = Gemma2Config(
        vocab_size=512, hidden_size=128, intermediate_size=128, num_hidden_layers=N_LAYERS, num_attention_heads=8,
        num_key_value_heads=4, head_dim=16, query_pre_attn_scalar=16, sliding_window=4096,
    )  # fmt: skip
    torch.manual_seed(0)
    Gemma2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return gs.load(folder, device="cuda", dtype="bfloat16")


WORK: dict[str, tuple[str, Callable[[Model], object]]] = {
    "trace": (f"trace of {N_POS} positions", lambda model: gs.trace(prompt(), model=model).top(1)),
    "sweep_resid": (
        f"sweep of resid_pre, {N_LAYERS} x {N_POS}",
        lambda model: gs.sweep(prompt(), prompt(1), METRIC, site="resid_pre", model=model, progress=False),
    ),
    "sweep_z": (
        f"sweep of z, {N_LAYERS} x 8, {N_POS} positions",
        lambda model: gs.sweep(prompt(), prompt(1), METRIC, site="z", by=("layer", "head"), model=model, progress=False),
    ),
    "tokens": (
        f"a prompt of {N_POS} and {N_TOKENS} tokens",
        lambda model: gs.generate(prompt(), model=model, max_new_tokens=N_TOKENS),
    ),
    "gradient": (
        "a trace and a gradient at one site",
        lambda model: gs.trace(prompt(), model=model).grad(METRIC, ("resid_pre", 0)),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="*", choices=list(WORK), default=list(WORK))
    parser.add_argument("--lines", type=int, default=0, help="how many lines of the package to show, those that ask most")
    arguments = parser.parse_args()
    for triton in (None, "counted"):
        print("with Triton's kernels" if triton else "without Triton")
        with tempfile.TemporaryDirectory() as folder, EmulatedCuda(triton=triton) as cuda:
            model = model_in(Path(folder))
            gs.trace(prompt(), model=model)  # the digests of the weights are computed once
            for name in arguments.work:
                count(name, model, cuda, arguments.lines)


def count(name: str, model: Model, cuda: EmulatedCuda, n_lines: int) -> None:
    """Print what a work asks of the device: each time that a layer runs, for a prompt, a token or a batch of a sweep."""
    title, run = WORK[name]
    n_runs = 0

    def counting(call: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def counted(*args: Any) -> torch.Tensor:
            nonlocal n_runs
            n_runs += 1
            return call(*args)

        return counted

    cuda.counts.reset()
    with (
        mock.patch.object(Layer, "forward", counting(Layer.forward)),
        mock.patch.object(UntappedLayer, "__call__", counting(UntappedLayer.__call__)),
    ):
        run(model)
    kernels, syncs = cuda.counts.n_kernels, cuda.counts.n_syncs
    each = f"{kernels / N_LAYERS:5.0f} a layer, {kernels / n_runs:4.0f} each time that one runs"
    print(f"  {title:36s} {kernels:7,d} kernels, {each}; {syncs:5,d} synchronisations", flush=True)
    for what, counter in (("kernels", cuda.counts.kernels), ("synchronisations", cuda.counts.syncs)):
        for line, n in counter.most_common(n_lines):
            print(f"    {n:6,d} {what} at {line}")


if __name__ == "__main__":
    main()

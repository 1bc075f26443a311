"""What a sweep costs beside a loop of transformers forwards with one hook each, and beside its own arithmetic.

Aims: float32 at 16 positions 14 times faster than the loop, at 128 positions 5.5 times, and within 1.8 times the floor;
bfloat16 on a machine with AMX 25 and 12 times against the float32 loop. The floor: the sweep's rows times the arithmetic
of a layer, at the rate of matrix products measured in the same run.

Run: python tests/benchmarks/sweep.py [--lengths 16 128] [--dtype float32 bfloat16] [--table] [--cell] [--profile]
The loop of a long prompt is timed on some cells, spread evenly, and scaled to all; it says so.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

import gemmascope as gs
from gemmascope.nano import CHECKPOINT

N_LAYERS, D_MODEL, N_HEADS, D_HEAD, D_MLP, VOCAB = 12, 512, 8, 64, 2048, 8192
LOOP_CELLS = 96
METRIC = gs.logit_diff(11, 12)

Cells = Sequence[tuple[int, int]]


def checkpoint() -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=VOCAB, hidden_size=D_MODEL, intermediate_size=D_MLP, num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS, num_key_value_heads=4, head_dim=D_HEAD, query_pre_attn_scalar=D_HEAD,
        sliding_window=32, max_position_embeddings=8192, attn_implementation="eager",
    )  # fmt: skip
    return Gemma2ForCausalLM(config).eval()


def prompt(length: int, seed: int) -> torch.Tensor:
    return torch.randint(VOCAB, (length,), generator=torch.Generator().manual_seed(seed))


def seconds(function: Callable[[], Any], rounds: int) -> float:
    """The median time of some rounds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@torch.no_grad()
def hooked_loop(
    source: Gemma2ForCausalLM, clean: torch.Tensor, corrupt: torch.Tensor, cells: Cells, site: str
) -> list[float]:
    """What other toolkits do: one whole forward for every cell, with a hook that patches it."""
    kept: dict[int, torch.Tensor] = {}
    modules = [layer if site == "resid_pre" else layer.self_attn.o_proj for layer in source.model.layers]

    def keep(layer: int) -> Callable[..., None]:
        return lambda module, args: kept.__setitem__(layer, args[0])

    handles = [module.register_forward_pre_hook(keep(layer)) for layer, module in enumerate(modules)]
    source(clean[None], use_cache=False)
    for handle in handles:
        handle.remove()
    found = []
    for layer, place in cells:

        def patch(_: Any, args: Any, layer: int = layer, place: int = place) -> Any:
            x = args[0].clone()
            if site == "resid_pre":
                x[:, place] = kept[layer][:, place]
            else:
                x[..., place * D_HEAD : (place + 1) * D_HEAD] = kept[layer][..., place * D_HEAD : (place + 1) * D_HEAD]
            return (x, *args[1:])

        handle = modules[layer].register_forward_pre_hook(patch)
        logits = source(corrupt[None], use_cache=False).logits[0, -1].float()
        handle.remove()
        found.append(float(logits[11] - logits[12]))
    return found


def floor_seconds(length: int, site: str, dtype: torch.dtype) -> float:
    """The products of a sweep's rows alone, at the measured rate: all layers but the last, where one position is asked."""
    if site == "resid_pre":
        rows = sum((layer + 1) * (length - pos) for layer in range(N_LAYERS - 1) for pos in range(length))
    else:
        rows = sum((layer + 1) * N_HEADS * length for layer in range(N_LAYERS - 1))
    weights = D_MODEL * D_HEAD * (2 * N_HEADS + 2 * 4) + 3 * D_MODEL * D_MLP
    return rows * 2 * weights / product_rate(dtype)


def product_rate(dtype: torch.dtype) -> float:
    """FLOP/s of [1024, d_model] x [d_model, d_mlp]."""
    x, w = torch.randn(1024, D_MODEL, dtype=dtype), torch.randn(D_MLP, D_MODEL, dtype=dtype)
    time_of_ten = min(seconds(lambda: [torch.nn.functional.linear(x, w) for _ in range(10)], 1) for _ in range(8))
    return 10 * 2 * 1024 * D_MODEL * D_MLP / time_of_ten


def compare(source: Gemma2ForCausalLM, length: int, site: str, dtype: torch.dtype) -> None:
    clean, corrupt = prompt(length, 1), prompt(length, 2)
    by = ("layer", "pos") if site == "resid_pre" else ("layer", "head")
    cells = [(layer, place) for layer in range(N_LAYERS) for place in range(length if site == "resid_pre" else N_HEADS)]
    some = cells[:: max(1, len(cells) // LOOP_CELLS)]
    model = gs.load(source if dtype == torch.float32 else copy.deepcopy(source).to(dtype))

    def sweep() -> Any:
        return gs.sweep(clean, corrupt, METRIC, site=site, by=by, model=model, progress=False)

    result = sweep()
    start = time.perf_counter()
    loop = hooked_loop(source, clean, corrupt, some, site)
    loop_time = (time.perf_counter() - start) * len(cells) / len(some)
    ours = seconds(sweep, 3 if length <= 32 else 1)
    floor = floor_seconds(length, site, dtype)
    found = [result.values[0].flat[cells.index(cell)] for cell in some]
    apart = max(abs(a - b) for a, b in zip(found, loop, strict=True)) / max(map(abs, loop))
    scaled = "" if len(some) == len(cells) else f" (timed on {len(some)} of {len(cells)} cells)"
    print(
        f"{site:9s} {N_LAYERS} x {len(cells) // N_LAYERS:<3d} {length:3d} positions {str(dtype)[6:]:8s}: "
        f"float32 loop {loop_time:.2f} s{scaled}, one pass {ours:.2f} s: {loop_time / ours:.1f} times faster; "
        f"floor {floor:.2f} s: {ours / floor:.2f} times it; they differ by {apart:.0e} of the scale",
        flush=True,
    )


def transformer_lens(source: Gemma2ForCausalLM, length: int) -> None:
    """The same resid_pre sweep in TransformerLens, float32, where it is installed."""
    try:
        from transformer_lens import patching
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError:
        print("TransformerLens is not installed: not compared")
        return
    # It wants a name and a tokenizer, and uses neither here.
    words = AutoTokenizer.from_pretrained(CHECKPOINT)
    theirs = TransformerBridge.boot_transformers("google/gemma-2-2b", hf_model=copy.deepcopy(source), tokenizer=words)
    clean, corrupt = prompt(length, 1)[None], prompt(length, 2)[None]

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return logits[0, -1, 11] - logits[0, -1, 12]

    with torch.no_grad():
        _, cache = theirs.run_with_cache(clean)
        start = time.perf_counter()
        found = patching.get_act_patch_resid_pre(theirs, corrupt, cache, metric)
    spent = time.perf_counter() - start
    model = gs.load(source)
    ours = seconds(lambda: gs.sweep(clean[0], corrupt[0], METRIC, site="resid_pre", model=model, progress=False), 3)
    result = gs.sweep(clean[0], corrupt[0], METRIC, site="resid_pre", model=model, progress=False)
    apart = (torch.tensor(result.values[0]) - found).abs().max() / found.abs().max()
    print(
        f"resid_pre {length} positions float32: TransformerLens {spent:.2f} s, one pass {ours:.2f} s; apart by {apart:.0e}"
    )


def table(source: Gemma2ForCausalLM) -> None:
    """How the cost grows with the rows: one layer's cells, resid_pre of layer 6, float32."""
    model = gs.load(source)
    print("positions     rows   seconds   rows/s")
    for length in (8, 16, 32, 64, 128, 256, 512):
        clean, corrupt = prompt(length, 1), prompt(length, 2)
        rows = (N_LAYERS - 7) * length * (length + 1) // 2

        def sweep(clean: Any = clean, corrupt: Any = corrupt) -> Any:
            return gs.sweep(clean, corrupt, METRIC, site="resid_pre", layer=6, model=model, progress=False)

        spent = seconds(sweep, 3 if length <= 64 else 1)
        print(f"{length:9d} {rows:8d} {spent:9.3f} {rows / spent:8.0f}", flush=True)


def where_time_goes(source: Gemma2ForCausalLM, length: int) -> None:
    """The kinds of operations in a resid_pre sweep, float32, by torch's profiler, which itself takes some time."""
    from torch.profiler import ProfilerActivity, profile

    model, clean, corrupt = gs.load(source), prompt(length, 1), prompt(length, 2)

    def sweep() -> Any:
        return gs.sweep(clean, corrupt, METRIC, site="resid_pre", model=model, progress=False)

    plain = seconds(sweep, 3)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        sweep()
    spent = {event.key: event.self_cpu_time_total / 1e6 for event in found.key_averages()}
    kinds = {"products": ("aten::mm", "aten::bmm", "aten::addmm"), "GELU": ("aten::gelu",)}
    parts = {kind: sum(spent.get(name, 0.0) for name in names) for kind, names in kinds.items()}
    parts["all else"] = sum(spent.values()) - sum(parts.values())
    said = ", ".join(f"{kind} {took:.2f} s" for kind, took in parts.items())
    print(f"resid_pre {length} positions float32: {plain:.2f} s; profiled: {said}")


def one_cell() -> None:
    """What a click in the widget costs: one exact cell on nano, the metric included."""
    clean = "When Mary and John went to the store, John gave a drink to"
    corrupt = "When Mary and John went to the store, Mary gave a drink to"
    asked = {"site": "z", "by": ("layer", "head"), "layer": 3, "head": 1, "progress": False}
    metric = gs.logit_diff(" Mary", " John")
    spent = [seconds(lambda: gs.sweep(clean, corrupt, metric, **asked), 1) for _ in range(41)]
    print(f"one exact cell on nano: median {1e3 * statistics.median(spent):.1f} ms (aim: under 20 ms)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="*", default=[16, 128])
    parser.add_argument("--dtype", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--sites", nargs="*", default=["resid_pre", "z"])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--cell", action="store_true")
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    source = checkpoint()
    for length in given.lengths:
        for site in given.sites:
            for dtype in given.dtype:
                compare(source, length, site, getattr(torch, dtype))
    if given.table:
        table(source)
    if given.cell:
        one_cell()
    if given.profile:
        where_time_goes(source, 16)
    if given.lengths:
        transformer_lens(source, given.lengths[0])


if __name__ == "__main__":
    main()

"""The memory of a graph of a long prompt: python tests/benchmarks/graph_memory.py [--positions 4096] [--layers 2]

A random model of Gemma 2 2B's widths with few layers and a small vocabulary, and random transcoders of which about 70
features are active at a position. Prints how many nodes there are, what the budget was, and by how much the memory of the
process grew while the rows were built: held against the budget of a pass. Seconds are those of the CPU, of one thread: of
the prompt's run, of encoding its features, and of the rows. Linux only.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from checkpoints import model_of, prompt  # noqa: E402
from transformers import Gemma2Config, Gemma2ForCausalLM  # noqa: E402

import gemmascope as gs  # noqa: E402
from gemmascope.circuits.graph.attribution import prepare, run_all  # noqa: E402
from gemmascope.memory.placement import parse_bytes  # noqa: E402
from gemmascope.model.model import Model  # noqa: E402
from gemmascope.sae.dictionary import Dictionary  # noqa: E402

VOCAB = 8192


def status(name: str) -> int:
    """A field of the process's status, in bytes."""
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


def reset_peak() -> None:
    with open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
        file.write("5")


def subject(layers: int) -> Model:
    torch.manual_seed(0)
    config = Gemma2Config(num_hidden_layers=layers, vocab_size=VOCAB, pad_token_id=0, attn_implementation="eager")
    return model_of(Gemma2ForCausalLM(config).eval())


def transcoder(layer: int, trace: gs.Trace, n: int, active: int) -> Dictionary:
    """Random features whose threshold lets so many through at a position of a short run."""
    draw, d = torch.Generator().manual_seed(layer), trace.model.config.d_model
    encoder = torch.randn(d, n, generator=draw) / d**0.5
    x = trace["resid_mid", layer][1:65] / trace["mlp_in_scale", layer][1:65, None]
    threshold = (x @ encoder).flatten().quantile(1 - active / n)
    decoder = torch.randn(n, d, generator=draw) / d**0.5
    arrays = {"W_enc": encoder, "W_dec": decoder, "b_enc": torch.zeros(n), "b_dec": torch.zeros(d)}
    return Dictionary(**arrays, threshold=threshold.expand(n).clone(), site="transcoder", layer=layer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--nodes", type=int, default=32)
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--basis", default="transcoder", choices=["transcoder", "neuron"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = subject(args.layers)
    short = gs.trace(prompt(65, VOCAB), model=model)
    made = (lambda layer: transcoder(layer, short, args.features, 70)) if args.basis == "transcoder" else None
    start = time.process_time()
    trace = gs.trace(prompt(args.positions, VOCAB), model=model)
    traced, before = time.process_time(), status("VmRSS")
    builder = prepare(trace, model, args.basis, made, [5], None, (args.nodes, 2048), args.memory)
    print(f"the run took {traced - start:.0f} s of CPU, encoding {time.process_time() - traced:.0f}", flush=True)
    active = builder.basis.active(builder.keys)
    n = args.layers * args.positions * model.config.d_mlp if active is None else len(active)
    as_matrix = f"{n**2 * 4 / 2**40:.2f} TiB as a matrix"
    print(f"{args.positions} positions, {args.layers} layers, {n:,} active nodes: {as_matrix}", flush=True)
    encoded = status("VmRSS")
    reset_peak()
    start = time.process_time()
    graph = run_all(builder, progress=False)
    seconds, peak = time.process_time() - start, status("VmHWM")
    mib = 2**20
    print(
        f"resident before {before // mib:,} MiB, encoded {encoded // mib:,}, peak {peak // mib:,}: the rows took "
        f"{(peak - encoded) // mib:,} MiB of a budget of {parse_bytes(args.memory) // mib:,}"
    )
    print(f"{len(graph.rows.targets)} rows with {len(graph.rows.weight):,} edges in {seconds:.0f} s of CPU; {graph}")


if __name__ == "__main__":
    main()

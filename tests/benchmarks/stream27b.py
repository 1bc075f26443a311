"""The true 27B shape on this machine: int8 layers from disk, a trace and a sweep, beside their reading and computing.

The weights are random, so nothing here says anything about Gemma: the shape, the bytes and the arithmetic are 27B's. The
folder is written once, with a file of its own for every layer where the disk has room (28.9 GB), else with hard links of
a few, which then come from the page cache; it says which. Files are dropped from the page cache before each timed pass.

Aims: peak resident memory of the trace under 4 GB; wall time of the trace, and of the sweep of every layer and position,
at most 1.3 times the larger of reading and computing, both measured in the same run.

Run: python tests/benchmarks/stream27b.py FOLDER [--layers 46] [--no-sweep] [--memory 3500MB]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import gemmascope as gs
from gemmascope.checkpoints.folder import EMBEDDING
from gemmascope.config import PRESETS, GemmaConfig
from gemmascope.streaming.int8 import GROUP
from gemmascope.streaming.packed import MATRICES, SCALE, header_of, int8_layout, pack_layout
from gemmascope.streaming.store import FORMAT, MANIFEST, NORM, OUTER, layer_file
from gemmascope.streaming.transfer import HostTransfer

N_TOKENS, LINKED = 16, 4


def shape(n_layers: int) -> GemmaConfig:
    config = PRESETS["27b"]
    return replace(config, kinds=config.kinds[:n_layers])


def write(folder: Path, config: GemmaConfig, own: int | None = None) -> None:
    """A store with random numbers. own: how many layers get a file of their own; None means all, where the disk has room."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "dtype": "bfloat16"}))
    layout = int8_layout(config, torch.bfloat16)
    if own is None:
        own = config.n_layers if shutil.disk_usage(folder).free > (config.n_layers + 6) * layout[-1].stop else LINKED
    print(
        f"{own} files of their own for {config.n_layers} layers"
        + ("" if own == config.n_layers else ", hard links for the rest")
    )
    files = {OUTER: _write_outer(folder, config)}
    torch.manual_seed(0)
    buffer = torch.empty(layout[-1].stop, dtype=torch.uint8)
    for piece in layout:
        if piece.name in MATRICES:
            piece.view(buffer).random_(-127, 128)
        else:
            piece.view(buffer).fill_(0.03 / 73 if piece.name.endswith(SCALE) else 0.0)
    last = [piece for piece in layout if piece.name in MATRICES][-1].view(buffer)
    for index in range(config.n_layers):
        path = folder / layer_file(index)
        if index < own:
            last.reshape(-1)[-(2**20) :].random_(-127, 128)  # another file, if not another layer throughout
            files[path.name] = _save(path, layout, [buffer])
        else:
            path.unlink(missing_ok=True)
            os.link(folder / layer_file(index % own), path)
            files[path.name] = files[layer_file(index % own)]
    about = {"format": FORMAT, "group": GROUP, "source": "random", "identity": "random", "files": files, "complete": True}
    (folder / MANIFEST).write_text(json.dumps(about))


def _write_outer(folder: Path, config: GemmaConfig) -> dict[str, Any]:
    layout = pack_layout(
        {EMBEDDING: (torch.bfloat16, (config.vocab_size, config.d_model)), NORM: (torch.bfloat16, (config.d_model,))}
    )
    table = torch.empty(config.vocab_size, config.d_model, dtype=torch.bfloat16).normal_(std=0.02)
    norm = torch.zeros(config.d_model, dtype=torch.bfloat16)
    parts = [{EMBEDDING: table, NORM: norm}[piece.name].reshape(-1).view(torch.uint8) for piece in layout]
    return _save(folder / OUTER, layout, parts)


def _save(path: Path, layout: Any, parts: list[torch.Tensor]) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("wb") as file:
        file.write(header_of(layout, {"format": FORMAT}))
        for part in parts:
            digest.update(memoryview(part.numpy()))
            file.write(memoryview(part.numpy()))
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def forget(folder: Path) -> None:
    """Drop the folder's files from the page cache."""
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.dat")]:
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def timed(folder: Path, function: Callable[[], Any]) -> float:
    forget(folder)
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def read_all(model: gs.Model) -> None:
    """What a pass reads: every streamed layer, and the embedding if it stays in its file."""
    layer_source: Any = model.network.layer_source
    buffer = layer_source.buffers[0] if layer_source.buffers else None
    for index, packed in enumerate(layer_source.packed):
        if index not in layer_source.kept:
            packed.read(memoryview(buffer.numpy()), direct=layer_source.transfer.direct)
    table: Any = model.network.model.embed_tokens
    if hasattr(table, "parts"):
        for _ in table.parts():
            pass


class NoReading(HostTransfer):
    """Leaves the buffers as they are: a pass with it only computes."""

    def fill(self, packed: Any, index: int, buffer: torch.Tensor) -> None:
        pass


def computing(model: gs.Model, function: Callable[[], Any]) -> float:
    """Seconds of a pass whose layers need no reading."""
    layer_source: Any = model.network.layer_source
    transfer, layer_source.transfer = layer_source.transfer, NoReading()
    start = time.perf_counter()
    function()
    layer_source.transfer = transfer
    return time.perf_counter() - start


def offloaded(config: GemmaConfig, ids: torch.Tensor, folder: Path) -> None:
    """The same forward in transformers with accelerate's disk offload, bfloat16: two layers, scaled to all of them."""
    try:
        from accelerate import disk_offload
    except ImportError:
        print("accelerate is not installed: not compared")
        return
    from transformers import Gemma2Config, Gemma2ForCausalLM

    few = replace(config, kinds=config.kinds[:2], vocab_size=8192)
    theirs = Gemma2ForCausalLM._from_config(Gemma2Config(**few.to_dict()), dtype=torch.bfloat16).eval()
    disk_offload(theirs, folder / "offload", execution_device="cpu")
    ids = ids % few.vocab_size
    with torch.no_grad():
        theirs(ids[None])
        spent = timed(folder / "offload", lambda: theirs(ids[None]))
    shutil.rmtree(folder / "offload")
    print(
        f"accelerate's disk offload, bfloat16: {spent:.1f} s for 2 layers and no vocabulary to speak of, "
        f"{spent * config.n_layers / 2:.0f} s scaled to {config.n_layers} layers"
    )


def report(name: str, wall: float, reading: float, compute: float) -> None:
    ratio = wall / max(reading, compute)
    print(
        f"{name}: {wall:.1f} s; reading alone {reading:.1f} s, computing alone {compute:.1f} s: "
        f"{ratio:.2f} times the larger (aim 1.3)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=46)
    parser.add_argument("--memory", default="3500MB")
    parser.add_argument("--no-sweep", action="store_true")
    given = parser.parse_args()
    config = shape(given.layers)
    if not (given.folder / MANIFEST).is_file():
        if os.fork() == 0:  # what writing takes is not the model's
            write(given.folder, config)
            os._exit(0)
        os.wait()
    model = gs.load(given.folder, memory=given.memory)
    layer_source: Any = model.network.layer_source
    where = "in its file" if hasattr(model.network.model.embed_tokens, "parts") else "stays"
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; memory={given.memory}: {len(layer_source.kept)} of "
        f"{config.n_layers} layers stay, the embedding {where}; past the page cache: {layer_source.transfer.direct}"
    )
    ids = torch.randint(config.vocab_size, (N_TOKENS,), generator=torch.Generator().manual_seed(1))
    other = ids.roll(1)

    def trace() -> None:
        gs.trace(ids, model=model).top(1)

    first = timed(given.folder, trace)
    print(f"the first trace, which takes the checksums as well: {first:.1f} s", flush=True)
    wall = timed(given.folder, trace)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"peak resident memory so far: {peak / 1e9:.2f} GB (aim: under 4)", flush=True)
    reading = timed(given.folder, lambda: read_all(model))
    compute = computing(model, trace)
    report(f"trace of {N_TOKENS} tokens, {config.n_layers} layers", wall, reading, compute)
    offloaded(config, ids, given.folder)
    if not given.no_sweep:

        def sweep() -> None:
            gs.sweep(ids, other, gs.logit_diff(11, 12), site="resid_pre", model=model, progress=False)

        wall = timed(given.folder, sweep)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        report(f"sweep of {config.n_layers * N_TOKENS} variants", wall, reading, computing(model, sweep))
        print(f"peak resident memory: {peak / 1e9:.2f} GB")


if __name__ == "__main__":
    main()

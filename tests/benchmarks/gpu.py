"""All that a GPU shows, for ten minutes of a rented one: rates, the CPU's numbers, speed beside transformers, streaming.

The largest risk stands first: whether the numbers are right, then 2B, then 27B, then what repeats a test under a sanitizer.
Each step writes JSON lines as it goes; one that fails is recorded, and the next one runs; one for which too little time is
left is left out, and said so. Random weights of the true shapes: nothing here says anything about Gemma.

    links      rates of copies and products, the cost of a launch
    nano       every public function beside the CPU (agreement.py), a cell and a grid there and here
    tests      tests/gpu
    2b         bfloat16, resident: traces, sweeps, attributions, tokens, beside transformers one by one and in batches, and
               the floor; kernels and synchronisations of each
    27b        int8, resident and in 16 GB: the same bits, times beside the copies alone, peaks
    2b_stream  bfloat16 in 3 GB and 6 GB beside resident, bit for bit, gradients in between
    sanitizer  tests/gpu under TORCH_CUDA_SANITIZER

Run: python tests/benchmarks/gpu.py [STEP ...] [--out results.jsonl] [--seconds 580] [--small]
--small tries the whole script on a CPU. It needs neither plotly nor ipywidgets nor what the tests need beside pytest.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

import agreement  # noqa: E402
import torch  # noqa: E402
from measuring import machine, seconds, settle  # noqa: E402
from rivals import SMALL, checkpoint, prompt  # noqa: E402
from side_by_side import METRIC, Row, hold, measure_sweep, measure_tokens, measure_trace  # noqa: E402
from steps import Steps  # noqa: E402
from stream27b import write  # noqa: E402

import gemmascope as gs  # noqa: E402
from gemmascope.config import PRESETS  # noqa: E402

B2: dict[str, Any] = {
    "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096,
}  # fmt: skip
SMALL_27B: dict[str, Any] = {
    "d_model": 256, "n_heads": 4, "n_kv_heads": 2, "d_head": 64, "d_mlp": 512, "vocab_size": 1000,
}  # fmt: skip


def median(function: Callable[[], object], device: torch.device, rounds: int = 3) -> float:
    """After one that warms it."""
    function()
    return statistics.median(seconds(function, device) for _ in range(rounds))


def counts(function: Callable[[], object], device: torch.device) -> Row:
    """What a warm call asks of the device: kernels, copies, synchronisations, and their seconds; on a CPU its operators."""
    from torch.profiler import ProfilerActivity, profile

    function()
    on_card = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_card else [])]) as found:
        function()
        settle(device)
    events = found.key_averages()
    if not on_card:
        return {"operators": sum(e.count for e in events if e.key.startswith("aten::"))}
    on_device = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    copies = [e for e in on_device if e.key.startswith(("Memcpy", "Memset"))]
    kernels = [e for e in on_device if not e.key.startswith(("Memcpy", "Memset"))]
    longest = sorted(kernels, key=lambda e: -e.self_device_time_total)[:6]
    return {
        "kernels": sum(e.count for e in kernels), "copies": sum(e.count for e in copies),
        "synchronisations": sum(e.count for e in events if e.key.startswith("cuda") and "Synchronize" in e.key),
        "device_s": sum(e.self_device_time_total for e in on_device) / 1e6,
        "longest": [[round(e.self_device_time_total / 1e3, 2), e.count, e.key[:60]] for e in longest],
    }  # fmt: skip


class Card:
    """The steps, on one device."""

    def __init__(self, steps: Steps, device: torch.device, small: bool, folder: Path) -> None:
        self.steps, self.device, self.small, self.folder = steps, device, small, folder
        self.on_card = device.type == "cuda"

    def time(self, step: str, function: Callable[[], object], rounds: int = 3, **more: Any) -> None:
        """One figure, which may fail by itself."""
        with self.steps.step(step):
            self.steps.say(step, s=median(function, self.device, 1 if self.small else rounds), **more)

    def count(self, step: str, function: Callable[[], object], n_layers: int) -> None:
        with self.steps.step(f"{step}: counts"):
            found = counts(function, self.device)
            each = found.get("kernels", found.get("operators", 0)) / n_layers
            self.steps.say(f"{step}: counts", per_layer=round(each, 1), **found)

    def row(self, step: str, measure: Callable[[], Row]) -> None:
        """A row beside the rivals: recorded first, then held to them."""
        with self.steps.step(step):
            row = measure()
            self.steps.say(step, **row)
            hold(row)

    def peak(self, step: str, function: Callable[[], object]) -> None:
        """The most memory that a call takes on the card; a CPU does not tell."""
        if self.on_card:
            with self.steps.step(f"{step}: peak"):
                settle(self.device)
                torch.cuda.reset_peak_memory_stats(self.device)
                function()
                settle(self.device)
                self.steps.say(f"{step}: peak", gb=round(torch.cuda.max_memory_allocated(self.device) / 1e9, 2))

    def links(self) -> None:
        size = 2**24 if self.small else 2**30
        rate: Row = {}
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
            n = 512 if self.small else 8192
            a = torch.randn(n, n, device=self.device, dtype=dtype)
            rate[f"{name}_tflops"] = round(2 * n**3 / median(lambda a=a: a @ a, self.device) / 1e12, 2)  # type: ignore[misc]
        there = torch.ones(size // 4, device=self.device)
        rate["read_gbs"] = round(size / 1e9 / median(lambda: torch.dot(there, there), self.device), 1)
        rate["copy_gbs"] = round(2 * size / 1e9 / median(there.clone, self.device), 1)
        for pinned in (True, False) if self.on_card else (False,):
            here, kind = torch.ones(size // 4, pin_memory=pinned), "pinned" if pinned else "pageable"
            for way, one, other in (("to_device", there, here), ("to_host", here, there)):
                spent = median(lambda a=one, b=other, p=pinned: a.copy_(b, non_blocking=p), self.device)  # type: ignore[misc]
                rate[f"{way}_{kind}_gbs"] = round(size / 1e9 / spent, 1)
        one, n = torch.ones(1, device=self.device), 100 if self.small else 5000
        rate["launch_us"] = round(1e6 / n * median(lambda: [one.add_(1) for _ in range(n)], self.device), 2)
        self.steps.say("links", **rate)

    def nano(self) -> None:
        found = list(agreement.compare(gs, self.device))
        self.steps.say("agreement with the CPU", **agreement.summary(found))
        for device in ("cpu", self.device):
            model, metric = gs.load("nano", device=device), gs.logit_diff(" Mary", " John")
            pair, quiet = (agreement.CLEAN, agreement.CORRUPT, metric), {"model": model, "progress": False}
            one = {"site": "z", "by": ("layer", "head"), "layer": 3, "head": 1}
            self.time("nano: a cell", lambda: gs.sweep(*pair, **one, **quiet), 9, device=str(device))  # noqa: B023
            self.time("nano: a grid", lambda: gs.sweep(*pair, site="resid_pre", **quiet), 5, device=str(device))  # noqa: B023
        if bad := agreement.summary(found)["failed"]:
            raise AssertionError(f"not the CPU's numbers: {sorted(bad)}")

    def tests(self, **environment: str) -> None:
        name = "tests under the sanitizer" if environment else "tests"
        if environment and not self.on_card:
            self.steps.say(name, left_out="torch's sanitizer works with a GPU only")
            return
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "tests/gpu"]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
            timeout=max(30, min(self.steps.left - 10, 200)), check=False,
        )  # fmt: skip
        self.steps.say(name, status=done.returncode, said=done.stdout[-1500:], errors=done.stderr[-500:])
        if done.returncode:
            raise AssertionError(f"tests/gpu ended with {done.returncode}")

    def b2(self) -> None:
        """2B resident."""
        shape = SMALL if self.small else B2
        source = checkpoint(shape, self.device, torch.bfloat16)
        model, n_layers = gs.load(source, device=self.device), shape["num_hidden_layers"]
        length, lengths, rounds = (4, (8,), 1) if self.small else (64, (16, 512, 4096), 3)
        pair = [prompt(length, shape["vocab_size"], seed) for seed in (1, 2)]

        def sweep(site: str = "resid_pre") -> Any:
            by = ("layer", "pos") if site == "resid_pre" else ("layer", "head")
            return gs.sweep(*pair, METRIC, site=site, by=by, model=model, progress=False)

        exact = checkpoint(shape, self.device, torch.bfloat16).float()  # the same seed: the same weights
        for site in ("resid_pre", "z"):
            self.row(f"2b: sweep of {site}", lambda: measure_sweep(source, exact, model, length, site, rounds))  # noqa: B023, F821
            self.count(f"2b: sweep of {site}", lambda: sweep(site), n_layers)  # noqa: B023
            self.peak(f"2b: sweep of {site}", lambda: sweep(site))  # noqa: B023
        for n in lengths:
            self.row(f"2b: trace of {n}", lambda: measure_trace(source, exact, model, 1, n, rounds))  # noqa: B023, F821
        ids = prompt(lengths[len(lengths) // 2], shape["vocab_size"], 5)
        self.count("2b: trace", lambda: gs.trace(ids, model=model).logits, n_layers)
        self.peak("2b: trace", lambda: gs.trace(ids, model=model).logits)
        self.row("2b: trace of 16 prompts", lambda: measure_trace(source, exact, model, 16, length, rounds))  # noqa: F821
        del exact
        n_new = 4 if self.small else 48
        for count, edited in ((1, False), (16, False), (1, True), (16, True)):
            name = f"2b: {count} prompts, {'edited' if edited else 'plain'}"
            self.row(name, lambda: measure_tokens(source, model, count, 16, n_new, edited, rounds))  # noqa: B023
        self.count("2b: 9 tokens", lambda: gs.generate(pair[0], model=model, max_new_tokens=9), n_layers)
        self.time("2b: attribute", lambda: gs.attribute(*pair, METRIC, site="resid_pre", model=model))
        self.count("2b: attribute", lambda: gs.attribute(*pair, METRIC, site="resid_pre", model=model), n_layers)

    def b27(self) -> None:
        """27B int8, resident and streamed."""
        config = PRESETS["27b"]
        if self.small:
            config = replace(config, kinds=config.kinds[:2], **SMALL_27B)
        folder = self.folder / "27b"
        spent = seconds(lambda: write(folder, config, own=4))
        self.steps.say("27b: written", s=round(spent, 1), note="four files of their own, the others linked to them")
        first: list[torch.Tensor] = []
        for memory in (None, "16GB") if self.on_card else (None, "14MB"):
            self.streamed(f"27b in {memory or 'all memory'}", folder, memory, first)

    def b2_streamed(self) -> None:
        """2B bfloat16 from its folder."""
        shape, folder = SMALL if self.small else B2, self.folder / "2b"
        checkpoint(shape, self.device, torch.bfloat16).save_pretrained(folder)
        first: list[torch.Tensor] = []
        for memory in (None, "3GB", "6GB") if self.on_card else (None, "3MB"):
            self.streamed(f"2b in {memory or 'all memory'}", folder, memory, first)

    def streamed(self, name: str, folder: Path, memory: str | None, first: list[torch.Tensor]) -> None:
        """A model in a budget. first: logits and gradients of the first model, which every other has bit for bit."""
        with self.steps.step(name):
            loaded: list[Any] = []
            more = {} if memory is None else {"memory": memory}
            spent = seconds(lambda: loaded.append(gs.load(folder, device=self.device, **more)), self.device)
            model = loaded.pop()
            source: Any = model.network.layer_source
            n_kept = len(getattr(source, "kept", ())) if memory else model.config.n_layers
            self.steps.say(f"{name}: loaded", s=round(spent, 1), layers=model.config.n_layers, kept=n_kept)
            self._same_bits(name, model, first)
            if memory is not None:
                self.time(f"{name}: copies alone", lambda: bring_all(source), 2)
            vocab_size, long = model.config.vocab_size, 8 if self.small else 512
            pair = [prompt(4 if self.small else 16, vocab_size, seed) for seed in (1, 2)]
            whole = prompt(long, vocab_size, 3)
            self.time(f"{name}: trace of {len(pair[0])}", lambda: gs.trace(pair[0], model=model).top(1))
            self.time(f"{name}: trace of {long}", lambda: gs.trace(whole, model=model).top(1))
            self.peak(f"{name}: trace of {long}", lambda: gs.trace(whole, model=model).top(1))

            def sweep() -> Any:
                return gs.sweep(*pair, METRIC, site="resid_pre", model=model, progress=False)

            self.time(f"{name}: sweep", sweep, 1, cells=model.config.n_layers * len(pair[0]))
            n = 3 if self.small else 9
            for count in (1, 2 if self.small else 16):
                many = [prompt(16, vocab_size, 20 + seed) for seed in range(count)]
                with self.steps.step(f"{name}: tokens"):
                    whole_s, first_s = (
                        median(lambda k=k, many=many: gs.generate(many, model=model, max_new_tokens=k), self.device, 1)  # type: ignore[misc]
                        for k in (n, 1)
                    )
                    self.steps.say(f"{name}: tokens", prompts=count, s_a_token=(whole_s - first_s) / (n - 1))
            self.time(f"{name}: gradients", lambda: gs.trace(pair[0], model=model).grad(METRIC, ("resid_pre", 0)), 1)
            self.peak(f"{name}: gradients", lambda: gs.trace(pair[0], model=model).grad(METRIC, ("resid_pre", 0)))
            self.time(f"{name}: a site of layer 1", lambda: gs.trace(pair[0], model=model)["z", 1], 1)
            self._same_bits(name, model, first)

    def _same_bits(self, name: str, model: Any, first: list[torch.Tensor]) -> None:
        """Passes forward and back in turn: each may find buffers that the other has left."""
        ids = prompt(16, model.config.vocab_size, 4)
        for _ in range(1 if self.small else 3):
            got = [gs.trace(ids, model=model).logits.cpu(), gs.trace(ids, model=model).grad(METRIC, ("resid_pre", 0)).cpu()]
            first.extend(got if not first else [])
            apart = [float((a - b).abs().max()) for a, b in zip(got, first, strict=True)]
            self.steps.say(f"{name}: logits and gradients beside resident", apart=apart)
            if any(apart):
                raise AssertionError(f"{name} differs from resident: {apart}")


def bring_all(source: Any) -> None:
    """Bring every streamed layer, and compute nothing."""
    for index in range(len(source.packed)):
        if index not in source.kept:
            source.transfer.wait(source.fill(index, source.buffers[0]))
            source.transfer.release(source.buffers[0])


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("steps", nargs="*", metavar="STEP", help="some of the steps; none means all")
    options.add_argument("--out", type=Path, help="the file of JSON lines; default results.jsonl in $OUT, or here")
    options.add_argument("--seconds", type=float, default=580, help="how long the machine is there")
    options.add_argument("--small", action="store_true", help="small shapes, on the CPU")
    given = options.parse_args()
    if not given.small and not torch.cuda.is_available():
        print("no CUDA GPU here: nothing was measured; --small tries the script on a CPU")
        return 2
    device = torch.device("cpu" if given.small else "cuda:0")
    path = given.out or Path(os.environ.get("OUT", ".")) / "results.jsonl"
    steps = Steps(path, given.seconds)
    with tempfile.TemporaryDirectory() as folder:
        card = Card(steps, device, given.small, Path(folder))
        each: dict[str, tuple[float, Callable[[], None]]] = {  # with the seconds that it takes on an H100
            "links": (5, card.links), "nano": (20, card.nano), "tests": (25, card.tests), "2b": (120, card.b2),
            "27b": (180, card.b27), "2b_stream": (40, card.b2_streamed),
            "sanitizer": (60, lambda: card.tests(TORCH_CUDA_SANITIZER="1")),
        }  # fmt: skip
        if unknown := set(given.steps) - set(each):
            options.error(f"no step {', '.join(sorted(unknown))}; there are {', '.join(each)}")
        steps.say("machine", command=" ".join(["python", *sys.argv]), **machine(device))
        for name, (needs, function) in each.items():
            if not given.steps or name in given.steps:
                steps.run(name, 0 if given.small else needs, function)
        steps.say("end", failed=steps.failed)
    return 1 if steps.failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""One model in many threads: every number equals the serial one, whatever runs beside it; no errors, no deadlocks.

GEMMASCOPE_CALLS=10000 makes the calls that the design asks for.
"""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import checkpoint, prompt
from torch import Tensor

import gemmascope as gs
import gemmascope.loading.load as load_module
from gemmascope.model.model import Model
from gemmascope.streaming.layer_stream import LayerStream

N_THREADS = 8
CALLS = int(os.environ.get("GEMMASCOPE_CALLS", "160"))
SECONDS = max(600, CALLS)  # after which a thread counts as stuck
METRIC = gs.logit_diff(5, 9)


def in_threads(task: Callable[[int], Any], n_threads: int = N_THREADS) -> list[Any]:
    """The result of each thread. AssertionError if one hangs; an error in a thread is raised here."""
    results: list[Any] = [None] * n_threads
    errors: list[BaseException] = []
    start = threading.Barrier(n_threads)

    def run(number: int) -> None:
        try:
            start.wait(SECONDS)
            results[number] = task(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive(), "a thread is stuck"
    if errors:
        raise errors[0]
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("threads")
    checkpoint("lgl").save_pretrained(path / "source")
    gs.quantize(path / "source", path / "int8")
    return path


def streamed(folder: Path, kept: tuple[int, ...] = ()) -> Model:
    model = gs.load(folder / "int8", memory="1GiB")
    layer_source: Any = model.network.layer_source
    model.network.layer_source = LayerStream(model.config, layer_source.packed, torch.float32, torch.device("cpu"), kept)
    return model


def calls_of(model: Model) -> list[Callable[[], Any]]:
    """Deterministic calls of every kind."""
    shared = gs.trace(prompt(11, seed=3), model=model)
    edits = [gs.ablate("z", layer=1, head=2)]
    options: dict[str, Any] = {"model": model, "progress": False}

    def trace(n: int) -> Callable[[], Any]:
        return lambda: gs.trace(prompt(n, seed=n), model=model).logits

    def read(site: str, layer: int) -> Callable[[], Any]:
        return lambda: shared[site, layer]

    return [
        *(trace(n) for n in (3, 7, 12)),
        lambda: gs.trace(prompt(9), model=model, edits=edits)["pattern", 2],
        lambda: gs.sweep(prompt(6), prompt(6, seed=1), METRIC, site="resid_pre", layer=1, **options).values,
        lambda: (
            gs.sweep(prompt(6), prompt(6, seed=1), METRIC, site="z", by=("layer", "head"), layer=[0, 2], **options).values
        ),
        lambda: gs.generate(prompt(5), model=model, max_new_tokens=4).ids,
        lambda: gs.generate(prompt(5), model=model, max_new_tokens=4, temperature=1.0, seed=7).ids,
        lambda: gs.trace(prompt(6), model=model).grad(METRIC, ("resid_pre", 1)),
        lambda: shared.lens().values,
        *(read(site, layer) for site in ("pattern", "z", "mlp_act", "q_rot") for layer in range(3)),
    ]


@pytest.mark.parametrize("residence", ["resident", "streamed", "partly streamed"])
def test_mixed_calls_of_many_threads_equal_serial_calls(folder: Path, residence: str) -> None:
    model = (
        gs.load(folder / "int8")
        if residence == "resident"
        else streamed(folder, (1,) if residence == "partly streamed" else ())
    )
    calls = calls_of(model)
    serial = [torch.as_tensor(call()) for call in calls]

    def task(number: int) -> int:
        draw = random.Random(number)
        for _ in range(CALLS // N_THREADS):
            which = draw.randrange(len(calls))
            result = torch.as_tensor(calls[which]())
            assert torch.equal(result, serial[which]), f"call {which} of thread {number}"
        return CALLS // N_THREADS

    assert sum(in_threads(task)) == CALLS // N_THREADS * N_THREADS
    assert not [thread.name for thread in threading.enumerate() if thread.name == "gemmascope-stream"]


def test_threads_that_end_in_the_middle_of_passes_do_not_block_others(folder: Path) -> None:
    model = streamed(folder)
    expected = gs.trace(prompt(9), model=model).logits
    open_passes: list[Any] = []

    def task(number: int) -> None:
        for i in range(6):
            if (number + i) % 3 == 0:
                layers = model.layers()
                next(layers)
                if number % 2:
                    open_passes.append(layers)
            else:
                assert torch.equal(gs.trace(prompt(9), model=model).logits, expected)

    in_threads(task)
    assert torch.equal(gs.trace(prompt(9), model=model).logits, expected)
    open_passes.clear()
    gc.collect()


def test_a_failing_edit_does_not_disturb_passes_of_other_threads(folder: Path) -> None:
    model = streamed(folder)
    expected = gs.trace(prompt(9), model=model).logits

    def failing(_: Tensor) -> Tensor:
        raise ZeroDivisionError

    def task(number: int) -> None:
        for _ in range(6):
            if number % 2:
                with pytest.raises(ZeroDivisionError):
                    gs.trace(prompt(9), model=model, edits=[gs.edit("z", failing, layer=number % 3)])
            else:
                assert torch.equal(gs.trace(prompt(9), model=model).logits, expected)

    in_threads(task)


def test_every_thread_reads_the_right_layer(folder: Path) -> None:
    model, resident = streamed(folder), gs.load(folder / "int8")

    def task(number: int) -> None:
        for i in range(6):
            layer = model.layer((number + i) % 3)
            expected = resident.layer((number + i) % 3)
            for name, parameter in layer.named_parameters():
                assert torch.equal(parameter, expected.get_parameter(name))
            gs.trace(prompt(5), model=model)

    in_threads(task)


def test_many_threads_load_one_nano(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "_LOADED", {})
    models = in_threads(lambda number: load_module.nano())
    assert all(one is models[0] for one in models)
    assert load_module.nano() is models[0]


# -- forks, and the interpreter's end --

SCRIPT = """
import os, sys, threading
import torch
torch.set_num_threads(1)
import gemmascope as gs
from gemmascope.streaming.layer_stream import LayerStream
model = gs.load(sys.argv[1], memory="1GiB")
model.network.layer_source = LayerStream(model.config, model.network.layer_source.packed, torch.float32, torch.device("cpu"))
ids = [2, 5, 9, 12]
expected = gs.trace(ids, model=model).logits
"""


def run(script: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT + script, str(folder / "int8")],
        capture_output=True, encoding="utf-8", timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("when", ["between passes", "in the middle of a pass", "in the middle of another thread's pass"])
def test_a_forked_process_has_passes_of_its_own(folder: Path, when: str) -> None:
    prepare = {
        "between passes": "",
        "in the middle of a pass": "open_pass = model.layers(); next(open_pass)",
        "in the middle of another thread's pass": """
inside, on = threading.Event(), threading.Event()
def slow(value):
    inside.set(); on.wait(60)
    return value
other = threading.Thread(target=lambda: gs.trace(ids, model=model, edits=[gs.edit("z", slow, layer=1)]), daemon=True)
other.start(); inside.wait(60)
""",
    }[when]
    output = run(
        prepare
        + """
child = os.fork()
if child == 0:
    try:
        for _ in range(3):
            assert torch.equal(gs.trace(ids, model=model).logits, expected)
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(1)
    os._exit(0)
status = os.waitpid(child, 0)[1]
if "on" in globals():
    on.set(); other.join(60)
    assert not other.is_alive()
assert torch.equal(gs.trace(ids, model=model).logits, expected)
print(status)
""",
        folder,
    )
    assert output == "0\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_pass_that_was_forked_in_the_middle_raises_a_package_error(folder: Path) -> None:
    output = run(
        """
open_pass = model.layers(); next(open_pass)
child = os.fork()
if child == 0:
    try:
        for layer in open_pass: pass
        print("went on", flush=True)
    except gs.GemmascopeError as error:
        print(type(error).__name__, flush=True)
    os._exit(0)
os.waitpid(child, 0)
""",
        folder,
    )
    assert output == "DeviceError\n"


def test_the_interpreter_ends_with_a_pass_left_open(folder: Path) -> None:
    start = "open_pass = model.layers(); next(open_pass)"
    assert run(f"{start}\nfor _ in range(2): gs.trace(ids, model=model)\n{start}\nprint('end')", folder) == "end\n"

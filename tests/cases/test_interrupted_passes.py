"""Ctrl-C at any point of a pass over streamed layers: the next pass in any thread has the right numbers."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from checkpoints import checkpoint, prompt
from torch import Tensor

import gemmascope as gs
from gemmascope.errors import CheckpointError, DeviceError
from gemmascope.model.model import Model
from gemmascope.streaming.layer_stream import LayerStream

IDS, SECONDS = prompt(9), 30

# Steps that are interrupted in each test: some 1,500 are possible.
STEPS = int(os.environ.get("GEMMASCOPE_STEPS", "16"))
OURS = ("stream.py", "pass_lock.py", "prefetch.py", "gemma2.py", "contextlib.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("interrupted")
    checkpoint("lgl").save_pretrained(path / "source")
    gs.quantize(path / "source", path / "int8")
    return path


@pytest.fixture(params=["int8", "source"])
def model(folder: Path, request: pytest.FixtureRequest) -> Model:
    """A model that streams all its layers."""
    streamed = gs.load(folder / request.param, memory="1GiB")
    layer_source: Any = streamed.network.layer_source
    streamed.network.layer_source = LayerStream(streamed.config, layer_source.packed, torch.float32, torch.device("cpu"))
    return streamed


@pytest.fixture
def expected(folder: Path, model: Model, request: pytest.FixtureRequest) -> Tensor:
    kind = request.node.callspec.params["model"]
    return gs.trace(IDS, model=gs.load(folder / kind)).logits


def in_another_thread(call: Callable[[], Any]) -> Any:
    """The result of a call in another thread. AssertionError if it hangs."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert not thread.is_alive(), "the other thread waits"
    assert results, "the other thread failed"
    return results[0]


def loading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "gemmascope-stream"]


class Interrupting:
    """Raises KeyboardInterrupt at these steps (bytecodes of OURS) of this thread, and counts the steps."""

    def __init__(self, *at: int) -> None:
        self.at, self.count = at, 0

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.endswith(OURS):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.count += 1
            if self.count in self.at:
                raise KeyboardInterrupt
        return self

    def run(self, call: Callable[[], Any]) -> BaseException | None:
        """The interrupt that the call raised, with its traceback, as a notebook keeps it; None if none was raised."""
        sys.settrace(self)
        try:
            call()
        except KeyboardInterrupt as error:
            return error
        finally:
            sys.settrace(None)
        return None


@pytest.mark.parametrize("apart", [None, 1, 25], ids=["once", "twice in a row", "twice"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # an interrupt while a generator is collected
def test_an_interrupt_at_any_step_leaves_the_stream_usable(model: Model, expected: Tensor, apart: int | None) -> None:
    def run() -> Any:
        return gs.trace(IDS, model=model)

    run()
    counting = Interrupting()
    assert counting.run(run) is None
    assert counting.count > 500
    n_interrupts = 0
    for step in range(1, counting.count, counting.count // STEPS):
        interrupt = Interrupting(step, *([] if apart is None else [step + apart])).run(run)
        n_interrupts += interrupt is not None
        assert torch.equal(in_another_thread(run).logits, expected), f"interrupted at step {step}"
        assert torch.equal(run().logits, expected), f"interrupted at step {step}"
        del interrupt
    assert n_interrupts > STEPS // 2
    gc.collect()
    assert torch.equal(run().logits, expected)
    assert loading_threads() == []


def test_an_interrupt_before_the_layers_are_closed_leaves_the_stream_usable(model: Model, expected: Tensor) -> None:
    def before_close(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_name == "__exit__" and isinstance(frame.f_locals.get("self"), closing):
            sys.settrace(None)
            raise KeyboardInterrupt

    def run() -> Any:
        return gs.trace(IDS, model=model)

    def failing(value: Tensor) -> Tensor:
        raise ZeroDivisionError

    sys.settrace(before_close)
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            gs.trace(IDS, model=model, edits=[gs.edit("z", failing, layer=1)])
    finally:
        sys.settrace(None)
    assert model.network.layer_source._lock._queue  # type: ignore[union-attr]
    assert torch.equal(in_another_thread(run).logits, expected)
    assert torch.equal(run().logits, expected)
    assert caught.value.__traceback__ is not None  # as a notebook keeps it


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer's signal")
def test_an_interrupt_ends_the_wait_for_another_threads_pass(model: Model, expected: Tensor) -> None:
    inside, release = threading.Event(), threading.Event()

    def slow(value: Tensor) -> Tensor:
        inside.set()
        release.wait(SECONDS)
        return value

    edits = [gs.edit("z", slow, layer=1)]
    holder = threading.Thread(target=lambda: gs.trace(IDS, model=model, edits=edits), daemon=True)
    holder.start()
    assert inside.wait(SECONDS)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(KeyboardInterrupt):
            gs.trace(IDS, model=model)
    finally:
        signal.signal(signal.SIGALRM, before)
        release.set()
    holder.join(SECONDS)
    assert not holder.is_alive()
    assert torch.equal(gs.trace(IDS, model=model).logits, expected)


# -- passes that are left in the middle --


def half_a_pass(model: Model) -> Iterator[Any]:
    layers: Iterator[Any] = model.layers()
    next(layers)
    return layers


@pytest.mark.parametrize("ending", ["closed", "collected", "broken off", "failed"])
def test_a_pass_that_is_left_half_way_does_not_block_the_next(model: Model, expected: Tensor, ending: str) -> None:
    kept: list[Any] = []
    if ending == "closed":
        half_a_pass(model).close()  # type: ignore[attr-defined]
    elif ending == "collected":
        half_a_pass(model)
        gc.collect()
    elif ending == "broken off":
        for _ in model.layers():
            break
    else:

        def failing(site: str, layer: int | None, value: Tensor) -> Tensor:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError) as caught:
            model.run(IDS, tap=failing)
        kept.append(caught)
    assert torch.equal(in_another_thread(lambda: gs.trace(IDS, model=model)).logits, expected)
    assert loading_threads() == []


def test_a_pass_within_a_pass_is_refused_and_the_outer_one_goes_on(model: Model, expected: Tensor) -> None:
    messages: list[str] = []

    def nested(value: Tensor) -> Tensor:
        with pytest.raises(DeviceError, match="one pass at a time") as caught:
            gs.trace(IDS, model=model)
        messages.append(str(caught.value))
        return value

    assert torch.equal(gs.trace(IDS, model=model, edits=[gs.edit("z", nested, layer=1)]).logits, expected)
    assert messages
    assert torch.equal(in_another_thread(lambda: gs.trace(IDS, model=model)).logits, expected)


def test_a_missing_file_is_an_error_until_it_is_back(model: Model, expected: Tensor, tmp_path: Path) -> None:
    layer_source: Any = model.network.layer_source
    path = layer_source.packed[1].ranges[0].path
    path.rename(tmp_path / "away")
    try:
        for _ in range(3):
            with pytest.raises(CheckpointError, match="cannot be read"):
                gs.trace(IDS, model=model)
    finally:
        (tmp_path / "away").rename(path)
    assert torch.equal(in_another_thread(lambda: gs.trace(IDS, model=model)).logits, expected)


def test_an_error_in_the_loading_thread_is_raised_in_the_caller(model: Model, expected: Tensor) -> None:
    layer_source: Any = model.network.layer_source
    fill = layer_source.transfer.fill

    def failing(*_: Any) -> None:
        raise MemoryError("none left")

    for _ in range(3):
        layer_source.transfer.fill = failing
        with pytest.raises(MemoryError, match="none left"):
            gs.trace(IDS, model=model)
        layer_source.transfer.fill = fill
        assert torch.equal(in_another_thread(lambda: gs.trace(IDS, model=model)).logits, expected)

"""Ctrl-C at any line of the code that writes a file leaves the complete old or new file, and nothing else."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from checkpoints import checkpoint, model, prompt

import gemmascope as gs

# An interrupt between opening a file and entering its block leaves the file to be closed when Python collects it.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

# The files whose lines are interrupted: the package's that write, and those of the library that they use.
WRITE = ("writing.py", "replace.py", "paths.py", "locking.py", "journal.py", "journal_lines.py", "saving.py", "convert.py",
         "streamed.py", "contextlib.py")  # fmt: skip


class Interrupting:
    """Raises KeyboardInterrupt at the k-th line that is run in the files above; counts them if k is None."""

    def __init__(self, line_to_interrupt: int | None) -> None:
        self.line_to_interrupt, self.lines_run = line_to_interrupt, 0

    def __enter__(self) -> Interrupting:
        sys.settrace(self._call)
        return self

    def __exit__(self, *exception: Any) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._line if frame.f_code.co_filename.endswith(WRITE) else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            self.lines_run += 1
            if self.lines_run == self.line_to_interrupt:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._line


def interrupted_anywhere(what: Callable[[], Any], check: Callable[[], Any], most: int, seed: int = 0) -> None:
    """Run it once whole, and then once with an interrupt at each of a sample of its lines.

    In a thread that ends with the test: where a tracing function raises in an exception's handler, CPython never leaves
    that handler, and what the exception holds stays alive as long as the thread.
    """
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_interrupted_anywhere, what, check, most, seed).result()
    assert sys.exc_info() == (None, None, None)


def _interrupted_anywhere(what: Callable[[], Any], check: Callable[[], Any], most: int, seed: int) -> None:
    with Interrupting(None) as counting:
        what()
    assert counting.lines_run > 20
    check()
    places = range(1, counting.lines_run + 1)
    stopped = 0
    for k in sorted(random.Random(seed).sample(places, min(most, len(places)))):
        try:
            with Interrupting(k):
                what()
        except KeyboardInterrupt:  # noqa: PERF203
            stopped += 1
            check()
    assert stopped > 10
    what()  # no lock and no partial file is left
    check()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_trace_is_saved_completely_or_not_at_all(tmp_path: Path) -> None:
    old, new = (gs.trace([3, 5, n], model=model("lg")) for n in (9, 10))
    old.save(tmp_path / "t")

    def check() -> None:
        assert names(tmp_path) == {"t"}
        assert gs.open_trace(tmp_path / "t", model=model("lg")).ids.tolist() in ([3, 5, 9], [3, 5, 10])

    interrupted_anywhere(lambda: new.save(tmp_path / "t"), check, 200)


def test_a_view_is_saved_completely_or_not_at_all(tmp_path: Path) -> None:
    view = gs.attention_view(gs.trace("Mary went"))

    def check() -> None:
        assert names(tmp_path) <= {"v.html"}
        assert not (tmp_path / "v.html").exists() or (tmp_path / "v.html").read_text().rstrip().endswith("</html>")
        (tmp_path / "v.html").unlink(missing_ok=True)

    interrupted_anywhere(lambda: view.save(tmp_path / "v.html"), check, 200)


@pytest.mark.filterwarnings("ignore:interrupted")
def test_an_interrupted_sweep_leaves_a_file_that_can_be_resumed(tmp_path: Path) -> None:
    def metric(logits: Any) -> Any:
        return logits[:, 5] - logits[:, 9]

    def sweep() -> Any:
        return gs.sweep(
            prompt(4), prompt(4, seed=1), metric, site="z", by=("layer", "head"), model=model("lg"), out=tmp_path / "s"
        )

    complete = sweep().values
    (tmp_path / "s").unlink()

    def check() -> None:
        assert names(tmp_path) <= {"s"}
        if (tmp_path / "s").exists():
            assert np.allclose(sweep().values, complete, atol=1e-5)  # it can be resumed, by this process at once
            assert gs.open_sweep(tmp_path / "s").finished.all()
            (tmp_path / "s").unlink()

    interrupted_anywhere(sweep, check, 120)


def test_an_interrupted_conversion_leaves_complete_files_and_can_be_resumed(tmp_path: Path) -> None:
    checkpoint("lg", hidden_size=128, intermediate_size=128).save_pretrained(tmp_path / "source")
    gs.quantize(tmp_path / "source", tmp_path / "whole")
    expected = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}

    def check() -> None:
        written = names(tmp_path / "q") if (tmp_path / "q").exists() else set()
        assert written <= set(expected)
        assert all((tmp_path / "q" / name).read_bytes() == expected[name] for name in written - {"gemmascope.json", ".lock"})

    interrupted_anywhere(lambda: gs.quantize(tmp_path / "source", tmp_path / "q"), check, 60)
    assert gs.load(tmp_path / "q").n_layers == 2


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError])
def test_a_broken_download_removes_its_own_partial_files_only(
    kind: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    from gemmascope.checkpoints import hub
    from gemmascope.files.locking import lock

    blobs, locks = tmp_path / "models--a--b" / "blobs", tmp_path / ".locks" / "models--a--b"
    for folder in (blobs, locks):
        folder.mkdir(parents=True)

    def breaking(*_: Any, **__: Any) -> None:
        for name in ("mine.1.incomplete", "mine.incomplete", "other.2.incomplete", "whole"):
            (blobs / name).touch()
        raise kind("the wire is cut")

    (locks / "mine.lock").touch()
    (blobs / "old.incomplete").touch()
    os.utime(blobs / "old.incomplete", (0, 0))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", breaking)
    monkeypatch.setattr(hub, "_is_unreachable", lambda *_: False)
    monkeypatch.setattr(hub, "_unreachable", {})
    with (locks / "other.lock").open("w") as lock_file:
        assert lock(lock_file, wait=False)
        with pytest.raises((KeyboardInterrupt, gs.errors.CheckpointError)):
            hub.fetch_tokenizer("a/b")
    assert names(blobs) == {"old.incomplete", "other.2.incomplete", "whole"}

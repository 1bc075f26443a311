"""Steps of a script on a machine rented by the minute: each writes what it found at once, and may fail alone."""

from __future__ import annotations

import contextlib
import gc
import json
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch


class Steps:
    """A record of JSON lines, on the screen and in a file, flushed after each."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.seconds, self.start, self.failed = path, seconds, time.monotonic(), 0

    @property
    def left(self) -> float:
        """Seconds until the time is up."""
        return self.seconds - (time.monotonic() - self.start)

    def say(self, step: str, **found: Any) -> None:
        line = json.dumps({"step": step, **found, "at": round(time.monotonic() - self.start, 1)}, default=str)
        print(line, flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """What fails inside is recorded, and the script goes on; an interrupt ends it."""
        begun = time.monotonic()
        try:
            yield
        except Exception as error:
            self.failed += 1
            self.say(
                name, error=f"{type(error).__name__}: {str(error)[:600]}", where=traceback.format_exc()[-900:],
                took=round(time.monotonic() - begun, 1),
            )  # fmt: skip
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def run(self, name: str, needs: float, function: Callable[[], None]) -> None:
        """A step that takes some seconds; left out, and said so, where fewer are left."""
        if self.left < needs:
            self.failed += 1
            self.say(name, left_out=f"{self.left:.0f} s are left, it needs some {needs:.0f}")
            return
        begun = time.monotonic()
        with self.step(name):
            function()
        self.say(f"{name}: end", took=round(time.monotonic() - begun, 1))

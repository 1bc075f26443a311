"""The end of the interpreter: computations of daemon threads are stopped before it, between two layers.

Python ends a daemon thread wherever it next asks for the interpreter's lock. Where that is inside torch, the process aborts.
Python itself waits for the other threads, so they go on.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

# Seconds that an interpreter waits at its end for a thread: for the layer that it is at, and then for it to be gone.
PATIENCE, FAREWELL = 20.0, 2.0

_under_way: dict[threading.Thread, int] = {}
_stopped: set[threading.Thread] = set()
_ending, _ended = threading.Event(), threading.Event()


@contextmanager
def stopping_at_exit() -> Iterator[None]:
    """Around whatever computes. At the interpreter's end SystemExit in a daemon thread, which ends the thread in silence."""
    thread = threading.current_thread()
    if not thread.daemon:
        yield
        return
    if _ended.is_set() and thread not in _under_way:  # nobody waits any more: what its frames hold must not be freed
        threading.Event().wait()
    _under_way[thread] = _under_way.get(thread, 0) + 1
    try:
        stop_at_exit()
        yield
        stop_at_exit()
    finally:
        _under_way[thread] -= 1
        if not _under_way[thread]:
            if _ending.is_set():
                _stopped.add(thread)
            del _under_way[thread]


def stop_at_exit() -> None:
    """Called between the layers of a pass. SystemExit in a daemon thread once the interpreter ends."""
    if _ending.is_set() and threading.current_thread().daemon:
        raise SystemExit


@atexit.register
def _end() -> None:
    """Stop what is under way, and wait until its threads are gone: while they go, they free tensors."""
    _ending.set()
    _wait_for(_under_way, PATIENCE)
    _wait_for(_stopped, FAREWELL)
    _ended.set()


def _wait_for(threads: dict[threading.Thread, int] | set[threading.Thread], seconds: float) -> None:
    until = time.monotonic() + seconds
    while any(thread.is_alive() for thread in list(threads)) and time.monotonic() < until:
        time.sleep(0.002)

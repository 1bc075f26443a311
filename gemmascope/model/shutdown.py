"""Stops computations in daemon threads, between two layers, before the interpreter exits.

Python ends a daemon thread when it next takes the interpreter's lock. If that happens inside torch, the process aborts.
Other threads are waited for by Python.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

# Seconds to wait at exit for a thread: to finish its layer, and then to end.
LAYER_TIMEOUT, END_TIMEOUT = 20.0, 2.0

_computing: dict[threading.Thread, int] = {}
_stopped: set[threading.Thread] = set()
_ending, _ended = threading.Event(), threading.Event()


@contextmanager
def stopping_at_exit() -> Iterator[None]:
    """Around a computation. At exit it raises SystemExit in a daemon thread, which ends the thread silently."""
    thread = threading.current_thread()
    if not thread.daemon:
        yield
        return
    if _ended.is_set() and thread not in _computing:  # too late to be waited for: block, so that nothing is freed
        threading.Event().wait()
    _computing[thread] = _computing.get(thread, 0) + 1
    try:
        stop_at_exit()
        yield
        stop_at_exit()
    finally:
        _computing[thread] -= 1
        if not _computing[thread]:
            if _ending.is_set():
                _stopped.add(thread)
            del _computing[thread]


def stop_at_exit() -> None:
    """Called between the layers of a pass. Raises SystemExit in a daemon thread once the interpreter exits."""
    if _ending.is_set() and threading.current_thread().daemon:
        raise SystemExit


@atexit.register
def _end() -> None:
    """Stop the computations, and wait for their threads to end, since ending threads free tensors."""
    _ending.set()
    _wait_for(_computing, LAYER_TIMEOUT)
    _wait_for(_stopped, END_TIMEOUT)
    _ended.set()


def _wait_for(threads: dict[threading.Thread, int] | set[threading.Thread], seconds: float) -> None:
    until = time.monotonic() + seconds
    while any(thread.is_alive() for thread in list(threads)) and time.monotonic() < until:
        time.sleep(0.002)

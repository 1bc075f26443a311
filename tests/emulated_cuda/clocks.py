"""Streams, events and the order between them, by vector clocks: which access is known to be over when another begins.

A line is what does one thing after another: a stream, or a thread of the host. Its clock says, for each line, up to which of
its steps everything is over before what this line does next. Two accesses to the same bytes, one of them a write, race if
neither is known to be over when the other begins.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from emulated_cuda.counts import line_of_package

_numbers = itertools.count()


class Line:
    """A stream, or a thread of the host."""

    def __init__(self, name: str) -> None:
        self.name = f"{name} {next(_numbers)}"
        self.clock: dict[str, int] = {}

    def step(self) -> int:
        self.clock[self.name] = self.clock.get(self.name, 0) + 1
        return self.clock[self.name]

    def wait_for(self, clock: dict[str, int]) -> None:
        for name, time in list(clock.items()):
            if time > self.clock.get(name, 0):
                self.clock[name] = time

    def knows(self, access: Access) -> bool:
        """Whether an access is over before what this line does next."""
        return self.clock.get(access.line, 0) >= access.time


class Access(NamedTuple):
    """Bytes start to stop of an allocation, read or written by a line at one of its steps."""

    line: str
    time: int
    start: int
    stop: int
    write: bool
    place: str

    def __str__(self) -> str:
        return f"{'write' if self.write else 'read'} by {self.line.rpartition(' ')[0]} at {self.place}"


class Accesses:
    """The accesses to an allocation that may still be under way for some line."""

    def __init__(self) -> None:
        self.latest: dict[tuple[str, bool, int, int], Access] = {}

    def add(self, line: Line, start: int, stop: int, *, write: bool) -> list[Access]:
        """Record an access. Returns those that it races with."""
        access = Access(line.name, line.step(), start, stop, write, line_of_package())
        found = [
            other
            for other in self.latest.values()
            if (write or other.write)
            and other.line != line.name
            and other.start < stop
            and start < other.stop
            and not line.knows(other)
        ]
        self.latest[line.name, write, start, stop] = access
        return found

    def unknown_to(self, line: Line, *, besides: frozenset[str] = frozenset()) -> list[Access]:
        """The accesses of other streams that may still be under way when this line goes on."""
        return [
            access
            for access in self.latest.values()
            if access.line.startswith("stream") and access.line not in besides and not line.knows(access)
        ]


_threads = threading.local()


def host() -> Line:
    """The line of the present thread."""
    if not hasattr(_threads, "line"):
        _threads.line = Line("host")
    return _threads.line  # type: ignore[no-any-return]


class Stream(Line):
    """torch.cuda.Stream."""

    def __init__(self, device: Any = None, priority: int = 0, **_: object) -> None:
        super().__init__("stream")
        self.device = device_of(device)

    def launch(self) -> None:
        """Something is put into this stream: it begins after all that the host knows to be over."""
        self.wait_for(host().clock)

    def wait_event(self, event: Event) -> None:
        self.launch()
        self.wait_for(event.clock)

    def wait_stream(self, other: Stream) -> None:
        self.launch()
        self.wait_for(other.clock)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        from emulated_cuda.device import emulated

        emulated().counts.sync("stream.synchronize")
        host().wait_for(self.clock)

    def query(self) -> bool:
        return True


class Event:
    """torch.cuda.Event."""

    def __init__(self, *_: object, **__: object) -> None:
        self.clock: dict[str, int] = {}

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or current_stream()
        stream.launch()
        self.clock = dict(stream.clock)

    def wait(self, stream: Stream | None = None) -> None:
        (stream or current_stream()).wait_event(self)

    def synchronize(self) -> None:
        from emulated_cuda.device import emulated

        emulated().counts.sync("event.synchronize")
        host().wait_for(self.clock)

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Event) -> float:
        return 0.0


# -- the present device and streams of a thread --


def device_of(device: Any = None) -> torch.device:
    """A CUDA device with its index: the thread's present one if none is said."""
    if device is None:
        return torch.device("cuda", current_device())
    found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return torch.device("cuda", current_device()) if found.index is None else found


def current_device() -> int:
    return getattr(_threads, "device", 0)


def exchange_device(index: int) -> int:
    """Make a device the thread's present one. Returns the one before. A negative index changes nothing."""
    before = current_device()
    if index >= 0:
        _threads.device = index
    return before


def default_stream(device: Any = None) -> Stream:
    from emulated_cuda.device import emulated

    return emulated().default_streams[device_of(device).index]


def current_stream(device: Any = None) -> Stream:
    found = device_of(device)
    chosen: dict[int, Stream] = getattr(_threads, "streams", {})
    return chosen.get(found.index) or default_stream(found)


@contextmanager
def stream_context(stream: Stream | None) -> Iterator[None]:
    """torch.cuda.stream: a stream and its device become the thread's present ones."""
    if stream is None:
        yield
        return
    before, device = dict(getattr(_threads, "streams", {})), exchange_device(stream.device.index)
    _threads.streams = before | {stream.device.index: stream}
    try:
        yield
    finally:
        _threads.streams = before
        exchange_device(device)

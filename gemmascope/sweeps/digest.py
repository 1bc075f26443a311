"""Digests: a hash of all that goes into a sweep, so that a file is not continued by another sweep.

A user's function is hashed by its bytecode and the data that the code reads: defaults, closure and globals. Bytecode depends
on the version of Python, so a function counts as changed under another version.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Iterable, Iterator
from types import CellType, CodeType, FunctionType, MethodType

import numpy as np
import torch
from torch import Tensor, nn

from gemmascope.edits.edit import BoundEdit
from gemmascope.model.digests import tensor_digest
from gemmascope.run.trace import Trace

Part = str | bytes


def digest(parts: Iterable[Part]) -> str:
    """A hash of these parts, in sixteen letters. Their lengths are hashed too: "ab", "c" differs from "a", "bc"."""
    sha256 = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha256.update(f"{len(data)}:".encode() + data)
    return sha256.hexdigest()[:16]


def run_parts(ids: Tensor, edits: Iterable[BoundEdit]) -> Iterator[Part]:
    """The parts of a run: its token ids, and its edits with the values that they write."""
    yield repr(ids.tolist())
    for edit in edits:
        yield repr(edit.edit)
        if isinstance(edit.values, Tensor):
            yield from _of_tensor(edit.values)
        if edit.edit.extra_hash is not None:
            yield from _Walk().of(edit.edit.extra_hash)


def trace_parts(trace: Trace, fingerprint: str | None = None) -> Iterator[Part]:
    """The parts of a trace: its model and its run. fingerprint: the model's, if it is known: it reads all weights."""
    yield trace.model.fingerprint if fingerprint is None else fingerprint
    yield from run_parts(trace.ids, trace.bound_edits)


def traces_parts(traces: Iterable[Trace]) -> list[Part]:
    """The parts of several traces. Each model's weights are read once."""
    fingerprints: dict[int, str] = {}
    parts: list[Part] = []
    for trace in traces:
        if id(trace.model) not in fingerprints:
            fingerprints[id(trace.model)] = trace.model.fingerprint
        parts += trace_parts(trace, fingerprints[id(trace.model)])
    return parts


def metric_parts(metric: object) -> Iterator[Part]:
    """The parts of a metric, or of several, that its text does not show: a function's code, and the run of gs.kl_from."""
    if isinstance(metric, (list, tuple)):
        for one in metric:
            yield from metric_parts(one)
    elif hasattr(metric, "bind"):
        yield from _Walk().of([value for value in getattr(metric, "__dict__", {}).values() if isinstance(value, Trace)])
        if callable(function := getattr(metric, "function", None)):  # of gs.metric
            yield from _Walk().of(function)
    else:
        yield from _Walk().of(metric)


class _Walk:
    """A walk through data and functions that may refer to each other."""

    def __init__(self) -> None:
        # By id, with the order in which they came. The value is kept, so that no other value gets its id.
        self._seen: dict[int, tuple[int, object]] = {}

    def of(self, value: object) -> Iterator[Part]:
        """The parts of plain data, of tensors and traces, and of functions; of anything else, its type."""
        yield type(value).__qualname__
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
            yield repr(value)
        elif isinstance(value, Trace):
            yield from trace_parts(value)
        elif isinstance(value, Tensor):
            yield from _of_tensor(value)
        elif isinstance(value, (np.ndarray, np.generic)) and value.dtype != object:
            yield f"{value.dtype} {value.shape}"
            yield value.tobytes()
        elif isinstance(value, tuple):  # not in _seen: the compiler may or may not make one object of two equal constants
            yield from self._each(value)
        elif isinstance(value, (set, frozenset)):
            yield from sorted(digest(_Walk().of(item)) for item in value)  # the order of a set differs between processes
        elif id(value) in self._seen:
            yield str(self._seen[id(value)][0])
        else:
            self._seen[id(value)] = len(self._seen), value
            yield from self._inside(value)

    def _each(self, values: Collection[object]) -> Iterator[Part]:
        yield str(len(values))
        for value in values:
            yield from self.of(value)

    def _inside(self, value: object) -> Iterator[Part]:
        if isinstance(value, list):
            yield from self._each(value)
        elif isinstance(value, dict):
            yield from self._each(value.items())
        elif isinstance(value, np.ndarray):
            yield from self.of(value.tolist())
        else:
            yield from self._called(value)

    def _called(self, fn: object) -> Iterator[Part]:
        """The parts of a callable. Of an object only its class's code: its attributes may change as it is called."""
        if isinstance(fn, FunctionType):
            yield from self._function(fn)
        elif isinstance(fn, MethodType):
            yield from self.of(fn.__func__)
        elif isinstance(fn, functools.partial):
            yield from self.of((fn.func, fn.args, fn.keywords))
        elif isinstance(fn, nn.Module):
            yield from self.of((type(fn).forward, fn.state_dict()))
        elif isinstance(call := getattr(type(fn), "__call__", None), FunctionType):  # noqa: B004
            yield from self.of(call)
        else:
            yield f"{getattr(fn, '__module__', '')} {getattr(fn, '__qualname__', '')}"

    def _function(self, fn: FunctionType) -> Iterator[Part]:
        own = next(value for _, value in self._seen.values() if isinstance(value, FunctionType))
        if fn.__module__ != own.__module__:  # a library's function that the user's calls: its name is enough
            yield f"{fn.__module__} {fn.__qualname__}"
            return
        yield from self._code(fn.__code__)
        names = sorted(name for name in _names(fn.__code__) if name in fn.__globals__)
        yield from self.of((fn.__defaults__, fn.__kwdefaults__, tuple(_contents(cell) for cell in fn.__closure__ or ())))
        yield from self.of(tuple((name, fn.__globals__[name]) for name in names))

    def _code(self, code: CodeType) -> Iterator[Part]:
        yield code.co_code
        yield repr(code.co_names)
        for constant in code.co_consts:
            yield from self._code(constant) if isinstance(constant, CodeType) else self.of(constant)


def _of_tensor(value: Tensor) -> Iterator[Part]:
    value = value.detach().to_dense() if value.layout != torch.strided else value.detach()
    yield tensor_digest(value)


def _contents(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # a variable without a value yet
        return None


def _names(code: CodeType) -> set[str]:
    """The names that code reads, with those of functions inside it."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*inner)

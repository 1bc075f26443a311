"""Tensors of an emulated device, and what may be done with them: CUDA's rules about mixing devices.

To torch's C++ a CudaTensor is on the CPU, so that autograd runs; to Python it is on cuda:0 or another device. Every operator
reaches `dispatch`, which checks the devices, computes with the plain tensors inside, and records who accesses which memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emulated_cuda.clocks import current_stream, device_of, host
from emulated_cuda.counts import line_of_package
from emulated_cuda.memory import Allocation, span_of

aten = torch.ops.aten
_plain_to = torch.Tensor.to
_plain_is_pinned = torch.Tensor.is_pinned

_EMULATION = str(Path(__file__).parent)

# Operators that compute nothing.
_NO_KERNEL = frozenset(
    ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "_reshape_alias", "detach",
     "alias", "lift_fresh", "_local_scalar_dense")
)  # fmt: skip
_INDEXING = frozenset(("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"))
# Operators, besides the pointwise ones, whose scalar operands may be 0-dim tensors of the CPU.
_SCALARS_ALLOWED = frozenset(("where", "fill_", "fill", "masked_fill", "masked_fill_", "index_fill", "index_fill_", "lerp"))
_METADATA_OF = frozenset(("empty_like", "zeros_like", "ones_like", "full_like", "new_empty", "new_zeros", "new_full"))


class CudaTensor(torch.Tensor):
    """A tensor on an emulated device. inner: the plain tensor that holds its numbers."""

    inner: Tensor
    allocation: Allocation

    @staticmethod
    def __new__(cls, inner: Tensor, allocation: Allocation) -> CudaTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device="cpu", requires_grad=False,
        )  # fmt: skip
        made.inner, made.allocation = inner, allocation
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.allocation.memory.device

    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self) -> int:
        return self.device.index

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    def record_stream(self, stream: Any) -> None:
        self.allocation.also_used_by.add(stream.name)

    def tolist(self) -> Any:
        return move(self, torch.device("cpu")).tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory "
            "first."
        )

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"CudaTensor({self.inner!r}, device={str(self.device)!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, requires_grad=self.requires_grad)
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, _: Any) -> Any:
        raise NotImplementedError("emulated tensors cannot be pickled")


def on_device(inner: Tensor, device: torch.device) -> CudaTensor:
    """A plain tensor's memory, taken as memory of a device."""
    from emulated_cuda.device import emulated

    return CudaTensor(inner, emulated().memories[device.index].of(inner))


def plain(value: Any) -> Any:
    """A CudaTensor's inner tensor; lists and tuples of them likewise; everything else as it is."""
    if isinstance(value, CudaTensor):
        return value.inner
    return type(value)(map(plain, value)) if type(value) in (list, tuple) else value


def tensors_in(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif type(value) in (list, tuple):
            yield from tensors_in(value)


def dispatch(func: Any, args: Any, kwargs: Any) -> Any:
    """One operator, as the device would do it."""
    name = _name(func)
    if (special := _SPECIAL.get(name)) is not None:
        return special(func, args, kwargs)
    given = list(tensors_in((*args, *kwargs.values())))
    ours = [one for one in given if isinstance(one, CudaTensor)]
    wanted = kwargs.get("device")
    device = _device_of_result(name, ours, wanted)
    if device is None:
        return func(*(plain(args) if ours else args), **{key: plain(value) for key, value in kwargs.items()})
    require_one_device(func, name, args, given, ours)
    if isinstance(generator := kwargs.get("generator"), torch.Generator) and not getattr(generator, "on_cuda", False):
        raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu' ({line_of_package()})")
    if wanted is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if "pin_memory" in kwargs:
        kwargs = {**kwargs, "pin_memory": False}
    inner_args, inner_kwargs = plain(args), {key: plain(value) for key, value in kwargs.items()}
    found = func(*inner_args, **inner_kwargs)
    if not _is_view(func):
        _record(func, name, args, kwargs, ours, inner_args, inner_kwargs, found)
    if torch.Tag.inplace_view in func.tags:  # the shape of the inner tensor has changed; so must that of the outer one
        with torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
            func(*args, **kwargs)
    known = {id(one.inner): one for one in ours}
    return _wrapped(found, known, device)


@cache
def _name(func: Any) -> str:
    return func._schema.name.removeprefix("aten::")  # type: ignore[no-any-return]


def _wrapped(value: Any, known: dict[int, CudaTensor], device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return known[id(value)] if id(value) in known else on_device(value, device)
    return type(value)(_wrapped(one, known, device) for one in value) if type(value) in (list, tuple) else value


def _device_of_result(name: str, ours: list[CudaTensor], wanted: torch.device | None) -> torch.device | None:
    """The emulated device that an operator runs on; None for the CPU, or for shapes without values."""
    if wanted is not None and torch.device(wanted).type == "cuda":
        return device_of(wanted)
    if wanted is not None and ours and torch.device(wanted).type != "cpu":
        return None
    if wanted is not None and ours and name in _METADATA_OF and not _in_torch_own_backward():
        return None  # x.new_zeros(..., device="cpu")
    return ours[0].device if ours else None  # C++ code asks for the CPU where it means the device of its operand


def _record(
    func: Any, name: str, args: Any, kwargs: Any, ours: list[CudaTensor], inner_args: Any, inner_kwargs: Any, found: Any
) -> None:
    """Count an operator that is no view, and note what it reads and writes."""
    from emulated_cuda.device import emulated

    counts, stream = emulated().counts, current_stream(ours[0].device if ours else None)
    stream.launch()
    written = {id(args[at] if at < len(args) else kwargs.get(name)) for at, name in _written_arguments(func)}
    for one in ours:
        one.allocation.access(stream, one.inner, write=id(one) in written)
    if name not in _NO_KERNEL:
        emulated().report_last_error()
        counts.kernel(name)
        emulated().capture(func, inner_args, inner_kwargs, found)
    if _waits(func, name, args):
        counts.sync(name)
        host().wait_for(stream.clock)


@cache
def _written_arguments(func: Any) -> list[tuple[int, str]]:
    """The places and names of the arguments that an operator writes to."""
    each = enumerate(func._schema.arguments)
    return [(at, said.name) for at, said in each if said.alias_info is not None and said.alias_info.is_write]


@cache
def _is_view(func: Any) -> bool:
    if torch.Tag.inplace_view in func.tags:
        return True
    return any(said.alias_info is not None and not said.alias_info.is_write for said in func._schema.arguments)


def _waits(func: Any, name: str, args: Any) -> bool:
    """Whether the host must see values before it goes on: sizes or numbers that depend on them."""
    if name in _INDEXING:
        return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags


# -- the rules --


def require_one_device(func: Any, name: str, args: Any, given: list[Tensor], ours: list[CudaTensor]) -> None:
    """RuntimeError, as torch words it, for operands on devices that do not go together."""
    if len({one.device for one in ours}) > 1:
        raise _mismatch(func, given)
    others = [one for one in given if not isinstance(one, CudaTensor)]
    if not others or not ours or _in_torch_own_backward():
        return
    if name in _INDEXING:
        if not isinstance(args[0], CudaTensor):
            raise _mismatch(func, given, "indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        if len(args) > 2 and not isinstance(args[2], CudaTensor) and args[2].dim() > 0:
            raise _mismatch(func, given)
        _count_moved_indices(args[1])
        return
    if torch.Tag.pointwise in func.tags or name in _SCALARS_ALLOWED:
        mask = args[1] if name.startswith("masked_fill") else None
        into = args[0] if name.endswith("_") else None
        if any(one.dim() > 0 or one is mask or one is into for one in others):
            raise _mismatch(func, given)
        return
    raise _mismatch(func, given)


def _in_torch_own_backward() -> bool:
    """Whether C++ code of autograd called: it makes tensors where it believes its operands to be, on the CPU."""
    if torch._C._current_graph_task_id() == -1:
        return False
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_EMULATION):
        frame = frame.f_back
    return frame.f_code.co_filename.replace("\\", "/").endswith("torch/autograd/graph.py")


def _count_moved_indices(indices: Any) -> None:
    """Indices on the CPU are copied to the device first, from pageable memory."""
    from emulated_cuda.device import emulated

    for index in indices:
        if isinstance(index, Tensor) and not isinstance(index, CudaTensor):
            emulated().counts.pageable[line_of_package()] += 1
            emulated().counts.sync("indices on the CPU")


def _mismatch(func: Any, given: list[Tensor], why: str = "") -> RuntimeError:
    devices = " and ".join(sorted({str(one.device) for one in given}))
    return RuntimeError(
        why or f"Expected all tensors to be on the same device, but found at least two devices, {devices}! ({func})"
    )


# -- copies between devices --


class _Moved(torch.autograd.Function):
    """A move that gradients go back through."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, device: torch.device, dtype: Any, non_blocking: bool) -> Tensor:
        ctx.device, ctx.dtype = source.device, source.dtype
        return _moved(source, device, dtype, non_blocking)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return move(grads[0], ctx.device, ctx.dtype), None, None, None


def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Tensor.to, of plain and of emulated tensors."""
    other = args[0] if args and isinstance(args[0], Tensor) else kwargs.get("other")
    if other is not None:
        args, kwargs = (other.device, other.dtype, *args[1:]), {k: v for k, v in kwargs.items() if k != "other"}
    copy = bool(kwargs.pop("copy", False))
    device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    device = self.device if device is None else device_of(device) if device.type == "cuda" else device
    if "cuda" not in (self.device.type, device.type):
        return _plain_to(self, *args, **kwargs, copy=copy)
    if device != self.device:
        return move(self, device, dtype, non_blocking)
    if dtype in (None, self.dtype) and not copy:
        return self
    return aten._to_copy.default(self, dtype=dtype or self.dtype, memory_format=memory_format)  # type: ignore[no-any-return]


def move(source: Tensor, device: torch.device, dtype: torch.dtype | None = None, non_blocking: bool = False) -> Tensor:
    """A copy of a tensor on another device."""
    if device == source.device:
        return source
    if torch.is_grad_enabled() and source.requires_grad:
        return _Moved.apply(source, device, dtype, non_blocking)  # type: ignore[no-any-return]
    with torch.no_grad():
        return _moved(source.detach(), device, dtype, non_blocking)


def _moved(source: Tensor, device: torch.device, dtype: torch.dtype | None, non_blocking: bool) -> Tensor:
    if device.type == "meta":
        return torch.empty_like(plain(source), dtype=dtype, device="meta")
    made = aten._to_copy.default(plain(source), dtype=dtype or source.dtype)
    if made.data_ptr() == plain(source).data_ptr():
        made = made.clone()
    into = on_device(made, device) if device.type == "cuda" else made
    _copied(into, source, non_blocking)
    return into


def _copied(into: Tensor, source: Tensor, non_blocking: bool) -> None:
    """Note a copy: who reads and writes, and whether the host waits for it."""
    from emulated_cuda.device import emulated

    counts, locked = emulated().counts, emulated().page_locked
    if isinstance(into, CudaTensor) and isinstance(source, CudaTensor):
        _copied_on_devices(into, source)
        return
    if emulated().capturing is not None:
        raise RuntimeError("operation not permitted when stream is capturing: a copy from or to the host")
    device = into.device if isinstance(into, CudaTensor) else source.device
    stream = current_stream(device)
    stream.launch()
    for one, writes in ((source, False), (into, True)):
        if isinstance(one, CudaTensor):
            one.allocation.access(stream, one.inner, write=writes)
        else:
            start, stop = span_of(one)
            locked.access(stream, one.untyped_storage().data_ptr() + start, stop - start, write=writes)
    n_bytes = source.numel() * source.element_size()
    side = source if isinstance(into, CudaTensor) else into
    pinned = is_pinned(side)
    if isinstance(into, CudaTensor):
        counts.to_device += n_bytes
    else:
        counts.to_host += n_bytes
    if not pinned:
        counts.pageable[line_of_package()] += 1
    if not (pinned and non_blocking):
        counts.sync("to the host" if side is into else "to the device")  # torch waits, even for what is already staged
        host().wait_for(stream.clock)


def _copied_on_devices(into: CudaTensor, source: CudaTensor) -> None:
    """Note a copy on a device or between two. The source's stream copies; the other one's waits, and the host does not."""
    from emulated_cuda.device import emulated

    counts, stream, target = emulated().counts, current_stream(source.device), current_stream(into.device)
    between = into.device != source.device
    stream.launch()
    if between:
        stream.wait_stream(target)
        counts.between_devices[line_of_package()] += 1
    source.allocation.access(stream, source.inner, write=False)
    into.allocation.access(stream, into.inner, write=True)
    if between:
        target.wait_stream(stream)
    counts.kernel("copy_")


def _copy_(func: Any, args: Any, kwargs: Any) -> Any:
    into, source = args[0], args[1]
    if not isinstance(into, CudaTensor) and not isinstance(source, CudaTensor):
        return func(*args, **kwargs)
    non_blocking = bool(args[2]) if len(args) > 2 else bool(kwargs.get("non_blocking"))
    func(plain(into), plain(source))
    _copied(into, source, non_blocking)
    if isinstance(into, CudaTensor) and isinstance(source, CudaTensor):
        from emulated_cuda.device import emulated

        emulated().capture(func, (into.inner, source.inner), {}, into.inner)
    return into


def _to_copy(func: Any, args: Any, kwargs: Any) -> Any:
    """Casts; moves go through `to`, but C++ code may ask for the CPU where it means the device of its operand."""
    from emulated_cuda.device import emulated

    source, device = args[0], kwargs.get("device")
    if not isinstance(source, CudaTensor):
        return func(*args, **kwargs)
    rest = {key: value for key, value in kwargs.items() if key not in ("device", "non_blocking", "pin_memory")}
    if device is not None and torch.device(device).type == "meta":
        return func(source.inner, **rest, device=device)
    made = func(source.inner, **rest)
    stream = current_stream(source.device)
    stream.launch()
    source.allocation.access(stream, source.inner, write=False)
    emulated().counts.kernel("_to_copy")
    emulated().capture(func, (source.inner,), rest, made)
    return on_device(made, source.device)


def is_pinned(value: Tensor, *_: Any, **__: Any) -> bool:
    from emulated_cuda.device import emulated

    return not isinstance(value, CudaTensor) and emulated().page_locked.of(value.data_ptr()) is not None


def pin_memory(value: Tensor, *_: Any, **__: Any) -> Tensor:
    """A copy in page-locked memory."""
    from weakref import finalize

    from emulated_cuda.device import emulated

    copied, locked = value.clone(), emulated().page_locked
    locked.register(copied.data_ptr(), copied.numel() * copied.element_size())
    finalize(copied, locked.release, copied.data_ptr()).atexit = False
    return copied


_SPECIAL: dict[str, Callable[[Any, Any, Any], Any]] = {
    "copy_": _copy_,
    "_to_copy": _to_copy,
    "is_pinned": lambda func, args, kwargs: is_pinned(*args),
    "_pin_memory": lambda func, args, kwargs: pin_memory(*args),
}

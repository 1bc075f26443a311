"""The sources and references of edits as Python code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gemmascope.edits.bound import DeferredValues
from gemmascope.edits.call_text import VerbatimText
from gemmascope.errors import EditError
from gemmascope.values import is_array, real_tensor

if TYPE_CHECKING:
    from gemmascope.run.trace import Trace

# Tensors of up to this many numbers, and references of up to this many tokens in total, are printed in full.
SHOWN_NUMBERS, SHOWN_TOKENS = 16, 256


def source_text(source: Trace | Tensor | DeferredValues) -> str:
    """The source of an edit as Python code; a large tensor as <its shape>."""
    if is_array(source) and not isinstance(source, Tensor):
        return _array_text(source)
    if isinstance(source, Tensor):
        if source.numel() > SHOWN_NUMBERS or not _readable(source):
            return f"<tensor {list(source.shape)}>"
        as_read = source.dtype in (torch.float32, torch.int64, torch.bool)
        return f"torch.tensor({source.tolist()!r}{'' if as_read else f', dtype={source.dtype}'})"
    if isinstance(source, DeferredValues) or not hasattr(source, "ids"):
        return f"<{type(source).__name__}>"
    edits = f", edits={list(source.edits)!r}" if source.edits else ""
    return f"gs.trace({source.ids.tolist()}, model=model{edits})"


def _array_text(source: object) -> str:
    """An array that is not a tensor, as the tensor of its numbers."""
    array = np.asarray(source)
    if array.size > SHOWN_NUMBERS or array.dtype.kind not in "biuf":
        return f"<{type(source).__name__} {list(array.shape)}>"
    return source_text(real_tensor(array, "the source", EditError))


def _readable(source: Tensor) -> bool:
    """Whether a tensor's numbers can be listed: not if it is meta, sparse or nested."""
    return not source.is_meta and not source.is_nested and source.layout == torch.strided


def traces_text(traces: Sequence[Trace]) -> str:
    if sum(len(trace) for trace in traces) > SHOWN_TOKENS:
        return f"<{len(traces)} traces>"
    return f"[{', '.join(map(source_text, traces))}]"


def traces_verbatim(traces: Sequence[Trace]) -> VerbatimText | None:
    """Reference traces as an argument of a call; None if there are none."""
    return VerbatimText(traces_text(tuple(traces))) if traces else None

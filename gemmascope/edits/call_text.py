"""Python code that repeats a call, as result.code() returns it, and its parts: prompts, metrics, sources of edits."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from gemmascope.arguments import MAX_ITEMS, as_python
from gemmascope.edits.sources import ReadableRun
from gemmascope.edits.target import DeferredValues
from gemmascope.errors import EditError
from gemmascope.model.model import Model
from gemmascope.values import is_array, real_tensor

# Arguments that are left out of the code when they have these values.
_DEFAULTS: dict[str, object] = {"into": "corrupt", "window": 1, "steps": 1, "method": "gradient"}

# Tensors of up to this many numbers, and references of up to this many tokens in total, are printed in full.
SHOWN_NUMBERS, SHOWN_TOKENS = 16, 256


class VerbatimText(str):
    """Python code whose repr is itself, for a value whose own repr is not code."""

    __repr__ = str.__str__


def call_text(function: str, model: Model, positional: tuple[object, ...], named: Mapping[str, object]) -> str:
    """A script that loads the model and makes the call. positional: the prompts, or lists of them, then the metric."""
    *prompts, metric = positional
    values = _Values()
    arguments = [*map(prompt_text, prompts), values.named_in(metric_text(metric))]
    for name, value in ((name, plain(value)) for name, value in named.items()):
        if value is not None and value != [] and _DEFAULTS.get(name) != value:
            arguments.append(f"{name}={values.named_in(repr(value))}")
    lines = "".join(f"    {argument},\n" for argument in [*arguments, "model=model"])
    needs_torch = "import torch\n" if "torch.tensor(" in lines else ""
    head = f"import gemmascope as gs\n{needs_torch}\n{load_text(model)}{values.comments}"
    return f"{head}result = gs.{function}(\n{lines})\n"


def script_text(model: Model, code: str) -> str:
    """A script that loads the model and goes on with this code. What cannot be printed there has a name, and a comment."""
    values = _Values()
    code = values.named_in(code)
    needs_torch = "import torch\n" if "torch.tensor(" in code else ""
    return f"import gemmascope as gs\n{needs_torch}\n{load_text(model)}{values.comments}{code}"


def load_text(model: Model) -> str:
    """The line that loads a model as it was loaded; a comment for a model that was built in memory."""
    values = _Values()
    if model.source is None:
        loading = (
            f"# model: {commented(model.name)}, which was given in memory: no line loads it, so name yours `model` here\n"
        )
    else:
        arguments = "".join(f", {name}={values.named_in(repr(value))}" for name, value in model.asked.items())
        loading = f"model = gs.load({model.source!r}{arguments})\n"
    if model.edits:
        loading += f"model = model.edited({values.named_in(repr(list(model.edits)))})\n"
    return f"{values.comments}{loading}"


def commented(text: str) -> str:
    """A text without line breaks, for a comment."""
    return ascii(text)


class _Values:
    """Names for values that have no Python code: large tensors, unnamed functions, objects in memory."""

    def __init__(self) -> None:
        self._unprinted: list[tuple[str, str]] = []

    def named_in(self, code: str) -> str:
        """Code with a name in place of each <description> outside a string literal."""
        return _TEXT_OR_DESCRIPTION.sub(lambda match: match[0] if match[1] is None else self._name(match[1]), code)

    @property
    def comments(self) -> str:
        """A comment line for each name."""
        return "".join(f"# {name}: {what}, which is not printed here: give it that name\n" for name, what in self._unprinted)

    def _name(self, description: str) -> str:
        kind = next((kind for kind in ("tensor", "trace", "function") if kind in description.lower()), "value")
        kind, what = ("function", "a function without a name") if description == "lambda" else (kind, f"the {description}")
        name = f"{kind}_{len(self._unprinted) + 1}"
        self._unprinted.append((name, what))
        return name


_TEXT_OR_DESCRIPTION = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|<([^<>\n]+)>""")


def prompt_text(prompt: object) -> str:
    """A prompt, or a list of prompts, as Python code."""
    return repr(plain(prompt))


def plain(value: object) -> object:
    """A value whose repr is Python code: tensors, arrays and their numbers, also inside lists, become lists and numbers."""
    if isinstance(value, VerbatimText):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # drops a subclass, such as numpy.str_
    if hasattr(value, "tolist"):
        return as_python(value, unreadable=value)
    if isinstance(value, range):
        return list(value) if len(value) <= MAX_ITEMS else value
    if isinstance(value, slice):
        return slice(plain(value.start), plain(value.stop), plain(value.step))
    if isinstance(value, Mapping):
        return {plain(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value] if isinstance(value, list) else tuple(plain(v) for v in value)
    return value


def metric_text(metric: object) -> str:
    """The metric as Python code: the call that makes it, or the name of a user's function."""
    if isinstance(metric, (list, tuple)):
        return f"[{', '.join(map(metric_text, metric))}]"
    if isinstance(metric, Mapping):
        return f"{{{', '.join(f'{plain(name)!r}: {metric_text(one)}' for name, one in metric.items())}}}"
    return repr(metric) if hasattr(metric, "bind") else name_of(metric)


def name_of(fn: object) -> str:
    """The name of a user's function; for a callable object, of its class."""
    if isinstance(fn, functools.partial):
        return name_of(fn.func)
    return str(getattr(fn, "__name__", type(fn).__name__))


def source_text(source: ReadableRun | Tensor | DeferredValues) -> str:
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


def traces_text(traces: Sequence[ReadableRun]) -> str:
    if sum(len(trace) for trace in traces) > SHOWN_TOKENS:
        return f"<{len(traces)} traces>"
    return f"[{', '.join(map(source_text, traces))}]"


def traces_verbatim(traces: Sequence[ReadableRun]) -> VerbatimText | None:
    """Reference traces as an argument of a call; None if there are none."""
    return VerbatimText(traces_text(tuple(traces))) if traces else None

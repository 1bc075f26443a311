"""The Python code that repeats a call, as result.code() returns it."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

from gemmascope.arguments import MAX_ITEMS
from gemmascope.model.model import Model

# Arguments that are left out of the code when they have these values.
_DEFAULTS: dict[str, object] = {"into": "corrupt", "window": 1, "steps": 1}


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


def load_text(model: Model) -> str:
    """The line that loads a model as it was loaded; a comment for a model that was built in memory."""
    if model.source is None:
        return f"# model: {commented(model.name)}, which was given in memory: no line loads it, so name yours `model` here\n"
    values = _Values()
    arguments = "".join(f", {name}={values.named_in(repr(value))}" for name, value in model.asked.items())
    return f"{values.comments}model = gs.load({model.source!r}{arguments})\n"


def commented(text: str) -> str:
    """A text without line breaks, for a comment."""
    return ascii(text)


class _Values:
    """Names for values that have no Python code: large tensors, unnamed functions, objects in memory."""

    def __init__(self) -> None:
        self._found: list[tuple[str, str]] = []

    def named_in(self, code: str) -> str:
        """Code with a name in place of each <description> outside a string literal."""
        return _TEXT_OR_DESCRIPTION.sub(lambda match: match[0] if match[1] is None else self._name(match[1]), code)

    @property
    def comments(self) -> str:
        """A comment line for each name."""
        return "".join(f"# {name}: {what}, which is not printed here: give it that name\n" for name, what in self._found)

    def _name(self, description: str) -> str:
        kind = next((kind for kind in ("tensor", "trace", "function") if kind in description.lower()), "value")
        kind, what = ("function", "a function without a name") if description == "lambda" else (kind, f"the {description}")
        name = f"{kind}_{len(self._found) + 1}"
        self._found.append((name, what))
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
        try:
            return value.tolist()
        except (RuntimeError, TypeError, NotImplementedError, ValueError):  # a meta, sparse or nested tensor
            return value
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
    return repr(metric) if hasattr(metric, "bind") else name_of(metric)


def name_of(fn: object) -> str:
    """The name of a user's function; for a callable object, of its class."""
    if isinstance(fn, functools.partial):
        return name_of(fn.func)
    return str(getattr(fn, "__name__", type(fn).__name__))

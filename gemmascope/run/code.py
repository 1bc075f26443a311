"""The Python that asks a question again: what `result.code()` gives."""

from __future__ import annotations

from typing import Any

from gemmascope.model.model import Model
from gemmascope.run.metric import metric_text

# What a call leaves out, because it is what the function does anyway.
_DEFAULTS: dict[str, Any] = {"into": "corrupt", "window": 1, "steps": 1}


class Said(str):
    """Python that prints as it stands: of a value whose own repr is for people."""

    __repr__ = str.__str__


def call_text(function: str, model: Model, positional: tuple[Any, ...], named: dict[str, Any]) -> str:
    """A script that loads the model and makes the call. positional: the two prompts, or lists of them, and the metric."""
    *prompts, metric = positional
    arguments = [*map(prompt_text, prompts), metric_text(metric)]
    for name, value in ((name, plain(value)) for name, value in named.items()):
        if value is not None and value != [] and _DEFAULTS.get(name) != value:
            arguments.append(f"{name}={value!r}")
    lines = "".join(f"    {argument},\n" for argument in [*arguments, "model=model"])
    needs_torch = "import torch\n" if "torch.tensor(" in lines else ""
    return f"import gemmascope as gs\n{needs_torch}\n{load_text(model)}result = gs.{function}(\n{lines})\n"


def load_text(model: Model) -> str:
    """The line that loads a model, as it was asked for."""
    given = "".join(f", {name}={value!r}" for name, value in model.asked.items())
    return f"model = gs.load({model.name!r}{given})\n"


def prompt_text(prompt: Any) -> str:
    """A prompt, or a list of prompts, as Python."""
    return repr(plain(prompt))


def plain(value: Any) -> Any:
    """A value as Python prints it: tensors, arrays and their numbers, alone or in lists, as lists and numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, range):
        return list(value)
    if isinstance(value, (list, tuple)):
        return type(value)(plain(v) for v in value)
    return value

"""gemmascope: look inside Gemma 2.

gs.trace(prompt) is the front door. Names are imported when they are first used, so that importing the package costs no
more than importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# The public names, by the module that holds them.
_WHERE = {
    "load": "gemmascope.weights.load",
    "trace": "gemmascope.run.trace",
    "Trace": "gemmascope.run.trace",
    "open_trace": "gemmascope.run.saving",
    "Model": "gemmascope.model.model",
    "GemmaConfig": "gemmascope.config",
    "GemmascopeError": "gemmascope.errors",
    "SITES": "gemmascope.sites",
}
_SUBMODULES = ("errors", "prompts", "sites")

if TYPE_CHECKING:
    from gemmascope import errors, prompts, sites
    from gemmascope.config import GemmaConfig
    from gemmascope.errors import GemmascopeError
    from gemmascope.model.model import Model
    from gemmascope.run.saving import open_trace
    from gemmascope.run.trace import Trace, trace
    from gemmascope.sites import SITES
    from gemmascope.weights.load import load

__all__ = [
    "SITES",
    "GemmaConfig",
    "GemmascopeError",
    "Model",
    "Trace",
    "errors",
    "load",
    "open_trace",
    "prompts",
    "sites",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(_WHERE[name]), name)
    elif name in _SUBMODULES:
        value = importlib.import_module(f"gemmascope.{name}")
    else:
        raise AttributeError(f"gemmascope has no {name!r}; it has {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])

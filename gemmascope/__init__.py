"""gemmascope: look inside Gemma 2. Start with gs.trace(prompt).

The public names are listed in __init__.pyi. Each is imported when it is first used, so `import gemmascope` is quick and
needs none of the optional packages.
"""

import ast
import importlib
from pathlib import Path

__version__ = "0.2.0"

# Public name -> the module it is imported from, as the stub says it.
_MODULES = {
    alias.name: node.module
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom) and node.module
    for alias in node.names
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"gemmascope has no {name!r}; it has {', '.join(__all__)}")
    module = _MODULES[name]
    if module == __name__:
        return importlib.import_module(f"{module}.{name}")
    value = globals()[name] = getattr(importlib.import_module(module), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

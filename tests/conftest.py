"""Shape annotations are checked in the tests, and only there: jaxtyping reads them as gemmascope is imported."""

from __future__ import annotations

import sys

from jaxtyping import install_import_hook

if "gemmascope" in sys.modules:
    raise RuntimeError("gemmascope was imported before the tests could switch the checks of its shapes on")
install_import_hook("gemmascope", "shapes.checked")

import torch  # noqa: E402

# Products this small are no faster on two threads, and much slower where other work shares the cores.
torch.set_num_threads(1)

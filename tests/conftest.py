"""What the tests share. Shape annotations are checked in the tests, and only there: jaxtyping reads them on import."""

from __future__ import annotations

import sys
from typing import Any

from jaxtyping import install_import_hook

if "gemmascope" in sys.modules:
    raise RuntimeError("gemmascope was imported before the tests could switch the checks of its shapes on")
install_import_hook("gemmascope", "shapes.checked")

import pytest  # noqa: E402
import torch  # noqa: E402

# Products this small are no faster on two threads, and much slower where other work shares the cores.
torch.set_num_threads(1)


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The progress bars that were made: what each was asked for, its total and how much it was told is done."""
    import tqdm.auto

    made: list[Any] = []

    class Bar(tqdm.auto.tqdm):  # type: ignore[type-arg,misc]
        def __init__(self, **asked: Any) -> None:
            super().__init__(**{**asked, "disable": True})
            self.asked, self.total, self.done = asked, asked["total"], 0
            made.append(self)

        def update(self, n: float | None = 1) -> None:
            self.done += n

    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    return made

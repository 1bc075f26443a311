"""A result that does not fit in free memory is refused before it is computed, with its size and what to do instead."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

import gemmascope as gs
from gemmascope.errors import BudgetError
from gemmascope.memory import placement as budget

T = gs.trace("Mary went to the store")
LARGE: dict[str, tuple[Callable[[], Any], str]] = {
    "every layer's logits": (lambda: T.lens(pos=None), r"logits of 6 layers at 6 positions.*give pos= .*gs\.lens\(trace\)"),
    "the logits": (lambda: gs.trace("Mary went to the store").logits, r"logits.* of all 6 positions.*t\.next_logits"),
    "a pattern": (lambda: gs.trace("Mary went to the store")["pattern", 1], r"all 6 positions.*t\.edges\(head=, q_pos=\)"),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_result_larger_than_the_memory_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, message = LARGE[name]
    call()
    monkeypatch.setattr(budget, "free_bytes", lambda device: 1000)
    with pytest.raises(BudgetError, match=rf"{message}") as caught:
        call()
    assert re.search(r"would take [\d,]+ bytes, and 1,000 are free on cpu", str(caught.value))

"""The page of a patching lab as tests use it: its buttons, its menu, its table."""

from __future__ import annotations

import re
from typing import Any

import gemmascope as gs

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
NANO = f"import gemmascope as gs\nlab = gs.patching_lab({CLEAN!r}, {CORRUPT!r}, ' Mary', ' John', at_once=False)\nlab"


def press(page: Any, name: str, nth: int = 0) -> None:
    page.locator(".gs-lab").nth(nth).locator("button").filter(has_text=re.compile(name)).first.click()


def take_away(page: Any, name: str) -> None:
    """Choose an entry of the menu of exports."""
    page.get_by_role("button", name="export and copy").click()
    page.locator(f".gs-lab [data-gs-do='{name}']").click()


def table(page: Any, nth: int = 0) -> list[list[str]]:
    """The cells of a lab's table, layer 0 first: the table has it at the bottom, as the grid has. Not a comparison's."""
    return (
        page.locator(".gs-lab")
        .nth(nth)
        .evaluate(  # type: ignore[no-any-return]
            "el => [...el.querySelectorAll('.gs-grid tbody tr')].reverse()"
            ".map(r => [...r.querySelectorAll('td')].map(c => c.innerText))"
        )
    )


def is_exact(text: str) -> bool:
    return re.search("estimate|under way|not run", text) is None


def wait_for(page: Any, condition: Any, seconds: float = 60.0) -> None:
    for _ in range(int(seconds * 20)):
        if condition():
            return
        page.wait_for_timeout(50)
    raise AssertionError("it did not come")


def number(text: str) -> float:
    found = re.match(r"[+−]?[\d.]+(?:e[+-]?\d+)?", text)
    assert found, text
    return float(found[0].replace("−", "-"))


def effect(clean: str, corrupt: str, layer: int, pos: int, answers: tuple[str, str] = (" Mary", " John")) -> float:
    """The effect of a cell of nano's residual stream, by gs.sweep."""
    metric = gs.logit_diff(*answers)
    swept = gs.sweep(clean, corrupt, metric, site="resid_pre", layer=[layer], pos=[pos], by=("layer", "pos"), progress=False)
    return float(swept.effect.values.item())

"""The planner with sliders: what it shows is what gs.plan says."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import browser, page_of
from checkpoints import checkpoint

import gemmascope as gs
from gemmascope.errors import BudgetError, CheckpointError
from gemmascope.weights.cards import CARDS, DRIVER
from gemmascope.widgets.plan_view import CONTEXTS, SIZES, WEIGHTS


def planned(model: str, weights: str, context: int) -> Any:
    return gs.plan(model, weights=weights, context=context, device="cpu", dtype="bfloat16")


def test_every_case_is_what_the_planner_says() -> None:
    spec = gs.plan_view().spec
    cards = {card["place"]: card["name"] for card in spec["cards"]}
    asked = list(itertools.product(SIZES, WEIGHTS, CONTEXTS, sorted(cards)))
    assert len(asked) == len(spec["cases"])
    for (model, weights, context, place), case in zip(asked, spec["cases"], strict=True):
        found = planned(model, weights, context)
        fit = found.fits(cards[place])
        assert (case["how"], case["said"]) == (fit.how, str(fit))
        assert sum(n_bytes for _, n_bytes in case["parts"]) == case["total"]
        if fit.how == "streams":
            streamed = gs.plan(model, weights=weights, context=context, memory=fit.memory, device="cpu", dtype="bfloat16")
            assert case["total"] == streamed.total
            assert case["load"].count("memory=") == 1
        else:
            assert case["total"] == found.total
        assert (case["total"] <= fit.card.n_bytes - DRIVER) == (fit.how != "no")
    assert {case["how"] for case in spec["cases"]} == {"resident", "streams", "no"}


def test_a_folder_is_planned_as_well(tmp_path: Path) -> None:
    checkpoint("lg").save_pretrained(tmp_path / "mine")
    view = gs.plan_view([str(tmp_path / "mine")], [16, 64])
    assert len(view.spec["cases"]) == 2 * 2 * len({card.n_bytes for card in CARDS})
    assert f"gs.load({str(tmp_path / 'mine')!r}" in view.spec["cases"][0]["load"]


@pytest.mark.parametrize(
    ("models", "contexts", "error"),
    [
        ([], [64], BudgetError), (["2b"], [], BudgetError), ("2b", [64], BudgetError), (["2b"], [9000], BudgetError),
        (["3b"], [64], CheckpointError),
    ],
)  # fmt: skip
def test_what_cannot_be_planned(models: Any, contexts: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        gs.plan_view(models, contexts)


def test_what_is_chosen_in_a_browser_is_looked_up(tmp_path: Path) -> None:
    gs.plan_view().save(tmp_path / "plan.html")
    rng = np.random.default_rng(0)
    with browser() as chromium, page_of(chromium) as page:
        page.goto((tmp_path / "plan.html").as_uri())
        page.wait_for_selector("[data-gemmascope-ready]")
        for _ in range(6):
            model, weights = str(rng.choice(SIZES)), str(rng.choice(WEIGHTS))
            context, card = int(rng.integers(len(CONTEXTS))), CARDS[rng.integers(len(CARDS))]
            for name, value in (("model", model), ("weights", weights), ("card", card.name)):
                page.get_by_label(name, exact=True).select_option(value)
            slider = page.get_by_role("slider")
            slider.press("Home")
            for _ in range(context):
                slider.press("ArrowRight")
            fit = planned(model, weights, CONTEXTS[context]).fits(card.name)
            said = page.locator(".gs-verdict").inner_text()
            assert said.endswith(str(fit)) if fit.how != "resident" else said.startswith("● fits whole")
            assert f"{CONTEXTS[context]:,} positions" in page.locator(".gs-asks").inner_text()
            assert f"{card.name}: {(card.n_bytes - DRIVER) / 1e9:.2f} GB to use" in page.locator(".gs-memory").inner_text()
            sizes = [float(text.split()[0]) * {"GB": 1e9, "MB": 1e6}[text.split()[1]] for text in _sizes(page)]
            assert sum(sizes[:-1]) == pytest.approx(sizes[-1], abs=4e7)
        assert page.beyond == []
        assert page.errors == []


def _sizes(page: Any) -> list[str]:
    return [str(text) for text in page.locator(".gs-sizes tr > :last-child").all_inner_texts()]

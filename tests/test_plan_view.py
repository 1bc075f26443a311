"""The planner with sliders shows the numbers of gs.plan."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import page_of
from checkpoints import checkpoint, model_of

import gemmascope as gs
from gemmascope.errors import BudgetError, CheckpointError
from gemmascope.memory.cards import CARDS, DRIVER, Card
from gemmascope.memory.plan_tables import gigabytes
from gemmascope.views.plan import CONTEXTS, SIZES, WEIGHTS


def planned(model: str, weights: str, context: int) -> Any:
    return gs.plan(model, weights=weights, context=context, device="cpu", dtype="bfloat16")


def test_every_case_equals_a_plan() -> None:
    spec = gs.plan_view().spec
    cards = {card["size"]: card["name"] for card in spec["cards"]}
    combinations = list(itertools.product(SIZES, WEIGHTS, CONTEXTS, sorted(cards)))
    assert len(combinations) == len(spec["cases"])
    for (model, weights, context, place), case in zip(combinations, spec["cases"], strict=True):
        plan = planned(model, weights, context)
        fit = plan.fits(cards[place])
        assert case["how"] == fit.how
        assert sum(n_bytes for _, n_bytes in case["parts"]) == case["total"]
        if fit.how == "streams":
            streamed = gs.plan(model, weights=weights, context=context, memory=fit.memory, device="cpu", dtype="bfloat16")
            assert case["total"] == streamed.total
            assert f"; {fit.n_kept} of {fit.n_layers} layers stay" in case["verdict"]
            int8 = ", weights='int8'" if weights == "int8" else ""
            amount = str(fit).split("with ")[1]
            assert case["advice"] == f"gs.load('google/gemma-2-{model}', device='cuda'{int8}, {amount})"
        else:
            assert case["total"] == plan.total
            assert case["advice"].startswith("Take " if fit.how == "no" else "gs.load(")
        assert (f" {gigabytes(fit.missing)} are missing; " in case["verdict"]) == (fit.how == "no")
        assert (case["total"] <= fit.card.n_bytes - DRIVER) == (fit.how != "no")
    assert {case["how"] for case in spec["cases"]} == {"resident", "streams", "no"}


def test_a_folder_is_planned_as_well(tmp_path: Path) -> None:
    checkpoint("lg").save_pretrained(tmp_path / "mine")
    view = gs.plan_view([str(tmp_path / "mine")], [16, 64])
    assert len(view.spec["cases"]) == 2 * 2 * len({card.n_bytes for card in CARDS})
    assert f"gs.load({str(tmp_path / 'mine')!r}" in view.spec["cases"][0]["advice"]


@pytest.mark.parametrize(
    ("name", "loaded"),
    [("2b", "google/gemma-2-2b"), ("gemma-2-9b-it", "google/gemma-2-9b-it"), ("google/gemma-2-27b", "google/gemma-2-27b")],
)
def test_the_call_names_the_hub(name: str, loaded: str) -> None:
    calls = {case["advice"].split(",")[0] for case in gs.plan_view([name], [256]).spec["cases"] if case["how"] != "no"}
    assert calls == {f"gs.load({loaded!r}"}


def test_a_model_that_is_loaded_is_planned_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(checkpoint("lg" * 16, hidden_size=128, intermediate_size=256))
    sizes = [DRIVER + n for n in range(200_000, 30_000_000, 200_000)]
    monkeypatch.setattr("gemmascope.views.plan.CARDS", [Card(str(n), n) for n in sizes])
    view = gs.plan_view([model], [64])
    assert view.spec["models"] == ["random"]
    assert {case["how"] for case in view.spec["cases"]} == {"resident", "streams", "no"}


@pytest.mark.parametrize(
    ("models", "contexts", "error"),
    [
        ([], [64], BudgetError), (["2b"], [], BudgetError), ("2b", [64], BudgetError), (["2b"], [9000], BudgetError),
        (["3b"], [64], CheckpointError),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(models: Any, contexts: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        gs.plan_view(models, contexts)


def test_a_choice_in_the_browser_shows_the_numbers_of_its_plan(chromium: Any, tmp_path: Path) -> None:
    gs.plan_view().save(tmp_path / "plan.html")
    rng = np.random.default_rng(0)
    with page_of(chromium) as page:
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
            verdict = page.locator(".gs-verdict").inner_text()
            beginning = {"resident": "● fits whole", "streams": "◐ fits, layers stream", "no": "○ does not fit"}[fit.how]
            assert verdict.startswith(f"{beginning}: ")
            numbers = {
                "streams": f"; {fit.n_kept} of {fit.n_layers} layers stay",
                "no": f" {gigabytes(fit.missing)} are missing",
            }
            assert numbers.get(fit.how, "") in verdict
            assert f"{CONTEXTS[context]:,} positions" in page.locator(".gs-asks").inner_text()
            assert f"{card.name}: {(card.n_bytes - DRIVER) / 1e9:.2f} GB to use" in page.locator(".gs-memory").inner_text()
            plan = planned(model, weights, CONTEXTS[context])
            if fit.how == "streams":
                options = {"weights": weights, "context": CONTEXTS[context], "memory": fit.memory}
                plan = gs.plan(model, **options, device="cpu", dtype="bfloat16")
            task = max(("trace", "generate"), key=lambda one: plan.peaks[one])
            parts = [part for part in plan.parts if task in part.tasks and part.n_bytes]
            assert _sizes(page) == [
                *((part.name, gigabytes(part.n_bytes)) for part in parts),
                ("together", gigabytes(plan.total)),
            ]
            assert {"trace": "for a trace", "generate": "for generating"}[task] in verdict
        assert page.beyond == []
        assert page.errors == []


def _sizes(page: Any) -> list[tuple[str, str]]:
    """The table of parts: names without their digits, and sizes."""
    rows = [row.split("\t") for row in page.locator(".gs-sizes").inner_text().split("\n")]
    return [(name.lstrip("0123456789").strip(), size.strip()) for name, size in rows]

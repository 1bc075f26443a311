"""The graph lab in a real JupyterLab: nodes are opened, grouped and switched, and the page says what Python says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from browser import page_of
from jupyter import Lab

import gemmascope as gs

PROMPT = "When Mary and John went to the store, John gave a drink to"
CELL = (
    f"import gemmascope as gs\nlab = gs.graph_lab({PROMPT!r}, targets=gs.logit_diff(' Mary', ' John'), max_nodes=60,"
    " max_new_tokens=2)\nlab"
)
PYTHON = (
    "ids = list(lab.graph.nodes.query(\"kind == 'feature' and layer < 3\").nlargest(3, 'influence')['id'])\n"
    "lab.group('to Mary', ids); lab.scale('to Mary', 0.0)"
)

pytestmark = pytest.mark.nano


@pytest.fixture
def page(lab: Lab, chromium: Any) -> Iterator[Any]:
    with page_of(chromium) as opened:
        lab.run(opened, "graph.ipynb", [CELL, PYTHON])
        opened.wait_for_selector("[data-gemmascope-pictures]", timeout=60_000)
        yield opened
        assert opened.beyond == []
        assert opened.errors == []


def number(value: float) -> str:
    return f"{value:+.4g}".replace("-", "\u2212")


def test_what_python_changes_and_what_the_page_changes_are_one_and_graphs_are_reopened(page: Any) -> None:
    graph = gs.attribution_graph(PROMPT, targets=gs.logit_diff(" Mary", " John"), max_nodes=60, keep=1024, progress=False)
    ids = list(graph.nodes.query("kind == 'feature' and layer < 3").nlargest(3, "influence")["id"])
    graph.group("to Mary", ids)
    live = page.locator(".gs-graph-lab:not([data-gs-fallback] *)")

    def says(changes: dict[str, float], hold: str = "nothing") -> None:
        check = graph.intervene(changes, hold=hold)
        row = check.to_dataframe().iloc[0]
        live.get_by_text(f"predicted {number(row['predicted'])}, true {number(row['true'])}").wait_for()
        later = check.nodes.query("node == @last").iloc[0]
        words = f"predicted {number(later['predicted'])}, true {number(later['true'])}"
        live.locator(f"circle[data-gs-point='{last}'] title", has_text=words).wait_for(state="attached")

    last = graph.nodes.query("kind == 'feature' and layer == 5").nlargest(1, "influence")["id"].item()
    says({"to Mary": 0.0})
    live.get_by_text("later nodes in view", exact=False).wait_for()
    group = live.get_by_role("group", name="to Mary: what it writes")
    group.get_by_role("button", name="Half").click()
    says({"to Mary": 0.5})
    group.locator("[data-gs-factor='0.5'][aria-pressed=true]").wait_for()
    live.get_by_label("what the changed run holds").select_option("patterns")
    says({"to Mary": 0.5}, "patterns")
    live.get_by_role("button", name="Undo").click()
    says({"to Mary": 0.5})
    name = live.get_by_label("name of group 1")
    name.fill("of Mary")
    name.press("Enter")
    live.get_by_role("group", name="of Mary: what it writes").locator("[data-gs-factor='0.5'][aria-pressed=true]").wait_for()
    live.get_by_role("button", name="Reset").click()
    live.get_by_text("nothing is changed").wait_for()
    canvas = live.locator("canvas[tabindex='0']")
    canvas.focus()
    canvas.press("Enter")
    live.locator(".gs-node-pane h4", has_text="Writes to").wait_for()
    live.locator(".gs-node-pane .gs-edge", has_text="feature").first.click()
    live.locator(".gs-node-pane h4", has_text="Reads").wait_for()
    live.locator(".gs-node-pane .gs-heads").first.wait_for()
    live.locator(".gs-node-pane .gs-switch").get_by_role("button", name="Off").click()
    live.locator(".gs-node-pane [data-gs-factor='0'][aria-pressed=true]").wait_for()
    live.get_by_role("button", name="Undo").click()
    live.get_by_text("nothing is changed").wait_for()
    prompts_are_typed_and_graphs_reopened(page, live)


def prompts_are_typed_and_graphs_reopened(page: Any, live: Any) -> None:
    field = live.get_by_label("prompt", exact=True)
    field.fill("")
    field.press("Enter")
    live.get_by_role("alert").get_by_text("the prompt is empty", exact=False).wait_for()
    field.fill("The cat sat on the")
    field.press("Enter")
    live.get_by_text("Graph 2 of 2").wait_for()
    live.get_by_role("list", name="graphs so far").get_by_role("button").first.click()
    live.get_by_text("Graph 1 of 2").wait_for()
    live.get_by_role("button", name="Next prompt").click()
    live.get_by_text("Graph 3 of 3").wait_for()
    live.get_by_role("button", name="Export the lab").click()
    with page.expect_download() as saved:
        live.get_by_role("menuitem", name="Save the graph").click()
    assert gs.open_graph(saved.value.path()).about.basis == "transcoder"


def test_a_graph_that_was_stopped_is_continued(lab: Lab, chromium: Any) -> None:
    with page_of(chromium) as page:
        lab.run(page, "stopped.ipynb", [CELL + ".stop()\nlab"])
        live = page.locator(".gs-graph-lab:not([data-gs-fallback] *)")
        live.get_by_text("Stopped", exact=True).wait_for(timeout=60_000)
        live.get_by_text("stopped before a row was finished", exact=False).wait_for()
        assert live.get_by_role("button", name="Stop").count() == 0
        live.get_by_role("button", name="Continue").click()
        page.wait_for_selector("[data-gemmascope-pictures]", timeout=60_000)
        live.get_by_text("Graph 1 of 1").wait_for()
        assert live.get_by_role("button", name="Continue").count() == 0
        assert page.errors == []

"""The page of an attribution graph: its numbers are the graph's, and a browser shows, groups, saves and exports them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
import torch
from browser import pages_of
from checkpoints import model, prompt
from random_dictionaries import dictionary
from test_views import unpacked as numbers

import gemmascope as gs
from gemmascope.circuits.graph.nodes import BIAS, FEATURE
from gemmascope.circuits.graph.result import AttributionGraph
from gemmascope.errors import GraphError
from gemmascope.views.graphs.details import HEADS, written_by
from gemmascope.views.graphs.shown import MOST_EDGES
from gemmascope.views.module import static_module
from gemmascope.views.packing import pack
from gemmascope.views.page import View

CANVAS = "canvas[tabindex='0']"


@cache
def graph() -> AttributionGraph:
    subject = model("lgl", 2)
    return gs.attribution_graph(prompt(9), model=subject, basis="neuron", max_nodes=60, keep=10**6, progress=False)


@cache
def pruned() -> AttributionGraph:
    small = graph().prune(nodes=0.9)
    strongest = list(small.nodes.query("kind == 'feature'").nlargest(4, "influence")["id"])
    small.group("first", strongest[:2])
    small.group("second", strongest[2:3])
    small.label(strongest[0], "the strongest")
    return small


@cache
def view() -> View:
    return gs.graph_view(pruned(), heads=20, progress=False)


def ids_of(one: View) -> list[str]:
    return [node["id"] for node in one.spec["nodes"]]


def test_a_view_holds_the_tables_of_its_graph() -> None:
    subject, shown = pruned(), view()
    ids = ids_of(shown)
    nodes = subject.nodes.set_index("id").loc[ids]
    assert ids == [one for one in subject.ids if one != "bias"]
    assert [node["kind"] for node in shown.spec["nodes"]] == list(nodes["kind"])
    assert [node["pos"] for node in shown.spec["nodes"]] == list(nodes["pos"])
    for name in ("influence", "activation"):
        np.testing.assert_array_equal(numbers(shown.arrays[name]), nodes[name].to_numpy(np.float32))
    target, source, weight = (numbers(shown.arrays[name]) for name in ("target", "source", "weight"))
    edges = subject.edges[subject.edges["source"] != "bias"]
    assert [(ids[int(t)], ids[int(s)]) for t, s in zip(target, source, strict=True)] == list(
        zip(edges["target"], edges["source"], strict=True)
    )
    np.testing.assert_array_equal(weight, edges["weight"].to_numpy(np.float32))
    sums = subject.sums.set_index("target")
    for name in ("input", "bias", "rest"):
        found = dict(zip(ids, numbers(shown.arrays[name]), strict=True))
        assert {one for one, value in found.items() if not np.isnan(value)} == set(sums.index)
        assert [found[one] for one in sums.index] == pytest.approx(sums[name].to_numpy(), abs=1e-4)
    assert shown.spec["groups"] == subject.supernodes
    assert "the strongest" in [node.get("label") for node in shown.spec["nodes"]]


@pytest.mark.parametrize("most", [1, 12, 40])
def test_a_page_takes_the_strongest_nodes_and_rows_still_add_up(most: int) -> None:
    subject = graph()
    shown = gs.graph_view(subject, most=most, heads=0, progress=False)
    ids = ids_of(shown)
    outputs = [subject.ids[i] for i in subject.index_of(subject.keys.logits).tolist()]
    rest = subject.nodes[~subject.nodes["id"].isin([*outputs, "bias"])]
    n = max(most - len(outputs), 0)
    assert set(ids) == {*outputs, *rest.nlargest(n, "influence")["id"]}
    assert f"The {len(ids):,} strongest of {len(subject) - 1:,} nodes." in shown.spec["note"]
    arrays = {name: numbers(packed) for name, packed in shown.arrays.items()}
    for i in range(len(ids)):
        if not np.isnan(arrays["input"][i]):
            total = arrays["bias"][i] + arrays["rest"][i] + arrays["weight"][arrays["target"] == i].sum()
            assert total == pytest.approx(arrays["input"][i], abs=1e-4)


def test_more_edges_than_a_page_holds_are_cut_by_what_goes_over_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemmascope.views.graphs.shown.MOST_EDGES", 30)
    shown = gs.graph_view(pruned(), heads=0, progress=False)
    assert len(numbers(shown.arrays["weight"])) == 30
    assert "The 30 strongest of" in shown.spec["note"]
    matrix = pruned().matrix()
    reach = dict(zip(pruned().ids, (pruned().influence + pruned().weights).tolist(), strict=True))
    total = dict(zip(pruned().ids, pruned().arrows.total.tolist(), strict=True))
    score = {(t, s): abs(w) / total[t] * reach[t] for t, s, w in pruned().edges.itertuples(index=False) if s != "bias"}
    ids = ids_of(shown)
    pairs = zip(numbers(shown.arrays["target"]), numbers(shown.arrays["source"]), strict=True)
    kept = {(ids[int(t)], ids[int(s)]) for t, s in pairs}
    assert min(score[one] for one in kept) >= max(score[one] for one in score if one not in kept)
    assert matrix.shape[0] == len(ids) + 1


def test_heads_are_those_of_loadings_the_strongest_edge_of_each_node_first() -> None:
    subject, shown = pruned(), view()
    ids, carried = ids_of(shown), shown.spec["carried"]
    assert len(carried) == 20
    target, source = (numbers(shown.arrays[name]).astype(int) for name in ("target", "source"))
    for edge, heads in carried.items():
        expected = subject.loadings((ids[target[int(edge)]], ids[source[int(edge)]]))["carried"].values
        for layer, head, value in heads:
            assert value == pytest.approx(expected[layer, head], rel=1e-5)
        strongest = np.sort(np.abs(np.nan_to_num(expected)).ravel())[::-1][: len(heads)]
        assert [abs(value) for _, _, value in heads] == pytest.approx(strongest.tolist(), rel=1e-5)
        assert len(heads) <= HEADS
    assert any(carried.values())
    of_node: dict[int, list[int]] = {}
    for edge in map(int, carried):
        of_node.setdefault(int(target[edge]), []).append(edge)
    weight = np.abs(numbers(shown.arrays["weight"]))
    for node, edges in of_node.items():
        assert max(edges, key=lambda edge: weight[edge]) == max(
            np.flatnonzero(target == node), key=lambda edge: weight[edge]
        )


@pytest.mark.parametrize("basis", ["neuron", "transcoder", "sae"])
def test_tokens_are_raised_by_what_a_node_wrote(basis: str) -> None:
    """Beside the edge into an output, which is the same product when nothing lies between: a feature of the last layer."""
    subject = model("lgl", 2)
    if basis == "neuron":
        found = graph()
    else:
        layers = range(subject.n_layers)
        given = (
            [dictionary(32, "transcoder", layer, 32, seed=layer) for layer in layers]
            if basis == "transcoder"
            else [dictionary(32, "attn_out", layer, seed=layer) for layer in layers]
        )
        found = gs.attribution_graph(prompt(9), model=subject, basis=basis, dictionaries=given, keep=10**6, progress=False)
    last, kind, unit = found.about.n_layers - 1, found.decoded[0].tolist(), found.decoded[1].tolist()
    layers_of = [found.keys.units[u].layer if k == FEATURE else -1 for k, u in zip(kind, unit, strict=True)]
    nodes = [i for i in range(len(found)) if layers_of[i] == last and found.positions[i] == found.about.pos][:8]
    assert nodes
    written = written_by(found, nodes)
    if basis != "sae":  # no MLP lies between
        logit = found.index_of(found.keys.logits).tolist()
        expected = found.matrix().values[np.ix_(logit, nodes)]
        np.testing.assert_allclose((found.logits.vectors @ written.T).numpy(), expected, atol=1e-4)
    run, _ = found._live()
    trace = run.trace
    network = trace.model.network
    gain = network.model.norm.gain(trace.residuals[-1][found.about.pos]).detach()
    table = torch.cat([rows for _, rows in network.model.embed_tokens.parts()])
    logits = (written * gain) @ table.T
    logits -= logits.mean(1, keepdim=True)
    shown = gs.graph_view(found, most=5000, heads=0, progress=False)
    at = {one: str(i) for i, one in enumerate(ids_of(shown))}
    for row, node in enumerate(nodes):
        if found.ids[node] not in at:
            continue
        raises = shown.spec["raises"][at[found.ids[node]]]
        best = logits[row].topk(5)
        assert [text for text, _ in raises[:5]] == trace.model.texts(best.indices)
        assert [value for _, value in raises[:5]] == pytest.approx(best.values.tolist(), abs=2e-5)
        assert raises[-1][1] == pytest.approx(float(logits[row].min()), abs=2e-5)


def test_bad_input_is_named() -> None:
    with pytest.raises(GraphError, match=r"what gs\.attribution_graph returns; given Trace"):
        gs.graph_view(gs.trace(prompt(4), model=model("lgl", 2)))  # type: ignore[arg-type]
    for asked in ({"most": 0}, {"most": 5001}, {"heads": -1}, {"heads": 1.5}):
        with pytest.raises(GraphError):
            gs.graph_view(pruned(), **asked)  # type: ignore[arg-type]


def test_a_graph_without_its_model_is_shown_without_heads_and_tokens(tmp_path: Path) -> None:
    pruned().save(tmp_path / "a.graph")
    shown = gs.graph_view(gs.open_graph(tmp_path / "a.graph"))
    assert not {"carried", "raises"} & set(shown.spec)
    assert ids_of(shown) == ids_of(view())


def test_a_page_of_300_nodes_is_below_500_kilobytes() -> None:
    """Weights of noise compress least; 20,000 edges are as many as a page holds."""
    whole = graph()
    shown = gs.graph_view(whole, heads=30, progress=False)
    assert len(ids_of(shown)) == 300
    assert len(shown.to_html()) < 500_000
    noise = pack(np.random.default_rng(0).normal(size=MOST_EDGES).astype(np.float32))
    ends = pack(np.random.default_rng(1).integers(300, size=MOST_EDGES).astype(np.uint16))
    full = View(shown.spec, {**shown.arrays, "weight": noise, "target": ends, "source": ends}, shown.summary, shown.rows)
    assert len(full.to_html()) < 500_000
    assert static_module("graph") in shown.to_html()


# -- in a browser --


@pytest.fixture
def open_page(chromium: Any, tmp_path: Path) -> Iterator[Any]:
    """A function that opens a view, or a page, and returns it once drawn. No request, error or alert is allowed."""
    number = count()
    with pages_of(chromium) as open_one:

        def show_page(shown: View | Path, **options: Any) -> Any:
            path = shown if isinstance(shown, Path) else tmp_path / f"{next(number)}.html"
            if isinstance(shown, View):
                shown.save(path)
            page = open_one(**options)
            page.set_viewport_size({"width": 1280, "height": 1400})
            page.goto(path.as_uri())
            page.wait_for_selector("[data-gs][data-gemmascope-ready]")
            return page

        yield show_page


def number(text: str) -> float:
    return float(text.replace("−", "-").replace("+", ""))


def walk(page: Any, id_or_name: str) -> tuple[float, float]:
    """Where a node is drawn, found with the pointer as a reader would: the middle of where its tooltip appears."""
    box = page.locator(CANVAS).bounding_box()
    found = page.evaluate(
        """([wanted]) => {
          const canvas = document.querySelector("canvas[tabindex='0']"), box = canvas.getBoundingClientRect(), at = [];
          for (let y = 2; y < box.height; y += 4) for (let x = 60; x < box.width; x += 4) {
            canvas.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + x, clientY: box.top + y}));
            const tip = document.querySelector(".gs-tip");
            if (!tip.hidden && tip.textContent.split("\\n")[0] === wanted) at.push([x, y]);
          }
          canvas.dispatchEvent(new PointerEvent("pointerleave"));
          return at.length ? [0, 1].map((k) => at.reduce((sum, one) => sum + one[k], 0) / at.length) : null;
        }""",
        [id_or_name],
    )
    assert found, f"no node is called {id_or_name}"
    return box["x"] + found[0], box["y"] + found[1]


def test_a_click_opens_what_a_node_reads_and_writes(open_page: Any) -> None:
    subject, page = pruned(), open_page(view())
    x, y = walk(page, "the strongest")
    page.mouse.move(x, y)
    page.wait_for_selector(".gs-stage.gs-looks")
    id_ = next(node["id"] for node in view().spec["nodes"] if node.get("label") == "the strongest")
    row = subject.nodes.set_index("id").loc[id_]
    tip = page.locator(".gs-tip").inner_text()
    assert f"layer {row['layer']}, at" in tip
    assert f"position {row['pos']}" in tip
    assert f"{row['influence']:.1%}" in tip
    assert page.locator(".gs-node-pane .gs-head").first.inner_text() == "Strongest nodes"
    page.mouse.click(x, y)
    name = page.get_by_label("name of this node")
    name.wait_for()
    assert name.input_value() == "the strongest"
    edges = subject.edges[(subject.edges["target"] == id_) & (subject.edges["source"] != "bias")]
    strongest = edges.iloc[edges["weight"].abs().argsort()[::-1]]["weight"].tolist()
    shown = [number(text) for text in page.locator(".gs-edge>span:last-child").all_inner_texts()]
    n = min(8, len(strongest))
    assert shown[:n] == pytest.approx(strongest[:n], rel=1e-3)
    sums = subject.sums.set_index("target").loc[id_]
    said = [number(text) for text in re.findall(r"[−+][\d.e−]+(?<!\.)", page.locator("[data-gs-sums]").inner_text())]
    assert said == pytest.approx([sums["input"], sums["bias"], sums["rest"]], rel=1e-3, abs=1e-6)
    raises = view().spec["raises"][str(ids_of(view()).index(id_))]
    values = page.locator(".gs-bars .gs-value").all_inner_texts()
    assert [number(text) for text in values] == pytest.approx([value for _, value in raises], rel=1e-3)
    page.locator(".gs-edge").first.click()  # an edge leads to the node at its other end
    page.wait_for_function("!document.querySelector(\"[aria-label='name of this node']\")?.value")
    page.locator(CANVAS).focus()
    page.keyboard.press("Escape")
    page.get_by_text("Strongest nodes").wait_for()


def test_heads_of_an_edge_are_listed(open_page: Any) -> None:
    page, spec = open_page(view()), view().spec
    edge = next(edge for edge, heads in spec["carried"].items() if heads)
    target = spec["nodes"][int(numbers(view().arrays["target"])[int(edge)])]
    page.locator(CANVAS).focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    page.evaluate("document.querySelector('.gs-tip').hidden = true")
    name = {"logit": None}.get(target["kind"], target.get("label") or f"neuron {target.get('layer')}.{target.get('number')}")
    if name is None:
        name = page.evaluate("(text) => text.replaceAll(' ', '·')", target["text"])
    page.mouse.click(*walk(page, name))
    heads = page.locator(f"[data-gs-edge='{edge}'] + .gs-heads")
    heads.wait_for()
    layer, head, value = spec["carried"][edge][0]
    said = re.findall(r"(\d+)\.(\d+) (\S+)", heads.inner_text())[0]
    assert said[:2] == (str(layer), str(head))
    assert number(said[2]) == pytest.approx(value, rel=1e-2)


def test_the_slider_sees_what_prune_keeps(open_page: Any) -> None:
    whole = graph().prune(nodes=0.95, edges=1.0)
    page = open_page(gs.graph_view(whole, most=5000, heads=0, progress=False))
    slider = page.get_by_label("share of the influence")
    counts = []
    for share in (60, 75, 85):
        slider.fill(str(share))
        page.wait_for_function(
            "(text) => document.querySelector('.gs-influence output').textContent === text", arg=f"{share}%"
        )
        expected = graph().prune(nodes=share / 100, edges=1.0)
        count = page.locator(".gs-sentence").inner_text()
        assert f"{int((expected.decoded[0] != BIAS).sum()):,} of " in count
        counts.append(len(expected))
    assert len(set(counts)) == 3


def test_nodes_are_dragged_into_groups_that_have_names(open_page: Any, tmp_path: Path) -> None:
    subject, page = pruned(), open_page(view())
    cards = page.locator(".gs-group:not(.gs-new)")
    assert [card.locator("input").input_value() for card in cards.all()] == ["first", "second"]
    target = page.locator(".gs-group.gs-new").bounding_box()
    x, y = walk(page, "the strongest")
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 20, y + 20)
    page.mouse.move(target["x"] + 40, target["y"] + 40)
    page.wait_for_selector(".gs-new.gs-over")
    page.mouse.up()
    page.get_by_label("name of group 3").wait_for()
    page.get_by_label("name of group 3").fill("my heroes")
    page.keyboard.press("Tab")
    page.wait_for_function("document.querySelector('[data-gs-group=\"2\"] input')?.value === 'my heroes'")
    id_ = next(node["id"] for node in view().spec["nodes"] if node.get("label") == "the strongest")
    expected = {name: [one for one in ids if one != id_] for name, ids in subject.supernodes.items()} | {"my heroes": [id_]}
    page.get_by_label("Export").first.click()
    with page.expect_download() as download:
        page.locator("[data-gs-do=json]").click()
    content = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert content["supernodes"] == expected
    assert content["labels"] == {id_: "the strongest"}
    table = subject.edges
    for edge in content["edges"]:
        found = table[(table["target"] == edge["target"]) & (table["source"] == edge["source"])]["weight"].item()
        assert edge["weight"] == pytest.approx(found, rel=1e-6)
    inside = set(content["nodes"])
    assert len(content["edges"]) == int((table["target"].isin(inside) & table["source"].isin(inside)).sum())
    with page.expect_download() as download:
        page.get_by_label("Export").first.click()
        page.locator("[data-gs-do=page]").click()
    saved = tmp_path / "saved.html"
    saved.write_bytes(Path(download.value.path()).read_bytes())
    again = open_page(saved)
    names = again.evaluate("[...document.querySelectorAll('.gs-group input')].map((one) => one.value)")
    assert names == ["first", "second", "my heroes"]
    assert "Content-Security-Policy" in saved.read_text(encoding="utf-8")
    with again.expect_download() as download:  # a saved page can be saved again
        again.get_by_label("Export").first.click()
        again.locator("[data-gs-do=page]").click()
    assert Path(download.value.path()).read_text(encoding="utf-8") == saved.read_text(encoding="utf-8")


def test_python_of_the_page_gives_a_graph_its_groups_and_names(open_page: Any) -> None:
    page = open_page(view())
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.mouse.click(*walk(page, "the strongest"))
    name = page.get_by_label("name of this node")
    name.fill('a "new"\u202e name')
    page.keyboard.press("Tab")
    page.get_by_label("group of this node").select_option(label="second")
    page.get_by_label("Export").first.click()
    page.locator("[data-gs-do=python]").click()
    page.wait_for_function("window.copied")
    code = page.evaluate("window.copied")
    assert "\u202e" not in code
    given = graph().prune(nodes=0.9)
    exec(code, {"graph": given})
    strongest = next(node["id"] for node in view().spec["nodes"] if node.get("label") == "the strongest")
    assert given.supernodes["second"][-1] == strongest
    assert strongest not in given.supernodes["first"]
    assert given.labels == {strongest: 'a "new"\u202e name'}


def test_keys_go_from_node_to_node(open_page: Any) -> None:
    page = open_page(view())
    page.locator(CANVAS).focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(".gs-stage.gs-looks")
    first = page.locator("[aria-live=polite].gs-live").inner_text()
    assert "influence" in first
    page.keyboard.press("ArrowUp")
    page.wait_for_function("(text) => document.querySelector('.gs-live').textContent !== text", arg=first)
    second = page.locator(".gs-live").inner_text()
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('.gs-facts')")
    assert second.split("\n")[0]
    page.keyboard.press("Escape")
    page.get_by_text("Strongest nodes").wait_for()
    assert page.locator(".gs-live").inner_text().startswith("No node.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_hostile_texts_are_text(open_page: Any, tmp_path: Path, scheme: str) -> None:
    page = open_page(gs.graph_view(hostile.graph(), heads=5, progress=False), scheme=scheme)
    page.locator(".gs-group li button").first.click()
    page.get_by_label("name of this node").wait_for()
    assert page.locator("img, .gs b").count() == 0
    text = page.locator(".gs-card").inner_text()
    unfit = hostile.UNFIT.search(text)
    assert not unfit, repr(text[unfit.start() - 60 : unfit.start() + 30])
    with page.expect_download() as download:
        page.get_by_label("Export").first.click()
        page.locator("[data-gs-do=page]").click()
    saved = tmp_path / "saved.html"
    saved.write_bytes(Path(download.value.path()).read_bytes())
    again = open_page(saved, scheme=scheme)
    assert again.locator("img, .gs b").count() == 0

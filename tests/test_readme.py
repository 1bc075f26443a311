"""The README is right: the files that it names exist, its examples run, CI runs its command."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import gemmascope as gs

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(mark: str) -> str:
    """The text between the fences after <!-- mark -->."""
    match = re.search(rf"<!-- {mark} -->\n```\w*\n(.*?)```", README, re.DOTALL)
    assert match, f"README.md has no block marked {mark!r}"
    return match[1]


def test_links_and_paths_in_the_text_are_there() -> None:
    for path in re.findall(r"`((?:tests|gemmascope|notebooks)/[\w./]*)`", README):
        assert (ROOT / path).exists(), path


def test_continuous_integration_runs_the_command_of_the_readme() -> None:
    command = block("command: test")
    assert command.count("\n") == 1
    assert command.startswith("python3 -m venv .venv && ")
    script = ROOT / ".ci" / "run"
    assert "command: test" in script.read_text(encoding="utf-8")
    assert os.access(script, os.X_OK)


@pytest.mark.nano
def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(block("example") + block("second example") + block("third example"), names)
    t = names["t"]
    assert isinstance(t, gs.Trace)
    assert t.layers[1].kind == "global"
    assert t.lens().dims == ("layer", "vocab")
    assert gs.open_trace("mary.trace").top(3) == t.top(3)
    assert names["s"].effect.dims == ("layer", "pos")  # type: ignore[attr-defined]
    assert names["sae"].n_features > 900  # type: ignore[attr-defined]

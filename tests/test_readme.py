"""The README stays true: its tables are those of the code, its files are there, its example runs."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import gemmascope as gs

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(mark: str) -> str:
    """What stands between the fences after <!-- mark -->."""
    found = re.search(rf"<!-- {mark} -->\n```\w*\n(.*?)```", README, re.DOTALL)
    assert found, f"README.md has no block marked {mark!r}"
    return found[1]


def test_the_table_of_sites_is_that_of_the_code() -> None:
    lines = ["| site | axes | meaning | in TransformerLens |", "|---|---|---|---|"]
    for site in gs.SITES.values():
        hook = f"`{site.hook}`" if site.hook else ""
        lines.append(f"| `{site.name}` | {' '.join(site.axes)} | {site.meaning} | {hook} |")
    table = "\n".join(lines)
    assert table in README, f"README.md should hold this table:\n{table}"


def listed(house: str) -> list[str]:
    """The paths in a tree drawn by indentation: names first, then what they are."""
    folders: list[str] = []
    paths = []
    for line in house.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = [name for name in line.strip().split("   ")[0].split() if re.fullmatch(r"[\w.]+(\.py|/)", name)]
        del folders[depth:]
        paths += ["".join([*folders, name]) for name in names if not name.endswith("/")]
        folders += [name for name in names[:1] if name.endswith("/")]
    return paths


def test_every_file_of_the_package_has_its_line_in_the_house() -> None:
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "gemmascope").rglob("*.py")}
    there -= {path for path in there if (ROOT / path).stat().st_size == 0}  # the mark of a folder as a package
    paths = listed(block("house"))
    assert len(paths) == len(set(paths))
    written = {path for path in there if not path.endswith("__init__.py") or path == "gemmascope/__init__.py"}
    assert not written - set(paths), f"README.md's house has no line for {sorted(written - set(paths))}"
    assert not set(paths) - written, f"README.md's house has lines for what is not there: {sorted(set(paths) - written)}"


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

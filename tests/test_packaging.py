"""Packaging: the wheel, the source archive, and the files that hold versions."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import gemmascope as gs

ROOT = Path(__file__).parent.parent
# What trains nano and what builds the notebooks: run from a clone, not installed.
SCRIPTS = ("gemmascope/nano/training/", "gemmascope/workshop/building/")
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def built(source: Path, target: Path) -> tuple[Path, Path]:
    """The wheel and the source archive of a folder, built without a network: hatchling is in the test extra."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(target)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=120)
    (wheel,), (archive,) = target.glob("*.whl"), target.glob("*.tar.gz")
    return wheel, archive


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return built(ROOT, tmp_path_factory.mktemp("built"))


def files_in(wheel: Path) -> set[str]:
    """The files in a wheel, without its dist-info."""
    with zipfile.ZipFile(wheel) as opened:
        return {name for name in opened.namelist() if ".dist-info/" not in name}


def package_files() -> set[str]:
    paths = (path for path in (ROOT / "gemmascope").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in paths}


def test_the_wheel_holds_the_package_without_its_scripts(archives: tuple[Path, Path]) -> None:
    scripts = {name for name in package_files() if name.startswith(SCRIPTS)}
    assert len(scripts) > 10
    assert files_in(archives[0]) == package_files() - scripts


def test_the_package_imports_none_of_its_scripts() -> None:
    modules = [folder.rstrip("/").replace("/", ".") for folder in SCRIPTS]
    for name in package_files():
        if name.endswith(".py") and not name.startswith(SCRIPTS):
            text = (ROOT / name).read_text(encoding="utf-8")
            assert not [module for module in modules if f"from {module}" in text or f"import {module}" in text], name


@pytest.mark.parametrize("suffix", [".pyc", ".ipynb", ".bin", ".pt", ".txt"])
def test_the_wheel_holds_no_training_data_and_no_notebook(archives: tuple[Path, Path], suffix: str) -> None:
    files = files_in(archives[0])
    assert any(name.endswith(".py") for name in files)
    assert not [name for name in files if name.endswith(suffix) or "/notebooks/" in name or "test" in Path(name).name]


def test_the_wheel_holds_scripts_and_weights(archives: tuple[Path, Path]) -> None:
    file_names = {Path(name).name for name in files_in(archives[0])}
    scripts = {path.name for path in (ROOT / "gemmascope").rglob("*.js")}
    assert scripts
    assert scripts | {"py.typed", "model.safetensors", "tokenizer.json", "config.json", "params.npz"} <= file_names


def test_a_wheel_built_from_the_source_archive_is_the_same(archives: tuple[Path, Path], tmp_path: Path) -> None:
    with tarfile.open(archives[1]) as opened:
        opened.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    assert (source / "LICENSE").exists()
    wheel, _ = built(source, tmp_path / "again")
    assert files_in(wheel) == files_in(archives[0])


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == gs.__version__
    assert f'version = "{gs.__version__}"' in PYPROJECT


def test_the_citation_has_what_its_format_asks_for() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"]
    assert citation["title"] == "gemmascope"
    assert citation["authors"] == [{"name": "The gemmascope developers"}]


def test_linters_are_pinned_and_pre_commit_runs_the_same_ones() -> None:
    pinned = dict(re.findall(r'"(ruff|mypy)==([\d.]+)"', PYPROJECT))
    assert set(pinned) == {"ruff", "mypy"}
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    hooks = {hook["id"]: (repo.get("rev"), hook.get("entry")) for repo in repos for hook in repo["hooks"]}
    ruff = (f"v{pinned['ruff']}", None)
    assert hooks == {"ruff-check": ruff, "ruff-format": ruff, "mypy": (None, "python -m mypy")}


def test_continuous_integration_covers_three_systems_and_every_python() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["test"]
    matrix = job["strategy"]["matrix"]
    assert {system.split("-")[0] for system in matrix["system"]} == {"ubuntu", "macos", "windows"}
    assert matrix["python"][0] == re.search(r'requires-python = ">=([\d.]+)"', PYPROJECT)[1]  # type: ignore[index]
    assert [step["run"] for step in job["steps"] if step.get("if") == "runner.os == 'Linux'"] == [".ci/run"]

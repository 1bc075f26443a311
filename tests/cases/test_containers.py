"""Free memory takes the limits of containers and of the process into account; the control groups are made up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

import gemmascope as gs
import gemmascope.memory.host_memory as limits
from gemmascope.errors import GemmascopeWarning
from gemmascope.memory.placement import free_bytes

FREE, GB = 64 * 10**9, 10**9
NONE_V1 = 2**63 - 4096


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with much free memory, and no limit of the process's own."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=FREE))
    monkeypatch.setattr(limits, "_left_to_process", list)


def system(root: Path, cgroup: str, **groups: dict[str, Any]) -> Path:
    """A root folder with these files of control groups. groups: by folder below sys/fs/cgroup, with __ for a slash."""
    files = {"proc/self/cgroup": cgroup}
    for folder, written in groups.items():
        for name, value in written.items():
            files["/".join(("sys/fs/cgroup", *folder.split("__"), name.replace("__", ".")))] = f"{value}\n"
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    return root


def v2(most: Any, used: int, high: Any = "max", inactive: int = 0) -> dict[str, Any]:
    stat = f"anon 5\nfile 9\ninactive_file {inactive}\nslab 3"
    return {"memory__max": most, "memory__high": high, "memory__current": used, "memory__stat": stat}


def v1(most: int, used: int, inactive: int = 0) -> dict[str, Any]:
    stat = f"inactive_file 1\ntotal_inactive_file {inactive}"
    return {"memory__limit_in_bytes": most, "memory__usage_in_bytes": used, "memory__stat": stat}


CASES: dict[str, tuple[str, dict[str, dict[str, Any]], int]] = {
    "none": ("0::/\n", {}, FREE),
    "a container that sees itself as the root": ("0::/\n", {"": v2(4 * GB, GB)}, 3 * GB),
    "a service": ("0::/system.slice/a.service\n", {"system.slice__a.service": v2(4 * GB, GB)}, 3 * GB),
    "the host's path, which is not there": ("0::/docker/abc\n", {"": v2(4 * GB, GB)}, 3 * GB),
    "max means none": ("0::/\n", {"": v2("max", GB)}, FREE),
    "a soft limit counts": ("0::/\n", {"": v2(8 * GB, GB, high=3 * GB)}, 2 * GB),
    "a soft limit alone": ("0::/\n", {"": v2("max", GB, high=3 * GB)}, 2 * GB),
    "files in memory are free": ("0::/\n", {"": v2(4 * GB, 3 * GB, inactive=2 * GB)}, 3 * GB),
    "used up": ("0::/\n", {"": v2(4 * GB, 5 * GB)}, 0),
    "a tighter group around it": (
        "0::/pod/one\n", {"pod__one": v2(9 * GB, GB), "pod": v2(6 * GB, 4 * GB), "": v2("max", 50 * GB)}, 2 * GB,
    ),
    "more than the host has": ("0::/\n", {"": v2(10**15, GB)}, FREE),
    "no number": ("0::/\n", {"": v2("nonsense", GB)}, FREE),
    "what is used is not told": ("0::/\n", {"": {"memory__max": 4 * GB}}, FREE),
    "version 1": ("4:cpu:/\n3:memory:/docker/abc\n", {"memory__docker__abc": v1(4 * GB, GB)}, 3 * GB),
    "version 1, seen as the root": ("3:cpu,memory:/docker/abc\n", {"memory": v1(4 * GB, 2 * GB, inactive=GB)}, 3 * GB),
    "version 1 without a limit": ("3:memory:/\n", {"memory": v1(NONE_V1, GB)}, FREE),
    "version 1 beside 2": (
        "3:memory:/a\n0::/a\n", {"memory__a": v1(4 * GB, GB), "unified__a": {"cgroup__procs": ""}}, 3 * GB,
    ),
    "version 2 in a hybrid": ("0::/a\n", {"unified__a": v2(5 * GB, GB)}, 4 * GB),
    "another controller's limit": ("3:cpu:/\n", {"memory": v1(4 * GB, GB)}, FREE),
    "a path out of the tree": ("0::/../../..\n", {"": v2(4 * GB, GB)}, 3 * GB),
    "garbage": ("\n:::\nnonsense\n0::\n", {"": v2(4 * GB, GB)}, 3 * GB),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_memory_that_a_container_leaves_is_read(case: str, tmp_path: Path) -> None:
    cgroup, groups, expected = CASES[case]
    assert limits.measured_bytes(system(tmp_path, cgroup, **groups)) == expected


def test_a_system_without_control_groups_has_no_limit(tmp_path: Path) -> None:
    assert limits.measured_bytes(tmp_path) == FREE


def test_budgets_are_taken_from_the_memory_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_left_in_container", lambda root: [3 * GB])
    assert free_bytes(torch.device("cpu")) == 3 * GB
    assert gs.plan("2b", device="cpu").free == 3 * GB
    item = next(item for item in gs.workshop.setup().items if item.name == "memory")
    assert item.finding == "3.0 GB free"


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v is Linux's")
def test_the_limit_of_the_process_itself_counts() -> None:
    script = (
        "import resource, psutil\n"
        "taken = psutil.Process().memory_info().vms\n"
        "resource.setrlimit(resource.RLIMIT_AS, (taken + 10**9, resource.RLIM_INFINITY))\n"
        "from gemmascope.memory.host_memory import _left_to_process\n"
        "print(_left_to_process()[0])"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert 0 < int(printed) <= 10**9


# -- where nothing can be measured --


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_free", lambda: None)


ASKED: dict[str, Any] = {"site": "resid_pre", "progress": False}


@pytest.mark.usefixtures("unknown")
def test_a_sweep_warns_of_the_memory_that_it_assumes() -> None:
    with pytest.warns(GemmascopeWarning, match=r"cannot be measured here: 2 GiB are assumed"):
        result = gs.sweep([2, 5, 9], [2, 9, 9], gs.logit_diff(5, 9), **ASKED)
    assert (result.values == gs.sweep([2, 5, 9], [2, 9, 9], gs.logit_diff(5, 9), memory="1GiB", **ASKED).values).all()


@pytest.mark.usefixtures("unknown")
def test_a_plan_and_the_workshop_say_that_the_memory_is_unknown() -> None:
    plan = gs.plan("2b", device="cpu")
    assert plan.free is None
    assert plan.to_dict()["fits"] is None
    assert "free" not in repr(plan)
    item = next(item for item in gs.workshop.setup().items if item.name == "memory")
    assert item.finding.startswith("cannot be measured here")


def test_an_amount_that_is_given_needs_no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*_: Any) -> int:
        raise AssertionError("memory was measured")

    for name in ("measured_bytes", "available_bytes", "_free"):
        monkeypatch.setattr(limits, name, refusing)
    for module in ("gemmascope.memory.limits", "gemmascope.memory.placement"):
        monkeypatch.setattr(f"{module}.free_bytes", refusing)
    gs.sweep([2, 5, 9], [2, 9, 9], gs.logit_diff(5, 9), memory="1GiB", **ASKED)


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError, psutil.AccessDenied, NotImplementedError])
def test_psutil_may_fail_in_any_way(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> None:
        raise error

    monkeypatch.setattr(psutil, "virtual_memory", failing)
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_AVPHYS_PAGES": 3, "SC_PAGE_SIZE": 4096}[name], raising=False)
    assert limits.measured_bytes() == 12288
    monkeypatch.delattr("os.sysconf")
    assert limits.measured_bytes() is None

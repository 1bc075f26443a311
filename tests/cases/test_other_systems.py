"""macOS and Windows, as far as they can be emulated: without /proc, pread, fcntl, UTF-8 as the default, fork or signals.

Every emulation runs in a process of its own and prints numbers, which are those of an ordinary one.
"""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import checkpoint

import gemmascope as gs
from gemmascope.files.locking import file_lock
from gemmascope.streaming.store_cache import cache_folder

PACKAGE = Path(gs.__file__).parent

SYSTEMS = {
    "ordinary": "",
    "no /proc and no /sys": """
        import builtins, io
        real = builtins.open
        def opening(path, *a, **k):
            if str(path).startswith(("/proc", "/sys")):
                raise FileNotFoundError(2, "No such file or directory", str(path))
            return real(path, *a, **k)
        builtins.open = io.open = opening
    """,
    "Windows": """
        import builtins, io
        real = builtins.open
        def opening(path, *a, **k):
            if str(path).startswith(("/proc", "/sys")):
                raise FileNotFoundError(2, "No such file or directory", str(path))
            return real(path, *a, **k)
        builtins.open = io.open = opening
        import psutil, mmap, signal
        psutil.virtual_memory = lambda: type("M", (), {"available": 8 * 10**9})
        for name in ("fcntl", "resource", "pwd", "grp", "termios"):
            sys.modules[name] = None
        for name in ("pread", "preadv", "pwrite", "O_DIRECT", "posix_fadvise", "sysconf", "fork", "geteuid",
                     "getuid", "sched_getaffinity", "uname", "fchmod", "mkfifo", "register_at_fork", "chown"):
            if hasattr(os, name): delattr(os, name)
        for name in ("MAP_PRIVATE", "MAP_ANONYMOUS", "MAP_ANON", "MAP_SHARED"):
            if hasattr(mmap, name): delattr(mmap, name)
        for name in ("SIGALRM", "SIGKILL", "SIGHUP", "SIGUSR1", "setitimer"):
            if hasattr(signal, name): delattr(signal, name)
        import locale
        locale.getpreferredencoding = lambda *a: "cp1252"
    """,
}  # fmt: skip

WORK = """
import json, tempfile
from pathlib import Path
import torch, transformers, pandas, xarray, psutil, tempfile, shutil, subprocess
{system}
import gemmascope as gs
source, folder = Path(sys.argv[1]), Path(tempfile.mkdtemp())
os.environ["GEMMASCOPE_CACHE"] = str(folder / "cache")
C, X = [2, 5, 9, 12, 7, 30], [2, 5, 9, 14, 7, 30]
asked = {{"site": "resid_pre", "progress": False}}
found = {{}}
ways = {{"resident": {{}}, "memory": {{"memory": "1GiB"}}, "int8": {{"weights": "int8"}}}}
for name, way in ways.items():
    model = gs.load(source, **way)
    t = gs.trace(C, model=model)
    found[name] = t.logits[-1].tolist()
    t.save(folder / "t"); found[name + " saved"] = gs.open_trace(folder / "t", model=model)["z", 1].sum().item()
    s = gs.sweep(C, X, gs.logit_diff(5, 9), model=model, **asked)
    found[name + " sweep"] = s.values.tolist()
out = folder / "cells.csv"
for _ in range(2):
    found["journal"] = gs.sweep(C, X, gs.logit_diff(5, 9), model=model, memory="64MiB", out=out, **asked).values.tolist()
found["generated"] = gs.generate(C, model=model, max_new_tokens=4).ids.tolist()
gs.quantize(source, folder / "store")
found["quantised"] = gs.trace(C, model=gs.load(folder / "store")).logits[-1].tolist()
gs.plan("google/gemma-2-2b")
from gemmascope.workshop.setup import _memory
_memory()
from gemmascope.memory.rates import _read
assert _read(folder) > 0
Mary = "When Mary and John went to the store, John gave a drink to"
John = Mary.replace("John gave", "Mary gave")
lab = gs.patching_lab(Mary, John, " Mary", " John")
lab.run()
found["lab"] = lab.result.values.tolist()
gs.attention_view(gs.trace(Mary)).save(folder / "view.html")
from gemmascope.__main__ import main
assert main(["trace", Mary, "--html", str(folder / "trace.html")]) == 0
print("FOUND" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("systems") / "source"
    checkpoint("lgl").save_pretrained(path, max_shard_size="40KB")
    return path


def run(
    script: str, *arguments: str, options: Sequence[str] = (), encoding: str = "utf-8"
) -> subprocess.CompletedProcess[str]:
    """Python on a script in a process of its own. encoding: of what it prints."""
    return subprocess.run(
        [sys.executable, *options, "-c", f"import os, sys, warnings\n{script}", *arguments],
        capture_output=True, encoding=encoding, timeout=300, check=False, env={**os.environ, "PYTHONIOENCODING": encoding},
    )  # fmt: skip


@cache
def numbers(source: Path, system: str) -> dict[str, Any]:
    done = run(WORK.format(system=textwrap.dedent(SYSTEMS[system])), str(source))
    assert done.returncode == 0, done.stderr[-3000:]
    by_name: dict[str, Any] = json.loads(done.stdout.split("FOUND")[1])
    return by_name


@pytest.mark.parametrize("system", [name for name in SYSTEMS if name != "ordinary"])
def test_every_number_is_that_of_an_ordinary_system(system: str, source: Path) -> None:
    emulated, ordinary = numbers(source, system), numbers(source, "ordinary")
    assert emulated.keys() == ordinary.keys()
    for name, value in ordinary.items():  # to rounding: how many cells share a pass depends on what is free
        assert torch.allclose(torch.tensor(emulated[name]), torch.tensor(value), rtol=1e-5), name


def test_nothing_is_opened_in_the_encoding_of_the_system(source: Path) -> None:
    """A file that is opened without an encoding is read differently on Windows."""
    strict = 'warnings.filterwarnings("error", category=EncodingWarning, module="gemmascope")'
    script = WORK.format(system=strict)
    done = run(script, str(source), options=["-X", "warn_default_encoding"])
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_the_commands_print_on_a_console_that_knows_few_letters(encoding: str) -> None:
    commands = [["trace", "Zoë went → 東京"], ["generate", "Mary went", "--max-new-tokens", "3"], ["plan", "nano"]]
    script = """
import json
from gemmascope.__main__ import main
for command in json.loads(sys.argv[1]):
    print("COMMAND")
    assert main(command) == 0, command
"""
    done = run(script, json.dumps(commands), encoding=encoding)
    assert done.returncode == 0, done.stderr[-2000:]
    printed = done.stdout.split("COMMAND")[1:]
    assert len(printed) == len(commands)
    assert all(part.strip() for part in printed)


def test_no_module_needs_what_only_some_systems_have() -> None:
    """Modules and functions that a system may lack are used in a few files only, which handle their absence."""
    modules = {"fcntl", "msvcrt", "resource", "pwd", "grp", "termios"}
    functions = {"pread", "preadv", "pwrite", "sysconf", "statvfs", "fork", "uname", "geteuid", "getuid", "fchmod", "mkfifo"}
    allowed = {"memory/host_memory.py", "files/locking.py", "files/replace.py"}
    uses: list[str] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import) and modules & {alias.name for alias in node.names}:
                uses.append(f"{name}: {ast.unparse(node)}")
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "os" and node.attr in functions:
                uses.append(f"{name}: {ast.unparse(node)}")
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(("/proc", "/sys")):
                uses.append(f"{name}: {node.value!r}")
    assert uses
    assert not [one for one in uses if one.split(":")[0] not in allowed]


# -- one process at a time --

HOLDING = "from pathlib import Path\nfrom gemmascope.files.locking import file_lock\n"


def test_a_process_that_was_killed_holds_no_lock(tmp_path: Path) -> None:
    assert run(f"{HOLDING}with file_lock(Path(sys.argv[1])): os._exit(9)", str(tmp_path / ".lock")).returncode == 9
    assert (tmp_path / ".lock").exists()
    with file_lock(tmp_path / ".lock"):
        pass


class Noticing(io.StringIO):
    """A stream that another thread can wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Event()

    def write(self, text: str) -> int:
        n_written = super().write(text)
        if text.endswith("\n"):
            self.written.set()
        return n_written


def test_a_process_that_waits_for_a_lock_prints_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    stderr = Noticing()
    monkeypatch.setattr(sys, "stderr", stderr)

    def second() -> None:
        with file_lock(tmp_path / ".lock"):
            order.append("second")

    thread = threading.Thread(target=second, daemon=True)
    with file_lock(tmp_path / ".lock"):
        thread.start()
        assert stderr.written.wait(30)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]
    assert f"another process is at work in {tmp_path}: waiting for it" in stderr.getvalue()


@pytest.mark.parametrize("name", ["google/gemma-2-2b", "CON", "nul.v1", "a:b?c*d", "com3", "x" * 300, "...", "ünï", ""])
def test_names_of_cache_folders_are_valid_on_windows(name: str) -> None:
    folder_name = cache_folder(None, name, "0123456789abcdef" * 4).name
    assert not set(folder_name) & set('<>:"/\\|?*')
    assert len(folder_name.encode()) < 255
    assert not folder_name.endswith((".", " "))
    assert folder_name.split(".")[0].upper() not in {"CON", "PRN", "AUX", "NUL", "COM3"}

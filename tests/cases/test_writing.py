"""Every file is written by one function, which follows links, keeps modes and says what is wrong."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import gemmascope as gs
from gemmascope.errors import CheckpointError, FileError, GemmascopeError, SweepError, TraceError
from gemmascope.files import replace
from gemmascope.files.paths import user_path
from gemmascope.files.writing import write_file

CLEAN = "Mary and John went to the store. John gave a drink to"
CORRUPT = CLEAN.replace("John gave", "Mary gave")


@cache
def trace() -> gs.Trace:
    return gs.trace("Mary went to the store")


@cache
def swept() -> gs.SweepResult:
    return gs.sweep(CLEAN, CORRUPT, gs.logit_diff(" Mary", " John"), site="resid_pre", layer=[1], progress=False)


@cache
def lab() -> Any:
    patching_lab = gs.patching_lab(CLEAN, CORRUPT, " Mary", " John")
    patching_lab.wait_until_prepared()
    return patching_lab


def journal(path: Any) -> None:
    gs.sweep(CLEAN, CORRUPT, gs.logit_diff(" Mary", " John"), site="resid_pre", layer=[1], progress=False, out=path)


# Calls that write a file, the class of their errors, the file's suffix, and whether pipes and devices are accepted.
WRITERS: dict[str, tuple[Callable[[Any], Any], type[GemmascopeError], str, bool]] = {
    "a trace": (lambda path: trace().save(path), TraceError, ".trace", False),
    "a sweep": (lambda path: swept().save(path), SweepError, ".json", False),
    "a sweep's out=": (journal, SweepError, ".json", False),
    "a view": (lambda path: gs.attention_view(trace()).save(path), FileError, ".html", True),
    "a lab's page": (lambda path: lab().save(path), SweepError, ".html", True),
    "a lab's table": (lambda path: lab().save(path), SweepError, ".csv", True),
    "a lab's script": (lambda path: lab().save(path), SweepError, ".py", True),
}
ONCE = [name for name in WRITERS if name not in ("a lab's table", "a lab's script")]


def save(name: str, path: Any) -> None:
    WRITERS[name][0](path)


def ending(name: str) -> str:
    return WRITERS[name][2]


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    old = os.umask(0o022)
    yield
    os.umask(old)


# -- modes and links --


@pytest.mark.parametrize("name", WRITERS)
def test_a_new_file_has_the_umasks_mode(name: str, tmp_path: Path) -> None:
    for mask, mode in ((0o022, 0o644), (0o077, 0o600)):
        os.umask(mask)
        path = tmp_path / f"{mode}{ending(name)}"
        save(name, path)
        assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("mode", [0o600, 0o664])
@pytest.mark.parametrize("name", WRITERS)
def test_a_file_keeps_its_mode(name: str, mode: int, tmp_path: Path) -> None:
    path = tmp_path / f"f{ending(name)}"
    path.touch()
    path.chmod(mode)
    save(name, path)
    assert path.stat().st_size > 0
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("target_exists", [True, False])
@pytest.mark.parametrize("name", WRITERS)
def test_a_link_is_followed_and_not_replaced(name: str, target_exists: bool, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    target = tmp_path / "disk" / f"t{ending(name)}"
    link, further = (tmp_path / f"{letter}{ending(name)}" for letter in "lm")
    if target_exists:
        target.touch()
    link.symlink_to(Path("disk") / target.name)  # as seen from the link's folder
    further.symlink_to(link)
    save(name, further)
    assert link.is_symlink()
    assert further.is_symlink()
    assert not target.is_symlink()
    assert target.stat().st_size > 0
    assert [path.name for path in target.parent.iterdir()] == [target.name]


@pytest.mark.parametrize("name", ONCE)
def test_a_link_to_itself_or_into_a_missing_folder_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / f"a{ending(name)}").symlink_to(tmp_path / f"a{ending(name)}")
    (tmp_path / f"b{ending(name)}").symlink_to(tmp_path / "none" / "b")
    for path, message in (("a", "a link that leads back"), ("b", "there is no folder .*none: make")):
        with pytest.raises(WRITERS[name][1], match=message):
            save(name, tmp_path / f"{path}{ending(name)}")


# -- paths as users type them --


@pytest.mark.parametrize("name", WRITERS)
def test_a_path_may_be_a_text_or_any_pathlike_and_begin_with_a_tilde(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Like:
        def __fspath__(self) -> str:
            return str(tmp_path / f"like{ending(name)}")

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for path_argument in (f"~/home{ending(name)}", Path(f"~/path{ending(name)}"), Like()):
        save(name, path_argument)
    assert {path.stem for path in tmp_path.iterdir()} == {"home", "path", "like"}


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "None": (lambda folder: None, "a text or a pathlib.Path; given None"),
    "nothing": (lambda folder: "", "is empty"),
    "bytes": (lambda folder: b"x", "is a text, not bytes"),
    "a number": (lambda folder: 3, "given 3"),
    "NUL": (lambda folder: f"{folder}/a\0b", "holds a NUL"),
    "half a pair": (lambda folder: f"{folder}/\ud800", "cannot be a file's name"),
    "a long name": (lambda folder: folder / ("n" * 300), "the name is too long"),
    "no folder": (lambda folder: folder / "no" / "such" / "f", "there is no folder .*no.such: make it first"),
    "below a file": (lambda folder: folder / "file" / "f", "file is a file and no folder"),
    "a folder": (lambda folder: folder / "folder", "is a directory; name a file in it|it is a folder"),
    "a folder to be": (lambda folder: f"{folder}/new.html/", "name a file in it"),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", ONCE)
def test_a_path_that_cannot_be_written_raises_a_package_error_that_names_it(name: str, bad: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / f"folder{ending(name)}").mkdir()
    before = sorted(tmp_path.rglob("*"))
    path_argument = BAD[bad][0](tmp_path)
    if path_argument is None and name == "a sweep's out=":  # there None means no file
        return
    if bad not in ("None", "nothing", "bytes", "a number", "a folder to be"):
        path_argument = type(path_argument)(f"{path_argument}{ending(name)}")
    with pytest.raises(WRITERS[name][1], match=f"(?i){BAD[bad][1]}") as raised:
        save(name, path_argument)
    if isinstance(path_argument, Path) or bad == "a folder to be":
        assert str(path_argument).rstrip("/") in str(raised.value)
    assert ".part" not in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("path_argument", [None, "", b"x", "a\0b"])
@pytest.mark.parametrize(
    ("read", "kind"),
    [(gs.open_trace, TraceError), (gs.open_sweep, SweepError), (lambda path: gs.quantize("nano", path), CheckpointError)],
)
def test_a_bad_path_to_read_is_refused_by_every_reader(read: Any, kind: type[GemmascopeError], path_argument: Any) -> None:
    with pytest.raises(kind, match="the path of "):
        read(path_argument)


def test_a_path_to_read_may_begin_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    trace().save("~/t")
    swept().save("~/s")
    gs.quantize("nano", "~/q")
    assert gs.open_trace("~/t").tokens == trace().tokens
    assert (gs.open_sweep("~/s").values == swept().values).all()
    assert gs.load("~/q").config == gs.load("nano").config


def test_a_name_as_long_as_the_system_allows_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write_file(path, "text")
    write_file(path, "text again")
    assert path.read_text() == "text again"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ONCE)
def test_a_read_only_file_is_not_replaced(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"f{ending(name)}"
    path.write_text("precious")
    path.chmod(0o444)
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda p, mode: str(p) != str(path) and access(p, mode)
    )  # root may write it, so the check is emulated
    with pytest.raises(WRITERS[name][1], match=f"cannot write {path}: it is read-only"):
        save(name, path)
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk is full: make room"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "the system does not allow it"),
        (errno.EIO, "Input/output error"),
    ],
)
@pytest.mark.parametrize("name", [name for name in ONCE if name != "a sweep's out="])
def test_an_error_of_the_system_raises_a_package_error_and_the_old_file_stays(
    name: str, number: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error comes at the renaming, as on Windows while another program has the file open, or at fsync."""
    path = tmp_path / f"f{ending(name)}"
    path.write_text("old")

    def failing(*_: Any) -> None:
        raise OSError(number, os.strerror(number), str(tmp_path / ".hidden.part"))

    for owner, method in ((os, "replace"), (os, "fsync")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, method, failing)
            with pytest.raises(WRITERS[name][1], match=message) as raised:
                save(name, path)
        assert str(path) in str(raised.value)
        assert ".part" not in str(raised.value)
        assert path.read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("missing", ["chown", "fsync"])
def test_files_are_written_where_the_system_lacks_some_calls(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing == "fsync":
        monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EINVAL, "no such thing")))
    else:
        monkeypatch.delattr(os, "chown")
    write_file(tmp_path / "f", "one")
    write_file(tmp_path / "f", "two")
    assert (tmp_path / "f").read_text() == "two"


# -- pipes and devices --


@pytest.mark.parametrize("name", WRITERS)
def test_a_pipe_is_written_to_by_calls_that_write_once_and_never_replaced(name: str, tmp_path: Path) -> None:
    pipe = tmp_path / f"p{ending(name)}"
    os.mkfifo(pipe)
    if not WRITERS[name][3]:
        with pytest.raises(WRITERS[name][1], match="it is a pipe or a device"):
            save(name, pipe)
        assert pipe.is_fifo()
        return
    save(name, tmp_path / f"f{ending(name)}")
    contents_read: list[bytes] = []
    reader = threading.Thread(target=lambda: contents_read.append(pipe.read_bytes()))
    reader.start()
    save(name, pipe)
    reader.join(20)
    assert pipe.is_fifo()
    assert contents_read == [(tmp_path / f"f{ending(name)}").read_bytes()]


def test_devices_stay_devices(tmp_path: Path) -> None:
    for device, makes in (("/dev/null", True), ("/dev/full", False)):
        link = tmp_path / Path(device).name
        link.symlink_to(device)
        for path in (Path(device), link):
            if makes:
                gs.attention_view(trace()).save(path)
            else:
                with pytest.raises(FileError, match="the disk is full"):
                    gs.attention_view(trace()).save(path)
            for name in ("a trace", "a sweep", "a sweep's out="):
                with pytest.raises(WRITERS[name][1], match="it is a pipe or a device"):
                    save(name, path)
            assert stat.S_ISCHR(path.stat().st_mode)


@pytest.mark.parametrize("stdout", ["a file", "a pipe"])
def test_a_table_on_stdout_follows_earlier_output(stdout: str, tmp_path: Path) -> None:
    """A file behind /dev/stdout is not replaced: the shell and this process both write to it."""
    code = (
        "import gemmascope.files.writing as w; print(1); w.write_file('/dev/stdout', 'table\\n', allow_pipe=True); print(2)"
    )
    with (tmp_path / "out").open("wb") as file:
        to: Any = file if stdout == "a file" else subprocess.PIPE
        done = subprocess.run([sys.executable, "-c", code], stdout=to, check=True, timeout=60)
    assert (done.stdout or (tmp_path / "out").read_bytes()).split() == [b"1", b"table", b"2"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# -- many at a time, and processes that were killed --


def test_threads_that_save_to_one_path_all_succeed_and_the_file_is_always_complete(tmp_path: Path) -> None:
    path, versions = tmp_path / "f", [bytes([letter]) * 200_000 for letter in b"abcd"]
    write_file(path, versions[0])
    errors: list[Exception] = []
    torn: list[bytes] = []

    def write_repeatedly(content: bytes) -> None:
        for _ in range(50):
            try:
                write_file(path, content)
            except Exception as error:
                errors.append(error)
            if (content_read := path.read_bytes()) not in versions:
                torn.append(content_read)

    threads = [threading.Thread(target=write_repeatedly, args=(version,)) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert not torn
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


SLOW = """
import sys, gemmascope.files.writing as w
def pieces():
    yield b"half"
    print("begun", flush=True)
    sys.stdin.read()
w.write_file(sys.argv[1], pieces())
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_next_save_removes_partial_files_of_killed_processes_only(how: int, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    command: Any = [sys.executable, "-c", SLOW, path]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as killed,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as alive,
    ):
        for process in (killed, alive):
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
        assert len(list(tmp_path.glob(".f.*.part"))) == 2
        killed.send_signal(how)
        killed.wait(60)
        write_file(path, "new")
        assert len(list(tmp_path.glob(".f.*.part"))) == 1
        alive.communicate(timeout=60)
        assert alive.returncode == 0
    assert path.read_text() == "half"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_only_left_overs_of_ended_processes_for_this_file_are_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(60)
    machine = replace._machine()
    removed = [f".f.{ended.pid}.part", f".f.{machine}-{ended.pid}-00112233.part", f".f.{os.getpid()}.part"]
    remaining = [
        f".g.{ended.pid}.part",
        f".f.0123abcd-{ended.pid}-00112233.part",
        f".f.{machine}-{os.getppid()}-00112233.part",
        ".f.notes.part",
        ".f.part",
    ]
    for name in (*removed, *remaining):
        (tmp_path / name).touch()
    write_file(tmp_path / "f", "text")
    assert {path.name for path in tmp_path.iterdir()} == {"f", *remaining}
    os.utime(tmp_path / remaining[1], (0, 0))  # and what another machine left a day ago
    write_file(tmp_path / "f", "text")
    assert {path.name for path in tmp_path.iterdir()} == {"f", *remaining} - {remaining[1]}


def test_an_error_while_content_is_made_leaves_the_old_file(tmp_path: Path) -> None:
    def breaking() -> Iterator[bytes]:
        yield b"half"
        raise ZeroDivisionError("a fault of the maker's")

    write_file(tmp_path / "f", "old")
    with pytest.raises(ZeroDivisionError):
        write_file(tmp_path / "f", breaking())
    assert (tmp_path / "f").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_tilde_without_a_home_raises_a_package_error(tmp_path: Path) -> None:
    assert user_path("~nobody-of-this-name/x", error=FileError) == Path("~nobody-of-this-name/x")
    with pytest.raises(FileError, match="there is no folder"):
        write_file("~nobody-of-this-name/x", "text")

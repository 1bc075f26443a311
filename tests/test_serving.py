"""gemmascope lab: a JupyterLab that answers only on this machine and only with the token."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from gemmascope.cli import serving
from gemmascope.cli.serving import find_notebooks, lab_command
from gemmascope.errors import ServingError

REPOSITORY = Path(__file__).resolve().parents[1]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def status(port: int, token: str = "", host: str = "127.0.0.1") -> int:
    """The HTTP status of an answer; 0 if there is none."""
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/api/contents?token={token}", timeout=2) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.mark.skipif(os.name == "nt", reason="there are no such terminals there")
def test_the_server_answers_on_this_machine_only_and_requires_the_token(tmp_path: Path) -> None:
    (tmp_path / "a.ipynb").write_text("{}")
    port = free_port()
    places = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    command = [sys.executable, "-m", "gemmascope", "lab", str(tmp_path), "--port", str(port), "--no-browser"]
    command += ["--", "--allow-root"] if os.geteuid() == 0 else []
    terminal, typed = os.openpty()  # at a terminal Ctrl-C is handled differently than in a script
    server = subprocess.Popen(command, env={**os.environ, **places}, stdin=typed, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: status(port) == 403, server)
        running = json.loads(next((tmp_path / "RUNTIME").glob("jpserver-*.json")).read_text())
        assert running["pid"] == server.pid, "it runs in the place of the command"
        assert Path(running["root_dir"]) == tmp_path
        assert len(running["token"]) > 20
        assert (status(port, running["token"]), status(port, "guess")) == (200, 403)
        assert running["hostname"] == "127.0.0.1"
        assert status(port, running["token"], own_address()) == 0
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0
        assert status(port, running["token"]) == 0
        assert not list((tmp_path / "RUNTIME").glob("jpserver-*.json")), "it tidied up behind itself"
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
        os.close(terminal)
        os.close(typed)


def own_address() -> str:
    """An address of this machine other than loopback; if it has none, one at which nothing answers."""
    for address in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET):
        if not str(address[4][0]).startswith("127."):
            return str(address[4][0])
    return "127.0.0.2"


def wait_until(is_so: object, server: subprocess.Popen[bytes]) -> None:
    assert callable(is_so)
    for _ in range(300):
        assert server.poll() is None
        if is_so():
            return
        time.sleep(0.2)
    raise AssertionError("JupyterLab did not answer")


OPENING = ["--ip=0.0.0.0", "--ServerApp.ip=*", "--NotebookApp.token=", "--ServerApp.token", "--password="]


@pytest.mark.parametrize("option", OPENING)
def test_options_that_open_the_server_to_others_are_refused(option: str, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="is not passed on"):
        lab_command(tmp_path, None, ["--debug", option])


def test_other_arguments_are_passed_on(tmp_path: Path) -> None:
    command = lab_command(tmp_path, 9000, ["--debug", "--ServerApp.iopub_data_rate_limit=1e9"], opens_browser=False)
    assert command[:3] == [sys.executable, "-m", "jupyterlab"]
    assert {"--ServerApp.ip=127.0.0.1", "--ServerApp.port=9000", "--no-browser", "--debug"} <= set(command)
    assert "--no-browser" not in lab_command(tmp_path, None, [])


def test_jupyterlab_opens_where_the_workshop_starts(tmp_path: Path) -> None:
    assert (REPOSITORY / "notebooks" / serving.START).is_file()
    start = "--LabApp.default_url=/lab/tree/0_start_here.ipynb"
    assert start in lab_command(REPOSITORY / "notebooks", None, [])
    assert start not in lab_command(tmp_path, None, []), "a folder of one's own has no such notebook"


def test_the_notebooks_are_found_or_the_error_says_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_notebooks(None) == REPOSITORY / "notebooks"
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    assert find_notebooks(None) == REPOSITORY / "notebooks", "an empty folder holds no notebooks"
    (notebooks / "mine.ipynb").write_text("{}")
    assert find_notebooks(None) == notebooks
    (notebooks / "mine.ipynb").unlink()
    monkeypatch.setattr(serving, "__file__", str(tmp_path / "site-packages" / "gemmascope" / "serving.py"))
    with pytest.raises(ServingError, match="they lie in the repository"):
        find_notebooks(None)


def test_without_jupyterlab_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ServingError, match=r'pip install "gemmascope\[lab\]"'):
        lab_command(tmp_path, None, [])

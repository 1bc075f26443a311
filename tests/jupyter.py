"""A JupyterLab of the tests' own: on the loopback address, with its own folders, opened in a browser page.

Notebooks are run from the page, as a user runs them, so an output has come from the kernel to the browser.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOKEN = "a-token-of-the-tests"
IDLE = "Python 3 (ipykernel) | Idle"
DONE = "the last cell is done"


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab and the folder that it shows."""

    url: str
    folder: Path

    def write(self, name: str, cells: Sequence[str]) -> None:
        """Write a notebook of code cells into the folder."""
        import nbformat

        notebook = nbformat.v4.new_notebook()
        notebook.cells = [nbformat.v4.new_code_cell(cell, id=f"cell-{i}") for i, cell in enumerate(cells)]
        notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
        nbformat.write(notebook, self.folder / name)

    def open(self, page: Any, name: str, *, kernel: bool = True) -> None:
        """Open a notebook in a page of its own workspace; with kernel, wait until that is idle."""
        page.goto(f"{self.url}/lab/workspaces/{name.split('.')[0]}/tree/{name}?token={TOKEN}&reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        if kernel:
            # A run before it is idle opens a dialog that asks for a kernel.
            page.get_by_text(IDLE, exact=True).wait_for(timeout=60_000)

    def run(self, page: Any, name: str, cells: Sequence[str]) -> None:
        """Write a notebook of these cells, open it in a page and run it, to its end: a last cell of its own says so."""
        self.write(name, [*cells, f"print({DONE!r})"])
        self.open(page, name)
        self.command(page, "notebook:run-all-cells")
        page.get_by_text(DONE, exact=True).wait_for(timeout=60_000)

    @staticmethod
    def command(page: Any, name: str) -> None:
        """Run a command of JupyterLab's own. Its promise is not awaited: it may wait for a dialog."""
        page.evaluate("name => { window.jupyterapp.commands.execute(name); }", name)


@contextmanager
def jupyterlab(folder: Path, *, subshells: bool) -> Iterator[Lab]:
    """A JupyterLab over a folder. subshells: whether messages of widgets may be handled beside a running cell."""
    home, notebooks = folder / "home", folder / "notebooks"
    settings = home / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    for path in (notebooks, settings):
        path.mkdir(parents=True)
    how = "perCommTarget" if subshells else "disabled"
    (settings / "kernels-settings.jupyterlab-settings").write_text(json.dumps({"commsOverSubshells": how}))
    news = {"fetchNews": "false", "checkForUpdates": False}
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(news))
    port = _free_port()
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--port-retries=0",
        f"--IdentityProvider.token={TOKEN}", "--LabApp.expose_app_in_browser=True", f"--notebook-dir={notebooks}",
        f"--LabApp.user_settings_dir={home / 'lab' / 'user-settings'}",
        f"--LabApp.workspaces_dir={home / 'lab' / 'workspaces'}",
        "--LabApp.news_url=None", "--allow-root", "--ServerApp.disable_check_xsrf=True",
    ]  # fmt: skip
    places = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    environment = {**os.environ, **places, "IPYTHONDIR": str(home / "ipython"), "OMP_NUM_THREADS": "1"}
    log = (folder / "server.log").open("w")
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=notebooks)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(f"{url}/api/status?token={TOKEN}", server)
        yield Lab(url, notebooks)
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        log.close()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait(url: str, server: subprocess.Popen[bytes], seconds: float = 60) -> None:
    """Wait until the server answers. RuntimeError if it ends, or takes too long."""
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        if server.poll() is not None:
            raise RuntimeError(f"JupyterLab ended with status {server.returncode}")
        try:
            urllib.request.urlopen(url, timeout=2).read()
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not answer within {seconds} s")


def version() -> tuple[int, ...]:
    """JupyterLab's version, as numbers."""
    import jupyterlab

    return tuple(int(part) for part in re.findall(r"\d+", jupyterlab.__version__)[:3])

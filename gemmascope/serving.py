"""gemmascope lab: JupyterLab on the notebooks, for this machine alone and with the token check left on."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from gemmascope.errors import ServingError

LOOPBACK = "127.0.0.1"

# What would open the server to other machines, or to whoever finds its port.
_OPENING = re.compile(
    r"--(?:\w+\.)?(?:ip|token|password|hashed_password|password_required|allow_remote_access|allow_root_access|"
    r"disable_check_xsrf|allow_origin|allow_origin_pat|allow_unauthenticated_access|identity_provider_class)(?:=|$)",
    re.IGNORECASE,
)


def lab_command(folder: Path | None, port: int | None, more: Sequence[str], *, opens_browser: bool = True) -> list[str]:
    """The command that starts JupyterLab. folder: of notebooks; None: ./notebooks, or those of this clone.

    more: further arguments of JupyterLab. ServingError for a folder that is not there, where JupyterLab is not installed,
    and for arguments that would let other machines in or take the token away.
    """
    if opening := [given for given in more if _OPENING.match(given)]:
        raise ServingError(
            f"{opening[0].split('=')[0]} is not passed on: this server is for this machine alone, with its token. For "
            "another machine's browser forward the port (ssh -L), or start `jupyter lab` yourself"
        )
    if importlib.util.find_spec("jupyterlab") is None:
        raise ServingError('JupyterLab is not installed: pip install "gemmascope[lab]"')
    found = find_notebooks(folder)
    # Ctrl-C ends it at once, as it ends every other command.
    options = [f"--ServerApp.ip={LOOPBACK}", f"--ServerApp.root_dir={found}", "--ServerApp.answer_yes=True"]
    options += [] if port is None else [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    options += [] if opens_browser else ["--no-browser"]
    return [sys.executable, "-m", "jupyterlab", *options, *more]


def find_notebooks(folder: Path | None) -> Path:
    """The folder of notebooks. ServingError if there is none."""
    if folder is not None:
        if not folder.is_dir():
            raise ServingError(f"there is no folder {str(folder)!r}: give one that holds notebooks")
        return folder.resolve()
    places = (Path.cwd() / "notebooks", Path(__file__).resolve().parents[1] / "notebooks")
    for place in places:
        if any(place.glob("*.ipynb")):
            return place
    raise ServingError(
        "there are no notebooks here: they lie in the repository, not in the installed package. Clone it and run this "
        "there, or name a folder: gemmascope lab FOLDER"
    )


def serve(command: Sequence[str]) -> int:
    """Run it in the place of this process, so that Ctrl-C is JupyterLab's; returns its status where that cannot be."""
    if os.name == "posix":
        sys.stdout.flush()
        os.execv(command[0], list(command))
    return subprocess.call(list(command))

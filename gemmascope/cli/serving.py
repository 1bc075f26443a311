"""gemmascope lab: JupyterLab on the notebooks, for this machine alone and with the token check left on."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from gemmascope.errors import MissingPackageError, ServingError
from gemmascope.legible import spelled
from gemmascope.packages import requires_package

LOOPBACK = "127.0.0.1"

# What is passed on to JupyterLab: nothing that takes the token away, lets other machines, pages or origins in, binds
# elsewhere, or reads another configuration. A list of what may pass, because there are many ways to say the rest.
_FLAGS = ("--debug", "--no-browser", "--allow-root", "-y", "--core-mode", "--version", "--help", "--help-all")
_ALIASES = ("--port", "--port-retries", "--browser", "--log-level")
_SERVERS = ("ServerApp", "NotebookApp", "LabApp")
_KERNELS = ("MultiKernelManager", "MappingKernelManager", "AsyncMappingKernelManager")
_SETTINGS = {
    **dict.fromkeys(_SERVERS, (
        "port", "port_retries", "open_browser", "browser", "log_level", "iopub_data_rate_limit", "iopub_msg_rate_limit",
        "rate_limit_window", "max_body_size", "max_buffer_size", "min_open_files_limit", "shutdown_no_activity_timeout",
        "terminals_enabled", "use_redirect_file", "webbrowser_open_new", "websocket_ping_interval", "websocket_ping_timeout",
        "news_url", "core_mode",
    )),
    **dict.fromkeys(_KERNELS, (
        "buffer_offline_messages", "cull_busy", "cull_connected", "cull_idle_timeout", "cull_interval",
        "default_kernel_name", "kernel_info_timeout", "shutdown_wait_time",
    )),
    "ZMQChannelsWebsocketConnection": (
        "iopub_data_rate_limit", "iopub_msg_rate_limit", "rate_limit_window", "limit_rate", "kernel_info_timeout",
    ),
    "KernelManager": ("shutdown_wait_time",),
    "FileContentsManager": ("delete_to_trash", "use_atomic_writing"),
    "Application": ("log_level",),
}  # fmt: skip


class NoJupyterError(MissingPackageError, ServingError):
    """JupyterLab is not installed."""


def lab_command(folder: Path | None, port: int | None, more: Sequence[str], *, opens_browser: bool = True) -> list[str]:
    """The command that starts JupyterLab. folder: of notebooks; None: ./notebooks, or those of this clone.

    more: further arguments of JupyterLab. ServingError for a folder that is not there, where JupyterLab is not installed,
    and for arguments that are not among those which may pass.
    """
    require_harmless(more)
    with requires_package("gemmascope lab", "jupyterlab", error_class=NoJupyterError):
        if importlib.util.find_spec("jupyterlab") is None:
            raise ImportError("JupyterLab is not installed", name="jupyterlab")
    found = find_notebooks(folder)
    # Ctrl-C ends it at once, as it ends every other command.
    options = [f"--ServerApp.ip={LOOPBACK}", f"--ServerApp.root_dir={found}", "--ServerApp.answer_yes=True"]
    options += [] if port is None else [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    options += [] if opens_browser else ["--no-browser"]
    return [sys.executable, "-m", "jupyterlab", *options, *more]


def require_harmless(more: Sequence[str]) -> None:
    """ServingError for arguments that are not passed on to JupyterLab: for all but those listed above."""
    left = list(more)
    while left:
        given = left.pop(0)
        name, equals, _ = given.partition("=")
        owner, _, setting = name.removeprefix("--").partition(".")
        takes_value = name in _ALIASES or (name.startswith("--") and setting in _SETTINGS.get(owner, ()))
        if takes_value and not equals and left and not left[0].startswith("-"):
            equals, _ = "=", left.pop(0)
        if (given in _FLAGS) or (takes_value and equals):
            continue
        if takes_value:
            raise ServingError(f"{name} needs a value: {name}=VALUE")
        raise ServingError(
            f"{spelled(name)} is not passed on: this server is for this machine alone, with its token and with no other "
            f"configuration than yours. Passed on are {', '.join(_FLAGS[:5])} and settings of limits, timeouts and logs. "
            "For another machine's browser forward the port (ssh -L), or start `jupyter lab` yourself"
        )


def require_user(more: Sequence[str]) -> None:
    """ServingError for root, as whom JupyterLab does not start unless it is told to."""
    if getattr(os, "geteuid", lambda: 1)() == 0 and "--allow-root" not in more:
        raise ServingError(
            "JupyterLab does not start as root, because every page could then change this whole machine: start it as "
            "another user, or say `gemmascope lab -- --allow-root`, such as in a container"
        )


def find_notebooks(folder: Path | None) -> Path:
    """The folder of notebooks. ServingError if there is none."""
    if folder is not None:
        if not folder.is_dir():
            raise ServingError(f"there is no folder {str(folder)!r}: give one that holds notebooks")
        return folder.resolve()
    places = (Path.cwd() / "notebooks", Path(__file__).resolve().parents[2] / "notebooks")
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

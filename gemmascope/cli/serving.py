"""Starting JupyterLab on the notebooks, reachable from this machine only, with its token check on."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from gemmascope.errors import MissingPackageError, ServingError
from gemmascope.legible import legible_line
from gemmascope.packages import requires_package

LOOPBACK = "127.0.0.1"
START = "0_start_here.ipynb"  # what JupyterLab opens, where there is one

# The arguments that are passed on to JupyterLab. None of them turns off the token, lets in other machines, pages or origins,
# binds to another address, or reads another configuration. There are too many ways to do that to list what is refused.
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


def lab_command(folder: Path | None, port: int | None, arguments: Sequence[str], *, opens_browser: bool = True) -> list[str]:
    """The command that starts JupyterLab.

    Args:
        folder: The folder of notebooks; None for ./notebooks, or else those of this clone.
        port: The port to listen on; None for the first free one.
        arguments: Further arguments of JupyterLab.
        opens_browser: Whether to open a browser.

    Raises:
        ServingError: There is no such folder, JupyterLab is not installed, or an argument is not passed on.
    """
    require_harmless(arguments)
    with requires_package("gemmascope lab", "jupyterlab", error_class=NoJupyterError):
        if importlib.util.find_spec("jupyterlab") is None:
            raise ImportError("JupyterLab is not installed", name="jupyterlab")
    notebooks = find_notebooks(folder)
    # With answer_yes Ctrl-C ends it at once, like every other command.
    options = [f"--ServerApp.ip={LOOPBACK}", f"--ServerApp.root_dir={notebooks}", "--ServerApp.answer_yes=True"]
    if (notebooks / START).exists():
        options.append(f"--LabApp.default_url=/lab/tree/{START}")
    options += [] if port is None else [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    options += [] if opens_browser else ["--no-browser"]
    return [sys.executable, "-m", "jupyterlab", *options, *arguments]


def require_harmless(arguments: Sequence[str]) -> None:
    """Raises ServingError for arguments of JupyterLab that are not in the lists above."""
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        name, equals, _ = argument.partition("=")
        owner, _, setting = name.removeprefix("--").partition(".")
        takes_value = name in _ALIASES or (name.startswith("--") and setting in _SETTINGS.get(owner, ()))
        if takes_value and not equals and remaining and not remaining[0].startswith("-"):
            equals, _ = "=", remaining.pop(0)
        if (argument in _FLAGS) or (takes_value and equals):
            continue
        if takes_value:
            raise ServingError(f"{name} needs a value: {name}=VALUE")
        raise ServingError(
            f"{legible_line(name)} is not passed on: this server is for this machine alone, with its token and with no "
            f"other configuration than yours. Passed on are {', '.join(_FLAGS[:5])} and settings of limits, timeouts and "
            "logs. For another machine's browser forward the port (ssh -L), or start `jupyter lab` yourself"
        )


def require_user(arguments: Sequence[str]) -> None:
    """Raises ServingError for root, unless --allow-root is among JupyterLab's arguments."""
    if getattr(os, "geteuid", lambda: 1)() == 0 and "--allow-root" not in arguments:
        raise ServingError(
            "JupyterLab does not start as root, because every page could then change this whole machine: start it as "
            "another user, or say `gemmascope lab -- --allow-root`, such as in a container"
        )


def find_notebooks(folder: Path | None) -> Path:
    """The folder of notebooks. Raises ServingError if there is none."""
    if folder is not None:
        if not folder.is_dir():
            raise ServingError(f"there is no folder {str(folder)!r}: give one that holds notebooks")
        return folder.resolve()
    candidates = (Path.cwd() / "notebooks", Path(__file__).resolve().parents[2] / "notebooks")
    for candidate in candidates:
        if any(candidate.glob("*.ipynb")):
            return candidate
    raise ServingError(
        "there are no notebooks here: they lie in the repository, not in the installed package. Clone it and run this "
        "there, or name a folder: gemmascope lab FOLDER"
    )


def serve(command: Sequence[str]) -> int:
    """Replace this process with the command, so that Ctrl-C goes to JupyterLab; on Windows, run it and return its status."""
    if os.name == "posix":
        sys.stdout.flush()
        os.execv(command[0], list(command))
    return subprocess.call(list(command))

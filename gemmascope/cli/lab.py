"""gemmascope lab: start JupyterLab on the notebooks."""

from __future__ import annotations

import argparse
from pathlib import Path

from gemmascope.cli.arguments import Commands, add_command

_LAB = """\
Start JupyterLab on the notebooks: the workshop, the patching lab. It listens on the loopback address only, and asks
for the token in the address that it prints, unless your own configuration of Jupyter says otherwise: its files, and
JUPYTER_TOKEN, JUPYTER_CONFIG_DIR and JUPYTER_CONFIG_PATH, hold as they do for `jupyter lab`. Arguments that would
open it are refused."""
_LAB_EXAMPLES = """\
examples:
  gemmascope lab
  gemmascope lab my-notebooks --port 8899 --no-browser
  gemmascope lab -- --ServerApp.iopub_data_rate_limit=1e9        what follows -- is JupyterLab's
  gemmascope lab -- --allow-root              as root, such as in a container
"""


def add(commands: Commands) -> None:
    """Add the subcommand and its arguments."""
    parser = add_command(commands, run, "start JupyterLab on the notebooks", _LAB, _LAB_EXAMPLES)
    parser.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, help="default: ./notebooks, or this clone's")
    parser.add_argument("--port", type=int, help="where it listens (default: the first that is free from 8888)")
    parser.add_argument("--no-browser", action="store_true", help="print the address, and open no browser")
    parser.usage = "gemmascope lab [-h] [--port PORT] [--no-browser] [FOLDER] [-- ARGUMENTS OF JUPYTERLAB]"


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return its exit status."""
    from gemmascope.cli.serving import lab_command, require_user, serve

    command = lab_command(args.folder, args.port, args.jupyter, opens_browser=not args.no_browser)
    require_user(args.jupyter)
    return serve(command)

"""What the subcommands share: their parsers, arguments that several take, and exit statuses."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemmascope.legible import legible, spelled

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

# As a shell reports a program that a signal ended: 128 and the signal's number.
BAD_INPUT, INTERRUPTED, PIPE_CLOSED = 2, 130, 141


class LegibleParser(argparse.ArgumentParser):
    """A parser whose messages are legible, whatever was typed."""

    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message(legible(message), file)


def wrote(path: Path) -> None:
    """Say that a file was written."""
    print(f"wrote {spelled(str(path))}", file=sys.stderr)


def added(
    commands: Commands, run: Callable[[argparse.Namespace], int], about: str, description: str, examples: str | None = None
) -> argparse.ArgumentParser:
    """The parser of a subcommand, which goes by the name of the module that runs it."""
    plain = argparse.RawDescriptionHelpFormatter  # keeps the lines of the description and of the examples
    name = run.__module__.rpartition(".")[2]
    parser = commands.add_parser(name, help=about, description=description, epilog=examples, formatter_class=plain)
    parser.set_defaults(run=run)
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which model, as gs.load takes them."""
    parser.add_argument("--model", default="nano", help="'nano', a hub id, or a checkpoint's folder (default: nano)")
    parser.add_argument("--weights", default="auto", help="'auto' for what is stored, or 'int8' (default: auto)")
    parser.add_argument("--memory", help="what the model may take, such as 20GiB: the rest streams in")


def require_writable_paths(*paths: Path | None) -> None:
    """FileError for files that cannot be written: said before a large model is loaded for nothing."""
    from gemmascope.files.writing import require_writable

    for path in paths:
        if path is not None:
            require_writable(path)

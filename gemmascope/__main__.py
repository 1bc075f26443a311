"""The command line: the functions of the package, one subcommand each.

A subcommand is a file in commands/ with two functions: add says its arguments, run runs it and returns the exit status.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from gemmascope import __version__
from gemmascope.cli import generate, lab, patch, plan, quantize, trace
from gemmascope.cli.arguments import BAD_INPUT, INTERRUPTED, PIPE_CLOSED, LegibleParser
from gemmascope.errors import GemmascopeError, GemmascopeWarning
from gemmascope.legible import legible

COMMANDS = (trace, patch, generate, quantize, plan, lab)

_ABOUT = "Look inside Gemma 2: every value of the forward pass, and what changes when you change it."
_EXAMPLES = """\
examples:
  gemmascope trace "The capital of France is"
  gemmascope generate "The capital of France is"
  gemmascope patch "Mary and John left. John told" "Mary and John left. Mary told" --answer " Mary" --against " John"
  gemmascope lab
  gemmascope trace --help

The model is nano, a small trained Gemma 2 inside the package, unless --model names another one.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 2 for bad input, which is told in one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a token that the terminal's encoding lacks is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = _show_warning
    try:
        try:
            return _run(argv)
        finally:
            _flush()
    except BrokenPipeError:
        return PIPE_CLOSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except (GemmascopeError, OSError) as error:
        if isinstance(error.__cause__, BrokenPipeError):  # of a file that was written to, such as /dev/stdout
            return PIPE_CLOSED
        print("gemmascope:", *legible(str(error)).split("\n"), file=sys.stderr)
        return BAD_INPUT


_show = warnings.showwarning


def _show_warning(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
    """Tell our own warnings as errors are told, in one line: on a command line there is no line of the user's to name."""
    if issubclass(category, GemmascopeWarning):
        print("gemmascope: warning:", *str(message).split("\n"), file=sys.stderr)
    else:
        _show(message, category, *rest, **named)


def _flush() -> None:
    """Write out what was printed, where a closed pipe or a full disk is caught, and not at the interpreter's end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    given, further = _parted(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(given, argparse.Namespace(further=further))
    if args.run is None:
        parser.print_help(sys.stderr)
        return BAD_INPUT
    status: int = args.run(args)
    return status


def _parted(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before `gemmascope lab ... --`, and after it. For other commands -- is argparse's."""
    given = list(argv)
    at = given.index("--") if given[:1] == ["lab"] and "--" in given else len(given)
    return given[:at], given[at + 1 :]


def _parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter  # keeps the examples' lines
    parser = LegibleParser("gemmascope", description=_ABOUT, epilog=_EXAMPLES, formatter_class=plain)
    parser.add_argument("--version", action="version", version=f"gemmascope {__version__}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())

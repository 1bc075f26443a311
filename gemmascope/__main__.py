"""The command line. Each subcommand is a file in cli/ with two functions: `add` declares its arguments, `run` runs it."""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

from gemmascope import __version__
from gemmascope.cli import check, eval, generate, graph, harvest, lab, models, pages, patch, plan, quantize, trace
from gemmascope.cli.arguments import BAD_INPUT, INTERRUPTED, PIPE_CLOSED, LegibleParser
from gemmascope.errors import GemmascopeError, GemmascopeWarning
from gemmascope.legible import legible

COMMANDS = (trace, patch, generate, eval, graph, harvest, pages, models, check, quantize, plan, lab)

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
    """Run one command and return its exit status: 2 for bad input, with a message on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a token that the terminal's encoding lacks must not end the command
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
        if isinstance(error.__cause__, BrokenPipeError):  # while writing to a file such as /dev/stdout
            return PIPE_CLOSED
        print("gemmascope:", *legible(str(error)).split("\n"), file=sys.stderr)
        return BAD_INPUT


_showwarning = warnings.showwarning


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print our own warnings in one line, like errors: on a command line there is no source line of the user's to show."""
    if issubclass(category, GemmascopeWarning):
        print("gemmascope: warning:", *str(message).split("\n"), file=sys.stderr)
    else:
        _showwarning(message, category, filename, lineno, file, line)


def _flush() -> None:
    """Flush stdout here, where a closed pipe or a full disk is handled, rather than when the interpreter exits."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    own, jupyter = _split(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(own, argparse.Namespace(jupyter=jupyter))
    if args.run is None:
        parser.print_help(sys.stderr)
        return BAD_INPUT
    status: int = args.run(args)
    return status


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments before and after the "--" of `gemmascope lab ... -- ...`. Other commands leave "--" to argparse."""
    words = list(argv)
    end = words.index("--") if words[:1] == ["lab"] and "--" in words else len(words)
    return words[:end], words[end + 1 :]


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

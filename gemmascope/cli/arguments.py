"""What the subcommands share: their parsers, common arguments, and exit statuses."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from gemmascope.errors import GemmascopeError
from gemmascope.legible import legible, legible_line

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

    from gemmascope.edits.edit import Edit
    from gemmascope.model.model import Model
    from gemmascope.workers.choice import RayWorkers

# What argparse's add_subparsers returns.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

# A shell reports a program that a signal ended as 128 plus the signal's number.
BAD_INPUT, INTERRUPTED, PIPE_CLOSED = 2, 130, 141


class LegibleParser(argparse.ArgumentParser):
    """A parser that escapes control characters in its messages."""

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        super()._print_message(legible(message), file)


def report_written(path: Path) -> None:
    """Print, on stderr, that a file was written."""
    print(f"wrote {legible_line(str(path))}", file=sys.stderr)


def add_command(
    commands: Commands, run: Callable[[argparse.Namespace], int], about: str, description: str, examples: str | None = None
) -> argparse.ArgumentParser:
    """Add a subcommand, named after the module of its run function, and return its parser."""
    plain = argparse.RawDescriptionHelpFormatter  # keeps the line breaks
    name = run.__module__.rpartition(".")[2]
    parser = commands.add_parser(name, help=about, description=description, epilog=examples, formatter_class=plain)
    parser.set_defaults(run=run)
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that choose a model, as gs.load takes them."""
    sources = "'nano', a hub id, a checkpoint's folder or a GGUF file; `gemmascope models` lists those at hand"
    parser.add_argument("--model", default="nano", help=f"{sources} (default: nano)")
    parser.add_argument("--weights", default="auto", help="'auto' for what is stored, or 'int8' (default: auto)")
    parser.add_argument("--memory", help="what the model may take, such as 20GiB: the rest streams in")


def add_edits(parser: argparse.ArgumentParser, of: str) -> None:
    """Add the argument that names a file of edits. of: the runs that have them."""
    parser.add_argument("--edits", metavar="FILE", type=Path, help=f"edits of {of}, from a file that gs.save_edits wrote")


def require_edits(args: argparse.Namespace) -> None:
    """Raises EditError for a file of edits that is not there, or no JSON, before a large model is loaded in vain."""
    from gemmascope.errors import EditError
    from gemmascope.files.json_reader import read_json
    from gemmascope.files.paths import user_path

    if args.edits is not None:
        read_json(user_path(args.edits, error=EditError, what="edits"), error=EditError)


def opened_edits(args: argparse.Namespace, model: Model) -> list[Edit]:
    """The edits of the file that was named; none without one. EditError or SiteError as in gs.open_edits."""
    from gemmascope.edit_files.opening import open_edits

    return [] if args.edits is None else open_edits(args.edits, model=model)


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that share the work among processes."""
    parser.add_argument("--workers", metavar="N", type=int, help="share the passes among N processes on Ray")
    where = "where Ray is, such as auto or ray://host:10001 (default: it is started here, or at RAY_ADDRESS)"
    parser.add_argument("--ray-address", metavar="ADDRESS", help=where)


def workers_of(args: argparse.Namespace) -> RayWorkers | None:
    """The workers that the arguments name. WorkersError for an address without a number, and for no possible number."""
    from gemmascope.errors import WorkersError
    from gemmascope.workers.choice import ray

    if args.workers is not None:
        return ray(args.ray_address, args.workers)
    if args.ray_address is not None:
        raise WorkersError(f"--ray-address {args.ray_address} says where, and --workers N how many: give both")
    return None


def listed_numbers(text: str | None, name: str, *, error: type[GemmascopeError]) -> list[int]:
    """The whole numbers of an argument such as --layers 3,5; none where it was not given. Raises `error` for other text."""
    try:
        return [] if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise error(f"{name} takes whole numbers with commas between, such as 3,5; given {text!r}") from None


def require_writable_paths(*paths: Path | None) -> None:
    """Raises FileError for files that cannot be written, before a large model is loaded in vain."""
    from gemmascope.files.writing import require_writable

    for path in paths:
        if path is not None:
            require_writable(path)

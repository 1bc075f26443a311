"""gemmascope quantize: write int8 weights to a folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from gemmascope.cli.arguments import Commands, add_command
from gemmascope.legible import legible_line

_QUANTIZE = """\
Write a checkpoint's int8 weights to a folder, once: groups of 128 along the input, a file for each layer. The folder is
then a model: gemmascope trace --model TARGET, or gs.load(TARGET, memory="20GiB"). An interrupted run goes on."""


def add(commands: Commands) -> None:
    """Add the subcommand and its arguments."""
    parser = add_command(commands, run, "write a checkpoint's int8 weights to a folder", _QUANTIZE)
    parser.add_argument("source", metavar="SOURCE", help="'nano', a hub id, or a checkpoint's folder")
    parser.add_argument("target", metavar="TARGET", type=Path, help="a new folder, or one where this was interrupted")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return its exit status."""
    from gemmascope.loading.network import quantize

    folder = quantize(args.source, args.target)
    size = sum(path.stat().st_size for path in folder.iterdir())
    shown = f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"
    print(f"wrote {legible_line(str(folder))}: {shown} in {len(list(folder.glob('*.safetensors')))} files")
    return 0

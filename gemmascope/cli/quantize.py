"""gemmascope quantize: int8 weights in a folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gemmascope.cli.arguments import added
from gemmascope.legible import spelled

if TYPE_CHECKING:
    from gemmascope.cli.arguments import Commands


_QUANTIZE = """\
Write a checkpoint's int8 weights to a folder, once: groups of 128 along the input, a file for each layer. The folder is
then a model: gemmascope trace --model TARGET, or gs.load(TARGET, memory="20GiB"). An interrupted run goes on."""


def add(commands: Commands) -> None:
    """Say what it is and what it takes."""
    parser = added(commands, run, "write a checkpoint's int8 weights to a folder", _QUANTIZE)
    parser.add_argument("source", metavar="SOURCE", help="a hub id, or a checkpoint's folder")
    parser.add_argument("target", metavar="TARGET", type=Path, help="a new folder, or one where this was interrupted")


def run(args: argparse.Namespace) -> int:
    """Run it, and return the exit status."""
    from gemmascope.loading.network import quantize

    folder = quantize(args.source, args.target)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"wrote {spelled(str(folder))}: {size / 1e9:.2f} GB in {len(list(folder.glob('*.safetensors')))} files")
    return 0

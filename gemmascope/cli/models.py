"""gemmascope models: which models are at hand."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gemmascope.cli.arguments import Commands, add_command

_MODELS = """\
List the models of Gemma 2 and 3 that are on this machine: nano; checkpoints and GGUF files in the current folder and two
levels below; the Hugging Face hub's cache; the folders of LM Studio, Ollama and llama.cpp. The last column is what --model
takes. Only headers are read."""
_MODELS_EXAMPLES = """\
examples:
  gemmascope models
  gemmascope models /data/models
  gemmascope models --json | jq -r '.models[].load'
"""


def add(commands: Commands) -> None:
    """Add the subcommand and its arguments."""
    parser = add_command(commands, run, "list the models that are at hand", _MODELS, _MODELS_EXAMPLES)
    parser.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, help="look into this folder as well")
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return its exit status."""
    from gemmascope.checkpoints.at_hand.models import models

    table = models(args.folder)
    print(json.dumps(table.to_dict(), indent=2) if args.json else repr(table))
    return 0

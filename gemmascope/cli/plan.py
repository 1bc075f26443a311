"""gemmascope plan: how much memory a model takes."""

from __future__ import annotations

import argparse
import json

from gemmascope.cli.arguments import Commands, add_command
from gemmascope.legible import legible

_PLAN = """\
Say what a model takes in memory, part by part, which of its layers stay on the device, on which GPUs it fits, and how
much it takes by quantisation and context. Nothing is loaded, and for Google's models nothing is fetched."""
_PLAN_EXAMPLES = """\
examples:
  gemmascope plan google/gemma-2-27b --context 8192
  gemmascope plan 27b --weights int8 --memory 20GiB
  gemmascope plan path/to/checkpoint --probe
  gemmascope plan 9b --json | jq '.peaks'
"""


def add(commands: Commands) -> None:
    """Add the subcommand and its arguments."""
    about = "say what a model takes in memory and on which GPUs it fits"
    parser = add_command(commands, run, about, _PLAN, _PLAN_EXAMPLES)
    parser.add_argument("source", metavar="SOURCE", help="a hub id of Google's, '2b', '9b', '27b', 'nano', or a folder")
    parser.add_argument("--weights", default="auto", help="auto (as stored), bf16, float32 or int8 (default: auto)")
    parser.add_argument("--context", metavar="N", type=int, help="positions of the prompt (default: the model's most)")
    parser.add_argument("--memory", metavar="BYTES", help="what gs.load will be given, such as 20GiB (default: no limit)")
    parser.add_argument("--rows", metavar="N", type=int, help="rows of a sweep's chunk (default: what the memory holds)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda, or several GPUs: cuda:0,cuda:1 (default: auto)")
    parser.add_argument("--dtype", default="auto", help="bfloat16 or float32 to compute in (default: auto)")
    parser.add_argument("--probe", action="store_true", help="measure this machine for some seconds and predict times")
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return its exit status."""
    from gemmascope.memory.plan_tables import table_text
    from gemmascope.memory.planning import plan

    options = ("weights", "context", "memory", "rows", "device", "dtype", "probe")
    given = {name: getattr(args, name) for name in options}
    if "," in args.device:
        given["device"] = args.device.split(",")
    result = plan(args.source, **given)
    print(json.dumps(result.to_dict(), indent=2) if args.json else legible(f"{result}\n\n{table_text(result.table())}"))
    return 0

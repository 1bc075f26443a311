"""gemmascope check: whether a model computes here what it should."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from gemmascope.cli.arguments import INTERRUPTED, Commands, add_command, report_written

_CHECK = """\
Check a model on this machine: its logits, attention patterns, greedy text and a sweep beside transformers; the effect of
int8 weights; its heads and Gemma Scope's dictionaries beside what is published; the memory it takes beside the plan. Each
step ends with pass, differs (with the figures), skipped or failed (with the reason). A page and a JSON file, check.html and
check.json, are written after each step. The exit status is 1 if something differs or failed."""
_CHECK_EXAMPLES = """\
examples:
  gemmascope check nano
  gemmascope check google/gemma-2-2b
  gemmascope check google/gemma-2-9b --weights int8 --memory 12GiB
  gemmascope check gemma-2-2b-it-Q4_K_M.gguf --steps logits,patterns --out here
"""


def add(commands: Commands) -> None:
    """Add the subcommand and its arguments."""
    about = "check that a model computes here what it should"
    parser = add_command(commands, run, about, _CHECK, _CHECK_EXAMPLES)
    source = "'nano', a hub id, a checkpoint's folder or a GGUF file (default: nano)"
    parser.add_argument("source", metavar="MODEL", nargs="?", default="nano", help=source)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--dtype", default="auto", help="bfloat16 or float32 to compute in (default: auto)")
    parser.add_argument("--weights", default="auto", help="'auto' for what is stored, or 'int8' (default: auto)")
    parser.add_argument("--memory", help="what the model may take, such as 20GiB: the rest streams in")
    parser.add_argument("--steps", metavar="A,B", help="only these steps, such as logits,sweep (default: all)")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="for the two files (default: check-MODEL, here)")
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return its exit status."""
    from gemmascope.checking.check import check
    from gemmascope.checking.result import JSON, PAGE

    name = re.sub(r"[^\w.-]+", "-", args.source.rstrip("/\\").replace("\\", "/").rpartition("/")[2]) or "model"
    out = args.out or Path(f"check-{name}")
    steps = None if args.steps is None else [step.strip() for step in args.steps.split(",")]
    options = {option: getattr(args, option) for option in ("device", "dtype", "weights", "memory")}
    result = check(args.source, steps=steps, out=out, show=not args.json, **options)
    print(json.dumps(result.to_dict(), indent=2) if args.json else f"{result.model['name']}: {result.verdict}")
    for file in (PAGE, JSON):
        report_written(out / file)
    if result.verdict == "interrupted":
        return INTERRUPTED
    return 1 if any(step.verdict in ("differs", "failed") for step in result.steps) else 0

"""gemmascope eval: tasks of lm-evaluation-harness on a model, with edits."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from gemmascope.cli.arguments import (
    Commands,
    add_command,
    add_edits,
    add_model,
    opened_edits,
    require_edits,
    require_writable_paths,
)

_EVAL = """\
Run tasks of EleutherAI's lm-evaluation-harness on a model, with edits in every run, and print their metrics. Data of
tasks come from the hub unless their configurations name files. Needs pip install "gemmascope[eval]"."""
_EXAMPLES = """\
examples:
  gemmascope eval --tasks arc_easy,hellaswag --model google/gemma-2-2b --limit 200
  gemmascope eval --tasks arc_easy --model google/gemma-2-2b --edits edits.json --json
  gemmascope eval --tasks my_task --include-path tasks --csv samples.csv
"""


def add(commands: Commands) -> None:
    """Add the subcommand and its arguments."""
    parser = add_command(commands, run, "run benchmarks, with edits or without", _EVAL, _EXAMPLES)
    parser.add_argument("--tasks", metavar="NAMES", required=True, help="tasks or groups, with commas between")
    add_model(parser)
    add_edits(parser, "every run")
    parser.add_argument("--include-path", metavar="DIR", type=Path, help="a folder with configurations of tasks (YAML)")
    parser.add_argument("--limit", metavar="N", type=int, help="the most questions of each task (default: all)")
    parser.add_argument("--num-fewshot", metavar="N", type=int, help="solved examples in front (default: the task's)")
    parser.add_argument("--max-gen-toks", metavar="N", type=int, help="the most new tokens of a text (default: the task's)")
    parser.add_argument("--chat", action="store_true", help="prompts as chat messages, in the checkpoint's template")
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="of drawn texts and examples (default: 0)")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="also write a line for each question to FILE")
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return its exit status."""
    require_writable_paths(args.csv)
    require_edits(args)
    from gemmascope.evaluation.evaluate import evaluate
    from gemmascope.loading.load import load

    model = load(args.model, weights=args.weights, memory=args.memory)
    result = evaluate(
        model,
        [name.strip() for name in args.tasks.split(",")],
        edits=opened_edits(args, model),
        limit=args.limit,
        num_fewshot=args.num_fewshot,
        include_path=args.include_path,
        chat=args.chat,
        generation=None if args.max_gen_toks is None else {"max_gen_toks": args.max_gen_toks},
        seed=args.seed,
        progress=sys.stderr.isatty(),
    )
    print(json.dumps(result.to_dict(), indent=2) if args.json else result)
    if args.csv is not None:
        import pandas

        from gemmascope.cli.arguments import report_written
        from gemmascope.files.csv_tables import csv_text
        from gemmascope.files.writing import write_file

        tables = [result.samples(task).assign(task=task) for task in result.sampled]
        write_file(args.csv, csv_text(pandas.concat(tables, ignore_index=True)), allow_pipe=True)
        report_written(args.csv)
    return 0

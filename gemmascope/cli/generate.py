"""gemmascope generate: continue a prompt."""

from __future__ import annotations

import argparse
import json
import warnings

from gemmascope.cli.arguments import INTERRUPTED, Commands, add_command, add_edits, add_model, opened_edits, require_edits

_GENERATE = """\
Go on with a prompt, token by token, and print the text as it comes: the likeliest token each time, or tokens drawn at a
temperature. Interrupting (Ctrl-C) keeps what there is."""
_GENERATE_EXAMPLES = """\
examples:
  gemmascope generate "The capital of France is"
  gemmascope generate "Mary and John went to the" --temperature 0.8 --top-p 0.95 --seed 1 --max-new-tokens 64
  gemmascope generate "Name three rivers:" --stop "." --stop "!" --model google/gemma-2-2b
  gemmascope generate "The capital of France is" --json | jq '.new[].probability'
"""


def add(commands: Commands) -> None:
    """Add the subcommand and its arguments."""
    parser = add_command(commands, run, "go on with a prompt, token by token", _GENERATE, _GENERATE_EXAMPLES)
    parser.add_argument("prompt", metavar="PROMPT", help="the text to go on with; <bos> is put in front of it")
    parser.add_argument("--max-new-tokens", metavar="N", type=int, default=32, help="the most tokens (default: 32)")
    parser.add_argument("--temperature", metavar="T", type=float, default=0.0, help="0 for the likeliest (default: 0)")
    parser.add_argument("--top-p", metavar="P", type=float, default=1.0, help="draw from this share (default: 1, all)")
    parser.add_argument("--top-k", metavar="K", type=int, help="draw from the K likeliest tokens (default: all)")
    parser.add_argument("--min-p", metavar="P", type=float, default=0.0, help="least share of the likeliest (default: 0)")
    parser.add_argument("--repetition-penalty", metavar="R", type=float, default=1.0, help="of tokens so far (default: 1)")
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="of the draws (default: 0)")
    parser.add_argument("--stop", metavar="TEXT", action="append", default=[], help="end at this text; may be repeated")
    add_model(parser)
    add_edits(parser, "the prompt and the new tokens")
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return its exit status."""
    from gemmascope.generation.generate import generate
    from gemmascope.loading.load import load

    require_edits(args)
    model = load(args.model, weights=args.weights, memory=args.memory)
    edits = opened_edits(args, model)
    options = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop")
    settings = {name: getattr(args, name) for name in options}
    with warnings.catch_warnings():  # the exit status reports an interrupt
        warnings.simplefilter("ignore", UserWarning)
        result = generate(args.prompt, model=model, show=not args.json, edits=edits, **settings)
    if args.json:
        print(json.dumps(result.to_dict(), indent=2))
    return INTERRUPTED if result.stopped == "interrupted" else 0

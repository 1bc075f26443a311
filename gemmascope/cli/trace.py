"""gemmascope trace: a prompt, and what each layer would answer."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from gemmascope.cli.arguments import add_model, added, require_writable_paths, wrote

if TYPE_CHECKING:
    from gemmascope.cli.arguments import Commands


_TRACE = """\
Run a prompt once and show its tokens, the likeliest next tokens, and what each layer would answer: the residual
stream after the layer, read as if it were the last."""
_TRACE_EXAMPLES = """\
examples:
  gemmascope trace "When Mary and John went to the store, John gave a drink to"
  gemmascope trace "The capital of France is" --model google/gemma-2-2b
  gemmascope trace "The capital of France is" --html trace.html
  gemmascope trace "The capital of France is" --json | jq '.layers[].top[0].text'
  gemmascope trace -- "-7 is less than"        a prompt that begins with a dash
"""


def add(commands: Commands) -> None:
    """Say what it is and what it takes."""
    parser = added(commands, run, "run a prompt and show what each layer would answer", _TRACE, _TRACE_EXAMPLES)
    parser.add_argument("prompt", metavar="PROMPT", help="the text to run; <bos> is put in front of it")
    add_model(parser)
    parser.add_argument("--html", metavar="FILE", type=Path, help="also write a self-contained page to FILE")
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    """Run it, and return the exit status."""
    require_writable_paths(args.html)
    from gemmascope.loading.load import load
    from gemmascope.run.show import as_text, to_dict
    from gemmascope.run.tracing import trace

    t = trace(args.prompt, model=load(args.model, weights=args.weights, memory=args.memory))
    print(json.dumps(to_dict(t), indent=2) if args.json else as_text(t))
    if args.html is not None:
        from gemmascope.views.pages import write_trace

        write_trace(args.html, t)
        wrote(args.html)
    return 0

"""gemmascope trace: run a prompt, and show what each layer would answer."""

from __future__ import annotations

import argparse
import json
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from gemmascope.cli.arguments import (
    Commands,
    add_command,
    add_edits,
    add_model,
    opened_edits,
    report_written,
    require_edits,
    require_writable_paths,
)
from gemmascope.errors import GemmascopeError

if TYPE_CHECKING:
    from gemmascope.run.trace import Trace
    from gemmascope.views.page import View


_TRACE = """\
Run a prompt once and show its tokens, the likeliest next tokens, and what each layer would answer: the residual
stream after the layer, read as if it were the last."""
_TRACE_EXAMPLES = """\
examples:
  gemmascope trace "When Mary and John went to the store, John gave a drink to"
  gemmascope trace "The capital of France is" --model google/gemma-2-2b
  gemmascope trace "The capital of France is" --html trace.html
  gemmascope trace "The capital of France is" --json | jq '.layers[].top[0].text'
  gemmascope trace "The capital of France is" --edits edits.json
  gemmascope trace -- "-7 is less than"        a prompt that begins with a dash
"""


def add(commands: Commands) -> None:
    """Add the subcommand and its arguments."""
    parser = add_command(commands, run, "run a prompt and show what each layer would answer", _TRACE, _TRACE_EXAMPLES)
    parser.add_argument("prompt", metavar="PROMPT", help="the text to run; <bos> is put in front of it")
    add_model(parser)
    add_edits(parser, "the run")
    parser.add_argument("--html", metavar="FILE", type=Path, help="also write a self-contained page to FILE")
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return its exit status."""
    require_writable_paths(args.html)
    require_edits(args)
    from gemmascope.loading.load import load
    from gemmascope.run.show import as_text, to_dict
    from gemmascope.run.tracing import trace

    model = load(args.model, weights=args.weights, memory=args.memory)
    t = trace(args.prompt, model=model, edits=opened_edits(args, model))
    print(json.dumps(to_dict(t), indent=2) if args.json else as_text(t))
    if args.html is not None:
        _write_page(args.html, t)
        report_written(args.html)
    return 0


def _write_page(path: Path, trace: Trace) -> None:
    """Write a trace's summary, its attention, lens and stream as a page, which names a view that did not fit and why."""
    from gemmascope.files.writing import write_file
    from gemmascope.run.show import as_html
    from gemmascope.views.attention import attention_view
    from gemmascope.views.lens import lens_view
    from gemmascope.views.page import page
    from gemmascope.views.stream import stream_view

    views: list[View] = []
    parts = [as_html(trace)]
    for make in (attention_view, lens_view, stream_view):
        try:
            views.append(make(trace))
        except GemmascopeError as error:  # noqa: PERF203
            parts.append(f"<p>{escape(f'gs.{make.__name__} is not on this page: {error}')}</p>")
    write_file(path, page(views, "\n".join(parts), title=f"Trace of {trace.model.name}"), allow_pipe=True)

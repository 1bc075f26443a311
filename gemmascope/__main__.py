"""The command line: the functions of the package, one subcommand each.

A subcommand is two functions here: `_add_NAME` says its arguments, `_NAME` runs it and returns the exit status.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemmascope import __version__
from gemmascope.errors import GemmascopeError, SweepError
from gemmascope.replacing import replacing

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

# As a shell reports a program that a signal ended: 128 and the signal's number.
BAD_INPUT, INTERRUPTED, PIPE_CLOSED = 2, 130, 141

_ABOUT = "Look inside Gemma 2: every value of the forward pass, and what changes when you change it."
_EXAMPLES = """\
examples:
  gemmascope trace "The capital of France is"
  gemmascope generate "The capital of France is"
  gemmascope patch "Mary and John left. John told" "Mary and John left. Mary told" --answer " Mary" --against " John"
  gemmascope lab
  gemmascope trace --help

The model is nano, a small trained Gemma 2 inside the package, unless --model names another one.
"""

_TRACE = """\
Run a prompt once and show its tokens, the likeliest next tokens, and what each layer would answer: the residual
stream after the layer, read as if it were the last."""
_QUANTIZE = """\
Write a checkpoint's int8 weights to a folder, once: groups of 128 along the input, a file for each layer. The folder is
then a model: gemmascope trace --model TARGET, or gs.load(TARGET, memory="20GiB"). An interrupted run goes on."""
_TRACE_EXAMPLES = """\
examples:
  gemmascope trace "When Mary and John went to the store, John gave a drink to"
  gemmascope trace "The capital of France is" --model google/gemma-2-2b
  gemmascope trace "The capital of France is" --html trace.html
  gemmascope trace "The capital of France is" --json | jq '.layers[].top[0].text'
  gemmascope trace -- "-7 is less than"        a prompt that begins with a dash
"""
_PATCH = """\
Run two prompts, patch every cell of a grid from one run into the other, each in a run of its own, and say what
becomes of the answer: the two baselines and the strongest cells."""
_PATCH_EXAMPLES = """\
examples:
  gemmascope patch "Mary and John went. John told" "Mary and John went. Mary told" --answer " Mary" --against " John"
  gemmascope patch CLEAN CORRUPT --answer " Mary" --against " John" --site z --by layer,head --html heads.html
  gemmascope patch CLEAN CORRUPT --answer " Mary" --metric answer_prob --estimate --csv cells.csv
  gemmascope patch CLEAN CORRUPT --answer " Mary" --against " John" --json | jq '.cells[0]'
"""
_LAB = """\
Start JupyterLab on the notebooks: the workshop, the patching lab. It listens on the loopback address only, and asks
for the token in the address that it prints, unless your own configuration of Jupyter says otherwise."""
_LAB_EXAMPLES = """\
examples:
  gemmascope lab
  gemmascope lab my-notebooks --port 8899 --no-browser
  gemmascope lab --more=--LabApp.collaborative=False
"""
_METRICS = ("logit_diff", "answer_prob", "answer_logprob")
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 2 for bad input, which is told in one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a token that the terminal's encoding lacks is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return _run(argv)
        finally:
            _flush()
    except BrokenPipeError:
        return PIPE_CLOSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except (GemmascopeError, OSError) as error:
        print("gemmascope:", *str(error).split("\n"), file=sys.stderr)
        return BAD_INPUT


def _flush() -> None:
    """Write out what was printed, where a closed pipe or a full disk is caught, and not at the interpreter's end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.run is None:
        parser.print_help(sys.stderr)
        return BAD_INPUT
    status: int = args.run(args)
    return status


def _parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter  # keeps the examples' lines
    parser = argparse.ArgumentParser("gemmascope", description=_ABOUT, epilog=_EXAMPLES, formatter_class=plain)
    parser.add_argument("--version", action="version", version=f"gemmascope {__version__}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_trace(commands)
    _add_patch(commands)
    _add_generate(commands)
    _add_quantize(commands)
    _add_plan(commands)
    _add_lab(commands)
    return parser


def _added(
    commands: Commands, run: Callable[[argparse.Namespace], int], about: str, description: str, examples: str | None = None
) -> argparse.ArgumentParser:
    """The parser of a subcommand, which goes by the name of the function that runs it."""
    plain = argparse.RawDescriptionHelpFormatter  # keeps the lines of the description and of the examples
    name = run.__name__.removeprefix("_")
    parser = commands.add_parser(name, help=about, description=description, epilog=examples, formatter_class=plain)
    parser.set_defaults(run=run)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="nano", help="'nano', a hub id, or a checkpoint's folder (default: nano)")
    parser.add_argument("--weights", default="auto", help="'auto' for what is stored, or 'int8' (default: auto)")
    parser.add_argument("--memory", help="what the model may take, such as 20GiB: the rest streams in")


def _add_trace(commands: Commands) -> None:
    parser = _added(commands, _trace, "run a prompt and show what each layer would answer", _TRACE, _TRACE_EXAMPLES)
    parser.add_argument("prompt", metavar="PROMPT", help="the text to run; <bos> is put in front of it")
    _add_model(parser)
    parser.add_argument("--html", metavar="FILE", type=Path, help="also write a self-contained page to FILE")
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of text")


def _trace(args: argparse.Namespace) -> int:
    _require_room(args.html)
    from gemmascope.run.showing import as_data, as_text
    from gemmascope.run.trace import trace
    from gemmascope.weights.load import load

    t = trace(args.prompt, model=load(args.model, weights=args.weights, memory=args.memory))
    print(json.dumps(as_data(t), indent=2) if args.json else as_text(t))
    if args.html is not None:
        from gemmascope.widgets.pages import write_trace

        write_trace(args.html, t)
        print(f"wrote {args.html}", file=sys.stderr)
    return 0


def _require_room(*paths: Path | None) -> None:
    """OSError for files that cannot be written: said before a large model is loaded for nothing."""
    for path in paths:
        if path is not None and path.is_dir():
            raise IsADirectoryError(f"cannot write {path}: Is a directory; name a file in it")
        if path is not None and not path.parent.is_dir():
            raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")


def _add_patch(commands: Commands) -> None:
    parser = _added(commands, _patch, "patch every cell of a grid, and show what that changes", _PATCH, _PATCH_EXAMPLES)
    parser.add_argument("clean", metavar="CLEAN", help="the prompt that has the answer")
    parser.add_argument("corrupt", metavar="CORRUPT", help="the same with something changed, of equal length in tokens")
    parser.add_argument("--answer", metavar="TOKEN", required=True, help='one token, with its leading space: " Mary"')
    parser.add_argument("--against", metavar="TOKEN", help="the answer of the other prompt; needed by logit_diff")
    parser.add_argument("--metric", choices=_METRICS, default="logit_diff", help="(default: logit_diff)")
    parser.add_argument("--site", default="resid_pre", help="the site that is patched, such as z (default: resid_pre)")
    parser.add_argument("--by", default="layer,pos", help="the grid's axes, such as layer,head (default: layer,pos)")
    parser.add_argument("--into", choices=("corrupt", "clean"), default="corrupt", help="the run that is patched")
    parser.add_argument("--estimate", action="store_true", help="by gradients (gs.attribute): every cell, roughly")
    _add_model(parser)
    parser.add_argument("--html", metavar="FILE", type=Path, help="also write the grid as a self-contained page to FILE")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="also write a line for each cell to FILE")
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of text")


def _patch(args: argparse.Namespace) -> int:
    _require_room(args.html, args.csv)
    by = tuple(axis.strip() for axis in args.by.split(",") if axis.strip())
    from gemmascope.analysis.attribution import attribute
    from gemmascope.run.sweep import sweep
    from gemmascope.sites import find_site
    from gemmascope.weights.load import load

    find_site(args.site)
    metric = _metric(args)
    asked: dict[str, Any] = {"site": args.site, "by": by, "into": args.into}
    asked["model"] = load(args.model, weights=args.weights, memory=args.memory)
    if args.estimate:
        result = attribute(args.clean, args.corrupt, metric, **asked)
    else:
        result = sweep(args.clean, args.corrupt, metric, **asked, progress=sys.stderr.isatty())
    print(json.dumps(result.to_dict(), indent=2) if args.json else result)
    if args.html is not None:
        from gemmascope.widgets.pages import write_sweep

        write_sweep(args.html, result)
    if args.csv is not None:
        with replacing(args.csv) as aside:
            result.to_dataframe().to_csv(aside, index=False)
    for path in (args.html, args.csv):
        if path is not None:
            print(f"wrote {path}", file=sys.stderr)
    return 0


def _metric(args: argparse.Namespace) -> object:
    """The metric as asked. SweepError for answers that do not go with it."""
    from gemmascope.analysis import metrics

    needs = args.metric == "logit_diff"
    if needs != (args.against is not None):
        do = 'give --against " John", or --metric answer_prob' if needs else "leave it out, or take --metric logit_diff"
        raise SweepError(f"--metric {args.metric} takes {'two answers' if needs else 'no --against'}: {do}")
    make = getattr(metrics, args.metric)
    return make(args.answer, args.against) if needs else make(args.answer)


def _add_lab(commands: Commands) -> None:
    parser = _added(commands, _lab, "start JupyterLab on the notebooks", _LAB, _LAB_EXAMPLES)
    parser.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, help="of notebooks (default: this clone's)")
    parser.add_argument("--port", type=int, help="where it listens (default: the first that is free from 8888)")
    parser.add_argument("--no-browser", action="store_true", help="print the address, and open no browser")
    parser.add_argument("--more", metavar="ARG", action="append", default=[], help="an argument of JupyterLab's; repeatable")


def _lab(args: argparse.Namespace) -> int:
    from gemmascope.serving import lab_command, serve

    return serve(lab_command(args.folder, args.port, args.more, opens_browser=not args.no_browser))


def _add_generate(commands: Commands) -> None:
    parser = _added(commands, _generate, "go on with a prompt, token by token", _GENERATE, _GENERATE_EXAMPLES)
    parser.add_argument("prompt", metavar="PROMPT", help="the text to go on with; <bos> is put in front of it")
    parser.add_argument("--max-new-tokens", metavar="N", type=int, default=32, help="the most tokens (default: 32)")
    parser.add_argument("--temperature", metavar="T", type=float, default=0.0, help="0 for the likeliest (default: 0)")
    parser.add_argument("--top-p", metavar="P", type=float, default=1.0, help="draw from this share (default: 1, all)")
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="of the draws (default: 0)")
    parser.add_argument("--stop", metavar="TEXT", action="append", default=[], help="end at this text; may be repeated")
    _add_model(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of text")


def _generate(args: argparse.Namespace) -> int:
    from gemmascope.run.generate import generate
    from gemmascope.weights.load import load

    model = load(args.model, weights=args.weights, memory=args.memory)
    options = ("max_new_tokens", "temperature", "top_p", "seed", "stop")
    asked = {name: getattr(args, name) for name in options}
    with warnings.catch_warnings():  # the exit status says that it was interrupted
        warnings.simplefilter("ignore", UserWarning)
        found = generate(args.prompt, model=model, show=not args.json, **asked)
    if args.json:
        print(json.dumps(found.to_dict(), indent=2))
    return INTERRUPTED if found.stopped == "interrupted" else 0


def _add_quantize(commands: Commands) -> None:
    parser = _added(commands, _quantize, "write a checkpoint's int8 weights to a folder", _QUANTIZE)
    parser.add_argument("source", metavar="SOURCE", help="a hub id, or a checkpoint's folder")
    parser.add_argument("target", metavar="TARGET", type=Path, help="a new folder, or one where this was interrupted")


def _quantize(args: argparse.Namespace) -> int:
    from gemmascope.weights.streamed import quantize

    folder = quantize(args.source, args.target)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"wrote {folder}: {size / 1e9:.2f} GB in {len(list(folder.glob('*.safetensors')))} files")
    return 0


def _add_plan(commands: Commands) -> None:
    about = "say what a model takes in memory and on which GPUs it fits"
    parser = _added(commands, _plan, about, _PLAN, _PLAN_EXAMPLES)
    parser.add_argument("source", metavar="SOURCE", help="a hub id of Google's, '2b', '9b', '27b', 'nano', or a folder")
    parser.add_argument("--weights", default="auto", help="auto (as stored), bf16, float32 or int8 (default: auto)")
    parser.add_argument("--context", metavar="N", type=int, help="positions of the prompt (default: the model's most)")
    parser.add_argument("--memory", metavar="BYTES", help="what gs.load will be given, such as 20GiB (default: no limit)")
    parser.add_argument("--rows", metavar="N", type=int, help="rows of a sweep's chunk (default: what the memory holds)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--dtype", default="auto", help="bfloat16 or float32 to compute in (default: auto)")
    parser.add_argument("--probe", action="store_true", help="measure this machine for some seconds and predict times")
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of text")


def _plan(args: argparse.Namespace) -> int:
    from gemmascope.weights.plan import plan
    from gemmascope.weights.planned import table_text

    options = ("weights", "context", "memory", "rows", "device", "dtype", "probe")
    found = plan(args.source, **{name: getattr(args, name) for name in options})
    print(json.dumps(found.to_dict(), indent=2) if args.json else f"{found}\n\n{table_text(found.table())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""gemmascope harvest: activations of many texts into a store."""

from __future__ import annotations

import argparse
from pathlib import Path

from gemmascope.cli.arguments import INTERRUPTED, Commands, add_command, add_model, add_workers, listed_numbers, workers_of
from gemmascope.errors import SiteError
from gemmascope.legible import legible_line

_HARVEST = """\
Run the texts of files, and store their activations at chosen sites in a folder: a row for every token but <bos>. A
harvest that was interrupted or killed goes on after its last finished shard when the same command is given again."""
_EXAMPLES = """\
examples:
  gemmascope harvest corpus.txt --site resid_post --layers 3,5 --out acts        a text on each line
  gemmascope harvest a.jsonl b.jsonl --site z,mlp_out --out acts --long split    {"text": "..."} on each line
  gemmascope harvest corpus.parquet --field body --site resid_post --layers 12 --model google/gemma-2-2b --out acts
"""


def add(commands: Commands) -> None:
    """Add the subcommand and its arguments."""
    parser = add_command(commands, run, "store the activations of many texts", _HARVEST, _EXAMPLES)
    parser.add_argument("texts", metavar="FILE", nargs="+", type=Path, help=".txt, .jsonl or .parquet files of texts")
    parser.add_argument("--site", required=True, help="the site, such as resid_post, or several: z,mlp_out")
    parser.add_argument("--layers", metavar="LAYERS", help="the layers, such as 3,5 (default: all)")
    parser.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="a new folder, or one to go on with")
    parser.add_argument("--dtype", default="bfloat16", help="bfloat16, float32 or int8 (default: bfloat16)")
    parser.add_argument("--max-tokens", metavar="N", type=int, help="the most tokens of a run (default: the context)")
    parser.add_argument("--long", default="error", help="what to do with longer texts: error, cut or split (default: error)")
    parser.add_argument("--empty", default="error", help="and with texts without tokens: error or skip (default: error)")
    parser.add_argument("--field", default="text", help="the field or column of the text (default: text)")
    parser.add_argument("--bos", action="store_true", help="keep the rows of <bos>")
    parser.add_argument("--outliers", metavar="X", type=float, help="leave out rows of X times the median norm")
    parser.add_argument("--together", action="store_true", help="several texts in one product: quicker, rounds otherwise")
    add_model(parser)
    add_workers(parser)


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return its exit status."""
    from gemmascope.loading.load import load
    from gemmascope.stores.harvest import harvest

    layers, workers = listed_numbers(args.layers, "--layers", error=SiteError), workers_of(args)
    store = harvest(
        load(args.model, weights=args.weights, memory=args.memory),
        args.texts,
        args.site.split(","),
        out=args.out,
        layers=layers or None,
        dtype=args.dtype,
        max_tokens=args.max_tokens,
        long=args.long,
        empty=args.empty,
        field=args.field,
        bos=args.bos,
        outliers=args.outliers,
        exact=not args.together,
        workers=workers,
    )
    print(f"{store} in {legible_line(str(args.out))}")
    return 0 if store.finished else INTERRUPTED

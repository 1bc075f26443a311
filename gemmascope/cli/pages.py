"""gemmascope pages: a folder of pages of heads, neurons and features, by the texts on which each is strongest."""

from __future__ import annotations

import argparse
from pathlib import Path

from gemmascope.cli.arguments import (
    Commands,
    add_command,
    add_model,
    listed_numbers,
    report_written,
    require_writable_paths,
)
from gemmascope.errors import ExamplesError
from gemmascope.legible import legible_line

_PAGES = """\
Find the texts on which heads, neurons and the features of dictionaries are strongest, in one pass over files of texts or
over a store of gemmascope harvest, and write a page for each unit with an index.html that is searched."""
_EXAMPLES = """\
examples:
  gemmascope pages corpus.txt --sae nano --out pages                      all features of nano's dictionary
  gemmascope pages corpus.jsonl --heads 2,3 --neurons 3:7,12 --out pages  heads of two layers, two neurons of layer 3
  gemmascope pages acts --sae nano --features 987,3 --out pages           two features, over a store
"""


def add(commands: Commands) -> None:
    """Add the subcommand and its arguments."""
    parser = add_command(commands, run, "write pages of heads, neurons and features", _PAGES, _EXAMPLES)
    parser.add_argument("texts", metavar="FILE", nargs="+", type=Path, help=".txt, .jsonl or .parquet files, or one store")
    parser.add_argument("--sae", metavar="SOURCE", help="a dictionary, as gs.load_sae takes it: 'nano', a file or a hub id")
    parser.add_argument("--features", metavar="NUMBERS", help="its features, such as 987,3 (default: all)")
    parser.add_argument("--heads", metavar="LAYERS", help="the layers whose heads have pages, such as 2,3")
    parser.add_argument("--neurons", metavar="LAYER:NUMBERS", action="append", help="neurons, such as 3:7,12, or 3 for all")
    parser.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="the folder of the pages")
    parser.add_argument("--k", type=int, default=20, help="how many examples of each unit (default: 20)")
    parser.add_argument("--max-tokens", metavar="N", type=int, help="the most tokens of a run (default: the context)")
    parser.add_argument("--long", default="error", help="what to do with longer texts: error, cut or split (default: error)")
    parser.add_argument("--empty", default="error", help="and with texts without tokens: error or skip (default: error)")
    parser.add_argument("--field", default="text", help="the field or column of the text (default: text)")
    parser.add_argument("--together", action="store_true", help="several texts in one product: quicker, rounds otherwise")
    parser.add_argument("--save", metavar="FILE", type=Path, help="also write the examples, for gs.open_examples")
    add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return its exit status."""
    from gemmascope.examples.find import top_examples
    from gemmascope.loading.load import load
    from gemmascope.sae.load import load_sae
    from gemmascope.stores.reading.opening import open_store
    from gemmascope.views.units.folder import save_pages

    if args.features is not None and args.sae is None:
        raise ExamplesError("--features are of a dictionary: give --sae")
    units: list[object] = [("head", layer) for layer in _listed(args.heads, "--heads")]
    units += [_neurons(one) for one in args.neurons or ()]
    if not units and args.sae is None:
        raise ExamplesError("there is nothing to write pages of: give --sae, --heads or --neurons")
    require_writable_paths(args.save)
    if args.out.is_file():
        raise ExamplesError(f"--out is a folder, and {args.out} is a file")
    is_store = len(args.texts) == 1 and args.texts[0].is_dir()
    model = load(args.model, weights=args.weights, memory=args.memory)
    sae = None if args.sae is None else load_sae(args.sae)
    if sae is not None:
        units.append(sae if args.features is None else (sae, _listed(args.features, "--features")))
    examples = top_examples(
        open_store(args.texts[0]) if is_store else args.texts,
        units,
        model=model,
        k=args.k,
        max_tokens=args.max_tokens,
        long=args.long,
        empty=args.empty,
        field=args.field,
        exact=not args.together,
    )
    if args.save is not None:
        examples.save(args.save)
        report_written(args.save)
    index = save_pages(examples, args.out, saes=() if sae is None else sae, model=model)
    print(f"{index.summary} in {legible_line(str(args.out / 'index.html'))}")
    return 0


def _listed(text: str | None, name: str) -> list[int]:
    return listed_numbers(text, name, error=ExamplesError)


def _neurons(text: str) -> tuple[object, ...]:
    layer, colon, numbers = text.partition(":")
    found = _listed(layer, "--neurons")
    if len(found) != 1:
        raise ExamplesError(f"--neurons takes a layer and its neurons, such as 3:7,12; given {text!r}")
    return ("neuron", found[0], _listed(numbers, "--neurons")) if colon else ("neuron", found[0])

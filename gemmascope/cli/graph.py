"""gemmascope graph: the attribution graph of a prompt, as text, JSON and files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from gemmascope.cli.arguments import Commands, add_command, add_model, report_written, require_writable_paths

if TYPE_CHECKING:
    from gemmascope.circuits.graph.result import AttributionGraph

_GRAPH = """\
Find who gave what to whom in one run: from the likeliest next tokens down to the embeddings, by the features of transcoders
or autoencoders, or by neurons. Prints the strongest nodes of the pruned graph. The basis is the one of gs.attribution_graph:
transcoder unless another is named. nano's own dictionaries are in the package; other models need --dictionaries, or
--basis neuron, for which nothing is trained."""
_EXAMPLES = """\
examples:
  gemmascope graph "When Mary and John went to the store, John gave a drink to"
  gemmascope graph "Mary and John went to the" --basis neuron --target " store" --html g.html --neuronpedia g.json
  gemmascope graph "The capital of France is" --model google/gemma-2-2b --dictionaries google/gemma-scope-2b-pt-transcoders
"""


def add(commands: Commands) -> None:
    """Add the subcommand and its arguments."""
    parser = add_command(commands, run, "find who gave what to whom in a run", _GRAPH, _EXAMPLES)
    parser.add_argument("prompt", metavar="PROMPT", help="the text to run; <bos> is put in front of it")
    add_model(parser)
    parser.add_argument(
        "--basis",
        choices=("transcoder", "neuron", "sae"),
        default="transcoder",
        help="what the nodes are: features of transcoders (the default) or of autoencoders, or neurons",
    )
    parser.add_argument(
        "--dictionaries",
        metavar="SOURCE",
        help="a folder or hub id with a transcoder for each layer (default: nano's own, for nano)",
    )
    parser.add_argument(
        "--target", metavar="TOKEN", action="append", help="a token to explain, such as ' Mary'; may be given several times"
    )
    parser.add_argument(
        "--max-nodes", metavar="N", type=int, default=1024, help="the most features whose inputs are found (default: 1024)"
    )
    parser.add_argument(
        "--prune", metavar="SHARE", type=float, default=0.8, help="the share of influence that nodes hold (default: 0.8)"
    )
    parser.add_argument("--top", metavar="N", type=int, default=20, help="how many nodes to print (default: 20)")
    parser.add_argument("--save", metavar="FILE", type=Path, help="also write the whole graph, for gs.open_graph")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="keep finished rows there: after a kill the same command goes on from it"
    )
    parser.add_argument("--html", metavar="FILE", type=Path, help="also write the pruned graph as a page to look into")
    parser.add_argument(
        "--neuronpedia", metavar="FILE", type=Path, help="also write the pruned graph for Neuronpedia's viewer"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return its exit status."""
    require_writable_paths(args.save, args.html, args.neuronpedia)
    from gemmascope.circuits.graph.attribution import attribution_graph
    from gemmascope.loading.load import load

    graph = attribution_graph(
        args.prompt,
        model=load(args.model, weights=args.weights, memory=args.memory),
        basis=args.basis,
        dictionaries=args.dictionaries,
        targets=args.target,
        max_nodes=args.max_nodes,
        out=args.out,
    )
    pruned = graph.prune(nodes=args.prune)
    print(json.dumps(_as_dict(graph, pruned, args.top), indent=2) if args.json else _as_text(graph, pruned, args.top))
    if args.save is not None:
        graph.save(args.save)
        report_written(args.save)
    if args.html is not None:
        from gemmascope.views.graphs.view import graph_view

        graph_view(pruned).save(args.html)
        report_written(args.html)
    if args.neuronpedia is not None:
        pruned.to_neuronpedia(args.neuronpedia)
        report_written(args.neuronpedia)
    return 0


def _as_dict(graph: AttributionGraph, pruned: AttributionGraph, top: int) -> dict[str, object]:
    nodes = pruned.nodes.sort_values("influence", ascending=False).head(top)
    return {
        "model": graph.about.model,
        "basis": graph.about.basis,
        "tokens": list(graph.about.tokens),
        "outputs": [{"label": one.label, "weight": one.weight} for one in graph.outputs],
        "replacement": graph.scores.replacement,
        "completeness": graph.scores.completeness,
        "nodes": json.loads(nodes.to_json(orient="records")),
    }


def _as_text(graph: AttributionGraph, pruned: AttributionGraph, top: int) -> str:
    nodes = pruned.nodes.sort_values("influence", ascending=False).head(top)
    lines = [
        repr(graph),
        f"basis: {graph.about.basis}",
        f"pruned to {len(pruned)} nodes and {len(pruned.rows.weight)} edges; the strongest:",
        "",
    ]
    lines.append(f"{'node':>16}  {'kind':9}  {'token':16}  {'influence':>9}  {'activation':>10}")
    for one in nodes.to_dict("records"):
        activation = f"{one['activation']:10.3f}" if one["activation"] == one["activation"] else " " * 10  # NaN: no feature
        row = f"{one['id']:>16}  {one['kind']:9}  {one['token']!r:16}  {one['influence']:9.1%}  {activation}"
        lines.append(row.rstrip())
    return "\n".join(lines)

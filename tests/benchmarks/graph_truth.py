"""How far an attribution graph's predictions hold: python tests/benchmarks/graph_truth.py [--pairs 6] [--model FILE]

For pairs of prompts of several families the strongest nodes of the graph are doubled, each in a run of its own, as
graph.check does it. The table has the correlation of predicted and true moves of the output, with nothing held and with
each of the things held that the graph holds; and the share of moves whose sign is right, with nothing held. --html draws
the moves of one graph of nano, the indirect object's.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gemmascope as gs
from gemmascope.circuits.graph.result import AttributionGraph
from gemmascope.edits.edit import Edit
from gemmascope.figures.theme import LINE, style_figure
from gemmascope.model.model import Model
from gemmascope.prompts.pairs import Pair
from gemmascope.run.trace import Trace
from gemmascope.values import Array

FAMILIES = ("ioi", "facts", "agreement", "pronouns")
NODES = 20
SCALES = ("attn_in_scale", "attn_out_scale", "mlp_in_scale", "mlp_out_scale")


def holdings(t: Trace) -> dict[str, list[Edit]]:
    """Edits that hold what a graph holds, at its values in a run."""
    layers = range(t.model.n_layers)
    return {
        "nothing": [],
        "patterns": [gs.patch("pattern", t, layer=layer) for layer in layers],
        "last norm": [gs.patch("final_scale", t)],
        "other norms": [gs.patch(site, t, layer=layer) for layer in layers for site in SCALES],
    }


def predicted_and_true(graph: AttributionGraph, t: Trace, pair: Pair, nodes: int) -> tuple[Array, dict[str, Array]]:
    """By how much the output moves with each node doubled: as the graph says, and in the model with some things held."""
    check = graph.check(nodes)
    one = t.model.tokenizer.single
    answer, against = one(pair.answer), one(pair.against)

    def lead(run: Trace) -> float:
        last = run["logits_raw"][-1]
        return float(last[answer] - last[against])

    def moves(held: list[Edit]) -> Array:
        changes = [[*held, *graph.edits(node, scale=2.0)] for node in check.changed]
        return np.array([lead(gs.trace(t.ids, model=t.model, edits=edits)) - lead(t) for edits in changes])

    true = {name: moves(held) for name, held in holdings(t).items()}
    # Doubled by edits, nothing held, is what the check itself does.
    assert torch.allclose(torch.tensor(true["nothing"]), check.effects.true[:, 0], atol=1e-2)
    return check.effects.predicted[:, 0].numpy(), true


def graph_of(t: Trace, pair: Pair, basis: str) -> AttributionGraph:
    target = gs.logit_diff(pair.answer, pair.against)
    return gs.attribution_graph(t, basis=basis, targets=target, max_nodes=1000, progress=False)


def table(model: Model, basis: str, families: list[str], n: int, nodes: int) -> None:
    for family in families:
        rows, signs = [], []
        pairs = getattr(gs.prompts, family)(n, tokenizer=model.tokenizer)
        for pair in pairs:
            t = gs.trace(pair.clean, model=model)
            said, true = predicted_and_true(graph_of(t, pair, basis), t, pair, nodes)
            rows.append([np.corrcoef(said, moves)[0, 1] for moves in true.values()])
            signs.append(np.mean(np.sign(said) == np.sign(true["nothing"])))
        mean, low, high = np.mean(rows, 0), np.min(rows, 0), np.max(rows, 0)
        cells = "".join(f"{m:8.2f} ({a:.2f} to {b:.2f})" for m, a, b in zip(mean, low, high, strict=True))
        print(f"{model.name:20} {basis:10} {family:10} {len(pairs):3}{cells}{np.mean(signs):8.0%}", flush=True)


def figure() -> Any:
    """The indirect object's graph: 40 features doubled, predicted and true, with nothing and with the last norm held."""
    import plotly.graph_objects as go

    pair = gs.prompts.Pair("When Mary and John went to the store, John gave a drink to", "", " Mary", " John")
    t = gs.trace(pair.clean)
    said, true = predicted_and_true(graph_of(t, pair, "transcoder"), t, pair, 40)
    bound = 1.1 * float(max(np.abs(said).max(), *(np.abs(true[name]).max() for name in ("nothing", "last norm"))))
    made = go.Figure(go.Scatter(x=[-bound, bound], y=[-bound, bound], mode="lines", line={"color": LINE}, showlegend=False))
    for name, words, colour in (("nothing", "nothing held", "#d6604d"), ("last norm", "the last norm held", "#2f7cc4")):
        r = np.corrcoef(said, true[name])[0, 1]
        dots = {"color": colour, "size": 9, "opacity": 0.75}
        made.add_trace(go.Scatter(x=said, y=true[name], mode="markers", marker=dots, name=f"{words}: correlation {r:.2f}"))
    made.update_xaxes(title="predicted move of ' Mary' less ' John'", range=[-bound, bound])
    made.update_yaxes(title="true move", range=[-bound, bound])
    about = "each of the 40 strongest features doubled in a run of its own; on the line the graph is right"
    style_figure(made, "A graph's predictions and what the model does", about, height=460, width=900, showlegend=True)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--pairs", type=int, default=6, help="of each family")
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--html", type=Path, metavar="FILE", help="draw the figure there in place of the table")
    args = parser.parse_args()
    if args.html:
        args.html.write_text(figure().to_html(config={"staticPlot": True}), encoding="utf-8")
        return
    model = gs.load(args.model)
    held = "".join(f"{name + ' held':>22}" for name in ("nothing", "patterns", "last norm", "other norms"))
    print(f"{'model':20} {'basis':10} {'family':10} pairs{held}   signs")
    for basis in ("transcoder", "neuron") if args.model == "nano" else ("neuron",):
        table(model, basis, args.families, args.pairs, NODES)


if __name__ == "__main__":
    main()

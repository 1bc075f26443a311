"""Which estimate of an edge's score to trust: each method beside exact patching, pair by pair.

    python tests/benchmarks/edges.py                                            # nano
    python tests/benchmarks/edges.py --model gemma-3-270m-q4_k_m.gguf --pairs 5 --json real.json
    python tests/benchmarks/edges.py --draw nano.json real.json --html edges.html

prints a table: for each family of prompts and method, the mean over pairs of the agreement with the exact scores of all
edges (as EdgeScores.agreement has it), and the lowest and highest Pearson correlation of a pair; and the seconds of CPU that
the scores of a pair took. --json keeps every pair's numbers, and goes on with a file that is there; --draw makes a page of
such files.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import gemmascope as gs
from gemmascope.model.model import Model
from gemmascope.prompts.pairs import Pair

ESTIMATES = ("eap", "eap-ig", "relp")
FAMILIES = ("ioi", "facts", "agreement")
MEASURES = ("pearson", "spearman", "top_overlap", "error")


def of_pair(model: Model, pair: Pair) -> list[dict[str, Any]]:
    """A row for each estimate: its agreement with the exact scores, and how long both took."""
    seconds, scores = {}, {}
    for method in ("exact", *ESTIMATES):
        start = time.process_time()
        metric = gs.logit_diff(pair.answer, pair.against)
        scores[method] = gs.edge_scores(pair.clean, pair.corrupt, metric, method=method, model=model, progress=False)
        seconds[method] = time.process_time() - start
    table = scores["exact"].agreement(*(scores[method] for method in ESTIMATES))
    return [
        {
            "pair": pair.clean, "method": method, "seconds": seconds[method], "exact_seconds": seconds["exact"],
            "edges": scores["exact"].n_edges, **table.iloc[number].to_dict(),
        }
        for number, method in enumerate(ESTIMATES)
    ]  # fmt: skip


def measured(model: Model, families: Sequence[str], n: int, rows: list[dict[str, Any]], kept: Path | None) -> None:
    """Add the rows of all pairs of the families to those that are there. kept: where they are written after each pair."""
    for family in families:
        for pair in getattr(gs.prompts, family)(n, tokenizer=model.tokenizer):
            if any((row["model"], row["family"], row["pair"]) == (model.name, family, pair.clean) for row in rows):
                continue
            rows += [{"model": model.name, "family": family, **row} for row in of_pair(model, pair)]
            if kept:
                kept.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """A line for each model, family and method."""
    print("model                family     method   pairs  pearson  lowest  highest  spearman  top 5%  error  seconds")
    for model, family in dict.fromkeys((row["model"], row["family"]) for row in rows):
        of_family = [row for row in rows if (row["model"], row["family"]) == (model, family)]
        for method in ESTIMATES:
            found = [row for row in of_family if row["method"] == method]
            mean = {name: float(np.mean([row[name] for row in found])) for name in (*MEASURES, "seconds")}
            ends = [pick(row["pearson"] for row in found) for pick in (min, max)]
            print(
                f"{model:20} {family:10} {method:8} {len(found):5}  {mean['pearson']:7.2f}  {ends[0]:6.2f}  {ends[1]:7.2f}  "
                f"{mean['spearman']:8.2f}  {mean['top_overlap']:6.0%}  {mean['error']:5.2f}  {mean['seconds']:7.2f}"
            )
        exact = float(np.mean([row["exact_seconds"] for row in of_family]))
        print(f"{model:20} {family:10} exact    {of_family[0]['edges']} edges, {exact:.2f} seconds a pair")


def figure_of(rows: Sequence[dict[str, Any]]) -> Any:
    """A panel for each model: a dot for each pair's correlation, by family and method, and a bar at their mean."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    from gemmascope.figures.theme import INK, style_figure

    models = list(dict.fromkeys(row["model"] for row in rows))
    figure = make_subplots(cols=len(models), shared_yaxes=True, subplot_titles=models, horizontal_spacing=0.05)
    colours = dict(zip(ESTIMATES, ("#d6604d", "#2f7cc4", "#5b9f00"), strict=True))
    families = [name for name in FAMILIES if any(row["family"] == name for row in rows)]
    places = [(family, method) for family in families for method in ESTIMATES]
    # Families stand apart by one empty line; the first is on top.
    height = {place: -(n + n // len(ESTIMATES)) for n, place in enumerate(places)}
    for column, model in enumerate(models, 1):
        for family, method in places:
            found = [
                row["pearson"] for row in rows if (row["model"], row["family"], row["method"]) == (model, family, method)
            ]
            y = height[family, method]
            mean = float(np.mean(found))
            dots = {"color": colours[method], "size": 9, "opacity": 0.45, "line": {"width": 0}}
            bar = {"color": colours[method], "size": 16, "symbol": "line-ns-open", "line": {"width": 3}}
            figure.add_traces(
                [
                    go.Scatter(x=found, y=[y] * len(found), mode="markers", marker=dots),
                    go.Scatter(x=[mean], y=[y], mode="markers", marker=bar),
                    go.Scatter(x=[1.12], y=[y], mode="text", text=[f"{mean:.2f}"], textfont={"color": INK}),
                ],
                rows=1, cols=column,
            )  # fmt: skip
        axis = {"range": [0, 1.2], "tickvals": [0, 0.25, 0.5, 0.75, 1]}
        figure.update_xaxes(title="Pearson correlation with the exact scores", **axis, row=1, col=column)
    figure.update_yaxes(
        tickvals=[height[place] for place in places], ticktext=[f"{family} · {method}" for family, method in places],
        showgrid=False, zeroline=False, range=[min(height.values()) - 0.7, 0.9],
    )  # fmt: skip
    title = "Edges: each estimate beside exact patching"
    about = "a dot for each pair of prompts; the bar and the number are their mean"
    style_figure(figure, title, about, height=440, width=900, margin={"t": 100, "b": 64, "r": 16})
    figure.update_annotations(font_size=13)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--families", nargs="*", default=FAMILIES, choices=FAMILIES)
    parser.add_argument("--pairs", type=int, default=12, help="of each family")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the rows there, and go on with them")
    parser.add_argument("--draw", type=Path, nargs="*", metavar="FILE", help="draw such files in place of measuring")
    parser.add_argument("--html", type=Path, metavar="FILE", help="the page to draw on")
    args = parser.parse_args()
    if args.draw:
        rows = [row for path in args.draw for row in json.loads(path.read_text(encoding="utf-8"))]
        args.html.write_text(figure_of(rows).to_html(config={"staticPlot": True}), encoding="utf-8")
        return
    rows = json.loads(args.json.read_text(encoding="utf-8")) if args.json and args.json.exists() else []
    measured(gs.load(args.model), args.families, args.pairs, rows, args.json)
    print_table(rows)


if __name__ == "__main__":
    main()

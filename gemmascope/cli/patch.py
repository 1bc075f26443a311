"""gemmascope patch: a sweep of two prompts, or an estimate of one; several sites and metrics come from one pass."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from gemmascope.cli.arguments import (
    INTERRUPTED,
    Commands,
    add_command,
    add_edits,
    add_model,
    add_workers,
    opened_edits,
    report_written,
    require_edits,
    require_writable_paths,
    workers_of,
)
from gemmascope.errors import SweepError
from gemmascope.run.metric_names import METRICS

if TYPE_CHECKING:
    from gemmascope.edits.edit import Edit
    from gemmascope.model.model import Model
    from gemmascope.sweeps.metrics import AnswerMetric
    from gemmascope.sweeps.result import SweepResult
    from gemmascope.sweeps.sets.result import SweepSet
    from gemmascope.workers.choice import RayWorkers

    _Metrics = AnswerMetric | dict[str, AnswerMetric]

_PATCH = """\
Run two prompts, patch every cell of a grid from one run into the other, each in a run of its own, and say what
becomes of the answer: the two baselines and the strongest cells. Interrupting (Ctrl-C) keeps the finished cells."""
_PATCH_EXAMPLES = """\
examples:
  gemmascope patch "Mary and John went. John told" "Mary and John went. Mary told" --answer " Mary" --against " John"
  gemmascope patch CLEAN CORRUPT --answer " Mary" --against " John" --site z --by layer,head --html heads.html
  gemmascope patch CLEAN CORRUPT --answer " Mary" --metric answer_prob --estimate --csv cells.csv
  gemmascope patch CLEAN CORRUPT --answer " Mary" --against " John" --metric logit_diff,rank --site resid_pre,mlp_out
  gemmascope patch CLEAN CORRUPT --answer " Mary" --against " John" --json | jq '.cells[0]'
  gemmascope patch CLEAN CORRUPT --answer " Mary" --against " John" --model google/gemma-2-2b --workers 8
"""


def add(commands: Commands) -> None:
    """Add the subcommand and its arguments."""
    parser = add_command(commands, run, "patch every cell of a grid, and show what that changes", _PATCH, _PATCH_EXAMPLES)
    parser.add_argument("clean", metavar="CLEAN", help="the prompt that has the answer")
    parser.add_argument("corrupt", metavar="CORRUPT", help="the same with something changed, of equal length in tokens")
    parser.add_argument("--answer", metavar="TOKEN", required=True, help='one token, with its leading space: " Mary"')
    parser.add_argument("--against", metavar="TOKEN", help="the answer of the other prompt; needed by logit_diff")
    metric = f"what is measured: {', '.join(METRICS)}; several in one pass with commas between (default: logit_diff)"
    parser.add_argument("--metric", default="logit_diff", help=metric)
    site = "the site that is patched, such as z, or several in one pass, such as q,k,v,z (default: resid_pre)"
    parser.add_argument("--site", default="resid_pre", help=site)
    parser.add_argument("--by", default="layer,pos", help="the grid's axes, such as layer,head (default: layer,pos)")
    parser.add_argument(
        "--into", choices=("corrupt", "clean"), default="corrupt", help="the run that is patched (default: corrupt)"
    )
    parser.add_argument("--estimate", action="store_true", help="by gradients (gs.attribute): every cell, roughly")
    add_model(parser)
    add_edits(parser, "the run that is patched")
    add_workers(parser)
    parser.add_argument("--html", metavar="FILE", type=Path, help="also write the grids as a self-contained page to FILE")
    parser.add_argument(
        "--csv",
        metavar="FILE",
        type=Path,
        help="also write a line for each cell to FILE; a text that begins with = + - @, a tab or a line's end gets an "
        "apostrophe in front, so that no spreadsheet takes it for a formula",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return its exit status."""
    require_writable_paths(args.html, args.csv)
    require_edits(args)
    by, metric, workers = _axes(args), _metric(args), workers_of(args)
    if args.estimate and workers is not None:
        raise SweepError("--estimate takes a few passes, which are not shared: leave --workers out")
    from gemmascope.loading.load import load
    from gemmascope.sweeps.attribution import attribute

    model = load(args.model, weights=args.weights, memory=args.memory)
    sites = _listed(args.site)
    site, edits = sites[0] if len(sites) == 1 else sites, opened_edits(args, model)
    grid: _Grid = {"site": site, "by": by, "into": args.into, "model": model, "edits": edits}
    if args.estimate:
        result, interrupted = attribute(args.clean, args.corrupt, metric, **grid), False
    else:
        result, interrupted = _sweep(args.clean, args.corrupt, metric, grid, workers)
    if any(one.finished.any() for one in _grids_of(result)):
        _write(result, args)
    return INTERRUPTED if interrupted else 0


class _Grid(TypedDict):
    """The keyword arguments that gs.sweep and gs.attribute share."""

    site: str | list[str]
    by: tuple[str, ...]
    into: str
    model: Model
    edits: list[Edit]


def _sweep(
    clean: str, corrupt: str, metric: _Metrics, grid: _Grid, workers: RayWorkers | None
) -> tuple[SweepResult | SweepSet, bool]:
    """A sweep, and whether it was interrupted. The exit status replaces the sweep's warning."""
    from gemmascope.sweeps.sweep import sweep

    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message="interrupted: ")
        result = sweep(clean, corrupt, metric, **grid, progress=sys.stderr.isatty(), workers=workers)
    is_interrupted = [str(warning.message).startswith("interrupted: ") for warning in caught]
    for warning, hidden in zip(caught, is_interrupted, strict=True):
        if not hidden:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return result, any(is_interrupted)


def _grids_of(result: SweepResult | SweepSet) -> list[SweepResult]:
    from gemmascope.sweeps.result import SweepResult

    return [result] if isinstance(result, SweepResult) else list(result.values())


def _write(result: SweepResult | SweepSet, args: argparse.Namespace) -> None:
    print(json.dumps(result.to_dict(), indent=2) if args.json else result)
    if args.html is not None:
        _write_page(result, args.html)
    if args.csv is not None:
        from gemmascope.files.csv_tables import csv_text
        from gemmascope.files.writing import write_file

        write_file(args.csv, csv_text(result.to_dataframe()), allow_pipe=True)
    for path in (args.html, args.csv):
        if path is not None:
            report_written(path)


def _write_page(result: SweepResult | SweepSet, path: Path) -> None:
    """The grids as one page, one below the other; where several metrics were measured, each under its metric's name."""
    from gemmascope.files.writing import write_file
    from gemmascope.views.page import page
    from gemmascope.views.sweep import sweep_view

    grids = _grids_of(result)
    views = [sweep_view(grid) for grid in grids]
    if len({grid.question.metric for grid in grids}) > 1:
        titled = ({"title": f"{view.title}: {grid.question.metric}"} for view, grid in zip(views, grids, strict=True))
        views = [replace(view, spec={**view.spec, **title}) for view, title in zip(views, titled, strict=True)]
    write_file(path, page(views), allow_pipe=True)


def _axes(args: argparse.Namespace) -> tuple[str, ...]:
    """The grid's axes. Raises SiteError or SweepError for axes that the site lacks or a page cannot show."""
    from gemmascope.sweeps.spec import grid_axes

    by = tuple(axis.strip() for axis in args.by.split(","))
    for site in _listed(args.site):
        grid_axes(site, by)
    if args.html is not None and len(by) != 2:
        raise SweepError(f"a page shows a grid of two axes; --by {args.by} has {len(by)}: name two, or leave --html out")
    return by


def _listed(names: str) -> list[str]:
    """Names with commas between."""
    return [name.strip() for name in names.split(",")]


def _metric(args: argparse.Namespace) -> _Metrics:
    """The metric, or several by name. Raises SweepError for names, answers or an estimate that do not go together."""
    from gemmascope.sites import did_you_mean
    from gemmascope.sweeps.metrics import named_metric

    names = _listed(args.metric)
    for name in names:
        if name not in METRICS:
            raise SweepError(
                f"--metric {args.metric}: there is no metric {name!r}.{did_you_mean(name, list(METRICS))} The metrics are: "
                f"{', '.join(METRICS)}"
            )
        if names.count(name) > 1:
            raise SweepError(f"--metric {args.metric} has {name} twice: name each metric once")
        if args.estimate and not METRICS[name].has_gradient:
            raise SweepError(f"--metric {name} has no gradient to estimate by: leave --estimate out")
    of_two = [name for name in names if METRICS[name].n_answers == 2]
    if bool(of_two) != (args.against is not None):
        do = 'give --against " John", or --metric answer_prob' if of_two else "leave it out, or take --metric logit_diff"
        named = of_two[0] if of_two else args.metric
        raise SweepError(f"--metric {named} takes {'two answers' if of_two else 'no --against'}: {do}")
    metrics = {name: named_metric(name, args.answer, args.against) for name in names}
    return metrics if len(metrics) > 1 else metrics[names[0]]

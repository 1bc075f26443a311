"""Files of edge scores and circuits' runs while they are computed: what was asked, and a line for each part as it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gemmascope.circuits.edges.pairs import EdgePair, EdgeQuestion
from gemmascope.errors import SweepError
from gemmascope.files.array_text import array_of, array_text
from gemmascope.files.resumed_file import Json, ResumedFile
from gemmascope.sweeps.digest import Part, digest, metric_parts, run_parts, traces_parts
from gemmascope.values import Array


class JournalStopped(SweepError):
    """A file takes no more parts, for example on a full disk. A later call can continue it."""


class _EdgeFile(ResumedFile):
    error, stopped = SweepError, JournalStopped
    advice = "Compute it again into another file, or take the file from a copy"

    def begin_or_go_on(self, out: object, question: Json, rows: int) -> tuple[list[Json], int]:
        """Open a file. Returns the finished parts that it has, and the rows of a pass that it was begun with.

        With as many rows at a time, what is left comes in the same passes, and gives the same numbers bit for bit.
        """
        lines = self.resume(out, {"rows": rows, "question": question})  # type: ignore[arg-type]
        return (lines[1:], int(lines[0]["rows"])) if lines else ([], rows)

    def require_same(self, theirs: Json, ours: Json, path: Path) -> None:
        there, here = theirs["question"], json.loads(json.dumps(ours["question"]))
        differing = [name for name in here if there.get(name) != here[name]]
        if not differing:
            return
        named = [f"{name}: {there.get(name)!r:.60} there, {here[name]!r:.60} here" for name in differing if name != "digest"]
        said = "; ".join(named[:3]) or "other prompts, positions, edges or references, or a function with other code"
        raise SweepError(f"{path} holds {self.holds} of another question ({said}): give another file, or remove this one")

    @property
    def holds(self) -> str:
        """What the file holds, in the plural."""
        raise NotImplementedError


class ScoresFile(_EdgeFile):
    """The finished scores of gs.edge_scores."""

    what, holds = "scoring of edges", "edge scores"
    format, writer = "gemmascope.edge-scores.1", "out= of gs.edge_scores"

    def write(self, number: int, edges: Array, scores: Array, baselines: tuple[float, float]) -> None:
        """Append scores of a pair: edges, their numbers in the flat array of the pair's scores."""
        if self.is_open and len(edges):
            texts = {"edges": array_text(edges.astype("i8")), "scores": array_text(scores.astype("f8"))}
            self.add({"pair": number, "baselines": list(baselines), **texts})

    @staticmethod
    def fill(values: Array, base_metric: Array, source_metric: Array, lines: list[Json]) -> None:
        """Write the scores that a file has into those of a result, float64 [pair, sender, receiver, span]."""
        for line in lines:
            number = int(line["pair"])
            values[number].flat[array_of(line["edges"], "i8")] = array_of(line["scores"], "f8")
            base_metric[number], source_metric[number] = line["baselines"]


class RunsFile(_EdgeFile):
    """The finished runs of gs.faithfulness."""

    what, holds = "faithfulness curve", "runs of circuits"
    format, writer = "gemmascope.circuit-runs.1", "out= of gs.faithfulness"

    def write(self, number: int, first: int, values: list[float], full: float) -> None:
        """Append the metrics of a pair's runs, from its run of this number on, and the metric with all edges."""
        if self.is_open:
            self.add({"pair": number, "first": first, "values": values, "full": full})


def question_of(question: EdgeQuestion, pairs: list[EdgePair], asked: Json, edges: Array | None = None) -> Json:
    """What tells a call from another. asked: its settings by name. edges: of faithfulness, which edges each run keeps."""
    model, ablation = question.model, question.ablation
    named = {"model": model.name, "fingerprint": model.fingerprint, "into": question.into, "pairs": len(pairs)}
    return {
        **named,
        "ablate": None if ablation is None else ablation.value,
        **asked,
        "digest": digest(_parts(question, pairs, edges)),
    }


def _parts(question: EdgeQuestion, pairs: list[EdgePair], edges: Array | None) -> Iterator[Part]:
    """What the settings do not show: token ids, positions, the traces that a mean is over, functions, circuits."""
    yield from metric_parts(question.metric)
    if question.ablation is not None:
        yield from traces_parts(question.ablation.reference)  # type: ignore[arg-type]
    for pair in pairs:
        yield from run_parts(pair.ids, ())
        if pair.source_ids is not None:
            yield from run_parts(pair.source_ids, ())
        yield repr(pair.spans)
    if edges is not None:
        yield repr(edges.shape)
        yield np.packbits(edges).tobytes()

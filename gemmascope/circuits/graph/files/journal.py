"""Files of graphs that are being built: what was asked, a line for each chunk of rows as it ends, and a last line with the
nodes. Lines are JSON with checksums, as in a sweep's file; arrays are their bytes in base 64.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import Tensor

from gemmascope.circuits.graph.data import About, GraphData
from gemmascope.circuits.graph.nodes import NodeKeys, Unit
from gemmascope.circuits.graph.outputs import Logits, Output
from gemmascope.circuits.graph.rows import Rows
from gemmascope.errors import GraphError
from gemmascope.files.array_text import array_of, array_text, little_endian
from gemmascope.files.resumed_file import Json, ResumedFile

# How far the directions of targets may be from those of the file, in units of the largest: rounding on another machine.
_TOLERANCE = 1e-3


class JournalStopped(GraphError):
    """A file takes no more rows, for example on a full disk. A later call can continue it."""


class GraphJournal(ResumedFile):
    """Where finished rows are written; nowhere, if no file is opened.

    Attributes:
        parts: The rows that the file had, a part for each chunk.
        left: The targets that were chosen and not yet explained when it was written last.
        budget: The memory of a pass that it was begun with: the same chunks give the same numbers, bit for bit.
        has_nodes: Whether the graph in the file is finished.
    """

    what, error, stopped = "graph", GraphError, JournalStopped
    format, writer = "gemmascope.graph-rows.1", "out= of gs.attribution_graph"
    advice = "Build the graph again into another file, or take the file from a copy"

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[Rows] = []
        self.left = torch.zeros(0, dtype=torch.long)
        self.budget: int | None = None
        self.has_nodes = False

    def open(self, out: str | os.PathLike[str], question: Json, budget: int) -> None:
        """Start a new file, or read the rows of the same graph and go on.

        GraphError for another graph's file, for one that another process is writing to, and for a damaged one.
        """
        lines = self.resume(out, {"budget": budget, "question": question})
        if lines:
            self.budget = int(lines[0]["budget"])
        for line in lines[1:]:
            self._take(line)

    def write(self, rows: Rows, left: Tensor) -> None:
        """Append the rows of a chunk. left: the targets that come next."""
        if self.is_open:
            self.add({**{one.name: _text(getattr(rows, one.name)) for one in fields(Rows)}, "left": _text(left)})

    def finish(self, graph: GraphData) -> None:
        """Append the nodes of the finished graph."""
        if self.is_open and not self.has_nodes:
            self.add({"nodes": _text(graph.node_keys), "activation": _text(graph.activation)})
            self.has_nodes = True

    def require_same(self, theirs: Json, ours: Json, path: Path) -> None:
        _require_same(theirs["question"], ours["question"], path)

    def _take(self, line: Json) -> None:
        if "nodes" in line:
            self.has_nodes = True
        else:
            self.parts.append(_rows_of(line))
            self.left = _tensor(line["left"], torch.long)


def question_of(about: About, keys: NodeKeys, outputs: tuple[Output, ...], logits: Logits, rest: Json) -> Json:
    """What tells a graph from another. rest: the numbers that it was asked with, and its active features."""
    return {
        "about": asdict(about),
        "units": [asdict(unit) for unit in keys.units],
        "outputs": [asdict(output) for output in outputs],
        "vectors": _text(logits.vectors),
        "inputs": _text(logits.inputs),
        **rest,
    }


def digest_of(keys: Tensor | None) -> str:
    """A digest of the active features; "" where they are not listed."""
    return "" if keys is None else hashlib.sha256(little_endian(keys.cpu().numpy())).hexdigest()[:16]


def read_journal(path: Path) -> GraphData:
    """The finished graph of a file. GraphError for one that is not finished, or is damaged."""
    lines, _, _ = GraphJournal.lines_of(path.read_bytes(), path)
    if "nodes" not in lines[-1]:
        n_rows = sum(len(_rows_of(line).targets) for line in lines[1:])
        raise GraphError(
            f"{path} holds {n_rows} rows of a graph that is not finished: gs.attribution_graph with the same arguments and "
            "out= goes on with it"
        )
    question = lines[0]["question"]
    about = question["about"]
    made = About(**{**about, "ids": tuple(about["ids"]), "tokens": tuple(about["tokens"])})
    outputs = tuple(Output(**one) for one in question["outputs"])
    keys = NodeKeys(tuple(Unit(**unit) for unit in question["units"]), len(made.ids), len(outputs))
    vectors = _tensor(question["vectors"], torch.float32).view(len(outputs), -1)
    logits = Logits(vectors, made.pos, _tensor(question["inputs"], torch.float32))
    nodes, activation = _tensor(lines[-1]["nodes"], torch.long), _tensor(lines[-1]["activation"], torch.float32)
    rows = Rows.joined([_rows_of(line) for line in lines[1:-1]]).in_order()
    return GraphData(made, keys, outputs, logits, nodes, activation, rows)


def _require_same(theirs: Json, ours: Json, path: Path) -> None:
    """GraphError for the file of another graph. Directions may differ by rounding."""
    as_read: Json = json.loads(json.dumps(ours))  # with lists for tuples, as the file has them
    differ = [name for name in as_read if name not in ("vectors", "inputs") and theirs.get(name) != as_read[name]]
    for name in ("vectors", "inputs"):
        there, here = (_tensor(one.get(name, ""), torch.float32) for one in (theirs, ours))
        if there.shape != here.shape or not torch.allclose(there, here, rtol=0, atol=_TOLERANCE * float(here.abs().max())):
            differ.append("targets")
    if "about" in differ:
        about, mine = theirs["about"], as_read["about"]
        differ = [name for name in mine if about.get(name) != mine[name]] + [name for name in differ if name != "about"]
    if differ:
        shown = list(dict.fromkeys(differ))
        raise GraphError(f"{path} holds another graph ({', '.join(shown)} differ): give another file, or remove this one")


def _text(tensor: Tensor) -> str:
    return array_text(tensor.detach().cpu().numpy())


def _tensor(text: str, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(array_of(text, "i8" if dtype == torch.long else "f4"))


def _rows_of(line: Json) -> Rows:
    whole = {"targets", "target", "source"}
    return Rows(
        **{one.name: _tensor(line[one.name], torch.long if one.name in whole else torch.float32) for one in fields(Rows)}
    )

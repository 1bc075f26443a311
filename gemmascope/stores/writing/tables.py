"""The small tables of a shard: which run, position and token each row is, and the ids and texts of the runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gemmascope.model.model import Model
from gemmascope.stores.texts.runs import TextRun
from gemmascope.values import Array

# How a table's numbers are stored, in safetensors' names.
KINDS = {np.dtype(np.int64): "I64", np.dtype(np.int32): "I32", np.dtype(np.uint8): "U8"}


@dataclass(frozen=True)
class RunTables:
    """The tables of some runs. texts: of every run. vocab: how each token that occurs is written, by its id."""

    runs: Sequence[TextRun]
    first_run: int
    texts: Sequence[str]
    vocab: dict[int, str]

    @classmethod
    def of(cls, model: Model, runs: Sequence[TextRun], first_run: int) -> RunTables:
        ids = np.unique(np.concatenate([run.ids for run in runs])).tolist()
        return cls(runs, first_run, [_text(model, run) for run in runs], {i: _piece(model, i) for i in ids})

    @property
    def row_starts(self) -> Array:
        """At which row each run begins, and at the end the number of rows, before outliers are left out."""
        return _starts([run.n_rows for run in self.runs])

    def tables(self, kept: Array | None = None) -> dict[str, Array]:
        """The tables by name. kept: which of the rows stay, bool [row]; None for all."""
        runs = self.runs
        counts = np.array([run.n_rows for run in runs])
        text = np.repeat(np.arange(len(runs)), counts)
        pos = np.concatenate([np.arange(run.skipped, len(run.ids), dtype=np.int32) for run in runs])
        ids = np.concatenate([run.ids[run.skipped :] for run in runs])
        if kept is not None:
            text, pos, ids = text[kept], pos[kept], ids[kept]
            counts = np.bincount(text, minlength=len(runs))
        strings, vocab = _bytes(self.texts), _bytes(list(self.vocab.values()))
        return {
            "rows.text": text + self.first_run,
            "rows.pos": pos,
            "rows.id": ids,
            "runs.row": _starts(counts),
            "runs.source": np.array([run.source for run in runs]),
            "runs.first": np.array([run.first for run in runs]),
            "runs.token": _starts([len(run.ids) for run in runs]),
            "runs.ids": np.concatenate([run.ids for run in runs]),
            "runs.byte": strings[0],
            "runs.text": strings[1],
            "vocab.id": np.array(list(self.vocab), dtype=np.int32),
            "vocab.byte": vocab[0],
            "vocab.text": vocab[1],
        }


def _starts(counts: Sequence[int] | Array) -> Array:
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))


def _bytes(texts: Sequence[str]) -> tuple[Array, Array]:
    """Where each text begins, and all of them as bytes."""
    encoded = [text.encode("utf-8", errors="replace") for text in texts]
    return _starts([len(text) for text in encoded]), np.frombuffer(b"".join(encoded), dtype=np.uint8)


def _text(model: Model, run: TextRun) -> str:
    """The text of a run, without `<bos>`; of a model without a tokenizer, its token ids."""
    if not model.has_tokenizer:
        return " ".join(map(str, run.ids.tolist()))
    has_bos = int(run.ids[0]) == model.tokenizer.bos_id
    return model.tokenizer.decode(run.ids[has_bos:].tolist())


def _piece(model: Model, token_id: int) -> str:
    return model.tokenizer.text(token_id) if model.has_tokenizer else str(token_id)

"""What a probe is asked: rows of a store with classes, in groups that stay together; and its control task."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import torch
from torch import Tensor

from gemmascope.arguments import as_list, is_list, short_repr
from gemmascope.errors import ProbeError
from gemmascope.stores.reading.lookup import row_numbers
from gemmascope.stores.reading.store import Store
from gemmascope.values import Array, is_array

MOST_CLASSES = 1000


@dataclass(frozen=True)
class Task:
    """Rows of a store and their classes.

    Attributes:
        rows: Their numbers in the store, [row].
        y: The class of each, [row].
        classes: The classes, by number.
        tokens: The token id of each, [row].
        groups: The group of each, [row]: rows of one text, and of texts with the same tokens, are of one.
    """

    rows: Array
    y: Tensor
    classes: tuple[Hashable, ...]
    tokens: Array
    groups: Array

    @property
    def n_classes(self) -> int:
        return len(self.classes)

    def control(self, seed: int) -> Task | None:
        """The control task: each kind of token has a random class, drawn as the classes are distributed.

        None where all rows are of one class then, as when they are of one token: anything is right about that.
        """
        rng = Random(f"control {seed}")
        labels = self.y.tolist()
        of_token = {int(token): rng.choice(labels) for token in np.unique(self.tokens)}
        y = torch.tensor([of_token[int(token)] for token in self.tokens])
        return replace(self, y=y) if len(set(of_token.values())) > 1 else None


def task_of(store: Store, labels: object, rows: object, pos: object) -> Task:
    """The task that a user means. ProbeError for labels that do not go with the rows, or of one class.

    labels: for each row of the store, for each of rows, or for each text, whose rows at pos are then taken.
    """
    given = _listed(labels)
    if rows is not None:
        if pos is not None:
            raise ProbeError("rows= says which rows, and pos= which positions of each text: give one of them")
        numbers = row_numbers(rows, store.n_rows)
    elif len(given) == store.n_rows and pos is None:
        numbers = np.arange(store.n_rows)
    elif len(given) == store.n_texts:
        each = [store.rows(text=text, pos=-1 if pos is None else pos) for text in range(store.n_texts)]
        numbers = np.concatenate(each)
        given = [label for label, of_text in zip(given, each, strict=True) for _ in of_text]
    else:
        numbers = np.zeros(0, dtype=np.int64)
    if len(given) != len(numbers):
        raise ProbeError(
            f"labels are one for each row of the store ({store.n_rows:,}), for each text ({store.n_texts:,}), or for each "
            f"of rows=; given {len(given):,}"
        )
    # None and NaN leave a row out.
    used = [number for number, label in enumerate(given) if label is not None and label == label]
    numbers, kept = numbers[used], [given[number] for number in used]
    if len(set(numbers.tolist())) != len(numbers):
        raise ProbeError("rows= holds a row twice: it would be trained on and measured with")
    classes = _classes(kept)
    number_of = {label: number for number, label in enumerate(classes)}
    places = store.places(numbers)
    y = torch.tensor([number_of[label] for label in kept])
    return Task(numbers, y, classes, places.id, _groups(store, places.text))


def _listed(labels: object) -> list[Hashable]:
    if is_array(labels):
        array = np.asarray(labels)
        if array.ndim != 1:
            raise ProbeError(f"labels are on one axis; given shape {array.shape}")
        return list(array.tolist())
    if not is_list(labels):
        raise ProbeError(f"labels are a list or an array: one for each row, or for each text; given {short_repr(labels)}")
    return as_list(labels, "labels", error=ProbeError)


def _classes(labels: list[Hashable]) -> tuple[Hashable, ...]:
    try:
        found = list(dict.fromkeys(labels))
    except TypeError as error:
        raise ProbeError(f"labels are numbers, texts or booleans: {error}") from error
    if not 2 <= len(found) <= MOST_CLASSES:
        raise ProbeError(
            f"labels are of 2 to {MOST_CLASSES:,} classes; given {len(found):,}"
            + (f": {short_repr(found[0])}" if len(found) == 1 else "")
        )
    try:
        return tuple(sorted(found))  # type: ignore[type-var]
    except TypeError:  # of several types
        return tuple(found)


def _groups(store: Store, texts: Array) -> Array:
    """A number for each row: pieces of one text are one group, and so are texts with the same tokens."""
    joined: dict[int, int] = {}

    def group_of(text: int) -> int:
        while joined[text] != text:
            text = joined[text]
        return text

    first: dict[Hashable, int] = {}
    for text in np.unique(texts).tolist():
        joined[text] = text
        for key in (store.source(text)[0], store.ids(text).tobytes()):
            joined[group_of(text)] = group_of(first.setdefault(key, text))
    return np.array([group_of(text) for text in texts.tolist()], dtype=np.int64)


def deal_folds(task: Task, n_folds: int, seed: int) -> Array:
    """The fold of each row. Groups are dealt out in turn, by their commonest class, so that folds are alike.

    ProbeError for a class that would be missing from what a fold is trained on.
    """
    groups, index = np.unique(task.groups, return_inverse=True)
    y = task.y.numpy()
    counts = np.zeros((len(groups), task.n_classes), dtype=np.int64)
    np.add.at(counts, (index, y), 1)
    in_groups = (counts > 0).sum(0)
    if in_groups.min() < 2:
        rare = task.classes[int(in_groups.argmin())]
        raise ProbeError(
            f"the class {short_repr(rare)} occurs in {in_groups.min()} text alone, and texts are held out whole: each class "
            "needs two texts at least"
        )
    n_folds = min(n_folds, len(groups))
    shuffled = np.random.default_rng(seed).permutation(len(groups))
    # Rarest classes first, each dealt out over all folds.
    rank = np.argsort(np.argsort(in_groups))
    main = np.array([min(np.flatnonzero(counts[g]), key=lambda c: rank[c]) for g in shuffled])
    order = shuffled[np.argsort(rank[main], kind="stable")]
    fold_of = np.empty(len(groups), dtype=np.int64)
    fold_of[order] = np.arange(len(groups)) % n_folds
    found: Array = fold_of[index]
    return found

"""TextRun: the token ids of a text, or of a piece of a long one, that the model runs on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gemmascope.errors import PromptError, StoreError
from gemmascope.model.model import Model
from gemmascope.stores.spec import StoreSpec
from gemmascope.stores.texts.sources import Item, length_of
from gemmascope.values import Array


@dataclass(frozen=True)
class TextRun:
    """What one run of the model is: a text, or a piece of a text that was split.

    Attributes:
        source: The number of the text, as it was given, from 0.
        first: Token j of a piece is token first + j of its text; 0 for a whole text.
        ids: The token ids, int32 [pos], `<bos>` in front.
        skipped: How many of its first positions have no row: 1 for a `<bos>` that is left out.
    """

    source: int
    first: int
    ids: Array
    skipped: int

    @property
    def n_rows(self) -> int:
        return len(self.ids) - self.skipped


class Runs:
    """Turns texts, one after the other, into runs. Counts the texts without tokens that were left out."""

    def __init__(self, model: Model, spec: StoreSpec) -> None:
        self.model, self.spec = model, spec
        self.bos_id = model.tokenizer.bos_id if model.has_tokenizer else model.config.bos_id

    def of(self, item: Item) -> list[TextRun]:
        """The runs of a text; none for one without tokens that is skipped.

        Raises:
            PromptError, StoreError: The text cannot be read, is too long, or has no tokens. The message names it.
        """
        if length_of(item.value) == 0:
            return self._empty(item)
        try:
            ids = self.model.ids_of_any_length(item.value).cpu()  # type: ignore[arg-type]
        except PromptError as error:
            raise PromptError(f"{item.name}: {error}") from error
        has_bos = int(ids[0]) == self.bos_id
        if has_bos and len(ids) == 1:
            return self._empty(item)
        skipped = 0 if self.spec.bos or not has_bos else 1
        return [TextRun(item.number, first, piece, skipped) for first, piece in self._pieces(ids, has_bos, item)]

    def _pieces(self, ids: Tensor, has_bos: bool, item: Item) -> Iterator[tuple[int, Array]]:
        most = self.spec.max_tokens
        numbers = ids.numpy().astype(np.int32)
        if len(numbers) <= most:
            yield 0, numbers
        elif self.spec.long == "cut":
            yield 0, numbers[:most]
        elif self.spec.long == "split":
            front = numbers[:has_bos]
            for start in range(has_bos, len(numbers), most - has_bos):
                yield start - has_bos, np.concatenate((front, numbers[start : start + most - has_bos]))
        else:
            raise StoreError(
                f"{item.name} has {len(numbers)} tokens, and max_tokens is {most}: give long='cut' to run the first {most} "
                "of such a text, or long='split' to run it in pieces"
            )

    def _empty(self, item: Item) -> list[TextRun]:
        if self.spec.empty == "skip":
            return []
        raise StoreError(f"{item.name} has no tokens, so there is nothing to run: leave it out, or give empty='skip'")


class TextDigest:
    """A digest of texts as they are given, by which a second call sees that they are the same ones."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def add(self, value: object) -> None:
        """Add a text, token ids or chat messages."""
        if isinstance(value, str):
            data = b"text " + value.encode("utf-8", errors="surrogatepass")
        elif isinstance(value, (list, tuple)):
            data = f"list {list(value)!r}".encode("utf-8", errors="backslashreplace")
        else:  # an array or a tensor of token ids
            data = f"list {torch.as_tensor(value).reshape(-1).tolist()!r}".encode()
        self._sha256.update(f"{len(data)}:".encode() + data)

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()[:16]

"""A tokenizer of a few pieces, for tests about text. It needs no file and no library."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from checkpoints import SHAPE, checkpoint, model_of

from gemmascope.model.model import Model
from gemmascope.prompts.pairs import Pair
from gemmascope.tokens.tokenizer import Tokenizer

STORY = ("When", " Mary", " and", " John", " went", " to", " the", " store", ",", " gave", " a", " drink")
CLASSIC = Pair(
    "When Mary and John went to the store, John gave a drink to",
    "When Mary and John went to the store, Mary gave a drink to",
    " Mary",
    " John",
)
# Text that must stay text wherever it is drawn: markup, quotes, controls, other directions, marks without width.
ODD = (
    "<img src=x onerror=alert(1)>", "</script>", "<!--", "&amp;", '"', "'", "`", "\n", "\t", " ", "\x1b[31m", "\x00",
    "😀", "👩‍👩‍👧", "שלום", "مرحبا", "\u202e", "\u200b", "é", "文字", "$x$", "**b**",
)  # fmt: skip


class Pieces:
    """The backend: the longest matching piece comes first; text that holds anything else is an error."""

    bos: int | None = 2

    def __init__(self, pieces: Sequence[str]) -> None:
        self.pieces = ["<pad>", "<eos>", "<bos>", *pieces]
        self.size = len(self.pieces)

    def encode(self, text: str) -> list[int]:
        ids = []
        while text:
            fits = [piece for piece in self.pieces if text.startswith(piece)]
            best = max(fits, key=len)
            ids.append(self.pieces.index(best))
            text = text[len(best) :]
        return ids

    def decode(self, ids: list[int]) -> str:
        return "".join(map(self.piece, ids))

    def piece(self, token_id: int) -> str:
        return self.pieces[token_id] if token_id < self.size else f"<id {token_id}>"

    def is_special(self, token_id: int) -> bool:
        return token_id < 3


@cache
def worded(kinds: str = "lgl", name: str = "random") -> Model:
    """A random model that reads and writes the pieces above."""
    network = model_of(checkpoint(kinds, vocab_size=SHAPE["vocab_size"])).network
    return Model(network, Tokenizer(Pieces([*STORY, *ODD]), bos_id=2), name, source=name)

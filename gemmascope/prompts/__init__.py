"""Prompt families as pairs: `prompts.ioi(n, seed=0, tokenizer=None)` and its sisters.

Each gives `Pairs`, a sequence of `Pair(clean, corrupt, answer, against)`; `tokenizer=None` is nano's.
"""

from __future__ import annotations

from gemmascope.prompts.agreement import agreement
from gemmascope.prompts.closing import closing
from gemmascope.prompts.facts import facts
from gemmascope.prompts.greater_than import greater_than
from gemmascope.prompts.induction import induction
from gemmascope.prompts.ioi import ioi
from gemmascope.prompts.pairs import Pair, Pairs
from gemmascope.prompts.pronouns import pronouns
from gemmascope.prompts.recall import recall

__all__ = [
    "Pair",
    "Pairs",
    "agreement",
    "closing",
    "facts",
    "greater_than",
    "induction",
    "ioi",
    "pronouns",
    "recall",
]

"""Families of prompt pairs to patch with: gs.prompts.ioi(n), gs.prompts.facts(n) and others, one file each.

Each call returns `Pairs`, a sequence of `Pair(clean, corrupt, answer, against)`. Each file also holds its family's texts
for nano's training corpus. May import tokens, checkpoints and the single-file modules.
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

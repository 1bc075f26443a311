"""nano: a small Gemma 2 that was trained for this package, with its corpus, tokenizer and training script.

`gemmascope.load("nano")` loads the folder `CHECKPOINT`; `README.md` beside this file says what it can do.
"""

from __future__ import annotations

from gemmascope.checkpoints.source import NANO as CHECKPOINT

__all__ = ["CHECKPOINT"]

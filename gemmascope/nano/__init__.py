"""nano: a small Gemma 2 that was trained for this package. gs.load("nano") loads the folder CHECKPOINT.

README.md says what it can do. training/ holds the scripts that made and measured it, which the package never imports. May
import prompts, sae, analysis, run, model and the rooms below them.
"""

from __future__ import annotations

from gemmascope.checkpoints.source import NANO as CHECKPOINT

__all__ = ["CHECKPOINT"]

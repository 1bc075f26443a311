"""What the workshop's notebooks (notebooks/) import: `from gemmascope.workshop import check, predict, real_model, setup`.

Holds the checks of the exercises, predictions to make before a picture, and a test of the set-up. May import sweeps, run,
edits, model and the rooms below them. building/ makes the notebooks from their sources; nothing here imports it.
"""

from __future__ import annotations

from gemmascope.workshop import check
from gemmascope.workshop.predict import guesses, predict
from gemmascope.workshop.real_model import real_model
from gemmascope.workshop.setup import setup

__all__ = ["check", "guesses", "predict", "real_model", "setup"]

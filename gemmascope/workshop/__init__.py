"""What the workshop's notebooks (notebooks/) import: `from gemmascope.workshop import check, claim, predict, setup`.

Holds the checks of the exercises, guesses to make before a picture, claims to judge before the numbers do, a first look at a
pair of prompts of one's own, drawings, and a test of the set-up. May import sweeps, prompts, figures,
run, edits, model and the rooms below them. building/ makes the notebooks from their sources; nothing here imports it.
"""

from __future__ import annotations

from gemmascope.workshop import check
from gemmascope.workshop.claim import claim
from gemmascope.workshop.drawing import draw_points
from gemmascope.workshop.own_pair import measure_pair
from gemmascope.workshop.predict import guesses, predict
from gemmascope.workshop.reading import draw_reading
from gemmascope.workshop.real_model import real_model
from gemmascope.workshop.setup import setup

__all__ = ["check", "claim", "draw_points", "draw_reading", "guesses", "measure_pair", "predict", "real_model", "setup"]

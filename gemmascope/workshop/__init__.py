"""The workshop: what its notebooks, in notebooks/, need besides the package.

from gemmascope.workshop import check, predict, setup
"""

from __future__ import annotations

from gemmascope.workshop import check
from gemmascope.workshop.predict import guesses, predict
from gemmascope.workshop.setup import setup

__all__ = ["check", "guesses", "predict", "setup"]

"""What a head lab shows of every head: its pattern as a small picture, and what it writes towards the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import adaptive_max_pool2d

from gemmascope.analysis.decomposition import Decomposition
from gemmascope.analysis.direct_logits import answer_directions
from gemmascope.errors import SiteError
from gemmascope.run.replay import replay
from gemmascope.run.trace import Trace
from gemmascope.values import Array

# Pixels a side of a head's picture, at most; a pixel shows the greatest probability of what it covers.
PIXELS = 24
# Longer prompts have no pictures: the patterns of one layer alone would fill gigabytes.
MOST_POSITIONS = 1024


@dataclass(frozen=True)
class Channels:
    """The heads of one run.

    pictures: the patterns as probabilities times 255, uint8 [layer, head, query, key], both axes at most PIXELS; None for a
    long prompt. written: what each head writes towards the answer at the last position, in logits before the soft cap,
    float32 [layer, head]; None where an edit changes the run after its layers, or a token is on both sides.
    """

    pictures: Array | None
    written: Array | None

    @classmethod
    def of(cls, run: Trace, answer: Sequence[int], against: Sequence[int]) -> Channels:
        """answer, against: token ids."""
        return cls(_pictures(run), _written(run, answer, against))


def _pictures(run: Trace) -> Array | None:
    if len(run) > MOST_POSITIONS:
        return None
    size = min(len(run), PIXELS)
    with torch.no_grad():
        small = [adaptive_max_pool2d(values["pattern"].float(), size).cpu() for _, values in replay(run, ["pattern"])]
    return (torch.stack(small) * 255).round().to(torch.uint8).numpy()


def _written(run: Trace, answer: Sequence[int], against: Sequence[int]) -> Array | None:
    """As gs.direct_logits by head."""
    try:
        directions = answer_directions(run, list(answer), list(against) or None)
    except SiteError:  # an edit after the layers, or an answer on both sides
        return None
    return Decomposition(run, len(run) - 1, directions[-1]).split("head").float().numpy()

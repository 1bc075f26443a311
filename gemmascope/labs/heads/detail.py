"""What a head lab shows of one head, and of the layers: a pattern before and after, and the lens before and after."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gemmascope.analysis.lens import read_lens
from gemmascope.run.trace import Trace
from gemmascope.values import Array
from gemmascope.views.labels import Label, are_special, position_label

# Of longer prompts the last positions are shown.
MOST_POSITIONS = 256
# A lens has so many cells at most.
MOST_CELLS = 8192

Runs = tuple[Trace, Trace]


@dataclass(frozen=True)
class HeadPattern:
    """The pattern of a head in the run without the changes and in that with them, float32 [query, key] each.

    first: the position that the rows and columns begin with.
    """

    layer: int
    head: int
    first: int
    before: Array
    after: Array

    @classmethod
    def of(cls, runs: Runs, layer: int, head: int) -> HeadPattern:
        first = max(0, len(runs[0]) - MOST_POSITIONS)
        before, after = (
            run.edges("pattern", layer, head=head, q_pos=slice(first, None))[:, first:].float().cpu().numpy() for run in runs
        )
        return cls(layer, head, first, before, after)

    def as_data(self) -> dict[str, object]:
        """As a trait of the page."""
        numbers = {"before": self.before.tobytes(), "after": self.after.tobytes()}
        return {"layer": self.layer, "head": self.head, "first": self.first, **numbers}


@dataclass(frozen=True)
class TwoLenses:
    """The lens on the stream after every layer, without the changes and with them: each cell's likeliest token, by number in
    texts, and the probability of the token that is followed; each [layer, position].

    first: the position that the columns begin with. follows: the followed token's text.
    """

    first: int
    follows: str
    texts: list[str]
    tokens: tuple[Array, Array]
    probs: tuple[Array, Array]

    @classmethod
    def of(cls, runs: Runs, follows: int) -> TwoLenses:
        model = runs[0].model
        first = max(0, len(runs[0]) - max(1, MOST_CELLS // model.n_layers))
        positions = range(first, len(runs[0]))
        read = [read_lens(run, "resid_post", 1, list(positions), None, follows) for run in dict.fromkeys(runs)]
        before, after = read[0], read[-1]
        ids, numbers = torch.unique(torch.stack([lens.ids[..., 0] for lens in (before, after)]), return_inverse=True)
        return cls(
            first=first,
            follows=model.texts(torch.tensor([follows]))[0],
            texts=model.texts(ids),
            tokens=(numbers[0].cpu().numpy().astype("uint16"), numbers[1].cpu().numpy().astype("uint16")),
            probs=(before.followed[1].float().cpu().numpy(), after.followed[1].float().cpu().numpy()),
        )

    def as_data(self) -> dict[str, object]:
        """As part of a trait of the page."""
        arrays = {
            "tokens_before": self.tokens[0].tobytes(), "tokens_after": self.tokens[1].tobytes(),
            "before": self.probs[0].tobytes(), "after": self.probs[1].tobytes(),
        }  # fmt: skip
        return {"first": self.first, "follows": self.follows, "texts": self.texts, **arrays}


def labels_of(run: Trace) -> list[Label]:
    """The prompt's tokens, as the page labels rows and columns with them."""
    special = are_special(run.model, run.ids.tolist())
    return [position_label(n, token, special[n]) for n, token in enumerate(run.tokens)]

"""Lens: logits read from the stream between layers of one run, as if the later layers were skipped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gemmascope.analysis.lens_rows import (
    EVERY,
    Transport,
    entries_of,
    final_answers,
    logits_at_one,
    one_answer,
    one_head,
    read_entries,
    site_to_read,
)
from gemmascope.arguments import one_of, true_or_false, whole_number
from gemmascope.edits.places import Head, Pos, find_position, find_positions
from gemmascope.edits.sources import not_a_trace
from gemmascope.errors import SiteError
from gemmascope.legible import legible_line, prints_legibly
from gemmascope.run.metric import Answer
from gemmascope.run.trace import Trace
from gemmascope.sites import SiteKey
from gemmascope.sweeps.metadata import prompts_line
from gemmascope.tokens.characters import text_of
from gemmascope.tokens.tokenizer import visible_text
from gemmascope.values import labelled

if TYPE_CHECKING:
    import numpy as np
    import pandas
    import xarray
    from plotly.graph_objects import Figure


RANK_UNIT = "rank of the answer (0: the likeliest)"
# What the colours of a picture can stand for.
COLOURS = ("probability", "rank", "entropy")


@dataclass(frozen=True, repr=False, eq=False)
class Lens:
    """What each layer would answer, at every position that was read. Made by gs.lens.

    Tensors have an entry axis: one entry for each layer, or for each place in the stream where site is "stream". The
    properties top_tokens, top_ids, top_probs, entropy, answer_logit, answer_prob and answer_rank hold the same numbers as
    xarray.DataArrays, with a layer axis (an entry axis for "stream") and the tokens as coordinates.

    Attributes:
        trace: The run.
        site: The site that was read.
        head: The head, where the site is "head_out"; else None.
        entries: (site, layer) of each entry, layer None for the embedding.
        positions: The positions that were read.
        ids: Token ids of the top tokens, the likeliest first.
        top_logits: Their soft-capped logits.
        probs: Their probabilities.
        entropies: Entropy of the distribution, in nats.
        answer: The id of the token that is followed, or None.
        followed: Its soft-capped logit, its probability and its rank (0 for the likeliest), each (entry, pos); empty
            where no token is followed.
        final_ranks: The rank of each position's final answer, (entry, pos); None unless a view asked for it.
        transport: What carried the stream into the basis of the last layer before it was read, such as a Jacobian lens;
            None if it was read as it is.

    Examples:
        >>> lens = gs.lens(gs.trace("When Mary and John went to the store, John gave a drink to"), answer=" Mary", pos=-1)
        >>> lens.answer_rank.values.ravel()
        array([357, 162, 109,   0,   0,   0])
        >>> lens.top_tokens.values[3, 0, 0]
        ' Mary'
    """

    trace: Trace
    site: str
    head: int | None
    entries: tuple[tuple[str, int | None], ...]
    positions: tuple[int, ...]
    ids: Int[Tensor, "entry pos top"]
    top_logits: Float[Tensor, "entry pos top"]
    probs: Float[Tensor, "entry pos top"]
    entropies: Float[Tensor, "entry pos"]
    answer: int | None
    followed: tuple[Tensor, ...]
    final_ranks: Int[Tensor, "entry pos"] | None = None
    transport: Transport | None = None

    @cached_property
    def final_ids(self) -> Int[Tensor, " pos"]:
        """The id of the run's own answer at each position: the likeliest token after the last layer."""
        if self.site in ("resid_post", EVERY):
            return self.ids[-1, :, 0]
        self.trace.require_weights(None)
        return final_answers(self.trace, self.positions)

    @property
    def first_leads(self) -> list[int | None]:
        """For each position the first entry in which the run's own answer is the likeliest token; None where it never is."""
        leads = (self.ids[..., 0] == self.final_ids).T.tolist()
        return [entry.index(True) if any(entry) else None for entry in leads]

    @property
    def _name(self) -> str:
        return "lens" if self.transport is None else self.transport.title

    @property
    def title(self) -> str:
        """What was read, as text: "lens on resid_post", "Jacobian lens on resid_post"."""
        return f"{self._name} on {self.site}{'' if self.head is None else f' of head {self.head}'}"

    @property
    def top_tokens(self) -> xarray.DataArray:
        """The top tokens as text, (layer, pos, top)."""
        import numpy as np

        texts = [self.trace.model.texts(row) for row in self.ids.flatten(0, 1)]
        return self._labelled(np.array(texts, dtype=object).reshape(self.ids.shape), "token", "top")

    @property
    def top_ids(self) -> xarray.DataArray:
        """Token ids of the top tokens, (layer, pos, top)."""
        return self._labelled(self.ids, "token id", "top")

    @property
    def top_probs(self) -> xarray.DataArray:
        """Probabilities of the top tokens, (layer, pos, top)."""
        return self._labelled(self.probs, "probability", "top")

    @property
    def entropy(self) -> xarray.DataArray:
        """Entropy of the distribution, in nats, (layer, pos)."""
        return self._labelled(self.entropies, "entropy (nats)")

    @property
    def answer_logit(self) -> xarray.DataArray:
        """Soft-capped logit of the followed answer, (layer, pos). SiteError if none is followed."""
        return self._labelled(self._require_followed()[0], "soft-capped logit")

    @property
    def answer_prob(self) -> xarray.DataArray:
        """Probability of the followed answer, (layer, pos). SiteError if none is followed."""
        return self._labelled(self._require_followed()[1], "probability")

    @property
    def answer_rank(self) -> xarray.DataArray:
        """How many tokens are likelier than the followed answer, (layer, pos). SiteError if none is followed."""
        return self._labelled(self._require_followed()[2], "rank")

    def follow(self, answer: str | int) -> Lens:
        """The same lens, following another answer.

        Args:
            answer: A text that is one token, or a token id.
        """
        top, positions = self.ids.shape[-1], list(self.positions)
        return read_lens(self.trace, self.site, top, positions, self.head, answer, self.transport)

    def logits(self, pos: int | str = -1) -> xarray.DataArray:
        """All soft-capped logits at one position, (layer, vocab).

        Args:
            pos: A position of the run, or a token that occurs once; it need not be among those that were read.

        Raises:
            SiteError: For a position that is not there, or several.
        """
        position = find_position(pos, self.trace.model, self.trace.ids, "all logits are given at one position at a time")
        self.trace.require_weights(None)
        logits = logits_at_one(self.trace, self.read_entries(), position)
        array = self._labelled(logits[:, None], "soft-capped logit", "vocab", positions=[position])
        return array.isel(pos=0)

    def plot(self, colour: str = "probability", *, of_answer: bool | None = None) -> Figure:
        """A plotly heat map, layer by position, with the top token in each cell.

        Args:
            colour: What the colour shows: "probability", "rank" of the followed answer, or "entropy".
            of_answer: Whether the probability is that of the followed answer rather than of each cell's top token. None
                means of the answer where one is followed.
        """
        from gemmascope.figures.lens import lens_figure

        one_of(colour, "colour", COLOURS, error=SiteError)
        follow = self.answer is not None if of_answer is None else true_or_false(of_answer, "of_answer", error=SiteError)
        values, unit = self._coloured(colour, follow)
        title = f"{self.title}, {self.trace.model.name}"
        if follow and self.answer is not None:
            title += f", following {visible_text(self.trace.model.texts(torch.tensor([self.answer]))[0])}"
        agrees = (self.ids[1:, :, 0] == self.ids[:-1, :, 0]).cpu().numpy()
        about, bound = prompts_line([text_of(self.trace.tokens)]), 1.0 if colour == "probability" else None
        top, leads = self.top_tokens.isel(top=0), self.first_leads
        return lens_figure(values, top, title=title, unit=unit, bound=bound, first_leads=leads, agrees=agrees, about=about)

    def _coloured(self, colour: str, follow: bool) -> tuple[xarray.DataArray, str]:
        """The values that a picture shows as colours, and their unit."""
        if colour != "probability":
            return (self.entropy, "entropy (nats)") if colour == "entropy" else (self.answer_rank, RANK_UNIT)
        if follow:
            return self.answer_prob, "probability of the answer"
        return self.top_probs.isel(top=0), "probability of the token"

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each entry and position: the top token, its probability, the entropy, the followed answer's rank."""
        import pandas

        rows, tokens = [], self.trace.tokens
        for i, (site, layer) in enumerate(self.entries):
            for j, pos in enumerate(self.positions):
                row: dict[str, object] = {"site": site, "layer": layer, "pos": pos, "token": tokens[pos]}
                row |= {"top": self.trace.model.texts(self.ids[i, j, :1])[0], "prob": float(self.probs[i, j, 0])}
                row |= {"entropy": float(self.entropies[i, j])}
                if self.followed:
                    row |= {"answer_prob": float(self.followed[1][i, j]), "answer_rank": int(self.followed[2][i, j])}
                rows.append(row)
        return pandas.DataFrame(rows)

    @prints_legibly
    def __repr__(self) -> str:
        site, last = self.site if self.head is None else f"{self.site}, head {self.head}", self.positions[-1]
        model, token = legible_line(self.trace.model.name), visible_text(self.trace.tokens[last])
        lines = [f"{self._name} on {site} of {model}: after position {last} ({token})"]
        for i, (site, layer) in enumerate(self.entries):
            name = site if layer is None else f"{site} {layer}" if self.site == EVERY else f"layer {layer}"
            texts = self.trace.model.texts(self.ids[i, -1])
            tops = "  ".join(f"{visible_text(text)} {prob:.2f}" for text, prob in zip(texts, self.probs[i, -1], strict=True))
            rank = f"  answer's rank {int(self.followed[2][i, -1])}" if self.followed else ""
            lines.append(f"  {name:14} {tops}{rank}")
        return "\n".join(lines)

    @cached_property
    def coords(self) -> dict[str, object]:
        """Labels of the entries: layer numbers and kinds. For "stream" the sites too, with layer -1 for the embedding."""
        kinds = self.trace.model.config.kinds
        if self.site == EVERY:
            return {
                "site": ("entry", [site for site, _ in self.entries]),
                "layer": ("entry", [-1 if layer is None else layer for _, layer in self.entries]),
                "kind": ("entry", ["" if layer is None else kinds[layer] for _, layer in self.entries]),
            }
        layers = [layer for _, layer in self.entries if layer is not None]
        return {"layer": layers, "kind": ("layer", [kinds[n] for n in layers])}

    def read_entries(self) -> Iterator[tuple[SiteKey, Tensor]]:
        """Each entry and the rows [pos, d_model] that are read there, at every position of the run."""
        return entries_of(self.trace, self.site, self.head, self.transport)

    def _require_followed(self) -> tuple[Tensor, ...]:
        if not self.followed:
            raise SiteError("this lens follows no answer: gs.lens(trace, answer=' Mary'), or .follow(' Mary')")
        return self.followed

    def _labelled(
        self, values: Tensor | np.ndarray, name: str, *more_dims: str, positions: Sequence[int] | None = None
    ) -> xarray.DataArray:
        positions = list(self.positions if positions is None else positions)
        dims = ("entry" if self.site == EVERY else "layer", "pos", *more_dims)
        tokens = self.trace.tokens
        coords = {**self.coords, "pos": positions, "token": ("pos", [tokens[p] for p in positions])}
        return labelled(values, coords, dims, name)


def read_lens(
    trace: Trace,
    site: str,
    top: int,
    pos: Pos,
    head: Head,
    answer: Answer | None,
    transport: Transport | None = None,
    *,
    final_ranks: bool = False,
) -> Lens:
    """See gs.lens. transport: as in entries_of. final_ranks: whether to rank each position's final answer too."""
    if not isinstance(trace, Trace):
        raise SiteError(f"a lens reads a trace: gs.lens(gs.trace(prompt)); given {not_a_trace(trace)}")
    top = whole_number(top, "top", least=1, most=trace.model.config.vocab_size, error=SiteError)
    site_name = site_to_read(site)
    head_number = one_head(trace, site_name, head)
    positions = find_positions(pos, trace.model, trace.ids)
    answer_id = None if answer is None else one_answer(answer, trace, positions[-1])
    trace.require_weights(None)
    found = entries_of(trace, site_name, head_number, transport)
    answers: list[int | Tensor] = [] if answer_id is None else [answer_id]
    if final_ranks:
        answers.append(final_answers(trace, positions))
    entries, columns = read_entries(trace, found, positions, top, answers)
    ids, logits, probs, entropies, *ranked = columns
    followed = ranked[: 0 if answer_id is None else 3]
    place = trace, site_name, head_number, tuple(entries), tuple(positions)
    last = ranked[-1] if final_ranks else None
    return Lens(*place, ids, logits, probs, entropies, answer_id, tuple(followed), last, transport)

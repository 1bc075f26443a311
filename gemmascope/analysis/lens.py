"""The lens: logits read from the stream between layers, as if what follows were not there.

Source: nostalgebraist, "interpreting GPT: the logit lens" (2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gemmascope.analysis.lens_rows import EVERY, PARTS, STREAM, entries_of, logits_of, read_rows
from gemmascope.arguments import shown as quoted
from gemmascope.arguments import whole_number
from gemmascope.edits.places import Head, Pos, find_heads, find_positions
from gemmascope.edits.trace_protocol import no_trace
from gemmascope.errors import SiteError
from gemmascope.legible import legibly, spelled
from gemmascope.model.modes import computes
from gemmascope.run.answers import Answer, answer_ids
from gemmascope.run.trace import Trace
from gemmascope.sites import find_site, read_name
from gemmascope.sweeps.questions import of_answers, tell
from gemmascope.tokens.tokenizer import shown

if TYPE_CHECKING:
    import pandas
    import xarray


@dataclass(frozen=True, repr=False, eq=False)
class Lens:
    """What a lens read. Made by gs.lens.

    trace: the run. site, head: what was read. entries: (site, layer) of each row of the arrays, layer None for the
    embedding. positions: those that were read. ids, top_logits, probs: of the top tokens [entry, pos, top]. entropies: of
    the distribution, in nats [entry, pos]. answer: the id of the token that is followed, or None. followed: its logit,
    probability and rank (0 for the likeliest), each [entry, pos]. The same with labels: top_tokens, top_ids, top_probs,
    entropy, answer_logit, answer_prob and answer_rank.
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

    @property
    def top_tokens(self) -> xarray.DataArray:
        """The likeliest tokens as text, (layer, pos, top)."""
        import numpy as np

        texts = [self.trace.model.texts(row) for row in self.ids.flatten(0, 1)]
        return self._labelled(np.array(texts, dtype=object).reshape(self.ids.shape), "token", top=True)

    @property
    def top_ids(self) -> xarray.DataArray:
        """Their token ids, (layer, pos, top)."""
        return self._labelled(self.ids.cpu().numpy(), "token id", top=True)

    @property
    def top_probs(self) -> xarray.DataArray:
        """Their probabilities, (layer, pos, top)."""
        return self._labelled(self.probs.cpu().numpy(), "probability", top=True)

    @property
    def entropy(self) -> xarray.DataArray:
        """Entropy of the distribution, in nats, (layer, pos)."""
        return self._labelled(self.entropies.cpu().numpy(), "entropy (nats)")

    @property
    def answer_logit(self) -> xarray.DataArray:
        """Soft-capped logit of the answer that is followed, (layer, pos). SiteError where none is."""
        return self._labelled(self._follow()[0].cpu().numpy(), "soft-capped logit")

    @property
    def answer_prob(self) -> xarray.DataArray:
        """Probability of the answer that is followed, (layer, pos)."""
        return self._labelled(self._follow()[1].cpu().numpy(), "probability")

    @property
    def answer_rank(self) -> xarray.DataArray:
        """How many tokens are likelier than the answer, (layer, pos): 0 where it is the likeliest."""
        return self._labelled(self._follow()[2].cpu().numpy(), "rank")

    def follow(self, answer: str | int) -> Lens:
        """The same lens, following another answer."""
        return lens(self.trace, self.site, self.ids.shape[-1], pos=list(self.positions), head=self.head, answer=answer)

    def logits(self, pos: int | str = -1) -> xarray.DataArray:
        """All soft-capped logits at one position, which need not be one of those read, (layer, vocab)."""
        at = find_positions(pos, self.trace.model, self.trace.ids)
        if len(at) != 1:
            raise SiteError(f"all logits are given at one position at a time; given pos={quoted(pos)}")
        read = [
            logits_of(self.trace, site, rows[at], at) for (site, _), rows in entries_of(self.trace, self.site, self.head)
        ]
        found = self._labelled(torch.stack(read).cpu().numpy(), "soft-capped logit", positions=at, vocab=True)
        return found.isel(pos=0)

    def plot(self, colour: str = "probability", *, of_answer: bool | None = None) -> Any:
        """A plotly heat map: the top token in each cell, over its probability, or the "rank" or "entropy"."""
        from gemmascope.figures.lens import lens_figure

        return lens_figure(self, colour, self.answer is not None if of_answer is None else of_answer)

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each entry and position: its top token, that one's probability, the entropy, the answer's rank."""
        import pandas

        rows = []
        for i, (site, layer) in enumerate(self.entries):
            for j, position in enumerate(self.positions):
                row: dict[str, Any] = {"site": site, "layer": layer, "pos": position, "token": self.trace.tokens[position]}
                row |= {"top": self.trace.model.texts(self.ids[i, j, :1])[0], "prob": float(self.probs[i, j, 0])}
                row |= {"entropy": float(self.entropies[i, j])}
                if self.followed:
                    row |= {"answer_prob": float(self.followed[1][i, j]), "answer_rank": int(self.followed[2][i, j])}
                rows.append(row)
        return pandas.DataFrame(rows)

    @legibly
    def __repr__(self) -> str:
        of = "" if self.head is None else f", head {self.head}"
        last = self.positions[-1]
        about = f"lens on {self.site}{of} of {spelled(self.trace.model.name)}: after position {last} ({self._shown(last)})"
        lines = [about]
        for i, (site, layer) in enumerate(self.entries):
            name = site if layer is None else f"{site} {layer}" if self.site == EVERY else f"layer {layer}"
            texts = self.trace.model.texts(self.ids[i, -1])
            tops = "  ".join(f"{shown(text)} {prob:.2f}" for text, prob in zip(texts, self.probs[i, -1], strict=True))
            rank = f"  answer's rank {int(self.followed[2][i, -1])}" if self.followed else ""
            lines.append(f"  {name:14} {tops}{rank}")
        return "\n".join(lines)

    @cached_property
    def coords(self) -> dict[str, Any]:
        """Labels of the entries: layer numbers and kinds; for the whole stream the sites as well, -1 for no layer."""
        kinds = self.trace.model.config.kinds
        if self.site == EVERY:
            return {
                "site": ("entry", [site for site, _ in self.entries]),
                "layer": ("entry", [-1 if layer is None else layer for _, layer in self.entries]),
                "kind": ("entry", ["" if layer is None else kinds[layer] for _, layer in self.entries]),
            }
        layers = [layer for _, layer in self.entries if layer is not None]
        return {"layer": layers, "kind": ("layer", [kinds[n] for n in layers])}

    def _shown(self, position: int) -> str:
        return shown(self.trace.tokens[position])

    def _follow(self) -> tuple[Tensor, ...]:
        if not self.followed:
            raise SiteError("this lens follows no answer: gs.lens(trace, answer=' Mary'), or .follow(' Mary')")
        return self.followed

    def _labelled(
        self, values: Any, name: str, *, top: bool = False, positions: Any = None, vocab: bool = False
    ) -> xarray.DataArray:
        import xarray

        positions = list(self.positions if positions is None else positions)
        dims = ["entry" if self.site == EVERY else "layer", "pos", *(["top"] if top else []), *(["vocab"] if vocab else [])]
        tokens = ("pos", [self.trace.tokens[p] for p in positions])
        coords = {**self.coords, "pos": positions, "token": tokens}
        return xarray.DataArray(values, dims=dims, coords=coords, name=name)


@computes
def lens(
    trace: Trace, site: str = "resid_post", top: int = 5, *, pos: Pos = None, head: Head = None, answer: Any = None
) -> Lens:
    """Read logits from the stream between layers, through the last norm, the unembedding and the soft cap.

    site: "resid_pre", "resid_mid" or "resid_post", of every layer; "stream" for the embedding and then the stream after
    every sublayer. Or a part of it: "attn_out", "mlp_out", or "head_out" of one head; a part goes through the last norm
    with the scale that it had in that run at that position, so that logits of parts, before the cap, add up.
    top: how many tokens are kept at each place. pos: positions to read, as in gs.patch; None for all. answer: a token to
    follow. Edits of the run are in what is read; at the last layer's "resid_post" it gives the run's logits. Those that
    come after the layers (final, logits_raw, logits) are not: a lens reads every layer the same way.
    SiteError for a site, head, position or number of tokens that is not there, PromptError for an answer that is no token.
    """
    if not isinstance(trace, Trace):
        raise SiteError(f"a lens reads a trace: gs.lens(gs.trace(prompt)); given {no_trace(trace)}")
    size = trace.model.config.vocab_size
    top = whole_number(top, "top", least=1, most=size, error=SiteError)
    name = EVERY if isinstance(site, str) and site == EVERY else read_name(site)[0].name
    if name not in (*STREAM, *PARTS, EVERY):
        raise SiteError(f"a lens reads {', '.join((*STREAM, EVERY, *PARTS))}; given {site!r}")
    if name != EVERY and read_name(site)[1] is not None:
        raise SiteError(f"a lens reads every layer: give the site without one, {name!r}; given {site!r}")
    one = _one_head(trace, name, head)
    positions = find_positions(pos, trace.model, trace.ids)
    wanted = None if answer is None else _one_answer(answer, trace)
    if answer is not None:
        tell(of_answers({"answer": answer}, trace.ids[: positions[-1] + 1], trace.model), SiteError)
    entries, read = [], []
    for entry, rows in entries_of(trace, name, one):
        entries.append(entry)
        read.append(read_rows(trace, entry[0], rows, positions, top, wanted))
    ids, logits, probs, entropies, *followed = (torch.stack(values) for values in zip(*read, strict=True))
    places = tuple(entries), tuple(positions)
    return Lens(trace, name, one, *places, ids, logits, probs, entropies, wanted, tuple(followed))


def _one_head(trace: Trace, site: str, head: Head) -> int | None:
    if site != "head_out":
        if head is not None:
            raise SiteError(f"'{site}' has no heads: leave head out, or read site='head_out'; given head={head!r}")
        return None
    heads = find_heads(head, find_site(site), trace.model)
    if head is None or heads is None or len(heads) != 1:
        raise SiteError(
            f"'head_out' is read one head at a time: say head=, 0 to {trace.model.config.n_heads - 1}; given {head!r}"
        )
    return heads[0]


def _one_answer(answer: Answer, trace: Trace) -> int:
    ids = answer_ids(answer, trace.model)
    if len(ids) != 1:
        raise SiteError(f"a lens follows one answer at a time; given {answer!r}")
    return ids[0]

"""Direct contributions: what each part of the stream wrote towards an answer.

The stream is a sum, and at one position of one run every norm multiplies each coordinate by a number: so the logit before
the soft cap is a sum over whatever the stream is a sum of. Post-norms are gone through with the scale they had. Source:
Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021); Wang et al., arXiv 2211.00593.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from gemmascope.analysis.decomposition import Decomposition
from gemmascope.arguments import one_of, whole_number
from gemmascope.arguments import shown as quoted
from gemmascope.edits.call_text import plain
from gemmascope.edits.places import find_positions
from gemmascope.edits.trace_protocol import no_trace
from gemmascope.errors import SiteError
from gemmascope.legible import legibly, spelled
from gemmascope.model.modes import computes
from gemmascope.run.answers import Answer, answer_ids
from gemmascope.run.trace import Trace
from gemmascope.sweeps.questions import of_answers, tell
from gemmascope.tokens.tokenizer import shown

if TYPE_CHECKING:
    import pandas
    import xarray

BY = ("sublayer", "head", "neuron", "token")
UNIT = "logit before the soft cap"


@dataclass(frozen=True, repr=False, eq=False)
class DirectLogits:
    """What each part of the stream wrote towards an answer at a position. Made by gs.direct_logits.

    parts: what was asked for: (part) for sublayers, (layer, head), (layer, d_mlp) for neurons, (layer, head, k_pos) for
    tokens. rest: everything else that stands in the stream, (part). Together they add up to total, the answer's logit
    before the soft cap less the others'. capped: the same of the logits that the model returns.
    """

    parts: xarray.DataArray
    rest: xarray.DataArray
    total: float
    capped: float
    by: str
    about: str

    @property
    def cap_effect(self) -> float:
        """What the soft cap changes: capped - total. It belongs to no part."""
        return self.capped - self.total

    def top(self, k: int = 10) -> list[tuple[str, float]]:
        """The parts, the rest's among them, that wrote most for or against the answer: (its name, what it wrote)."""
        import numpy as np

        k = whole_number(k, "k", least=1, error=SiteError)
        flat = self.parts.values.reshape(-1)
        strongest = np.argsort(-np.abs(flat), kind="stable")[:k]  # of a large model's neurons there are millions
        found = [(self._name(int(i)), float(flat[i])) for i in strongest]
        found += [(str(part), float(value)) for part, value in zip(self.rest["part"].values, self.rest.values, strict=True)]
        return sorted(found, key=lambda pair: -abs(pair[1]))[:k]

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each part, with its labels; the rest's after them."""
        import pandas

        parts = self.parts.to_dataframe(name="wrote").reset_index()
        return pandas.concat([parts, self.rest.to_dataframe(name="wrote").reset_index()], ignore_index=True)

    def plot(self) -> Any:
        """A plotly figure: bars, or a heat map with blue for the answer and red against it."""
        from gemmascope.figures.direct_logits import direct_figure

        return direct_figure(self)

    @legibly
    def __repr__(self) -> str:
        ends = f"{self.total:+.4g} before the soft cap, {self.capped:+.4g} after it: the cap changes {self.cap_effect:+.4g}"
        lines = [f"  {value:+.4g}  {name}" for name, value in self.top()]
        n_rest = f" and {len(self.rest)} other part{'s' if len(self.rest) > 1 else ''}" if len(self.rest) else ""
        return "\n".join([f"{self.about}, by {self.by}: {self.parts.size}{n_rest}", ends, *lines])

    def _name(self, flat: int) -> str:
        at = [int(n) for n in torch.unravel_index(torch.tensor(flat), self.parts.shape)]
        if self.by == "sublayer":
            return str(self.parts["part"].values[at[0]])
        names = {"head": "head", "d_mlp": "neuron", "layer": "layer"}
        said = [f"{names[str(dim)]} {n}" for dim, n in zip(self.parts.dims, at, strict=True) if dim != "k_pos"]
        if self.by == "token":
            said.append(f"reading position {at[-1]} ({shown(str(self.parts['k_token'].values[at[-1]]))})")
        return " ".join(said)


@computes
def direct_logits(
    trace: Trace, answer: Answer, against: Answer | None = None, by: str = "sublayer", *, pos: int | str = -1
) -> DirectLogits:
    """What each part of the stream wrote towards an answer, before the soft cap.

    answer, against: a text that is one token, a token id, or several, whose mean is taken; against is subtracted.
    by: "sublayer" (the embedding, every attention and MLP), "head", "neuron", or "token" (what each source token gave
    through each head). pos: the position whose next token it is about. What edits wrote into the stream stands in the rest
    under their own names ("edit at layers.2.resid_post"); so does what they made of a sublayer's output beyond its heads or
    neurons. The layers are run again once.
    PromptError for an answer that is no token; SiteError for a position that is not there, another split, answers on both
    sides, and a run with edits after the layers (final, logits_raw, logits), which no part of the stream wrote.
    """
    one_of(by, "by", BY, error=SiteError)
    ids, others = _asked(trace, answer, against)
    positions = find_positions(pos, trace.model, trace.ids)
    if len(positions) != 1:
        raise SiteError(f"contributions are read at one position; given pos={quoted(pos)}")
    at = positions[0]
    given = {"answer": answer} if against is None else {"answer": answer, "against": against}
    tell(of_answers(given, trace.ids[: at + 1], trace.model), SiteError)
    reading = Decomposition(trace, at, _direction(trace, ids, others, at))
    parts, rest = _labelled(trace, by, reading.split(by), reading.rest)
    towards = f"towards {plain(answer)!r}" + ("" if against is None else f" against {plain(against)!r}")
    about = f"direct logits in {spelled(trace.model.name)}, {towards}, at position {at} ({shown(trace.tokens[at])})"
    return DirectLogits(parts, rest, reading.along(trace.residuals[-1]), _capped(trace, ids, others, at), by, about)


def answer_directions(trace: Trace, answer: Answer, against: Answer | None = None) -> Float[Tensor, "pos d_model"]:
    """What a part of the stream is multiplied with at each position to give what it wrote towards an answer.

    A row of attn_out or mlp_out times its row here is the sublayer's part in gs.direct_logits at that position. Errors are
    those of gs.direct_logits.
    """
    return _direction(trace, *_asked(trace, answer, against), slice(None))


def _asked(trace: Trace, answer: Answer, against: Answer | None) -> tuple[list[int], list[int]]:
    """The ids of the answer and of those against it, once what no part of a stream can be asked is refused."""
    if not isinstance(trace, Trace):
        raise SiteError(
            f"contributions are read from a trace: gs.direct_logits(gs.trace(prompt), ...); given {no_trace(trace)}"
        )
    after = [e for e in trace.bound_edits if e.address.layer is None and e.address.site.name != "embed"]
    if after:
        raise SiteError(
            f"{after[0].edit!r} changes the run after the stream, where no part of it wrote: trace it without that edit"
        )
    ids, others = answer_ids(answer, trace.model), [] if against is None else answer_ids(against, trace.model)
    if set(ids) & set(others):
        raise SiteError(f"answer and against share a token: {plain(answer)!r} and {plain(against)!r}")
    return ids, others


def _capped(trace: Trace, ids: Sequence[int], others: Sequence[int], pos: int) -> float:
    """The soft-capped logit difference that the model returns at a position."""
    trace.require_weights(None)
    with torch.no_grad():
        logits = trace.model.network.unembed(trace.residuals[-1][pos : pos + 1])[0]
    return float(logits[list(ids)].mean() - (logits[list(others)].mean() if others else 0.0))


def _direction(
    trace: Trace, ids: Sequence[int], others: Sequence[int], pos: int | slice
) -> Float[Tensor, "*positions d_model"]:
    """What a part of the stream is multiplied with: the answer's unembedding through the last norm as it was there."""
    network = trace.model.network
    with torch.no_grad():
        rows = network.model.embed_tokens(torch.tensor([*ids, *others], device=trace.model.device)).float()
        wanted: Tensor = rows[: len(ids)].mean(0) - (rows[len(ids) :].mean(0) if others else 0.0)
        along: Tensor = wanted * network.model.norm.gain(trace.residuals[-1][pos])
        return along


def _labelled(trace: Trace, by: str, parts: Tensor, rest: dict[str, float]) -> tuple[xarray.DataArray, xarray.DataArray]:
    """The split parts with their labels, and the rest; the embedding is a sublayer's peer."""
    import xarray

    about: dict[str, Any] = {"name": "wrote", "attrs": {"long_name": UNIT}}
    if by == "sublayer":
        named = {"embed": rest["embed"]}
        rest = {part: value for part, value in rest.items() if part != "embed"}
        for layer, (attn, mlp) in enumerate(parts.tolist()):
            named |= {f"layers.{layer}.attn_out": attn, f"layers.{layer}.mlp_out": mlp}
        return _by_name(named, about), _by_name(rest, about)
    dims = {"head": ("layer", "head"), "neuron": ("layer", "d_mlp"), "token": ("layer", "head", "k_pos")}[by]
    coords: dict[str, Any] = {dim: range(n) for dim, n in zip(dims, parts.shape, strict=True)}
    coords["kind"] = ("layer", list(trace.model.config.kinds))
    if by == "token":
        coords["k_token"] = ("k_pos", trace.tokens)
    return xarray.DataArray(parts.numpy(), dims=dims, coords=coords, **about), _by_name(rest, about)


def _by_name(values: dict[str, float], about: dict[str, Any]) -> xarray.DataArray:
    import xarray

    return xarray.DataArray(list(values.values()), dims=("part",), coords={"part": list(values)}, **about)

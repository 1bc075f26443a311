"""gs.direct_logits: what each part of the stream wrote towards an answer.

The stream is a sum. At one position of one run, a norm multiplies each coordinate by a fixed number, so the logit before the
soft cap is a sum over the same parts. Every part goes through the norms with the scale that they had in the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import torch
from jaxtyping import Float
from torch import Tensor

from gemmascope.analysis.decomposition import Decomposition
from gemmascope.analysis.several import PromptMeans, listed_traces, means, one_for_each
from gemmascope.arguments import one_of, whole_number
from gemmascope.edits.call_text import plain
from gemmascope.edits.places import find_position
from gemmascope.edits.sources import not_a_trace
from gemmascope.errors import SiteError
from gemmascope.legible import legible_line, prints_legibly, signed
from gemmascope.model.modes import computes
from gemmascope.run.metric import Answer, answer_ids
from gemmascope.run.trace import Trace
from gemmascope.sweeps.metadata import prompts_line
from gemmascope.sweeps.remarks import answer_remarks, raise_or_warn
from gemmascope.tokens.characters import text_of
from gemmascope.tokens.tokenizer import visible_text
from gemmascope.values import labelled, moved

if TYPE_CHECKING:
    import pandas
    import xarray
    from plotly.graph_objects import Figure

BY = ("sublayer", "head", "neuron", "token")
NAME, UNIT = "wrote", "logit before the soft cap"


@dataclass(frozen=True, repr=False, eq=False)
class DirectLogits:
    """What each part of the stream wrote towards an answer at a position. Made by gs.direct_logits.

    Attributes:
        parts: What each split part wrote, in logits before the soft cap: (part) for sublayers, (layer, head) for heads,
            (layer, d_mlp) for neurons, (layer, head, k_pos) for source tokens.
        rest: What everything else in the stream wrote, (part). parts and rest add up to total.
        total: The answer's logit before the soft cap, less that of the tokens against it.
        capped: The same of the soft-capped logits, which the model returns.
        by: How the stream was split.
        about: The model, the answer and the position, as text.
        cap: The model's soft cap on logits; None for a Gemma 3, which has none.

    Examples:
        >>> trace = gs.trace("When Mary and John went to the store, John gave a drink to")
        >>> result = gs.direct_logits(trace, " Mary", against=" John", by="head")
        >>> round(float(result.parts.sum() + result.rest.sum()), 3) == round(result.total, 3)
        True
        >>> result.top(2)
        [('layers.5.mlp_out', 4.6...), ('layer 3 head 0', 2.7...)]
    """

    parts: xarray.DataArray
    rest: xarray.DataArray
    total: float
    capped: float
    by: str
    about: str
    cap: float | None

    @property
    def cap_effect(self) -> float:
        """How much the soft cap changes: capped - total. It belongs to no part."""
        return self.capped - self.total

    def top(self, k: int = 10) -> list[tuple[str, float]]:
        """The parts, those of the rest included, that wrote most for or against the answer: (name, logits).

        Args:
            k: The number of parts.
        """
        import numpy as np

        k = whole_number(k, "k", least=1, error=SiteError)
        flat = self.parts.values.reshape(-1)
        strongest = np.argsort(-np.abs(flat), kind="stable")[:k]  # a large model has millions of neurons
        named = [(self._name(int(i)), float(flat[i])) for i in strongest]
        named += [(str(part), float(value)) for part, value in zip(self.rest["part"].values, self.rest.values, strict=True)]
        return sorted(named, key=lambda pair: -abs(pair[1]))[:k]

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each part, with its labels; those of the rest come last."""
        import pandas

        parts = self.parts.to_dataframe(name="wrote").reset_index()
        return pandas.concat([parts, self.rest.to_dataframe(name="wrote").reset_index()], ignore_index=True)

    def plot(self) -> Figure:
        """A plotly figure: bars, or a heat map with blue for the answer and red against it."""
        from gemmascope.figures.direct_logits import direct_figure

        unit, prompt = str(self.parts.attrs["long_name"]), self.parts.attrs.get("prompt")
        about = "" if prompt is None else prompts_line([str(prompt)])
        return direct_figure(
            self.parts, self.rest, title=self.about, unit=unit, total=self.total, after=self._after_cap(), about=about
        )

    @prints_legibly
    def __repr__(self) -> str:
        changes = "" if self.cap is None else f": the cap changes {self.cap_effect:+.4g}"
        totals = f"{self.total:+.4g} {self._after_cap('.4g')}{changes}"
        strongest = self.top()
        lines = [f"  {signed(value, strongest[0][1])}  {name}" for name, value in strongest]
        n_rest = f" and {len(self.rest)} other part{'s' if len(self.rest) > 1 else ''}" if len(self.rest) else ""
        return "\n".join([f"{self.about}, by {self.by}: {self.parts.size}{n_rest}", totals, *lines])

    def _after_cap(self, digits: str = ".3g") -> str:
        if self.cap is None:
            return "in all; this model has no soft cap"
        return f"before the soft cap, {self.capped:+{digits}} after it"

    def _name(self, flat_index: int) -> str:
        index = [int(n) for n in torch.unravel_index(torch.tensor(flat_index), self.parts.shape)]
        if self.by == "sublayer":
            return str(self.parts["part"].values[index[0]])
        names = {"head": "head", "d_mlp": "neuron", "layer": "layer"}
        labels = [f"{names[str(dim)]} {n}" for dim, n in zip(self.parts.dims, index, strict=True) if dim != "k_pos"]
        if self.by == "token":
            labels.append(f"reading position {index[-1]} ({visible_text(str(self.parts['k_token'].values[index[-1]]))})")
        return " ".join(labels)


@overload
def direct_logits(
    trace: Trace, answer: Answer, against: Answer | None = None, by: str = "sublayer", *, pos: int | str = -1
) -> DirectLogits: ...
@overload
def direct_logits(
    trace: list[Trace] | tuple[Trace, ...],
    answer: Answer | list[Answer],
    against: Answer | list[Answer] | None = None,
    by: str = "sublayer",
    *,
    pos: int | str = -1,
) -> PromptMeans[DirectLogits]: ...
@computes
def direct_logits(
    trace: Trace | list[Trace] | tuple[Trace, ...],
    answer: Answer | list[Answer],
    against: Answer | list[Answer] | None = None,
    by: str = "sublayer",
    *,
    pos: int | str = -1,
) -> DirectLogits | PromptMeans[DirectLogits]:
    """What each part of the stream wrote towards an answer, before the soft cap.

    The parts add up to the answer's logit. Every part goes through the norms with the scale that they had in the run. What
    edits wrote into the stream stands in the rest under names such as "edit at layers.2.resid_post", and so does the part
    of a sublayer's output that edits made and no head or neuron wrote. Runs the layers once more.

    Args:
        trace: What gs.trace returns; the list that it returns for several prompts gives means over them.
        answer: A text that is one token, a token id, or a list of them, whose mean is taken. For a list of traces one text
            or id for all, or a list with one of these for each.
        against: The same; its logit is subtracted. None subtracts nothing.
        by: "sublayer" for the embedding and every attention and MLP; "head"; "neuron"; or "token", what each head read from
            each source token.
        pos: The position whose next token the answer is: a number, or a token that occurs once. -1 is the last.

    Returns:
        The parts, labelled, in logits before the soft cap; what stands beside them in the stream; and their total. For a
        list of traces .each has these, and .mean, .stderr and .interval() are of "parts", "rest", "total" and "capped".

    Raises:
        PromptError: For an answer that is not one token.
        SiteError: For a position that is not there, another split, a token on both sides, or a run with edits after the
            layers (final, logits_raw, logits), which no part of the stream wrote.

    Examples:
        >>> trace = gs.trace("When Mary and John went to the store, John gave a drink to")
        >>> result = gs.direct_logits(trace, " Mary", against=" John")
        >>> result.total
        14.05...
        >>> result.parts.dims
        ('part',)

    References:
        Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021).
        Wang et al., "Interpretability in the Wild" (arXiv 2211.00593).
    """
    one_of(by, "by", BY, error=SiteError)
    if isinstance(trace, (list, tuple)):
        return _of_several(trace, answer, against, by, pos)
    return _of_one(trace, answer, against, by, pos)


def _of_one(trace: Trace, answer: Any, against: Any, by: str, pos: int | str) -> DirectLogits:
    ids, against_ids = _answer_tokens(trace, answer, against)
    position = find_position(pos, trace.model, trace.ids, "contributions are read at one position")
    answers = {"answer": answer} if against is None else {"answer": answer, "against": against}
    raise_or_warn(answer_remarks(answers, trace.ids[: position + 1], trace.model), SiteError)
    decomposition = Decomposition(trace, position, _direction(trace, ids, against_ids, position))
    parts, rest = _labelled(trace, by, decomposition.split(by), decomposition.rest)
    parts.attrs["prompt"] = text_of(trace.tokens)
    towards = f"towards {plain(answer)!r}" + ("" if against is None else f" against {plain(against)!r}")
    place = f"at position {position} ({visible_text(trace.tokens[position])})"
    return DirectLogits(
        parts=parts,
        rest=rest,
        total=decomposition.along(trace.residuals[-1]),
        capped=_capped(trace, ids, against_ids, position),
        by=by,
        about=f"direct logits in {legible_line(trace.model.name)}, {towards}, {place}",
        cap=trace.model.config.final_cap,
    )


def _of_several(traces: object, answer: object, against: object, by: str, pos: int | str) -> PromptMeans[DirectLogits]:
    """The result of each trace, and the means. A part that a run lacks, such as an edit's, wrote 0 there."""
    listed = listed_traces(traces)
    answers, others = (one_for_each(value, name, len(listed)) for value, name in ((answer, "answer"), (against, "against")))
    each = [_of_one(one, right, wrong, by, pos) for one, right, wrong in zip(listed, answers, others, strict=True)]
    names = list(dict.fromkeys(str(name) for one in each for name in one.rest["part"].values))
    numbers = []
    for one in each:
        wrote = dict(zip(map(str, one.rest["part"].values), one.rest.values.tolist(), strict=True))
        rest = labelled([wrote.get(name, 0.0) for name in names], {"rest_part": names}, ("rest_part",), NAME, UNIT)
        totals = {name: labelled(getattr(one, name), {}, (), name, UNIT) for name in ("total", "capped")}
        numbers.append({"parts": one.parts, "rest": rest, **totals})
    return means(each, numbers, f"direct logits in {legible_line(listed[0].model.name)}, by {by}")


def answer_directions(trace: Trace, answer: Answer, against: Answer | None = None) -> Float[Tensor, "pos d_model"]:
    """At each position, the direction whose product with a part of the stream is what the part wrote towards an answer.

    A row of attn_out or mlp_out times its row here is the sublayer's part in gs.direct_logits at that position. Errors are
    those of gs.direct_logits.
    """
    return _direction(trace, *_answer_tokens(trace, answer, against), slice(None))


def _answer_tokens(trace: Trace, answer: Answer, against: Answer | None) -> tuple[list[int], list[int]]:
    """The token ids of answer and against. SiteError for what is no trace, late edits, or a token on both sides."""
    if not isinstance(trace, Trace):
        raise SiteError(
            f"contributions are read from a trace: gs.direct_logits(gs.trace(prompt), ...); given {not_a_trace(trace)}"
        )
    if late := [edit for edit in trace.bound_edits if edit.address.is_after_layers]:
        raise SiteError(
            f"{late[0].edit!r} changes the run after the stream, where no part of it wrote: trace it without that edit"
        )
    ids, against_ids = answer_ids(answer, trace.model), [] if against is None else answer_ids(against, trace.model)
    if set(ids) & set(against_ids):
        raise SiteError(f"answer and against share a token: {plain(answer)!r} and {plain(against)!r}")
    return ids, against_ids


def _capped(trace: Trace, ids: Sequence[int], against_ids: Sequence[int], pos: int) -> float:
    """The difference of soft-capped logits at a position, as the model returns them."""
    trace.require_weights(None)
    with torch.no_grad():
        logits = trace.model.network.unembed(trace.residuals[-1][pos : pos + 1])[0]
    return float(logits[list(ids)].mean() - (logits[list(against_ids)].mean() if against_ids else 0.0))


def _direction(
    trace: Trace, ids: Sequence[int], against_ids: Sequence[int], pos: int | slice
) -> Float[Tensor, "*positions d_model"]:
    """The unembedding of the answer less that of against, through the last norm with its scale at the position."""
    network = trace.model.network
    with torch.no_grad():
        rows = network.model.embed_tokens(torch.tensor([*ids, *against_ids], device=trace.model.device)).float()
        unembedding: Tensor = rows[: len(ids)].mean(0) - (rows[len(ids) :].mean(0) if against_ids else 0.0)
        direction: Tensor = unembedding * network.model.norm.gain(moved(trace.residuals[-1][pos], trace.model.device))
        return direction


def _labelled(trace: Trace, by: str, parts: Tensor, rest: dict[str, float]) -> tuple[xarray.DataArray, xarray.DataArray]:
    """The split parts and the rest with their labels. Beside sublayers, the embedding is a part, not of the rest."""
    if by == "sublayer":
        named = {"embed": rest["embed"]}
        rest = {part: value for part, value in rest.items() if part != "embed"}
        for layer, (attn, mlp) in enumerate(parts.tolist()):
            named |= {f"layers.{layer}.attn_out": attn, f"layers.{layer}.mlp_out": mlp}
        return _by_name(named), _by_name(rest)
    dims = {"head": ("layer", "head"), "neuron": ("layer", "d_mlp"), "token": ("layer", "head", "k_pos")}[by]
    coords: dict[str, object] = {dim: range(n) for dim, n in zip(dims, parts.shape, strict=True)}
    coords["kind"] = ("layer", list(trace.model.config.kinds))
    if by == "token":
        coords["k_token"] = ("k_pos", trace.tokens)
    return labelled(parts, coords, dims, NAME, UNIT), _by_name(rest)


def _by_name(values: dict[str, float]) -> xarray.DataArray:
    return labelled(list(values.values()), {"part": list(values)}, ("part",), NAME, UNIT)

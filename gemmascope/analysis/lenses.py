"""gs.lens: the lens of one run or of several, or the difference between the lenses of two runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gemmascope.analysis.lens import Lens, read_lens
from gemmascope.analysis.lens_rows import Transport, logits_of
from gemmascope.analysis.several import listed_traces, means, one_for_each
from gemmascope.edits.places import Head, Pos
from gemmascope.errors import SiteError
from gemmascope.legible import legible_line, prints_legibly
from gemmascope.model.maths import kl_divergence
from gemmascope.model.model import Prompt
from gemmascope.model.modes import computes
from gemmascope.model.prompts import is_prompt_list
from gemmascope.run.logits import rows_to_unembed
from gemmascope.run.metric import Answer
from gemmascope.run.trace import Trace
from gemmascope.run.tracing import trace as run_trace
from gemmascope.tokens.tokenizer import visible_text
from gemmascope.values import chunks

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True, repr=False, eq=False)
class LensDifference:
    """What the lens of one run reads less what that of another reads, at the same places. Made by gs.lens(..., against=).

    Arrays are labelled as those of the first lens: (layer, pos), with an entry axis for "stream".

    Attributes:
        lens: The lens of the run.
        other: The lens of the run that it is compared with.
        raised: Token ids whose soft-capped logits the run has highest above the other's, the largest difference first.
        differences: Those differences.
        kl_values: KL(run || other) of the two distributions, in nats.

    Examples:
        >>> clean = gs.trace("When Mary and John went to the store, John gave a drink to")
        >>> corrupt = gs.trace("When Mary and John went to the store, Mary gave a drink to")
        >>> difference = gs.lens(clean, against=corrupt, pos=-1, answer=" Mary")
        >>> difference.raised_tokens.values[-1, 0, 0]
        ' Mary'
        >>> round(difference.answer_logit.values[-1, 0].item(), 1)
        12.3
    """

    lens: Lens
    other: Lens
    raised: Int[Tensor, "entry pos top"]
    differences: Float[Tensor, "entry pos top"]
    kl_values: Float[Tensor, "entry pos"]

    @property
    def raised_tokens(self) -> xarray.DataArray:
        """The tokens that the run raises most above the other, as text, (layer, pos, top)."""
        texts = [self.lens.trace.model.texts(row) for row in self.raised.flatten(0, 1)]
        return self.lens.top_ids.copy(data=np.array(texts, dtype=object).reshape(self.raised.shape)).rename("token")

    @property
    def raised_by(self) -> xarray.DataArray:
        """By how much: differences of soft-capped logits, (layer, pos, top)."""
        return self.lens.top_probs.copy(data=self.differences.cpu().numpy()).rename("difference of soft-capped logits")

    @property
    def kl(self) -> xarray.DataArray:
        """KL(run || other) of the distributions that are read, in nats, (layer, pos)."""
        return self.lens.entropy.copy(data=self.kl_values.cpu().numpy()).rename("KL (nats)")

    @property
    def entropy(self) -> xarray.DataArray:
        """The difference of the entropies, in nats, (layer, pos)."""
        return _less(self.lens.entropy, self.other.entropy)

    @property
    def answer_logit(self) -> xarray.DataArray:
        """The difference of the followed answer's soft-capped logits, (layer, pos). SiteError if none is followed."""
        return _less(self.lens.answer_logit, self.other.answer_logit)

    @property
    def answer_prob(self) -> xarray.DataArray:
        """The difference of the followed answer's probabilities, (layer, pos). SiteError if none is followed."""
        return _less(self.lens.answer_prob, self.other.answer_prob)

    @property
    def answer_rank(self) -> xarray.DataArray:
        """The difference of the followed answer's ranks, (layer, pos). SiteError if none is followed."""
        return _less(self.lens.answer_rank, self.other.answer_rank)

    @prints_legibly
    def __repr__(self) -> str:
        token = visible_text(self.lens.trace.tokens[self.lens.positions[-1]])
        where = f"after position {self.lens.positions[-1]} ({token})"
        lines = [f"difference of {_plural(self.lens.title)} of {legible_line(self.lens.trace.model.name)}: {where}"]
        for i, (site, layer) in enumerate(self.lens.entries):
            name = site if layer is None else f"{site} {layer}"
            texts = self.lens.trace.model.texts(self.raised[i, -1])
            tops = "  ".join(
                f"{visible_text(text)} {by:+.2f}" for text, by in zip(texts, self.differences[i, -1].tolist(), strict=True)
            )
            lines.append(f"  {name:14} KL {float(self.kl_values[i, -1]):.3f}  {tops}")
        return "\n".join(lines)


def _plural(title: str) -> str:
    """ "lens on resid_post" -> "lenses on resid_post"."""
    return title.replace("lens", "lenses", 1)


def _less(ours: xarray.DataArray, others: xarray.DataArray) -> xarray.DataArray:
    """The difference of two arrays, place by place, with the labels of the first."""
    return ours.copy(data=ours.values - others.values).rename(f"difference of {ours.name}")


def _difference(first: Lens, other: Lens) -> LensDifference:
    """The difference of two lenses on one site. SiteError unless they read as many positions of models of one shape."""
    n, n_other = len(first.positions), len(other.positions)
    if n != n_other:
        raise SiteError(
            f"a difference compares position with position: the run is read at {n} and against at {n_other}; say pos=, or "
            "give prompts of one length"
        )
    if first.trace.model.config != other.trace.model.config:
        raise SiteError("against is of a model of another shape")
    top = first.ids.shape[-1]
    entries = zip(first.read_entries(), other.read_entries(), strict=True)
    raised, differences, kls = [], [], []
    for ((site, _), rows), (_, other_rows) in entries:
        parts = [_compared((first, rows, part), (other, other_rows, part), site, top) for part in _parts(first, n)]
        ids, by, kl = (torch.cat(values) for values in zip(*parts, strict=True))
        raised.append(ids)
        differences.append(by)
        kls.append(kl)
    return LensDifference(first, other, torch.stack(raised), torch.stack(differences), torch.stack(kls))


def _parts(lens: Lens, n: int) -> Sequence[slice]:
    """Some of the positions at a time, as many as there is memory for logits."""
    return list(chunks(n, rows_to_unembed(lens.trace.model)))


def _compared(
    ours: tuple[Lens, Tensor, slice], others: tuple[Lens, Tensor, slice], site: str, top: int
) -> tuple[Tensor, ...]:
    logits, other_logits = (_logits(*side, site) for side in (ours, others))
    best = (logits - other_logits).topk(top)
    logprobs, other_logprobs = logits.log_softmax(-1), other_logits.log_softmax(-1)
    kl = kl_divergence(logprobs, other_logprobs).clamp(min=0.0)  # negative only by rounding
    return best.indices, best.values, kl


def _logits(lens: Lens, rows: Tensor, part: slice, site: str) -> Tensor:
    positions = lens.positions[part]
    return logits_of(lens.trace, site, rows[list(positions)], positions)


@computes
def lens(
    trace: Trace | list[Trace] | tuple[Trace, ...],
    site: str = "resid_post",
    top: int = 5,
    *,
    pos: Pos = None,
    head: Head = None,
    answer: Answer | list[Answer] | None = None,
    against: Trace | Prompt | Sequence[Trace] | Sequence[Prompt] | None = None,
) -> Any:
    """Read logits from the stream between layers, through the last norm, the unembedding and the soft cap.

    The stream is read as if the later layers were skipped. A part of it ("attn_out", "mlp_out", "head_out") goes through the
    last norm with the scale that the norm had in this run at that position, so that the logits of parts add up before the
    soft cap. Edits of the run are in what is read, except those after the layers (final, logits_raw, logits): every layer
    is read in the same way. At the last layer's "resid_post" the logits are the run's own.

    Args:
        trace: What gs.trace returns; the list that it returns for several prompts gives means over them.
        site: "resid_pre", "resid_mid" or "resid_post" of every layer; "stream" for the embedding and then the stream after
            every sublayer; "attn_out", "mlp_out", or "head_out" of one head.
        top: How many of the likeliest tokens to keep at each place.
        pos: The positions to read, as in gs.patch; None means all.
        head: The head to read, with site "head_out" only.
        answer: A token to follow, as text or token id; None follows none. For a list of traces one for all, or one for each.
        against: Another run to compare with, as a trace or as a prompt, which is run; for a list of traces one for all, or a
            list with one for each. The result is then what the lens of the run reads less what that of the other reads.

    Returns:
        The top tokens and their probabilities (layer, pos, top), the entropy (layer, pos), and for a followed answer its
        logit, probability and rank (layer, pos). With `against` a LensDifference. For a list of traces, .each is a list of
        these, and .mean, .stderr and .interval() are of the entropy and the followed answer's numbers, and of kl.

    Raises:
        SiteError: For a site, head, position or number of tokens that is not there, or several answers; for runs that are
            read at unlike numbers of positions.
        PromptError: For an answer that is not one token.

    Examples:
        >>> lens = gs.lens(gs.trace("When Mary and John went to the store, John gave a drink to"), pos=-1)
        >>> [str(token) for token in lens.top_tokens.values[:, 0, 0]]
        [' to', ' to', ' to', ' Mary', ' Mary', ' Mary']

    References:
        nostalgebraist, "interpreting GPT: the logit lens" (2020).
    """
    return read_lenses(trace, site, top, pos, head, answer, against)


def read_lenses(
    trace: object,
    site: str,
    top: int,
    pos: Pos,
    head: Head,
    answer: Answer | list[Answer] | None,
    against: Trace | Prompt | Sequence[Trace] | Sequence[Prompt] | None,
    transport: Transport | None = None,
) -> Any:
    """As gs.lens; the stream is read through a transport, if there is one."""
    if not isinstance(trace, (list, tuple)):
        return _one(trace, site, top, pos, head, answer, against, transport)
    listed = listed_traces(trace)
    answers, others = one_for_each(answer, "answer", len(listed)), _each_against(against, len(listed))
    each = [_one(t, site, top, pos, head, a, o, transport) for t, a, o in zip(listed, answers, others, strict=True)]
    names = ["entropy", *([] if against is None else ["kl"])]
    names += [] if answer is None else ["answer_logit", "answer_prob", "answer_rank"]
    numbers = [{name: getattr(one, name) for name in names} for one in each]
    name = f"{'lens' if transport is None else transport.title} on {site}"
    what = name if against is None else f"difference of {_plural(name)}"
    return means(each, numbers, f"{what} of {legible_line(listed[0].model.name)}")


def _one(
    trace: object,
    site: str,
    top: int,
    pos: Pos,
    head: Head,
    answer: object,
    against: object,
    transport: Transport | None,
) -> Lens | LensDifference:
    first = read_lens(trace, site, top, pos, head, answer, transport)  # type: ignore[arg-type]
    if against is None:
        return first
    other = against if isinstance(against, Trace) else run_trace(against, model=first.trace.model)  # type: ignore[call-overload]
    if not isinstance(other, Trace):
        raise SiteError("against is one run for one trace: a trace, or a prompt")
    return _difference(first, read_lens(other, site, top, pos, head, answer, transport))  # type: ignore[arg-type]


def _each_against(against: object, n: int) -> list[object]:
    """The run to compare each of n traces with."""
    if isinstance(against, (list, tuple)) and (is_prompt_list(against) or any(isinstance(one, Trace) for one in against)):
        return one_for_each(against, "against", n)
    return [against] * n

"""The rows that gs.lens reads, entry by entry, and what it keeps of their logits.

Rows are unembedded a few at a time, because the logits of all entries of a long prompt would not fit in memory. The logits
of whole layers are Trace.lens (run/logits.py). The formula is Gemma2.unembed (model/gemma2.py); for a part of the stream,
such as attn_out, with the last norm's scale for the whole stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gemmascope.edits.places import Head, find_heads
from gemmascope.errors import SiteError
from gemmascope.model.maths import soft_cap
from gemmascope.run.logits import rows_to_unembed
from gemmascope.run.metric import Answer, answer_ids
from gemmascope.run.replay import edited_layers, replay
from gemmascope.run.trace import Trace
from gemmascope.sites import SiteKey, find_site, parse_site_name
from gemmascope.sweeps.remarks import answer_remarks, raise_or_warn
from gemmascope.values import chunks, moved

STREAM = ("resid_pre", "resid_mid", "resid_post")
PARTS = ("attn_out", "mlp_out", "head_out")
EVERY = "stream"


class Transport(Protocol):
    """Carries rows of the stream after a layer into the basis of the last layer, before they are read."""

    @property
    def title(self) -> str:
        """What a lens that reads with it is called, such as "Jacobian lens"."""

    @property
    def layers(self) -> Sequence[int]:
        """The layers whose rows it carries."""

    def carry(self, layer: int, rows: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_model"]:
        """Rows of resid_post of a layer, in the basis of the last layer's."""


def site_to_read(site: str) -> str:
    """The name of a site that a lens reads. SiteError for another one, or for one with a layer."""
    name = EVERY if isinstance(site, str) and site == EVERY else parse_site_name(site)[0].name
    if name not in (*STREAM, *PARTS, EVERY):
        raise SiteError(f"a lens reads {', '.join((*STREAM, EVERY, *PARTS))}; given {site!r}")
    if name != EVERY and parse_site_name(site)[1] is not None:
        raise SiteError(f"a lens reads every layer: give the site without one, {name!r}; given {site!r}")
    return name


def one_answer(answer: Answer, trace: Trace, last: int) -> int:
    """The id of the token that is followed. SiteError for several. last: the last position that is read."""
    ids = answer_ids(answer, trace.model)
    if len(ids) != 1:
        raise SiteError(f"a lens follows one answer at a time; given {answer!r}")
    raise_or_warn(answer_remarks({"answer": answer}, trace.ids[: last + 1], trace.model), SiteError)
    return ids[0]


def one_head(trace: Trace, site: str, head: Head) -> int | None:
    """The number of the head to read; None at a site without heads."""
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


def entries_of(
    trace: Trace, site: str, head: int | None, transport: Transport | None = None
) -> Iterator[tuple[SiteKey, Float[Tensor, "pos d_model"]]]:
    """Each entry that the lens reads and its rows, in the order of the pass. transport: of resid_post alone."""
    if transport is not None:
        last = trace.model.n_layers - 1
        for index in transport.layers:
            if index < last:
                yield (site, index), transport.carry(index, trace.residuals[index + 1])
        yield (site, last), trace.residuals[-1]
        return
    if site == "resid_post":
        for index in range(trace.model.n_layers):
            yield (site, index), trace.residuals[index + 1]
        return
    if site == EVERY:
        yield ("embed", None), trace.residuals[0]
    if head is not None:
        yield from _entries_of_head(trace, head)
        return
    sites = ("resid_mid", "resid_post") if site == EVERY else (site,)
    for layer, values in replay(trace, sites):
        for name in sites:
            yield (name, layer.index), values[name]


def _entries_of_head(trace: Trace, head: int) -> Iterator[tuple[SiteKey, Float[Tensor, "pos d_model"]]]:
    """What one head wrote in every layer. Other heads are computed only in layers where an edit writes to head_out."""
    edited = [("head_out", index) for index in edited_layers(trace, "head_out")]
    scaled = [("attn_out_scale", index) for index in edited_layers(trace, "attn_out_scale")]
    for layer, values in replay(trace, ["z", "attn_raw", *edited, *scaled]):
        if "head_out" in values:
            rows = values["head_out"][:, head]
        else:
            d_head = trace.model.config.d_head
            w_o = layer.self_attn.o_proj.weight[:, head * d_head : (head + 1) * d_head]
            raw = values["attn_raw"]
            gain = layer.post_attention_layernorm.gain(raw, values.get("attn_out_scale"))
            rows = ((values["z"][:, head] @ w_o.T).float() * gain).to(raw.dtype)
        yield ("head_out", layer.index), rows


def final_answers(trace: Trace, positions: Sequence[int]) -> Int[Tensor, " pos"]:
    """The token that the run itself finds likeliest after each of these positions."""
    rows = moved(trace.residuals[-1][list(positions)], trace.model.device)
    return read_rows(trace, "resid_post", rows, positions, 1, [])[0][:, 0]


def read_entries(
    trace: Trace,
    entries: Iterable[tuple[SiteKey, Tensor]],
    positions: Sequence[int],
    top: int,
    answers: Sequence[int | Tensor],
) -> tuple[list[SiteKey], list[Tensor]]:
    """The entries, and what read_rows gives of each, with an axis for the entry in front. answers: as in read_rows, but an
    answer of its own for each position is [pos].

    Short entries are unembedded together: for a few rows, reading a large embedding takes as long as for many. The last one
    is read alone, as a run's logits are, so that the lens of the last layer is those logits to the last bit.
    """
    at_once = max(1, rows_to_unembed(trace.model) // max(1, len(positions)))
    keys: list[SiteKey] = []
    waiting: list[Tensor] = []
    readings: list[tuple[Tensor, ...]] = []

    def read(several: Sequence[Tensor]) -> None:
        if several:
            each = [one.repeat(len(several)) if isinstance(one, Tensor) else one for one in answers]
            columns = read_rows(trace, keys[-1][0], torch.cat(list(several)), [*positions] * len(several), top, each)
            readings.append(tuple(column.view(len(several), -1, *column.shape[1:]) for column in columns))

    for key, rows in entries:
        if len(waiting) == at_once:
            read(waiting)
            waiting = []
        keys.append(key)
        waiting.append(moved(rows[list(positions)], trace.model.device))
    read(waiting[:-1])
    read(waiting[-1:])
    return keys, [torch.cat(columns) for columns in zip(*readings, strict=True)]


def logits_at_one(trace: Trace, entries: Iterable[tuple[SiteKey, Tensor]], pos: int) -> Float[Tensor, "entry vocab"]:
    """Soft-capped logits of every entry at one position: of all together, the last entry alone, as read_entries does.

    The caller requires the weights of the run.
    """
    keys, rows = zip(*((key, moved(rows[[pos]], trace.model.device)) for key, rows in entries), strict=True)
    groups = [group for group in (rows[:-1], rows[-1:]) if group]
    site = keys[-1][0]
    return torch.cat([unembed_rows(trace, site, torch.cat(group), [pos] * len(group)) for group in groups])


def read_rows(
    trace: Trace, site: str, rows: Tensor, positions: Sequence[int], top: int, answers: Sequence[int | Tensor]
) -> tuple[Tensor, ...]:
    """Ids, logits and probabilities of the top tokens [row, top], and the entropy [row], of rows at these positions.

    Then the logit, probability and rank of each of the answers, [row]: a token id, or one for each row. The caller requires
    the weights of the run: to look at a large embedding again for each layer would take as long as some products with it.
    """
    step = rows_to_unembed(trace.model)
    parts = []
    for part in chunks(len(positions), step):
        chunk = positions[part]
        logits = unembed_rows(trace, site, rows[part], chunk)
        logprobs = logits.log_softmax(-1)
        best = logits.topk(top)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        columns = [best.indices, best.values, logprobs.gather(-1, best.indices).exp(), entropy]
        for answer in answers:
            one = answer[part] if isinstance(answer, Tensor) else logits.new_full((len(logits),), answer, dtype=torch.long)
            answer_logits = logits.gather(-1, one[:, None])
            rank = (logits > answer_logits).sum(-1)
            columns += [answer_logits[:, 0], logprobs.gather(-1, one[:, None]).exp()[:, 0], rank]
        parts.append(columns)
    return tuple(torch.cat(values) for values in zip(*parts, strict=True))


def logits_of(trace: Trace, site: str, rows: Tensor, positions: Sequence[int]) -> Float[Tensor, "row vocab"]:
    """Soft-capped logits of a site's rows at these positions, in float32. TraceError if the weights are not the run's."""
    trace.require_weights(None)
    return unembed_rows(trace, site, rows, positions)


def unembed_rows(trace: Trace, site: str, rows: Tensor, positions: Sequence[int]) -> Float[Tensor, "row vocab"]:
    """As logits_of, for a caller that requires the weights of the run itself."""
    network = trace.model.network
    with torch.no_grad():
        if site not in PARTS:
            return network.unembed(rows)
        rows, final = (moved(x, trace.model.device) for x in (rows, trace.residuals[-1][list(positions)]))
        gain = network.model.norm.gain(final)
        raw = network.model.embed_tokens.logits((rows.float() * gain).to(rows.dtype)).float()
        return soft_cap(raw, trace.model.config.final_cap)

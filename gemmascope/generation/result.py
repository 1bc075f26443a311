"""Generation, which gs.generate returns: a prompt and the tokens that the model continued it with."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypedDict

import torch
from jaxtyping import Int
from torch import Tensor

from gemmascope.edits.edit import BoundEdit, Edit
from gemmascope.legible import legible, legible_line, prints_legibly
from gemmascope.memory.limits import explain_oom
from gemmascope.model.layout import Block, Layout
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.run.taps import EditTap
from gemmascope.run.trace import Trace
from gemmascope.tokens.tokenizer import visible_text
from gemmascope.values import moved


class TokenJson(TypedDict, total=False):
    """A token as JSON. probability: of a generated one."""

    pos: int
    text: str
    id: int
    probability: float


class GenerationJson(TypedDict):
    """A Generation as JSON."""

    model: str
    prompt: list[TokenJson]
    new: list[TokenJson]
    text: str
    stopped: str
    edits: list[str]


@dataclass(frozen=True, eq=False, repr=False)
class Generation:
    """A prompt and the tokens that were generated after it. Made by gs.generate.

    Attributes:
        model: The model that generated it.
        ids: The token ids of the prompt and the new tokens, [pos].
        n_prompt: How many of them are the prompt's.
        text: The generated text, without the prompt and the control token that ended it; "" if the model has no tokenizer.
        logprobs: For each new token, the natural log of its probability at temperature 1 over all tokens.
        stopped: Why it stopped: "length", "interrupted", "token '<eos>'", "text '.'".
        bound_edits: The edits of the run, bound to it.
        stream: The residual stream of the positions that passed through the layers, n_layers + 1 tensors [pos, d_model].

    Examples:
        >>> g = gs.generate("Mary and John went to the", max_new_tokens=5)
        >>> g.text, g.stopped
        (' library leaves at three.', 'length')
        >>> g.trace()["pattern", 5].shape
        torch.Size([4, 12, 12])
    """

    model: Model
    ids: Int[Tensor, " pos"]
    n_prompt: int
    text: str
    logprobs: tuple[float, ...]
    stopped: str
    bound_edits: tuple[BoundEdit, ...]
    stream: tuple[Tensor, ...]
    _own_ids: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_own_ids", self.ids.clone())  # for the trace, should a user write to ids

    @property
    def new_ids(self) -> Int[Tensor, " new"]:
        """The generated token ids, [new], with the one that stopped it."""
        return self.ids[self.n_prompt :]

    @property
    def prompt(self) -> str:
        """The prompt, as text, control tokens included."""
        return self.model.tokenizer.decode(self.ids[: self.n_prompt].tolist())

    @property
    def tokens(self) -> list[str]:
        """Each token as text, the prompt's first."""
        return self.model.texts(self.ids)

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The edits of the run, with their positions as numbers; without those at positions that it did not reach."""
        return tuple(bound.edit for bound in self.bound_edits)

    @computes
    def trace(self) -> Trace:
        """The trace of the whole text, with the run's edits. Runs the last token only; the others ran while decoding."""
        return self._trace

    @cached_property
    def _trace(self) -> Trace:
        stream, ids = self.stream, self._own_ids
        if len(stream[0]) < len(ids):
            stream = with_last_row(self.model, ids, stream, self.bound_edits)
        return Trace(self.model, ids, stream, self.bound_edits)

    def to_dict(self) -> GenerationJson:
        """The generation as JSON: raw token texts, probabilities between 0 and 1."""
        tokens: list[TokenJson] = [
            {"pos": pos, "text": text, "id": int(i)} for pos, (text, i) in enumerate(zip(self.tokens, self.ids, strict=True))
        ]
        new = zip(tokens[self.n_prompt :], self.logprobs, strict=True)
        return {
            "model": self.model.name,
            "prompt": tokens[: self.n_prompt],
            "new": [{**token, "probability": math.exp(logprob)} for token, logprob in new],
            "text": self.text,
            "stopped": self.stopped,
            "edits": [repr(edit) for edit in self.edits],
        }

    def _about(self) -> str:
        return f"{self.n_prompt} tokens and {len(self.new_ids)} new ones, stopped: {self.stopped}"

    @prints_legibly
    def __repr__(self) -> str:
        text = legible(f"{self.prompt}{self.text}") if self.model.has_tokenizer else str(self.ids.tolist())
        return f"Generation by {legible_line(self.model.name)}: {self._about()}\n{text}"

    def _repr_html_(self) -> str:
        drawn = [_drawn(token, pos) for pos, token in enumerate(self.tokens[: self.n_prompt])]
        new = zip(self.tokens[self.n_prompt :], self.logprobs, strict=True)
        drawn += [_drawn(token, pos, logprob) for pos, (token, logprob) in enumerate(new, self.n_prompt)]
        about = html.escape(f"by {legible_line(self.model.name)}: {self._about()}")
        legend = "the stronger a new token's bar, the likelier it was"
        return (
            f'<div style="max-width:62em;font:14px/1.5 system-ui,sans-serif"><div><b>Generation</b> {about}</div>'
            f'<div style="margin:.4em 0;line-height:1.9">{" ".join(drawn)}</div>'
            f'<div style="opacity:.75">{legend}</div></div>'
        )


_CHIP = "font-family:ui-monospace,monospace;padding:0 3px;white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate"


def _drawn(token: str, pos: int, logprob: float | None = None) -> str:
    """A token as HTML. logprob: of a generated token."""
    if logprob is None:
        title, style = f"position {pos}", "opacity:.75"
    else:
        probability = math.exp(logprob)
        title = f"position {pos}, probability {probability:.3g}"
        style = f"font-weight:600;border-bottom:3px solid rgba(59,118,196,{0.15 + 0.85 * probability:.2f})"
    return f'<span title="{title}" style="{_CHIP};{style}">{html.escape(legible(visible_text(token)))}</span>'


def with_last_row(
    model: Model, ids: Int[Tensor, " pos"], stream: Sequence[Tensor], edits: Sequence[BoundEdit]
) -> tuple[Tensor, ...]:
    """Extend a stream that lacks the last position by it. The rows before it only provide their keys and values."""
    n_pos, editing = len(ids), EditTap([edits])
    whole, last_query = (
        Layout.of_lengths([n_pos], model.device),
        Layout.of_blocks([Block(0, 1, n_pos, n_queries=1)], model.device),
    )
    last = Layout.of_blocks([Block(0, 1, 1, start=n_pos - 1)], model.device)
    with torch.no_grad(), explain_oom(model), closing(model.layers()) as layers:
        extended = [torch.cat((stream[0], model.network.embed(ids[-1:], last, editing)))]
        for layer in layers:
            edited = any(edit.address.layer == layer.index for edit in edits)
            layout = whole if edited else last_query
            row = layer(extended[-1], layout, editing.at(layer.index, layout))[-1:]
            extended.append(torch.cat((moved(stream[layer.index + 1], row.device), row)))
    return tuple(extended)

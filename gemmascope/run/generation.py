"""Generation: what gs.generate returns: a prompt and what the model went on with."""

from __future__ import annotations

import html
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

from gemmascope.model.layout import Block, Layout
from gemmascope.model.model import Model
from gemmascope.run.bound import BoundEdit
from gemmascope.run.edits import Edit
from gemmascope.run.memory import told_when_full
from gemmascope.run.passes import Editing
from gemmascope.run.trace import Trace
from gemmascope.tokens import shown


@dataclass(frozen=True, eq=False, repr=False)
class Generation:
    """A prompt and the tokens that were generated after it.

    ids: those of the prompt and the new ones [pos]. n_prompt: how many of them are the prompt's. logprobs: for each new
    token, the natural logarithm of its probability in the model's own distribution (temperature 1, all tokens). stopped:
    why it ended: "length", "interrupted", the token or the text that it ended at. edits: those of the run, with their
    positions as numbers. stream: of the positions that went through the layers, as in a trace.
    """

    model: Model
    ids: Int[Tensor, " pos"]
    n_prompt: int
    logprobs: tuple[float, ...]
    stopped: str
    edits: tuple[Edit, ...]
    stream: tuple[Tensor, ...]

    @property
    def new_ids(self) -> Int[Tensor, " new"]:
        """The ids that were generated, the one that it stopped at included."""
        return self.ids[self.n_prompt :]

    @property
    def text(self) -> str:
        """What was generated, as text: without the prompt, and without a control token at its end."""
        ids = self.new_ids.tolist()
        if ids and self.model.tokenizer.is_special(ids[-1]):
            ids = ids[:-1]
        first = max(0, self.n_prompt - 1)  # some decoders drop a space at the very start
        before = self.model.tokenizer.decode(self.ids[first : self.n_prompt].tolist())
        return self.model.tokenizer.decode([*self.ids[first : self.n_prompt].tolist(), *ids])[len(before) :]

    @property
    def prompt(self) -> str:
        """The prompt, as text, control tokens included."""
        return self.model.tokenizer.decode(self.ids[: self.n_prompt].tolist())

    @property
    def tokens(self) -> list[str]:
        """Each token as text, the prompt's first."""
        return self.model.texts(self.ids)

    def trace(self) -> Trace:
        """The trace of the whole text, with the run's edits. Only the last token's row is run: the others were."""
        return self._trace

    @cached_property
    def _trace(self) -> Trace:
        bound = [edit.bind(self.model, self.ids) for edit in self.edits]
        stream = self.stream
        if len(stream[0]) < len(self.ids):
            stream = with_last_row(self.model, self.ids, stream, bound)
        return Trace(self.model, self.ids, stream, bound)

    def __repr__(self) -> str:
        new = len(self.new_ids)
        about = f"Generation in {self.model.name!r}: {self.n_prompt} tokens and {new} new ones, stopped: {self.stopped}"
        if not self.model.has_tokenizer:
            return f"{about}\n{self.ids.tolist()}"
        return f"{about}\n{self.prompt}{self.text}"

    def _repr_html_(self) -> str:
        parts = []
        for at, token in enumerate(self.tokens):
            title = f"position {at}"
            if at >= self.n_prompt:
                logprob = self.logprobs[at - self.n_prompt]
                title += f", probability {torch.tensor(logprob).exp().item():.3g}"
            weight = "font-weight:600;border-bottom:2px solid #2171b5" if at >= self.n_prompt else "opacity:.75"
            drawn = html.escape(shown(token))
            parts.append(f'<span title="{title}" style="{weight};white-space:pre-wrap">{drawn}</span>')
        about = f"{self.n_prompt} tokens and {len(self.new_ids)} new ones (underlined), stopped: {self.stopped}"
        return (
            '<div style="font-family:monospace;line-height:1.7">'
            + " ".join(parts)
            + f'<div style="opacity:.75">{html.escape(about)}</div></div>'
        )


def with_last_row(
    model: Model, ids: Int[Tensor, " pos"], stream: Sequence[Tensor], edits: Sequence[BoundEdit]
) -> tuple[Tensor, ...]:
    """A stream of all positions but the last, with that one. The rows before it only give their keys and values."""
    n_pos, editing = len(ids), Editing([edits])
    whole, asked = Layout.of_lengths([n_pos], model.device), Layout.of_blocks([Block(0, 1, n_pos, asked=1)], model.device)
    last = Layout.of_blocks([Block(0, 1, 1, start=n_pos - 1)], model.device)
    with torch.no_grad(), told_when_full(model), closing(model.layers()) as layers:
        found = [torch.cat((stream[0], model.network.embed(ids[-1:], last, editing)))]
        for layer in layers:
            edited = any(edit.address.layer == layer.index for edit in edits)
            layout = whole if edited else asked
            row = layer(found[-1], layout, editing.at(layer.index, layout))[-1:]
            found.append(torch.cat((stream[layer.index + 1], row)))
    return tuple(found)

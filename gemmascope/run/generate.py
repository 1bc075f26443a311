"""gs.generate: text from a model, with edits, and with what was kept on the way."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gemmascope.errors import EditError, GenerationError
from gemmascope.model.model import Model
from gemmascope.run.bound import BoundEdit
from gemmascope.run.decoding import Decoder
from gemmascope.run.default import model_or_nano
from gemmascope.run.edits import Edit, listed_edits
from gemmascope.run.generation import Generation
from gemmascope.run.sampling import Sampling
from gemmascope.run.stopping import Stopping, Writing
from gemmascope.run.trace import is_many
from gemmascope.run.where import find_positions_ahead

Show = bool | Callable[[str], Any]

_PLACES = ("pos", "q_pos", "k_pos")


def generate(
    prompt: Any,
    *,
    model: Model | None = None,
    edits: Sequence[Edit] = (),
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: Any = (),
    show: Show = False,
) -> Any:
    """Go on with a prompt, token by token; keys and values are kept, in local layers as far as their window.

    prompt: as in gs.trace: text, token ids, chat messages, or a list of prompts, which share their passes and give a list.
    edits: as in gs.trace, at absolute positions, in the prompt and in what is generated alike. A token is looked up in the
    prompt and a negative number counts from its end; numbers beyond it are positions to come, an open slice goes on
    through them, and pos=None means every position. A user's function (gs.edit) sees the rows of each pass: the prompt's
    together, then each new position's alone.
    temperature: 0 takes the likeliest token; above, tokens are drawn from softmax(logits / temperature), cut to the share
    top_p of probability. seed: of the draws; run i of several draws with seed + i, as it would alone. stop: texts or token
    ids that end it, besides the model's own end tokens. show: True prints the text as it comes; a function is given each
    piece of it.
    Interrupting returns what there is. Raises PromptError, SiteError, EditError or GenerationError for what does not fit,
    before anything is run.
    """
    model, edits = model_or_nano(model), listed_edits(edits)
    sampling = Sampling(temperature, top_p)
    many = is_many(prompt)
    prompts = list(prompt) if many else [prompt]
    if show and many:
        raise GenerationError(f"the text of one prompt is shown as it comes; given {len(prompts)}: leave show out")
    if show and not model.has_tokenizer:
        raise GenerationError(f"the model {model.name!r} came without a tokenizer, so there is no text to show")
    _require_whole("max_new_tokens", max_new_tokens, 1)
    _require_whole("seed", seed, 0)
    runs = [_Run.of(one, i, model, edits, max_new_tokens, stop, seed) for i, one in enumerate(prompts)]
    shown = _printed if show is True else show if callable(show) else _unseen
    found = _Loop(runs, sampling, shown, model, max_new_tokens).run()
    if show is True:
        print()
    return found if many else found[0]


@dataclass
class _Run:
    """One prompt on its way. edits: with their positions as numbers; new and logprobs: what was drawn so far."""

    prompt: Tensor
    edits: tuple[Edit, ...]
    n_total: int
    writing: Writing
    generator: torch.Generator
    new: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stopped: str | None = None

    @classmethod
    def of(cls, prompt: Any, number: int, model: Model, edits: Sequence[Edit], n_new: int, stop: Any, seed: int) -> _Run:
        ids = model.ids(prompt)
        context = model.config.context
        if len(ids) + n_new > context:
            room = context - len(ids)
            do = f"ask for {room} at most" if room else "shorten it"
            raise GenerationError(
                f"the prompt has {len(ids)} tokens and {model.name!r} a context of {context}: {n_new} new ones would go "
                f"past it; {do}"
            )
        n_total = len(ids) + n_new
        placed = tuple(_placed(edit, model, ids, n_total) for edit in edits)
        tokenizer = model.tokenizer if model.has_tokenizer else None
        writing = Writing(tokenizer, Stopping.of(stop, prompt, model))
        return cls(ids, placed, n_total, writing, torch.Generator().manual_seed(seed + number))

    def take(self, token: int, logprob: float, n_new: int) -> str:
        """Take a token; the text that is whole with it."""
        self.new.append(token)
        self.logprobs.append(logprob)
        piece, self.stopped = self.writing.add(token)
        if self.stopped is None and len(self.new) == n_new:
            self.stopped = "length"
            piece += self.writing.rest()
        return piece


class _Loop:
    """Draws a token for every run, and goes on with those that have not ended."""

    def __init__(
        self, runs: Sequence[_Run], sampling: Sampling, show: Callable[[str], Any], model: Model, n_new: int
    ) -> None:
        self.runs, self.sampling, self.show, self.model, self.n_new = runs, sampling, show, model, n_new
        bound = [[_bound(edit, run, model) for edit in run.edits] for run in runs]
        self.decoder = Decoder(model, [run.prompt for run in runs], bound, max(run.n_total for run in runs))

    def run(self) -> list[Generation]:
        try:
            logits = self.decoder.prefill()
            while going := self._draw(logits):
                self.decoder.keep(going)
                logits = self.decoder.step([self.runs[number].new[-1] for number in self.decoder.going])
        except KeyboardInterrupt:
            n_new = sum(len(run.new) for run in self.runs)
            if not n_new:
                raise
            warnings.warn(f"interrupted after {n_new} new tokens", stacklevel=4)
        return [self._generation(number) for number in range(len(self.runs))]

    def _draw(self, logits: Tensor) -> list[int]:
        """A token for every run that goes on; the places of those that still do."""
        logprobs = logits.log_softmax(-1)
        for place, number in enumerate(self.decoder.going):
            run = self.runs[number]
            token = self.sampling.draw(logits[place], run.generator)
            self.show(run.take(token, float(logprobs[place, token]), self.n_new))
        return [place for place, number in enumerate(self.decoder.going) if self.runs[number].stopped is None]

    def _generation(self, number: int) -> Generation:
        run = self.runs[number]
        ids = torch.cat((run.prompt, torch.tensor(run.new, dtype=torch.long, device=run.prompt.device)))
        edits = tuple(edit for edit in (_cut(edit, len(ids)) for edit in run.edits) if edit is not None)
        stream = tuple(self.decoder.stream(number))
        return Generation(self.model, ids, len(run.prompt), tuple(run.logprobs), run.stopped or "interrupted", edits, stream)


def _placed(edit: Edit, model: Model, prompt: Tensor, n_total: int) -> Edit:
    """An edit with its positions as numbers, which mean the same while the run grows."""
    return replace(edit, **{name: find_positions_ahead(getattr(edit, name), model, prompt, n_total) for name in _PLACES})


def _cut(edit: Edit, n_pos: int) -> Edit | None:
    """An edit as far as there are positions; None where there are none of its own."""
    places = {name: getattr(edit, name) for name in _PLACES}
    there = {name: None if at is None else [n for n in at if n < n_pos] for name, at in places.items()}
    return None if any(at == [] for at in there.values()) else replace(edit, **there)


def _bound(edit: Edit, run: _Run, model: Model) -> BoundEdit:
    """An edit bound to as many positions as the run may come to have."""
    to_come = run.prompt.new_zeros(run.n_total - len(run.prompt))
    try:
        return edit.bind(model, torch.cat((run.prompt, to_come)))
    except EditError as error:
        if edit.pos is not None or edit.q_pos is not None:
            raise
        raise EditError(
            f"{error} (in generation an edit without a position is made at all {run.n_total} positions, the generated ones "
            f"included; for the prompt alone say pos=slice(0, {len(run.prompt)}))"
        ) from error


def _printed(piece: str) -> None:
    print(piece, end="", flush=True)


def _unseen(piece: str) -> None:
    pass


def _require_whole(name: str, given: Any, least: int) -> None:
    if isinstance(given, bool) or not isinstance(given, int) or given < least:
        raise GenerationError(f"{name} is a whole number from {least} upwards; given {given!r}")

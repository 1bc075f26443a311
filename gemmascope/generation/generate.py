"""gs.generate: text from a model, with edits, and with what was kept on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gemmascope.arguments import shown, whole_number
from gemmascope.edits.bound import BoundEdit, with_write_record
from gemmascope.edits.edit import Edit, listed_edits
from gemmascope.edits.reach import warn_if_not_reached, warn_of_no_effect
from gemmascope.errors import GenerationError, warn
from gemmascope.generation.decoder import Decoder
from gemmascope.generation.edits import bind_for_generation, cut
from gemmascope.generation.result import Generation
from gemmascope.generation.sampling import Sampling
from gemmascope.generation.stopping import IncrementalDetokenizer, Stopping
from gemmascope.legible import legible
from gemmascope.loading.default import model_or_nano
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.model.prompts import listed_prompts

Show = bool | Callable[[str], Any]

MOST_SEED = 2**63


@computes
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
    together, then each new position's alone, at edge sites with the keys so far.
    temperature: 0 takes the likeliest token; above, tokens are drawn from softmax(logits / temperature), cut to the share
    top_p of probability. seed: of the draws; run i of several draws with seed + i, as it would alone. stop: texts or token
    ids that end it, besides the model's own end tokens (after chat messages also the end of a turn); a stop text may begin
    and end inside tokens, and stays in the text. show: True prints the text as it comes; a function is given each piece.
    Interrupting returns what there is. Raises PromptError, SiteError, EditError or GenerationError for what does not fit,
    before anything is run.
    """
    model, edits = model_or_nano(model), listed_edits(edits)
    sampling = Sampling(temperature, top_p)
    prompts, many = listed_prompts(prompt)
    shown = _shown(show, model, prompts if many else None)
    n_new = whole_number(max_new_tokens, "max_new_tokens", least=1, error=GenerationError)
    seed = whole_number(seed, "seed", least=0, most=MOST_SEED - len(prompts), error=GenerationError)
    model.each_ids(prompts)  # an error says which prompt it is about
    runs = [_Run.of(one, model, edits, n_new, stop, seed + i) for i, one in enumerate(prompts)]
    try:
        found = _Loop(runs, sampling, shown, model, n_new).run()
    finally:
        if show is True:
            print()
    return found if many else found[0]


def growing_texts(prompt: Any, model: Model, edits: Sequence[Edit], max_new_tokens: int) -> Iterator[str]:
    """The likeliest text after one prompt, as it grows: all of it so far, after every token. Errors as in generate, at once.

    Without a tokenizer it is the ids. Whoever asks no further ends it: nothing is run before it is asked for.
    """
    n_new = whole_number(max_new_tokens, "max_new_tokens", least=1, error=GenerationError)
    run = _Run.of(prompt, model, listed_edits(edits), n_new, (), 0)
    return _growing(run, model, n_new)


def _growing(run: _Run, model: Model, n_new: int) -> Iterator[str]:
    for _ in _Loop([run], Sampling(0.0, 1.0), lambda piece: None, model, n_new).steps():
        yield run.writing.text if model.has_tokenizer else " ".join(str(token) for token, _ in run.new)


@dataclass
class _Run:
    """One prompt on its way. new: the tokens that were drawn so far, each with its logarithm of probability."""

    prompt: Tensor
    asked: tuple[Edit, ...]
    edits: tuple[BoundEdit, ...]
    n_total: int
    writing: IncrementalDetokenizer
    generator: torch.Generator
    new: list[tuple[int, float]] = field(default_factory=list)
    stopped: str | None = None

    @classmethod
    def of(cls, prompt: Any, model: Model, edits: Sequence[Edit], n_new: int, stop: Any, seed: int) -> _Run:
        ids = model.ids(prompt)
        context = model.config.context
        if len(ids) + n_new > context:
            room = context - len(ids)
            do = f"ask for {room} at most" if room else "shorten it"
            raise GenerationError(
                f"the prompt has {len(ids)} tokens and {model.name!r} a context of {context}: {shown(n_new)} new ones would "
                f"go past it; {do}"
            )
        n_total = len(ids) + n_new
        bound = tuple(with_write_record(bind_for_generation(edit, model, ids, n_total)) for edit in edits)
        warn_of_no_effect(bound, model, ids, edits)
        tokenizer = model.tokenizer if model.has_tokenizer else None
        writing = IncrementalDetokenizer(tokenizer, Stopping.of(stop, prompt, model), ids.tolist())
        return cls(ids, tuple(edits), bound, n_total, writing, torch.Generator().manual_seed(seed))

    def take(self, token: int, logprob: float, n_new: int) -> str:
        """Take a token; the text that is whole with it."""
        self.new.append((token, logprob))
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
        n_total = max(run.n_total for run in runs)
        self.decoder = Decoder(model, [run.prompt for run in runs], [run.edits for run in runs], n_total)

    def steps(self) -> Iterator[None]:
        """Draw token after token; stops after each, with what there is in the runs."""
        logits = self.decoder.prefill()
        while going := self._draw(logits):
            yield
            self.decoder.keep(going)
            logits = self.decoder.step([self.runs[number].new[-1][0] for number in self.decoder.going])
        yield

    def run(self) -> list[Generation]:
        try:
            for _ in self.steps():
                pass
        except KeyboardInterrupt:
            n_new = sum(len(run.new) for run in self.runs)
            if not n_new:
                raise
            warn(f"interrupted after {n_new} new tokens")
        return [self._generation(number) for number in range(len(self.runs))]

    def _draw(self, logits: Tensor) -> list[int]:
        """A token for every run that goes on; the places of those that still do."""
        runs = [self.runs[number] for number in self.decoder.going]
        tokens = self.sampling.draw(logits, [run.generator for run in runs])
        found = logits.log_softmax(-1).gather(1, torch.tensor(tokens, device=logits.device)[:, None])
        for run, token, logprob in zip(runs, tokens, found[:, 0].tolist(), strict=True):
            self.show(run.take(token, logprob, self.n_new))
        return [place for place, run in enumerate(runs) if run.stopped is None]

    def _generation(self, number: int) -> Generation:
        run = self.runs[number]
        if run.stopped is None:
            self.show(run.writing.rest())
        new = torch.tensor([token for token, _ in run.new], dtype=torch.long, device=run.prompt.device)
        ids = torch.cat((run.prompt, new))
        came = [cut(edit, self.model, ids) for edit in run.edits]
        for asked, edit, bound in zip(run.asked, run.edits, came, strict=True):
            warn_if_not_reached(asked, edit, len(ids), made=bound is not None)
        edits = tuple(bound for bound in came if bound is not None)
        stream = tuple(entry[: len(ids)] for entry in self.decoder.stream(number))
        return Generation(
            self.model, ids, len(run.prompt), run.writing.text, tuple(logprob for _, logprob in run.new),
            run.stopped or "interrupted", edits, stream,
        )  # fmt: skip


def _shown(show: Any, model: Model, several: Sequence[Any] | None) -> Callable[[str], Any]:
    """What is done with each piece of text. GenerationError where there is no one text."""
    if show is False:
        return lambda piece: None
    if show is not True and not callable(show):
        raise GenerationError(f"show is True, False, or a function that is given each piece of text; given {shown(show)}")
    if several is not None:
        raise GenerationError(f"the text of one prompt is shown as it comes; given {len(several)}: leave show out")
    if not model.has_tokenizer:
        raise GenerationError(f"the model {model.name!r} came without a tokenizer, so there is no text to show")
    if show is True:
        return lambda piece: print(legible(piece), end="", flush=True)
    return show  # type: ignore[no-any-return]

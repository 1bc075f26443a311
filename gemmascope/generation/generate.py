"""gs.generate: checks the arguments, then draws a token for every run until each has stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gemmascope.arguments import short_repr, whole_number
from gemmascope.edits.edit import BoundEdit, Edit, with_write_record
from gemmascope.edits.of_run import all_edits
from gemmascope.edits.reach import warn_if_not_reached, warn_of_no_effect
from gemmascope.errors import GenerationError, warn
from gemmascope.generation.decoder import Decoder
from gemmascope.generation.edits import bind_for_generation, cut_to_length
from gemmascope.generation.result import Generation
from gemmascope.generation.sampling import Sampling
from gemmascope.generation.stopping import IncrementalDetokenizer, Stopping
from gemmascope.legible import legible
from gemmascope.loading.default import model_or_nano
from gemmascope.model.model import Model, Prompt
from gemmascope.model.modes import computes
from gemmascope.model.prompts import listed_prompts
from gemmascope.values import on_host

Show = bool | Callable[[str], object]

MOST_SEED = 2**63


@computes
def generate(
    prompt: object,
    *,
    model: Model | None = None,
    edits: Sequence[Edit] = (),
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: object = (),
    show: Show = False,
    top_k: int | None = None,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    samples: int | None = None,
) -> Any:
    """Continue a prompt token by token, with edits that apply while decoding too.

    Keys and values are cached; local layers cache as many positions as their window holds. An interrupt (Ctrl-C) returns
    what was generated so far. The logits go through repetition_penalty, temperature, top_k, top_p and min_p in this order,
    which is transformers'.

    Args:
        prompt: As in gs.trace: text, token ids, chat messages, or a list of prompts, which share their passes.
        model: What gs.load returned; None means nano.
        edits: As in gs.trace, at absolute positions of the prompt and the new tokens alike. A token is looked up in the
            prompt, and a negative number counts from the prompt's end. Larger numbers are positions to come, an open slice
            covers them, and pos=None means every position. A function of gs.edit sees the rows of one pass: the whole
            prompt first, then each new position alone, at edge sites with all keys so far.
        max_new_tokens: The most tokens to generate for each prompt. Default 32.
        temperature: 0.0, the default, takes the likeliest token; above it, tokens are drawn from
            softmax(logits / temperature).
        top_p: Draw from the fewest likeliest tokens whose probabilities sum to at least this. Default 1.0, all tokens.
        seed: Seed of the draws. Prompt i of a list draws with seed + i, as it would alone, and of n samples a prompt the
            j-th with seed + i * n + j. Default 0.
        stop: Texts or token ids that end the text, besides the model's end tokens (and the end of a turn after chat
            messages). A stop text may begin and end inside tokens, and stays in the text.
        show: True prints the text as it is generated; a function is called with each new piece. Default False.
        top_k: Draw from the top_k likeliest tokens, and those as likely as the last of them. None, the default: all tokens.
        min_p: Draw from tokens that are at least this share as likely as the likeliest. Default 0.0, all tokens.
        repetition_penalty: The logits of tokens in the text so far, the prompt included, are divided by it where positive
            and multiplied where negative, at any temperature. Default 1.0, none.
        samples: The number of texts drawn from each prompt, which share the prompt's pass. Default: one, by itself.

    Returns:
        A Generation; for a list of prompts, a list of them. With samples, a list of Generations in place of each.

    Raises:
        PromptError, SiteError, EditError, GenerationError: An argument does not fit. Raised before anything runs.

    Examples:
        >>> gs.generate("Mary and John went to the", max_new_tokens=5).text
        ' library leaves at three.'
        >>> drawn = gs.generate("Mary and", temperature=0.8, top_k=20, samples=3, max_new_tokens=4)
        >>> len(drawn), drawn[0].n_prompt
        (3, 3)

    References:
        Fan et al., "Hierarchical Neural Story Generation" (arXiv 1805.04833), for top_k.
        Holtzman et al., "The Curious Case of Neural Text Degeneration" (arXiv 1904.09751), for top_p.
        Keskar et al., "CTRL" (arXiv 1909.05858), for repetition_penalty.
        Nguyen et al., "Turning Up the Heat: Min-p Sampling" (arXiv 2407.01082), for min_p.
    """
    model = model_or_nano(model)
    edits = all_edits(model, edits)
    sampling = Sampling(temperature, top_p, top_k, min_p, repetition_penalty)
    prompts, is_list = listed_prompts(prompt)
    n_samples = _n_samples(samples, sampling)
    n_texts = len(prompts) * n_samples
    each_of = "" if n_samples == 1 else f", {n_samples} samples of each"
    show_piece = _show_function(show, model, f"{len(prompts)}{each_of}" if is_list or n_samples > 1 else None)
    n_new = whole_number(max_new_tokens, "max_new_tokens", least=1, error=GenerationError)
    seed = whole_number(seed, "seed", least=0, most=MOST_SEED - n_texts, error=GenerationError)
    model.each_ids(prompts)  # whose error names the prompt
    each = [one for one in prompts for _ in range(n_samples)]
    runs = [_Run.of(one, model, edits, n_new, stop, seed + i) for i, one in enumerate(each)]
    try:
        generations = _Loop(runs, sampling, show_piece, model, n_new, n_samples).run()
    finally:
        if show is True:
            print()
    if samples is None:
        return generations if is_list else generations[0]
    by_prompt = [generations[i : i + n_samples] for i in range(0, n_texts, n_samples)]
    return by_prompt if is_list else by_prompt[0]


def _n_samples(samples: int | None, sampling: Sampling) -> int:
    """The texts of each prompt. GenerationError for several that could not differ."""
    if samples is None:
        return 1
    n = whole_number(samples, "samples", least=1, error=GenerationError)
    if n > 1 and sampling.temperature == 0:
        raise GenerationError(
            f"samples={n} at temperature 0 would be the same text {n} times, the likeliest: say temperature=1.0, or leave "
            "samples out"
        )
    return n


def growing_texts(
    prompt: Prompt, model: Model, edits: Sequence[Sequence[Edit]], max_new_tokens: int
) -> Iterator[list[tuple[str, list[int]]]]:
    """The greedy continuations of one prompt under each of these lists of edits, in shared passes, after every token.

    Each is the whole text so far (without a tokenizer, its ids as text) and the ids of its tokens. Raises as generate does,
    when it is called. A token is generated only when it is requested.
    """
    n_new = whole_number(max_new_tokens, "max_new_tokens", least=1, error=GenerationError)
    return _growing([_Run.of(prompt, model, all_edits(model, each), n_new, (), 0) for each in edits], model, n_new)


def _growing(runs: list[_Run], model: Model, n_new: int) -> Iterator[list[tuple[str, list[int]]]]:
    for _ in _Loop(runs, Sampling(0.0, 1.0), lambda piece: None, model, n_new).steps():
        model.network.check()  # whoever reads the texts may change the model between them
        ids = [[token for token, _ in run.new] for run in runs]
        texts = [
            run.detokenizer.text if model.has_tokenizer else " ".join(map(str, run_ids))
            for run, run_ids in zip(runs, ids, strict=True)
        ]
        yield list(zip(texts, ids, strict=True))


@dataclass
class _Run:
    """One prompt and its text so far.

    user_edits: the edits as the user wrote them. n_total: the most positions that the run may reach. new: the tokens drawn
    so far, each with its log probability. text_ids: the ids of the prompt and of those.
    """

    prompt: Tensor
    user_edits: tuple[Edit, ...]
    edits: tuple[BoundEdit, ...]
    n_total: int
    detokenizer: IncrementalDetokenizer
    generator: torch.Generator
    text_ids: list[int]
    new: list[tuple[int, float]] = field(default_factory=list)
    stopped: str | None = None

    @classmethod
    def of(cls, prompt: Prompt, model: Model, edits: Sequence[Edit], n_new: int, stop: object, seed: int) -> _Run:
        ids = model.ids(prompt)
        context = model.config.context
        if len(ids) + n_new > context:
            n_left = context - len(ids)
            do = f"ask for {n_left} at most" if n_left else "shorten it"
            raise GenerationError(
                f"the prompt has {len(ids)} tokens and {model.name!r} a context of {context}: {short_repr(n_new)} new ones "
                f"would go past it; {do}"
            )
        n_total = len(ids) + n_new
        bound = tuple(with_write_record(bind_for_generation(edit, model, ids, n_total)) for edit in edits)
        warn_of_no_effect(bound, model, ids, edits)
        tokenizer = model.tokenizer if model.has_tokenizer else None
        detokenizer = IncrementalDetokenizer(tokenizer, Stopping.of(stop, prompt, model), ids.tolist())
        return cls(ids, tuple(edits), bound, n_total, detokenizer, torch.Generator().manual_seed(seed), ids.tolist())

    def add(self, token: int, logprob: float, n_new: int) -> str:
        """Add a token; returns the text that it completes."""
        self.new.append((token, logprob))
        self.text_ids.append(token)
        piece, self.stopped = self.detokenizer.add(token)
        if self.stopped is None and len(self.new) == n_new:
            self.stopped = "length"
            piece += self.detokenizer.rest()
        return piece


class _Loop:
    """Draws tokens until every run has stopped."""

    def __init__(
        self,
        runs: Sequence[_Run],
        sampling: Sampling,
        show: Callable[[str], object],
        model: Model,
        n_new: int,
        samples: int = 1,
    ) -> None:
        self.runs, self.sampling, self.show, self.model, self.n_new = runs, sampling, show, model, n_new
        n_total = max(run.n_total for run in runs)
        self.decoder = Decoder(model, [run.prompt for run in runs], [run.edits for run in runs], n_total, samples)

    def steps(self) -> Iterator[None]:
        """Draw one token for every active run, then yield; the runs hold what was drawn."""
        logits = self.decoder.prefill()
        while active := self._draw(logits):
            yield
            self.decoder.keep_runs(active)
            logits = self.decoder.step([self.runs[number].new[-1][0] for number in self.decoder.active])
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
        self.model.network.check()  # here and before the first pass, since for each token it takes as long as some layers
        return [self._generation(number) for number in range(len(self.runs))]

    def _draw(self, logits: Tensor) -> list[int]:
        """Draw a token for every active run; returns the places, among these, of those that have not stopped."""
        runs = [self.runs[number] for number in self.decoder.active]
        for run, token, logprob in zip(runs, *self._choose(logits, runs), strict=True):
            self.show(run.add(token, logprob, self.n_new))
        return [place for place, run in enumerate(runs) if run.stopped is None]

    def _choose(self, logits: Tensor, runs: Sequence[_Run]) -> tuple[list[int], list[float]]:
        """The next token of each run and its log probability. The host waits for the device once."""
        sums = self.decoder.sums()
        if self.sampling.takes_the_likeliest:
            tokens = logits.argmax(-1)
            chosen, logprobs, sums = on_host(tokens, _logprobs(logits, tokens), sums)
            self.decoder.require_valid(sums)
            return chosen.tolist(), logprobs.tolist()
        logits, sums = on_host(logits, sums)
        self.decoder.require_valid(sums)
        drawn = self.sampling.draw(logits, [run.generator for run in runs], [run.text_ids for run in runs])
        return drawn, _logprobs(logits, torch.tensor(drawn)).tolist()

    def _generation(self, number: int) -> Generation:
        run = self.runs[number]
        if run.stopped is None:
            self.show(run.detokenizer.rest())
        new = torch.tensor([token for token, _ in run.new], dtype=torch.long, device=run.prompt.device)
        ids = torch.cat((run.prompt, new))
        cut = [cut_to_length(edit, self.model, ids) for edit in run.edits]
        for user_edit, edit, bound in zip(run.user_edits, run.edits, cut, strict=True):
            warn_if_not_reached(user_edit, edit, len(ids), applied=bound is not None)
        edits = tuple(bound for bound in cut if bound is not None)
        stream = tuple(entry[: len(ids)] for entry in self.decoder.stream(number))
        return Generation(
            self.model, ids, len(run.prompt), run.detokenizer.text, tuple(logprob for _, logprob in run.new),
            run.stopped or "interrupted", edits, stream,
        )  # fmt: skip


def _logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """The log probability of a token for each run."""
    return logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]


def _show_function(show: object, model: Model, n_prompts: str | None) -> Callable[[str], object]:
    """What is called with each piece of text. GenerationError for several prompts (None: one), which have no one text."""
    if show is False:
        return lambda piece: None
    if show is not True and not callable(show):
        raise GenerationError(
            f"show is True, False, or a function that is given each piece of text; given {short_repr(show)}"
        )
    if n_prompts is not None:
        raise GenerationError(f"the text of one prompt is shown as it comes; given {n_prompts}: leave show out")
    if not model.has_tokenizer:
        raise GenerationError(f"the model {model.name!r} came without a tokenizer, so there is no text to show")
    if show is True:
        return lambda piece: print(legible(piece), end="", flush=True)
    return show

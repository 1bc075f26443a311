"""A model of this package behind the interface of lm-evaluation-harness, its LM. The one module that imports lm_eval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm.auto import tqdm

from gemmascope.edits.edit import Edit
from gemmascope.errors import GenerationError, PromptError, warn
from gemmascope.evaluation.scoring import Request, score
from gemmascope.generation.generate import generate
from gemmascope.generation.stopping import can_occur
from gemmascope.model.model import Model

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

# The new tokens of a task that does not say how many, as lm_eval's own model for transformers has it.
MAX_NEW_TOKENS = 256
# Continuations that are generated side by side.
AT_ONCE = 64

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = ("top_p", "top_k", "min_p", "repetition_penalty")


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """A model with edits, for lm_eval. Texts are split into tokens, cut and joined as its `hf` model does it."""

    def __init__(self, model: Model, edits: Sequence[Edit] = (), *, seed: int = 0, progress: bool = True) -> None:
        super().__init__()
        self.model, self.edits, self.seed, self.progress = model, edits, seed, progress
        self._device, self._bos = model.device, model.tokenizer.text(model.tokenizer.bos_id)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.model.config.eos_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """The token in front of a text without a context: <bos>."""
        return self.model.tokenizer.bos_id

    @property
    def max_length(self) -> int:
        """The most tokens of a run."""
        return self.model.config.context

    @property
    def max_gen_toks(self) -> int:
        """The most new tokens of a request that does not say how many."""
        return MAX_NEW_TOKENS

    @property
    def tokenizer_name(self) -> str:
        """Part of the names under which lm_eval caches requests."""
        return f"{self.model.name}-{self.model.tokenizer.digest[:16]}".replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **others: object) -> list[int]:
        """The ids of a text, with <bos> in front unless the text has it or add_special_tokens is False."""
        ids = self.model.tokenizer.encode(string)
        has_bos = add_special_tokens is None and string.startswith(self._bos)
        return ids if has_bos or add_special_tokens is False else [self.model.tokenizer.bos_id, *ids]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]], **others: object
    ) -> list[tuple[float, bool]]:
        asked, n_cut = [], 0
        for _, context, continuation in requests:
            if not continuation or len(continuation) > self.max_length:
                raise PromptError(
                    f"a continuation of {len(continuation)} tokens cannot be scored: 1 to {self.max_length} are possible"
                )
            kept = context[-(self.max_length + 1 - len(continuation)) :]
            n_cut += len(kept) < len(context)
            asked.append(Request(tuple(kept), tuple(continuation)))
        if n_cut:
            warn(
                f"{n_cut} of {len(requests)} requests are longer than the context of {self.max_length} tokens: they lose "
                "tokens at their beginning"
            )
        with self._bar(len(asked), "log-likelihoods") as bar:
            scores = score(self.model, asked, self.edits, bar.update)
        for (texts, _, _), one in zip(requests, scores, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, one)
        return scores

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, in windows of the context that lm_eval lays."""
        windows: list[tuple[None, list[int], list[int]]] = []
        counts = []
        for request in requests:
            (text,) = request.args
            pairs = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            own = [(None, *make_disjoint_window(pair)) for pair in pairs]
            windows += own
            counts.append(len(own))
        scores = iter(self._loglikelihood_tokens(windows))
        totals = [sum(next(scores)[0] for _ in range(n)) for n in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context, up to the texts that end it."""
        texts, n_cut = [""] * len(requests), 0
        asked: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            asked.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        with self._bar(len(requests), "texts") as bar:
            for numbers in asked.values():
                options = _Options(requests[numbers[0]].args[1])
                most = self._most(options.n_new)
                whole = {number: self.tok_encode(requests[number].args[0]) for number in numbers}
                n_cut += sum(len(ids) > most for ids in whole.values())
                prompts = {number: ids[-most:] for number, ids in whole.items()}
                by_length = sorted(numbers, key=lambda number: len(prompts[number]))
                for first in range(0, len(by_length), AT_ONCE):
                    some = by_length[first : first + AT_ONCE]
                    for number, text in zip(some, self._texts([prompts[n] for n in some], options, some), strict=True):
                        texts[number] = text
                        self.cache_hook.add_partial("generate_until", requests[number].args, text)
                    bar.update(len(some))
        if n_cut:
            warn(
                f"{n_cut} of {len(requests)} contexts leave no room for the new tokens in the {self.max_length} of a run: "
                "they lose tokens at their beginning"
            )
        return texts

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text, by the checkpoint's template. Without the system's messages where that refuses them."""
        chat = self.model.tokenizer.chat
        try:
            text = chat(chat_history)
        except PromptError:
            without = [message for message in chat_history if message["role"] != "system"]
            if len(without) == len(chat_history):
                raise
            warn("the chat template takes no system message: it is left out")
            text = chat(without)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"].strip()
        return text[: text.rindex(last) + len(last)]

    def _bar(self, total: int, what: str) -> tqdm:
        return tqdm(total=total, desc=what, disable=not self.progress)

    def _most(self, n_new: int) -> int:
        """The most tokens of a context that n_new tokens follow."""
        if n_new >= self.max_length:
            raise GenerationError(
                f"a task asks for up to {n_new} new tokens, and {self.model.name!r} has a context of {self.max_length}: set "
                "max_gen_toks in the task's generation_kwargs, or give generation={'max_gen_toks': ...}, "
                "on the command line --max-gen-toks"
            )
        return self.max_length - n_new

    def _texts(self, prompts: Sequence[list[int]], options: _Options, numbers: Sequence[int]) -> list[str]:
        tokenizer = self.model.tokenizer
        stop = [text for text in options.until if text and can_occur(text, tokenizer)]
        runs = generate(
            [torch.tensor(ids) for ids in prompts],
            model=self.model,
            edits=self.edits,
            max_new_tokens=options.n_new,
            temperature=options.temperature,
            stop=stop,
            seed=self.seed + min(numbers),
            **options.sampling,
        )
        texts = []
        for run in runs:
            text = tokenizer.decode(i for i in run.new_ids.tolist() if not tokenizer.is_special(i))
            for end in filter(None, options.until):
                text = text.split(end)[0]
            texts.append(text)
        return texts


class _Options:
    """What a task asks of a text. n_new: the most new tokens. until: the texts that end it, and are not part of it."""

    def __init__(self, asked: Mapping[str, object]) -> None:
        given = dict(asked)
        until = given.pop("until", None)
        self.until: list[str] = [until] if isinstance(until, str) else list(until or ())  # type: ignore[call-overload]
        lengths = [value for name in _LENGTHS if (value := given.pop(name, None)) is not None]
        self.n_new = int(lengths[0]) if lengths else MAX_NEW_TOKENS  # type: ignore[call-overload]
        draws = given.pop("do_sample", None)
        temperature = float(given.pop("temperature", 1.0 if draws else 0.0))  # type: ignore[arg-type]
        if draws and temperature == 0:
            raise GenerationError("a task asks for do_sample at a temperature of 0: give one above 0, or no do_sample")
        self.temperature = 0.0 if draws is False else temperature
        self.sampling: dict[str, Any] = {name: given.pop(name) for name in _SAMPLING if name in given}
        if self.temperature == 0:
            self.sampling = {name: self.sampling[name] for name in self.sampling if name == "repetition_penalty"}
        if others := {name: value for name, value in given.items() if (name, value) != ("num_beams", 1)}:
            raise GenerationError(
                f"a task asks for {', '.join(map(repr, others))} in its generation_kwargs; taken are until, "
                f"{', '.join(_LENGTHS)}, do_sample, temperature, {', '.join(_SAMPLING)}"
            )

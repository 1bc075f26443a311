"""What both readers of a model are asked: prompts as token ids, a pair for patching, and the cells of the sweep."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from gemmascope.config import GemmaConfig
from gemmascope.errors import PromptError
from gemmascope.model.model import Model

# Steps whose questions are asked only if they run.
LONG, GENERATION, SWEEP = "long prompt", "generation", "sweep"

TEXTS = (
    "When Mary and John went to the store, John gave a drink to",
    "The Eiffel Tower is in the city of",
    "def area(width, height):\n    return width *",
    "1, 2, 3, 4, 5, 6,",
    "In the beginning there was nothing, and then, after a very long time, there was a little more than nothing, and so",
)
CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
ANSWER, AGAINST = " Mary", " John"
# Tokens that are generated, and after how many of the prompts.
NEW_TOKENS, GENERATED = 16, 2
# A prompt is longer than the window by this much, and the logits of its last positions are compared.
BEYOND_WINDOW, LAST_POSITIONS = 64, 4
_SAMPLE = 8
_LENGTH = 16  # of random prompts, for a model without a tokenizer

# (site, layer, position or head)
Cell = tuple[str, int, int]


@dataclass(frozen=True)
class Questions:
    """The prompts and cells, as numbers.

    Attributes:
        prompts: Token ids of each prompt.
        clean: Token ids of the run that values are taken from.
        corrupt: Token ids of the run that they are patched into.
        answer: The token whose logit is measured.
        against: The token whose logit is subtracted.
        long: A prompt longer than the window of local layers; None where the model's context is no longer than it.
        layers: The layers that are patched.
        cells: A sample of the sweep's cells.
        in_words: Whether the prompts are texts; else they are random tokens, because the model has no tokenizer.
    """

    prompts: tuple[tuple[int, ...], ...]
    clean: tuple[int, ...]
    corrupt: tuple[int, ...]
    answer: int
    against: int
    long: tuple[int, ...] | None
    layers: tuple[int, ...]
    cells: tuple[Cell, ...]
    in_words: bool


def questions_for(model: Model) -> Questions:
    """The questions for a model, the same every time. Only its tokenizer and its shape are used."""
    rng = Random(0)
    worded = _in_words(model) if model.has_tokenizer else None
    prompts, clean, corrupt, answer, against = worded or _at_random(model.config, rng)
    layers = tuple(sorted({0, model.n_layers // 2, model.n_layers - 1}))
    first = next(i for i, (a, b) in enumerate(zip(clean, corrupt, strict=True)) if a != b)
    places: list[Cell] = [("resid_pre", layer, pos) for layer in layers for pos in range(first, len(clean))]
    heads: list[Cell] = [("z", layer, head) for layer in layers for head in range(model.config.n_heads)]
    cells = [*rng.sample(places, min(_SAMPLE, len(places))), *rng.sample(heads, min(_SAMPLE, len(heads)))]
    return Questions(
        prompts, clean, corrupt, answer, against, _long(prompts, model.config), layers, tuple(cells), worded is not None
    )


_Prompts = tuple[tuple[tuple[int, ...], ...], tuple[int, ...], tuple[int, ...], int, int]


def _in_words(model: Model) -> _Prompts | None:
    """The texts as token ids; None if the tokenizer does not read them as intended, so that random tokens do better."""

    def ids(text: str) -> tuple[int, ...]:
        return tuple(model.tokenizer.ids(text))  # the model has no values yet

    try:
        clean, corrupt = ids(CLEAN), ids(CORRUPT)
        endings = [ids(CLEAN + word)[len(clean) :] for word in (ANSWER, AGAINST)]
        prompts = tuple(ids(text) for text in TEXTS)
    except PromptError:  # such as a tokenizer with tokens that the model cannot embed
        return None
    longest = max(map(len, (*prompts, clean)))
    if longest + NEW_TOKENS > model.config.context or len(clean) != len(corrupt) or any(len(end) != 1 for end in endings):
        return None
    return prompts, clean, corrupt, endings[0][0], endings[1][0]


def _at_random(config: GemmaConfig, rng: Random) -> _Prompts:
    def ids() -> tuple[int, ...]:
        length = min(_LENGTH, config.context - NEW_TOKENS)
        return (config.bos_id, *(rng.randrange(min(5, config.vocab_size - 1), config.vocab_size) for _ in range(length - 1)))

    prompts = tuple(ids() for _ in TEXTS)
    clean, corrupt = prompts[0], list(prompts[0])
    corrupt[len(corrupt) // 2] = next(token for token in prompts[1][1:] if token != corrupt[len(corrupt) // 2])
    return prompts, clean, tuple(corrupt), clean[1], next(token for token in clean[2:] if token != clean[1])


def _long(prompts: tuple[tuple[int, ...], ...], config: GemmaConfig) -> tuple[int, ...] | None:
    length = config.window + BEYOND_WINDOW
    if config.context < length or "local" not in config.kinds:
        return None
    words = [token for prompt in prompts for token in prompt[1:]]
    return (config.bos_id, *(words * (length // len(words) + 1))[: length - 1])

"""transformers' answers to the questions: its own network, eager attention, one forward pass for each question."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gemmascope.checking.questions import GENERATED, GENERATION, LAST_POSITIONS, LONG, NEW_TOKENS, SWEEP, Cell, Questions
from gemmascope.config import GemmaConfig
from gemmascope.config_json import FAMILIES, GGUF_FAMILIES, MULTIMODAL, MULTIMODAL_ARCHITECTURE
from gemmascope.files.json_reader import read_json
from gemmascope.streaming.int8 import dequantise, n_groups, quantise


@dataclass
class Answers:
    """What one reader of a model answers. Every tensor is float32, on the CPU.

    Attributes:
        logits: The soft-capped logits of each prompt, [pos, vocab].
        patterns: The attention patterns of each prompt, [layer, head, q_pos, k_pos].
        long: Logits of the last positions of the long prompt, [pos, vocab]; None if it was not run.
        generated: New token ids after the first prompts.
        effects: By cell, what patching it changes in the difference of two logits.
    """

    logits: list[Tensor] = field(default_factory=list)
    patterns: list[Tensor] = field(default_factory=list)
    long: Tensor | None = None
    generated: list[list[int]] = field(default_factory=list)
    effects: dict[Cell, float] = field(default_factory=dict)

    @property
    def largest_logit(self) -> float:
        """The scale of logits."""
        return max(float(logits.abs().max()) for logits in self.logits)


@contextmanager
def transformers_model(
    path: Path, config: GemmaConfig, dtype: torch.dtype, device: torch.device, *, int8: bool = False
) -> Iterator[Any]:
    """transformers' network of a folder or GGUF file; freed at the end.

    config: As this package reads it. A GGUF file does not say by what attention scores are divided, and transformers would
    take 256 for every model, 27B too, so it is told.
    int8: Round the layers' matrices as weights="int8" rounds them.
    """
    network: Any = None
    try:
        with _quiet():
            network = _read(path, dtype).to(device).eval()
        if path.is_file():
            for layer in Reader(network).layers:
                layer.self_attn.scaling = config.query_scalar**-0.5
        if int8:
            _round_to_int8(network)
        yield network
    finally:
        del network
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _read(path: Path, dtype: torch.dtype) -> Any:
    import transformers

    # Since version 4.56 the argument is called dtype.
    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    options: dict[str, Any] = {"dtype" if (major, minor) >= (4, 56) else "torch_dtype": dtype}
    options["attn_implementation"] = "eager"
    if path.is_file():
        options["gguf_file"] = path.name
        from gemmascope.checkpoints.gguf.header import read_architecture

        kind, folder = read_architecture(path), path.parent
        names = {gguf: family.architecture for gguf, family in GGUF_FAMILIES.items()}
    else:
        kind, folder = str(read_json(path / "config.json").get("model_type")), path
        names = {name: family.architecture for name, family in FAMILIES.items()} | {MULTIMODAL: MULTIMODAL_ARCHITECTURE}
    return getattr(transformers, names[str(kind)]).from_pretrained(str(folder), local_files_only=True, **options)


@torch.no_grad()
def _round_to_int8(network: Any) -> None:
    for name, parameter in network.named_parameters():
        if parameter.dim() == 2 and ".layers." in name and "vision" not in name:
            weight = parameter.data.cpu()
            q = torch.empty(weight.shape, dtype=torch.int8)
            scale = torch.empty(weight.shape[0], n_groups(weight.shape[1]), dtype=torch.float16)
            quantise(weight, q, scale, name)
            dequantise(q, scale, weight)
            parameter.data.copy_(weight)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' warnings and bars, which are about its own settings."""
    from transformers.utils import logging

    before, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
        if shows_bars:
            logging.enable_progress_bar()


class Reader:
    """Asks transformers' network."""

    def __init__(self, network: Any) -> None:
        self.network = network
        self.device = next(network.parameters()).device

    @torch.no_grad()
    def run(self, ids: Sequence[int], **options: Any) -> Any:
        with _quiet():
            return self.network(self._batch(ids), use_cache=False, **options)

    def _batch(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor([list(ids)], device=self.device)

    def logits_and_patterns(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        out = self.run(ids, output_attentions=True)
        patterns = torch.stack([pattern[0].float().cpu() for pattern in out.attentions])
        return out.logits[0].float().cpu(), patterns

    def last_logits(self, ids: Sequence[int]) -> Tensor:
        return self.run(ids, logits_to_keep=LAST_POSITIONS).logits[0].float().cpu()  # type: ignore[no-any-return]

    @torch.no_grad()
    def generate(self, ids: Sequence[int]) -> list[int]:
        batch = self._batch(ids)
        with _quiet():
            out = self.network.generate(
                batch, attention_mask=torch.ones_like(batch), do_sample=False, max_new_tokens=NEW_TOKENS, top_k=None,
                top_p=None, pad_token_id=0,
            )  # fmt: skip
        return list(out[0, len(ids) :].tolist())

    def effects(self, questions: Questions) -> dict[Cell, float]:
        """By cell, what patching it changes: a forward pass each, with a hook that sets the clean run's values."""
        clean = {cell[:2]: self._value(questions.clean, cell) for cell in questions.cells}
        base = self._metric(questions)
        effects = {}
        for cell in questions.cells:
            with self._hooked(cell, partial(self._patched, clean[cell[:2]], cell)):
                effects[cell] = self._metric(questions) - base
        return effects

    def _metric(self, questions: Questions) -> float:
        logits = self.run(questions.corrupt, logits_to_keep=1).logits[0, -1].double()
        return float(logits[questions.answer] - logits[questions.against])

    def _value(self, ids: Sequence[int], cell: Cell) -> Tensor:
        """The values that enter a cell's place in a run: the stream before a layer, or all heads' z. [pos, width]"""
        values: list[Tensor] = []

        def keep(x: Tensor) -> Tensor:
            values.append(x.clone())
            return x

        with self._hooked(cell, keep):
            self.run(ids)
        return values[0]

    def _patched(self, clean: Tensor, cell: Cell, x: Tensor) -> Tensor:
        site, _, place = cell
        x = x.clone()
        if site == "resid_pre":
            x[:, place] = clean[:, place]
        else:
            width = self.layers[0].self_attn.head_dim
            x[..., place * width : (place + 1) * width] = clean[..., place * width : (place + 1) * width]
        return x

    @contextmanager
    def _hooked(self, cell: Cell, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """A hook on what enters a layer, or what enters the output projection of its attention."""
        site, layer, _ = cell
        module: nn.Module = self.layers[layer] if site == "resid_pre" else self.layers[layer].self_attn.o_proj

        def hook(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (change(args[0]), *args[1:]), options
            return args, {**options, "hidden_states": change(options["hidden_states"])}

        handle = module.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    @property
    def layers(self) -> Any:
        body = getattr(self.network, "language_model", None) or self.network.model
        body = getattr(body, "language_model", body)  # of a multimodal model
        return getattr(body, "layers", None) or body.model.layers


def ask_transformers(network: Any, questions: Questions, wanted: Collection[str]) -> Answers:
    """transformers' answers. wanted: Beside logits and patterns, which are always asked for: LONG, GENERATION, SWEEP."""
    reader, answers = Reader(network), Answers()
    for ids in questions.prompts:
        logits, patterns = reader.logits_and_patterns(ids)
        answers.logits.append(logits)
        answers.patterns.append(patterns)
    if LONG in wanted and questions.long is not None:
        answers.long = reader.last_logits(questions.long)
    if SWEEP in wanted:
        answers.effects = reader.effects(questions)
    if GENERATION in wanted:
        answers.generated = [reader.generate(ids) for ids in questions.prompts[:GENERATED]]
    return answers

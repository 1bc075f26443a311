"""Subject: the model that is checked, what it was asked, and the answers so far, which the steps share."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from gemmascope.checking.questions import Questions, questions_for
from gemmascope.checking.reference import Answers
from gemmascope.checking.step import Figure
from gemmascope.checkpoints.at_hand.entry import size_label
from gemmascope.checkpoints.device import DeviceChoice, choose_devices
from gemmascope.checkpoints.source import resolve_source
from gemmascope.loading.load import load
from gemmascope.model.model import Model
from gemmascope.streaming.store import is_store


@dataclass(frozen=True)
class Outcome:
    """What a step found. text: what was compared, in a sentence. A figure beyond its limit means that something differs."""

    text: str
    figures: tuple[Figure, ...] = ()


class Skip(Exception):
    """Raised by a step that cannot run here; the message says why. figures: what was found all the same."""

    def __init__(self, text: str, figures: tuple[Figure, ...] = ()) -> None:
        super().__init__(text)
        self.figures = figures


@dataclass(frozen=True)
class Options:
    """Arguments of gs.load, as the user gave them."""

    device: DeviceChoice = "auto"
    dtype: str | torch.dtype = "auto"
    weights: str = "auto"
    memory: int | str | None = None


@dataclass
class Subject:
    """A model under check.

    Attributes:
        source: What gs.load and transformers read it from; None for a model that was built in memory.
        options: How this package loads it.
        path: Its folder or file; None without a source.
        name: Its name.
        shell: The model without values: its shape and its tokenizer.
        questions: What both readers are asked.
        theirs: transformers' answers in the dtype that is checked; None before, or where they could not be had.
        truth: Answers in float32, if the dtype is bfloat16.
        truth_name: Who gave them.
        logits: This package's logits.
        wanted: The steps that will run.
        is_given: Whether the model was given loaded, so that it is not freed.
    """

    source: str | None
    options: Options
    path: Path | None
    name: str
    shell: Model
    questions: Questions
    theirs: Answers | None = None
    truth: Answers | None = None
    truth_name: str = ""
    logits: list[Tensor] = field(default_factory=list)
    fingerprint: str = ""
    wanted: frozenset[str] = frozenset()
    is_given: bool = False
    _model: Model | None = None

    @classmethod
    def of_model(cls, model: Model) -> Subject:
        """A model that is loaded already. It is compared with transformers' reading of its source."""
        weights, memory = str(model.asked.get("weights", "auto")), model.asked.get("memory")
        options = Options(str(model.device), model.dtype, weights, memory if isinstance(memory, (int, str)) else None)
        path = None if model.source is None else resolve_source(model.source, _revision(model.asked))[0]
        subject = cls(model.source, options, path, model.name, model, questions_for(model), is_given=True)
        subject._model = model
        return subject

    @classmethod
    def of_source(cls, source: str, options: Options) -> Subject:
        """A model that is not loaded yet."""
        path, name = resolve_source(source)
        if is_store(path):  # has no shape without its weights
            subject = cls.of_model(load(source, device=options.device, dtype=options.dtype, memory=options.memory))
            subject.is_given = False
            return subject
        shell = load(source, device="meta", dtype=options.dtype)
        return cls(source, options, path, name, shell, questions_for(shell))

    @property
    def device(self) -> torch.device:
        """The device that results come to."""
        return choose_devices(self.options.device).first

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in."""
        return self.shell.dtype

    @property
    def is_int8(self) -> bool:
        """Whether the weights that are checked are int8."""
        return self.options.weights == "int8"

    @property
    def model(self) -> Model:
        """This package's model, loaded when it is first asked for."""
        if self._model is None:
            assert self.source is not None
            o = self.options
            self._model = load(self.source, device=o.device, dtype=o.dtype, weights=o.weights, memory=o.memory)
        if not self.fingerprint:
            self.fingerprint = self._model.fingerprint
        return self._model

    def free_model(self) -> None:
        """Make room for another model. The model is loaded again when it is asked for."""
        if self._model is not None and not self.is_given and self.source is not None:
            self._model = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def require_source(self) -> str:
        """Its source. Skip for a model that was built in memory."""
        if self.source is None:
            raise Skip("the model was built in memory: there is no file that could be read again")
        return self.source

    def require_theirs(self) -> Answers:
        """transformers' answers. Skip if there are none."""
        if self.theirs is None:
            raise Skip("transformers' answers are missing: the step before says why")
        return self.theirs

    def describe(self) -> dict[str, object]:
        """The model in a result."""
        config = self.shell.config
        return {
            "name": self.name,
            "family": config.family,
            "size": size_label(config),
            "n_layers": config.n_layers,
            "n_params": config.n_params,
            "dtype": str(self.dtype).removeprefix("torch."),
            "weights": self.options.weights,
            "memory": self.options.memory,
            "fingerprint": self.fingerprint,
            "prompts": "texts" if self.questions.in_words else "random tokens",
        }


def _revision(asked: Mapping[str, object]) -> str | None:
    revision = asked.get("revision")
    return revision if isinstance(revision, str) else None

"""Choosing another model in a lab: the models at hand, loading one beside the lab's work, and which prompts go with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

from gemmascope.arguments import is_whole, short_repr
from gemmascope.checkpoints.at_hand.entry import ModelAtHand, size_label
from gemmascope.checkpoints.at_hand.models import models
from gemmascope.errors import LabError, PromptError
from gemmascope.labs.session import MODELS, Session
from gemmascope.labs.worker import Job
from gemmascope.legible import legible_line
from gemmascope.loading.default import model_or_nano
from gemmascope.loading.load import load
from gemmascope.model.model import Model
from gemmascope.values import is_array

# The name of the job that looks for models; pages know it.
LOOKING = "the models at hand"
# How long a step waits for another thread, in seconds: a click waits for one step.
WAIT_SECONDS = 0.02

T = TypeVar("T")
Source = str | os.PathLike[str]

# One model is loaded at a time, whichever lab asks: two at once would take twice the memory and be no sooner there. Python
# waits for these threads before it exits.
_LOADER = ThreadPoolExecutor(1, "gemmascope loading a model")
_FINDER = ThreadPoolExecutor(1, "gemmascope looking for models")


class ChoosingSession(Session):
    """A session whose model can be changed. Loading takes place in a thread of its own, so the lab answers meanwhile.

    A subclass says which settings may hold token ids (`_token_settings`) and takes a new model (`_take_model`).

    at_hand: the models on this machine; None before they were looked for. loading: what gs.load was given for the model that
    is being loaded; None if none is.
    """

    at_hand: tuple[ModelAtHand, ...] | None = None
    loading: str | None = None
    _is_typed = False  # whether a control of the lab changes something, and not a line of Python
    _choosing: Job | None = None
    _present: str = ""  # what gs.load takes for the present model, if that is one of them

    def choose_model(self, model: Model | Source, **changes: Any) -> None:
        """Go on with another model: load it, and compute again. What was computed with the old one is let go of.

        Prompts and answers stay as they are. Texts are split anew; token ids stay only where the two models have the same
        vocabulary.

        Args:
            model: A model, or what gs.load takes, loaded with its defaults; such as `load` of a row of gs.models().
            **changes: Settings to change at the same time, as `set` takes them.

        Raises:
            CheckpointError: The model cannot be found or read.
            PromptError: A prompt or an answer is of token ids that another vocabulary would read differently.
            GemmascopeError: What `set` would raise for the settings with this model. The lab stays as it was.
            LabError: The lab is closed, or the loading was cancelled.
        """
        self._worker.require_open()
        if isinstance(model, Model):
            self._change_model(model, changes)
            return
        loaded: list[Model] = []
        job = self._start_loading(model, loaded.append)
        try:
            job.ended.wait()
        except KeyboardInterrupt:
            self.keep_model()
            raise
        if job.failed is not None:
            self._failed = None
            raise job.failed
        if not loaded:
            raise LabError(f"loading {os.fspath(model)!r} was cancelled: the lab goes on with {self.model.name!r}")
        self._change_model(loaded.pop(), changes)

    def start_choosing(self, source: str) -> Job:
        """Begin to load another model and go on with it, as in choose_model, without waiting.

        Args:
            source: What gs.load takes.
        """

        def take(model: Model) -> None:
            self._is_typed = True
            try:
                self._change_model(model, {})
            finally:
                self._is_typed = False

        return self._start_loading(source, take)

    def keep_model(self) -> None:
        """End the loading of another model. What was read of it is dropped once its thread comes back."""
        if self._choosing is not None:
            self._choosing.cancelled = True

    def find_models(self) -> None:
        """Look for the models on this machine, in a thread of its own, unless that was done."""
        if self.at_hand is None and not any(job.name == LOOKING for job in self._worker.jobs):
            self._worker.submit(Job(LOOKING, MODELS, self._finding(), self.seq, outlasts=True))

    def choice_data(self) -> dict[str, object]:
        """What a page shows of it: the models to choose from, the present one among them, and the one that is loading."""
        with self.guard:
            model, rows, present, loading = self.model, self.at_hand or (), self._present, self.loading
        options = [{"load": row.load, "label": _label(row)} for row in rows]
        if not present:
            label = f"{legible_line(model.name)} ({size_label(model.config)}, the present model)"
            options.insert(0, {"load": "", "label": label})
        looked = self.at_hand is not None
        return {"name": model.name, "present": present, "options": options, "looked": looked, "loading": loading}

    # -- what a lab does --

    def _token_settings(self) -> Mapping[str, object]:
        """The settings that are prompts and answers, by name: they may be token ids."""
        raise NotImplementedError

    def _take_model(self, model: Model, changes: Mapping[str, object]) -> None:
        """Check the settings with this model, then `_switch_to` it and compute again. What it raises changes nothing."""
        raise NotImplementedError

    def _switch_to(self, model: Model) -> None:
        self.model, self._present = model, _present_of(self.at_hand or (), model)
        self._worker.serve(model)

    # -- loading --

    def _start_loading(self, source: Source, then: Callable[[Model], None]) -> Job:
        self.keep_model()
        name = os.fspath(source)
        self._choosing = job = Job(f"loading {name}", MODELS, self._loading(source, then), self.seq, outlasts=True)
        self.loading = name
        self._worker.submit(job)
        self.notify("loading", self.seq)
        return job

    def _loading(self, source: Source, then: Callable[[Model], None]) -> Generator[None]:
        """Load a model and hand it on."""
        loaded = yield from _in_thread(_LOADER, lambda: model_or_nano(None) if source == "nano" else load(source))
        then(loaded)

    def _finding(self) -> Generator[None]:
        table = yield from _in_thread(_FINDER, models)
        with self.guard:
            self.at_hand, self._present = table.rows, _present_of(table.rows, self.model)

    def _change_model(self, model: Model, changes: Mapping[str, object]) -> None:
        model = model_or_nano(model)
        if model is self.model and not changes:
            return
        kept = {name: value for name, value in self._token_settings().items() if name not in changes}
        require_same_tokens(kept, self.model, model)
        self._take_model(model, changes)

    def _ended(self, job: Job) -> None:
        if job is self._choosing:
            self._choosing = self.loading = None
        super()._ended(job)


def require_same_tokens(settings: Mapping[str, object], old: Model, new: Model) -> None:
    """PromptError if a setting holds token ids that need not mean the same in another model."""
    name = next((name for name, value in settings.items() if _holds_ids(value)), None)
    if name is None or (why := _difference(old, new)) is None:
        return
    raise PromptError(
        f"{name} is given as token ids of {old.name!r}, {short_repr(settings[name])}, and {why}: give it as text first, or "
        f"with the model, as in lab.choose_model(MODEL, {name}=...)"
    )


def _holds_ids(setting: object) -> bool:
    if is_whole(setting) or is_array(setting):
        return True
    return isinstance(setting, (list, tuple)) and any(map(is_whole, setting))


def _difference(old: Model, new: Model) -> str | None:
    """Why an id of one model may be another token in the other; None if the vocabularies are the same."""
    if not old.has_tokenizer and not new.has_tokenizer:
        sizes = old.config.vocab_size, new.config.vocab_size
        same = sizes[0] == sizes[1]
        return None if same else f"{new.name!r} has another vocabulary, of {sizes[1]:,} tokens where there were {sizes[0]:,}"
    for model in (old, new):
        if not model.has_tokenizer:
            return f"{model.name!r} has no tokenizer, so nobody can say whether they mean the same in {new.name!r}"
    one, other = old.tokenizer, new.tokenizer
    if one.digest == other.digest:
        return None
    ids = range(one.vocab_size)
    if one.vocab_size == other.vocab_size and one.texts(ids) == other.texts(ids):
        return None
    return f"{new.name!r} has another vocabulary"


def _in_thread(pool: ThreadPoolExecutor, function: Callable[[], T]) -> Generator[None, None, T]:
    """Call a function in a pool's thread, yielding until it is done. Closed before that, it drops what comes."""
    future: Future[T] = pool.submit(function)
    try:
        while not wait([future], WAIT_SECONDS).done:
            yield
        return future.result()
    finally:
        future.cancel()


def _present_of(rows: Sequence[ModelAtHand], model: Model) -> str:
    """What gs.load takes for this model, if it is what one of these rows gives with the defaults; else ""."""
    if model.source is None or model.asked or model.edits:
        return ""
    return next((row.load for row in rows if model.source == row.load or _is_same_file(model.source, row.path)), "")


def _is_same_file(source: str, path: Path) -> bool:
    try:
        return Path(source).expanduser().samefile(path)
    except OSError:  # a name that is no path
        return False


def _label(row: ModelAtHand) -> str:
    """A model as a list shows it: its name, what it is, how large its files are, and what keeps it."""
    size = f"{row.n_bytes / 1e9:.1f} GB" if row.n_bytes >= 1e9 else f"{row.n_bytes / 1e6:.1f} MB"
    return legible_line(f"{row.name} ({row.family} {row.size}, {row.weights}, {size}, {row.where})")

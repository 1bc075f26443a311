"""Host: what runs in a worker's process, whatever the engine."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from typing import Any

import torch

from gemmascope.errors import GemmascopeError, WorkersError
from gemmascope.model.model import Model
from gemmascope.model.modes import default_modes
from gemmascope.workers.packing import unpack
from gemmascope.workers.pool import About, Answer, OpenedTask

# ("answer", value) or ("error", exception, its traceback as text): an engine's own errors then mean a lost worker.
Outcome = tuple[Any, ...]


class Host:
    """A worker: a model that is loaded once, and the task of the present call.

    n_threads: how many threads its products take on a CPU; None: as torch has it.
    """

    def __init__(self, n_threads: int | None = None) -> None:
        if n_threads is not None:
            torch.set_num_threads(n_threads)
        self._model: tuple[bytes, Model] | None = None
        self._task: OpenedTask | None = None

    def open(self, model: bytes, task: bytes) -> Outcome:
        """Load the model, unless it is there, and open the task. The answer is what the driver must know."""
        return _outcome(lambda: self._open(model, task))

    def run(self, job: bytes) -> Outcome:
        """Do a job."""
        return _outcome(lambda: self._run(job))

    def _open(self, model: bytes, task: bytes) -> About:
        self._task = None
        if self._model is None or self._model[0] != model:
            self._model = None  # before another is loaded
            self._model = model, unpack(model).load()
        loaded = self._model[1]
        try:
            unpacked, edited = unpack(task, loaded)
        except GemmascopeError:
            raise
        except Exception as error:  # whatever unpickling a user's object raises
            raise WorkersError(
                f"a worker cannot unpack what it is to do ({type(error).__name__}: {error}). A function from a module needs "
                "that module on every worker: define it in the notebook or the script itself, or bring the module there, "
                'for example with gs.ray(init={"runtime_env": {"working_dir": "."}})'
            ) from error
        with default_modes():
            self._task = unpacked.open(edited)
        return self._task.about

    def _run(self, job: bytes) -> Answer:
        assert self._task is not None
        with default_modes():
            return self._task.run(unpack(job))


def _outcome(compute: Callable[[], Answer]) -> Outcome:
    try:
        return "answer", compute()
    except Exception as error:
        text = traceback.format_exc()
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # an exception of the user's that does not pickle
            error = WorkersError(f"{type(error).__name__}: {error}")
        error.__cause__ = error.__context__ = None  # may hold what does not pickle; the text has them
        return "error", error.with_traceback(None), text

"""Models and tasks as bytes. Inside a task the model is a reference, so that every worker loads it once, from its source."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import Field, dataclass, fields, replace
from typing import Any, TypeAlias

import torch

from gemmascope.arguments import short_repr
from gemmascope.errors import WorkersError
from gemmascope.loading.load import load_again
from gemmascope.loading.pickling import FromSource, as_pickled
from gemmascope.model.mixins.lasting_edits import LastingEdit
from gemmascope.model.model import Model
from gemmascope.workers.pool import Task

# Makes a pickler that writes to a file. An engine may bring one that pickles functions of a notebook.
PicklerClass = Callable[[io.BytesIO], pickle.Pickler]


@dataclass(frozen=True)
class ModelSource:
    """What a worker loads. version: of gemmascope. n_gpus: how many GPUs a worker has."""

    pickled: FromSource
    version: str
    n_gpus: float

    @classmethod
    def of(cls, model: Model, n_gpus: float) -> ModelSource:
        """WorkersError for a model that has no source."""
        from gemmascope import __version__

        if model.source is None:
            raise WorkersError(
                f"the model {model.name!r} was made from one in memory, and workers load a model by its source: call "
                "model.save_pretrained(folder), with a folder that every worker can read, and give gs.load(folder)"
            )
        pickled = as_pickled(model.unedited())
        assert isinstance(pickled, FromSource)
        return cls(pickled, __version__, n_gpus)

    def load(self) -> Model:
        """The model, on the worker's own device. CheckpointError where the source is not there or is another model."""
        from gemmascope import __version__

        if __version__ != self.version:
            raise WorkersError(f"this worker has gemmascope {__version__}, and the driver {self.version}: install the same")
        arguments = {name: value for name, value in self.pickled.arguments.items() if name != "device"}
        if self.n_gpus and not torch.cuda.is_available():
            raise WorkersError("this worker was given a GPU, and its torch finds none: install torch for CUDA there")
        if not self.n_gpus and torch.cuda.is_available():
            arguments["device"] = "cpu"
        return load_again(replace(self.pickled, arguments=arguments))


# Whatever was packed.
Unpacked: TypeAlias = Any


def pack(value: object, model: Model | None, pickler_class: PicklerClass = pickle.Pickler) -> bytes:
    """A value as bytes. Models over the weights of `model` are references with their edits."""

    class ReferringPickler(pickler_class):  # type: ignore[valid-type, misc]
        def persistent_id(self, part: object) -> object:
            if isinstance(part, Model) and model is not None and part.network is model.network:
                return ("model", part.edits)
            return None

    file = io.BytesIO()
    ReferringPickler(file).dump(value)
    return file.getvalue()


def pack_task(task: Task, model: Model, pickler_class: PicklerClass) -> bytes:
    """A task as bytes, and the model with the edits that it keeps. WorkersError names the part that cannot be pickled."""
    try:
        return pack((task, model), model, pickler_class)
    except Exception as error:  # whatever a user's object raises
        raise WorkersError(_what_cannot_be_sent(task, model, pickler_class, error)) from error


def _what_cannot_be_sent(task: Task, model: Model, pickler_class: PicklerClass, error: Exception) -> str:
    for field in _fields_of(task):
        value = getattr(task, field.name)
        parts = {field.name: value, **{part.name: getattr(value, part.name) for part in _fields_of(value)}}
        for name, part in reversed(parts.items()):
            if fault := _fault(part, model, pickler_class):
                return (
                    f"{name} cannot be sent to workers: {short_repr(part)} cannot be pickled ({fault}). What is open or "
                    "locked stays in this process: open files and make locks inside the function that uses them"
                )
    return f"this cannot be sent to workers, because it cannot be pickled: {error}"


def _fault(value: object, model: Model, pickler_class: PicklerClass) -> str:
    try:
        pack(value, model, pickler_class)
    except Exception as error:  # whatever a user's object raises
        return str(error) or type(error).__name__
    return ""


def _fields_of(value: object) -> tuple[Field[object], ...]:
    return fields(value) if hasattr(type(value), "__dataclass_fields__") else ()  # type: ignore[arg-type]


def unpack(data: bytes, model: Model | None = None) -> Unpacked:
    """What was packed. Its references become this model, with their edits."""

    class ReferringUnpickler(pickle.Unpickler):
        def persistent_load(self, reference: tuple[str, tuple[LastingEdit, ...]]) -> Model:
            assert model is not None
            _, edits = reference
            return model.edited(edits) if edits else model

    return ReferringUnpickler(io.BytesIO(data)).load()

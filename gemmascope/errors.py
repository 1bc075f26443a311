"""The errors of gemmascope: one base class, and one class for each door that bad input can come to. And its warnings."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from gemmascope.legible import legible

_PACKAGE = str(Path(__file__).parent)


class GemmascopeError(Exception):
    """Base of every error that gemmascope raises on purpose: what was given, what there is, what to do."""

    def __str__(self) -> str:
        return legible(super().__str__())


class GemmascopeWarning(UserWarning):
    """Something that runs and may not be meant. warnings.simplefilter("error", gs.GemmascopeWarning) makes it an error."""

    def __str__(self) -> str:
        return legible(super().__str__())


class SiteError(GemmascopeError, LookupError):
    """A site, layer, head or position that is not there."""


class ConfigError(GemmascopeError, ValueError):
    """A configuration that does not describe a Gemma 2 which this package can run."""


class CheckpointError(GemmascopeError, ValueError):
    """A checkpoint that cannot be found, read or trusted."""


class DeviceError(GemmascopeError, ValueError):
    """A device or number format that is not there, or that Gemma 2 cannot compute with."""


class BudgetError(GemmascopeError, ValueError):
    """An amount of memory, or room on a disk, that is too small for what was asked."""


class PromptError(GemmascopeError, ValueError):
    """A prompt, or a wanted token, that the model or its tokenizer cannot take."""


class TapError(GemmascopeError, ValueError):
    """A tap that returned something the model cannot go on with."""


class EditError(GemmascopeError, ValueError):
    """An edit that cannot be applied to the run it was given for."""


class TraceError(GemmascopeError, ValueError):
    """A trace that cannot be read, saved or opened as asked."""


class MetricError(GemmascopeError, ValueError):
    """A metric that cannot be computed, or that returned something else than one number per run."""


class SweepError(GemmascopeError, ValueError):
    """A sweep that cannot be run, continued or read as asked."""


class GenerationError(GemmascopeError, ValueError):
    """A text that cannot be generated as asked."""


class DictionaryError(GemmascopeError, ValueError):
    """A sparse dictionary that cannot be found, read, or used with the model, layer or run that it was given."""


class FileError(GemmascopeError, OSError):
    """A file, such as a page or a table, that cannot be written as asked."""


class MissingPackageError(GemmascopeError, ImportError):
    """A package that this needs, and most of gemmascope does not, is not installed."""


class LabError(GemmascopeError, RuntimeError):
    """A lab that is closed and was asked for more."""


class ServingError(GemmascopeError, ValueError):
    """JupyterLab cannot be started as asked."""


def warn(message: str) -> None:
    """Give a GemmascopeWarning at the innermost line outside this package and the installed ones: the user's."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and _is_library(frame.f_code.co_filename):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(legible(message), GemmascopeWarning, stacklevel=depth)


def _is_library(filename: str) -> bool:
    """Whether code is of this package, of an installed one (torch's decorators stand between), or made by one of those."""
    return filename.startswith((_PACKAGE, "<@")) or "site-packages" in Path(filename).parts

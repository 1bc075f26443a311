"""A patching lab in a file: every question that was asked, with its cells, as JSON. A new kernel goes on with them."""

from __future__ import annotations

import base64
import binascii
import json
import os
import zlib
from collections.abc import Mapping
from typing import Any, TypedDict, cast

import numpy as np

from gemmascope.edits.call_text import plain
from gemmascope.errors import GemmascopeError, LabError
from gemmascope.files.json_reader import parse_json
from gemmascope.files.paths import user_path
from gemmascope.labs.patching.experiment import Experiment
from gemmascope.labs.patching.question import QuestionSession
from gemmascope.labs.patching.settings import Settings
from gemmascope.values import Array

FORMAT = "gemmascope.patching-lab.1"
# A file of more is no lab: a grid of a thousand positions and fifty layers takes under a megabyte.
MAX_BYTES = 2**28


class SavedRun(TypedDict):
    """A question and its numbers. digest: of all that goes into its sweep. values, estimate: packed, [row, column]."""

    settings: dict[str, object]
    digest: str
    shape: list[int]
    baselines: list[float]
    values: str
    estimate: str


class SavedSession(TypedDict):
    """The content of a file. model: its name and fingerprint. settings: those that were shown."""

    format: str
    model: dict[str, str]
    settings: dict[str, object]
    runs: list[SavedRun]


def session_text(lab: QuestionSession) -> str:
    """The lab's experiments with their numbers, the present one last, as the text of a file."""
    experiments = lab.experiments()
    model = {"name": lab.model.name, "fingerprint": lab.model.fingerprint}
    runs = [_run(experiment) for experiment in experiments]
    return json.dumps({"format": FORMAT, "model": model, "settings": _settings(lab.settings), "runs": runs}, indent=1) + "\n"


def read_session(path: str | os.PathLike[str]) -> SavedSession:
    """The content of a file that session_text wrote. LabError if it cannot be read, or is something else."""
    named = user_path(path, error=LabError, what="a lab")
    try:
        if named.stat().st_size > MAX_BYTES:
            raise LabError(f"{named} is no patching lab: it is larger than {MAX_BYTES:,} bytes")
        content = named.read_bytes()
    except OSError as error:
        raise LabError(f"{named} cannot be read: {error.strerror or error}") from error
    return parse_session(content, named)


def parse_session(text: str | bytes, source: object) -> SavedSession:
    """A session from its text. source: where it comes from, for the errors. LabError as in read_session."""
    content = parse_json(text, source, error=LabError)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise LabError(f"{source} is not a patching lab that this version of gemmascope can open (format {FORMAT})")
    if not _is_whole(content):
        raise LabError(f"{source} is damaged: a part of the patching lab is missing")
    return cast("SavedSession", content)


def restore(lab: QuestionSession, content: SavedSession, source: object) -> list[Experiment]:
    """Take the experiments of a session into a lab; cells that it has already stay. LabError, and nothing is taken, if the
    file is of another model, or damaged.
    """
    written_by = content["model"]
    if written_by["fingerprint"] != lab.model.fingerprint:
        raise LabError(
            f"{source} was saved with {written_by['name']!r} (fingerprint {written_by['fingerprint']}), and this lab runs "
            f"{lab.model.name!r} ({lab.model.fingerprint}), whose numbers are others: open it with model=that model"
        )
    try:
        restored = [_experiment(lab, run) for run in content["runs"]]
    except (GemmascopeError, TypeError, ValueError, KeyError, zlib.error, binascii.Error) as error:
        raise LabError(f"{source} is damaged: {error}") from error
    with lab.guard:
        for experiment in restored:
            lab.keep(experiment)
    return restored


def settings_of(content: SavedSession, source: object) -> Settings:
    """The settings that were shown when a session was saved. LabError if they are none."""
    try:
        return _read_settings(content["settings"])
    except (GemmascopeError, TypeError, ValueError, KeyError) as error:
        raise LabError(f"{source} is damaged: {error}") from error


def _settings(settings: Settings) -> dict[str, object]:
    return cast("dict[str, object]", plain(vars(settings)))


def _read_settings(saved: Mapping[str, object]) -> Settings:
    given: dict[str, Any] = dict(saved)
    first = {name: given.pop(name) for name in ("clean", "corrupt", "answer", "against")}
    return Settings(**first).changed(**given)


def _run(experiment: Experiment) -> dict[str, object]:
    baselines = [float(numbers[0]) for numbers in (experiment.result.base_metric, experiment.result.source_metric)]
    grid = experiment.cell_grid
    return {
        "settings": _settings(experiment.settings),
        "digest": experiment.result.question.digest,
        "shape": list(experiment.shape),
        "baselines": baselines,
        "values": _packed(experiment.result.values[0]),
        "estimate": _packed(grid.estimate),
    }


def _experiment(lab: QuestionSession, run: SavedRun) -> Experiment:
    """An experiment with the numbers of a saved run, added to those that the lab has for the same settings."""
    settings = _read_settings(run["settings"])
    experiment = lab.asked(settings) or Experiment(settings, lab.model)
    if run["digest"] != experiment.result.question.digest or run["shape"] != list(experiment.shape):
        raise ValueError(f"a run's question is not the one of its settings, {settings}")
    base, source = (float(number) for number in run["baselines"])
    if experiment.baselines is None:
        experiment.set_baselines(base, source)
    values, estimate = (_unpacked(text, experiment.shape) for text in (run["values"], run["estimate"]))
    experiment.fill(values, estimate)
    return experiment


def _packed(values: Array) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(values, dtype="<f8").tobytes(), 9)).decode()


def _unpacked(text: str, shape: tuple[int, int]) -> Array:
    n_bytes = 8 * shape[0] * shape[1]
    inflater = zlib.decompressobj()
    data = inflater.decompress(base64.b64decode(text, validate=True), n_bytes + 1)
    if len(data) != n_bytes:
        raise ValueError(f"a run's numbers do not fill its grid of {shape[0]} by {shape[1]} cells")
    values: Array = np.frombuffer(data, dtype="<f8").reshape(shape).astype(np.float64)
    return values


def _is_whole(content: Mapping[str, object]) -> bool:
    """Whether a session has all its parts, of the right kinds."""
    model, runs = content.get("model"), content.get("runs")
    if not isinstance(model, dict) or not {"name", "fingerprint"} <= model.keys() or not isinstance(runs, list):
        return False
    parts = {"settings": dict, "digest": str, "shape": list, "baselines": list, "values": str, "estimate": str}
    are_runs = all(
        isinstance(run, dict) and all(isinstance(run.get(name), kind) for name, kind in parts.items()) for run in runs
    )
    return are_runs and isinstance(content.get("settings"), dict)

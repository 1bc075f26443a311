"""What the page of a patching lab shows and asks: its state as JSON, arrays as bytes, and the handlers of its messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gemmascope.errors import GemmascopeError
from gemmascope.labs.patching.align_tokens import aligned_data
from gemmascope.labs.patching.detail import Detail
from gemmascope.labs.patching.experiment import Experiment
from gemmascope.labs.patching.files import file_of
from gemmascope.labs.patching.picture import answer_text, label_of, spec_of
from gemmascope.labs.patching.session import LabSession
from gemmascope.labs.patching.settings import Settings
from gemmascope.model.model import Model
from gemmascope.values import Array
from gemmascope.views.labels import Label, position_label

if TYPE_CHECKING:
    from gemmascope.labs.widget import Handlers, Message, Trait


def snapshot_of(lab: LabSession) -> dict[str, Trait]:
    """The traits of the page: the state, and the arrays of the present and the compared experiment."""
    with lab.guard:
        experiment, compared = lab.experiment, lab.compared
        return {
            "state": state_of(lab),
            "values": b"" if experiment is None else _as_bytes(experiment.cell_grid.values),
            "marks": b"" if experiment is None else experiment.cell_grid.marks.tobytes(),
            "seconds": b"" if experiment is None else _as_bytes(experiment.seconds_each()),
            "patterns": _pattern_bytes(lab.detail),
            "other": {} if compared is None else spec_of(compared, compared.cell_grid),
            "other_values": b"" if compared is None else _as_bytes(compared.cell_grid.values),
            "other_marks": b"" if compared is None else compared.cell_grid.marks.tobytes(),
        }


def state_of(lab: LabSession) -> dict[str, object]:
    """Everything but the arrays: settings, checks, tokens, the grid's labels, progress, errors, the detail, the history."""
    with lab.guard:
        experiment, detail = lab.experiment, lab.detail
        return {
            "view": "lab",
            "seq": lab.seq,
            "number": lab.number,
            "model": lab.model.name,
            "tokens": _tokens(lab.model, lab.settings),
            "checks": [vars(remark) for remark in lab.checks],
            "can_run": lab.can_run,
            "answers": [answer_text(lab.settings.answer), answer_text(lab.settings.against)],
            "metric": repr(lab.settings.metric_of()),
            **_experiment_state(experiment),
            "busy": lab.is_busy,
            "progress": lab.progress,
            "error": lab.error,
            "detail": None if detail is None else {**detail.as_data(), "positions": _positions(detail)},
            "history": [label_of(one) for one in lab.experiments()],
        }


def handlers_of(lab: LabSession) -> Handlers:
    """What to do about each type of message of the page."""

    def send_file(message: Message) -> dict[str, object]:
        name, text = file_of(lab, message["what"])
        return {"type": "file", "name": name, "text": text}

    return {
        "click": lambda m: lab.click(m["row"], m["column"]),
        "run": lambda m: lab.start(m["what"], m.get("row"), m.get("column")),
        "swap": lambda _: lab.swap(),
        "compare": lambda m: lab.lay_beside(m.get("index")),
        "file": send_file,
    }


def _experiment_state(experiment: Experiment | None) -> dict[str, object]:
    if experiment is None:
        return {"baselines": None, "grid": None, "estimate_seconds": None, "streams": False, "code": None}
    return {
        "baselines": experiment.baselines,
        "grid": spec_of(experiment, experiment.cell_grid),
        "estimate_seconds": experiment.throughput.estimate_seconds(),
        "streams": experiment.throughput.streams,
        "code": experiment.result.code(),
    }


def _pattern_bytes(detail: Detail | None) -> bytes:
    """The patterns of a detail, float32 [run, q_pos, k_pos]."""
    return _as_bytes(np.stack(list(detail.patterns.values()))) if detail is not None and detail.patterns else b""


def _positions(detail: Detail) -> dict[str, list[Label]]:
    """The labels of each run's positions, for its pattern."""
    return {name: [position_label(*each) for each in enumerate(tokens)] for name, tokens in detail.tokens.items()}


def _tokens(model: Model, settings: Settings) -> list[dict[str, object]]:
    """The two prompts beside each other; nothing if one of them cannot be read."""
    try:
        ids = [model.ids(prompt).tolist() for prompt in (settings.clean, settings.corrupt)]
    except GemmascopeError:
        return []
    return aligned_data(model, *ids)


def _as_bytes(values: Array) -> bytes:
    """Numbers as float32, as the canvas module reads them."""
    return np.ascontiguousarray(values, dtype=np.float32).tobytes()

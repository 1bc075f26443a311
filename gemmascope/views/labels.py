"""Labels of positions, layers and heads, as the canvas module reads them, and the check of a view's trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from gemmascope.edits.sources import not_a_trace
from gemmascope.errors import SiteError
from gemmascope.model.model import Model
from gemmascope.run.trace import Trace
from gemmascope.sweeps.metadata import SweepMetadata
from gemmascope.tokens.tokenizer import visible_text

# How a view titles the axes of a sweep; the others by their own names.
AXIS_TITLES = {"pos": "position", "q_pos": "query", "k_pos": "key", "kv_head": "kv head"}


class Label(TypedDict, total=False):
    """The label of a row or column. token: draw spaces visibly. special: a control token. hint: the tooltip's text."""

    label: str
    token: bool
    special: bool
    kind: str | None
    hint: str


def require_trace(trace: object, name: str) -> None:
    """SiteError for anything that is not a trace."""
    if isinstance(trace, list) and trace and all(isinstance(one, Trace) for one in trace):
        raise SiteError(f"{name} is one trace; given a list of {len(trace)}: take one of them, {name}=traces[0]")
    if not isinstance(trace, Trace):
        raise SiteError(f"{name} is a trace, gs.trace(prompt); given {not_a_trace(trace)}")


def are_special(model: Model | None, ids: Sequence[int]) -> list[bool]:
    """Whether each token is a control token such as `<bos>`; never without a tokenizer."""
    tokenizer = model.tokenizer if model is not None and model.has_tokenizer else None
    return [tokenizer is not None and tokenizer.is_special(i) for i in ids]


def prompt_of(tokens: Sequence[str], positions: Sequence[int]) -> dict[str, object]:
    """What a view says of its prompt, by which the views of one prompt light each other's tokens.

    prompt: Its tokens; None where the view shows all positions, so that its columns have them. positions: Those shown.
    """
    every = list(positions) == list(range(len(tokens)))
    return {"prompt": None if every else list(tokens), "positions": list(positions)}


def position_label(pos: int, token: str, special: bool | None = None) -> Label:
    """The label of a position. special: None where that is not known."""
    known: Label = {} if special is None else {"special": special}
    return {"label": token, "token": True, **known, "hint": f"{pos}: {visible_text(token)}"}


def sweep_labels(sweep: SweepMetadata, axis: str) -> list[Label]:
    """The labels along one axis of a sweep."""
    numbers = sweep.axes[axis]
    if axis == "layer":
        return [{"label": str(n), "kind": sweep.kinds[n], "hint": f"{n} ({sweep.kinds[n]})"} for n in numbers]
    if axis in ("pos", "q_pos", "k_pos"):
        return [position_label(n, sweep.tokens[n]) for n in numbers]
    return [{"label": str(n)} for n in numbers]

"""What views ask of a trace before they begin, and how they name its positions."""

from __future__ import annotations

from typing import Any

from gemmascope.edits.sources import not_a_trace
from gemmascope.errors import SiteError
from gemmascope.run.trace import Trace
from gemmascope.tokens.tokenizer import shown


def require_trace(given: Any, name: str) -> None:
    """SiteError for what is no trace."""
    if isinstance(given, list) and given and all(isinstance(one, Trace) for one in given):
        raise SiteError(f"{name} is one trace; given a list of {len(given)}: take one of them, {name}=traces[0]")
    if not isinstance(given, Trace):
        raise SiteError(f"{name} is a trace, gs.trace(prompt); given {not_a_trace(given)}")


def special_of(trace: Trace) -> list[bool]:
    """Of every position whether its token is a control token such as <bos>."""
    model = trace.model
    return [model.has_tokenizer and model.tokenizer.is_special(i) for i in trace.ids.tolist()]


def position_labels(trace: Trace, positions: list[int]) -> list[dict[str, Any]]:
    """The labels of positions, as the canvas module reads them."""
    special = special_of(trace)
    return [
        {"label": trace.tokens[n], "token": True, "special": special[n], "hint": f"{n}: {shown(trace.tokens[n])}"}
        for n in positions
    ]

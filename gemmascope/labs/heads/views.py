"""The views of a head lab, which a saved notebook shows in its place."""

from __future__ import annotations

from dataclasses import replace

from gemmascope.errors import GemmascopeError
from gemmascope.run.metric import Answer, answer_ids
from gemmascope.run.trace import Trace
from gemmascope.views.attention import attention_view
from gemmascope.views.lens import lens_view
from gemmascope.views.page import View


def head_views(run: Trace, answer: Answer | None) -> tuple[tuple[View, ...], GemmascopeError | None]:
    """The patterns and the lens; for a prompt too long for a page none, and the error that says so."""
    try:
        ids = [] if answer is None else answer_ids(answer, run.model)
        # One answer is given by its id: for a text, lens_view would repeat the warnings that the lab has given. Several are
        # refused by lens_view.
        followed = ids[0] if len(ids) == 1 else answer
        views = attention_view(run), lens_view(run, answer=followed)  # type: ignore[arg-type]
    except GemmascopeError as error:
        return (), error
    suffix = ", with the heads scaled" if run.edits else ""
    return tuple(replace(view, spec={**view.spec, "title": view.title + suffix}) for view in views), None

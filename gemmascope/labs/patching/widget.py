"""The live end of a patching lab: an anywidget whose traits hold the state, and whose messages ask for what to do.

The worker's thread pushes what it found. Where pushes from threads do not arrive, the page asks ("poll") while something
is under way, and is sent what it has not seen. Whatever a message asks, the handler only files it; one exact cell of a small
model is answered at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from gemmascope.labs.patching.files import file_of
from gemmascope.labs.patching.session import Event, LabSession, told
from gemmascope.labs.patching.state import arrays_of, as_bytes, grid_spec, state_of
from gemmascope.labs.static_fallback import Still

if TYPE_CHECKING:
    from anywidget import AnyWidget

# Pushes that come faster than this are left to the next one, in seconds. What ends is always told.
SOONEST = 0.05
ENDS = ("done", "cancelled", "error", "settings", "prepared", "baselines", "detail")


@cache
def live_class() -> type[AnyWidget]:
    """The widget's class, made when it is first needed: importing gemmascope imports no ipywidgets."""
    import anywidget
    import traitlets

    from gemmascope.views.module import module_text

    class Live(anywidget.AnyWidget):  # type: ignore[misc,unused-ignore]
        _esm = module_text()
        state = traitlets.Dict().tag(sync=True)
        still = traitlets.Unicode().tag(sync=True)
        values = traitlets.Bytes().tag(sync=True)
        marks = traitlets.Bytes().tag(sync=True)
        seconds = traitlets.Bytes().tag(sync=True)
        patterns = traitlets.Bytes().tag(sync=True)
        other = traitlets.Dict().tag(sync=True)
        other_values = traitlets.Bytes().tag(sync=True)
        other_marks = traitlets.Bytes().tag(sync=True)

    return Live


class LiveEnd:
    """Carries a lab's state to its widget, and the page's wishes to the lab."""

    def __init__(self, lab: LabSession, still: Still) -> None:
        self.lab, self.still = lab, still
        self._pushing = threading.RLock()
        self._pushed = 0.0
        self.settings_changed: Callable[[], None] = lambda: None
        self.widget = live_class()(state=state_of(lab), still=still.name, **arrays_of(lab))
        self.widget.on_msg(self._heard)
        lab.listener = self.hear

    def hear(self, event: Event) -> None:
        """An event of the lab: push the state, and tell what ended."""
        ends = event["kind"] in ENDS
        if event["kind"] == "settings":
            self.settings_changed()
        if ends or time.perf_counter() - self._pushed >= SOONEST:
            self.push()
        if ends:
            self.widget.send({"type": "told", **event})
            self.still.later()

    def push(self) -> None:
        """Send what changed: one message for all traits, so that labels and numbers go together."""
        with self._pushing, self.widget.hold_sync():
            state = state_of(self.lab)
            for name, value in {"state": state, **arrays_of(self.lab)}.items():
                if getattr(self.widget, name) != value:
                    setattr(self.widget, name, value)
            self._pushed = time.perf_counter()

    def _heard(self, _: Any, message: Any, __: Any) -> None:
        """A message of the page. A wish that cannot be met is shown where it was made."""
        asked = self._wishes().get(message.get("type") if isinstance(message, dict) else None)
        if asked is None:
            logging.getLogger(__name__).warning("a patching lab was sent something it does not know: %r", message)
            return
        if message.get("seq", self.lab.seq) != self.lab.seq and message["type"] != "poll":
            return  # it was meant for a question that is another by now
        try:
            asked(message)
        except Exception as error:  # in a handler nobody would see it
            self.lab.error = told(error)
            self.push()

    def _wishes(self) -> dict[Any, Callable[[dict[str, Any]], object]]:
        lab = self.lab
        return {
            "click": lambda m: lab.click(m["row"], m["column"]),
            "look": lambda m: lab.look(m["row"], m["column"]),
            "run": lambda m: lab.start(m["what"], _place(m.get("row")), _place(m.get("column"))),
            "cancel": lambda _: lab.cancel(),
            "swap": lambda _: lab.swap(),
            "poll": self._polled,
            "file": self._send_file,
            "compare": self._compare,
        }

    def _polled(self, message: dict[str, Any]) -> None:
        """What the page has not seen is sent once more: what a thread pushed may not have arrived."""
        if message.get("number") != self.lab.number:
            self.push()
            self.widget.send_state(["state", "values", "marks", "seconds", "patterns"])
        self.widget.send({"type": "polled", "number": self.lab.number, "busy": self.lab.is_busy})

    def _send_file(self, message: dict[str, Any]) -> None:
        name, text = file_of(self.lab, message["what"])
        self.widget.send({"type": "file", "name": name, "text": text})

    def _compare(self, message: dict[str, Any]) -> None:
        """Lay an earlier experiment beside the present one, on one scale; index None: none."""
        index = message.get("index")
        earlier = None if index is None else self.lab.experiments()[index]
        spec = {} if earlier is None else grid_spec(earlier, earlier.board)
        with self._pushing, self.widget.hold_sync():
            self.widget.other = spec
            self.widget.other_values = b"" if earlier is None else as_bytes(earlier.board.values)
            self.widget.other_marks = b"" if earlier is None else earlier.board.marks.tobytes()


def _place(given: Any) -> Any:
    return tuple(given) if isinstance(given, list) else given

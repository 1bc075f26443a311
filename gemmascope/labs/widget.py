"""The live end of a lab: an anywidget whose traits hold what its page shows, and whose messages ask the lab for something.

The worker's thread pushes new values. Some front ends drop messages from threads, so the page polls while the lab is busy.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, TypedDict, cast

from gemmascope.labs.session import Event, Session

if TYPE_CHECKING:
    from anywidget import AnyWidget

# The shortest time between two pushes, in seconds. An event in ENDS is always pushed, and the number that a click waits for.
PUSH_INTERVAL = 0.05
ENDS = ("done", "cancelled", "error", "refused", "settings", "prepared", "baselines", "detail", "compared")

# What a trait holds: JSON, or an array's bytes.
Trait = dict[str, object] | bytes


class Message(TypedDict, total=False):
    """What a page sends: a type, the question that it is about, and what the type needs.

    request: a number that the answer has as well.
    """

    type: str
    seq: int
    request: int
    number: int
    pictures: int
    what: str
    row: int | list[int]
    column: int | list[int]
    index: int | None
    layer: int
    head: int
    by: float
    on: bool
    load: str
    position: int
    name: str
    text: str
    clean: str
    corrupt: str
    family: str
    node: str
    groups: dict[str, list[str]]
    labels: dict[str, str]
    factors: dict[str, float]


# What to do about a message, by its type. A handler that returns a dict sends it to the page.
Handlers = Mapping[str, Callable[[Message], object]]


@cache
def widget_class(module: str, bytes_traits: tuple[str, ...], dict_traits: tuple[str, ...]) -> type[AnyWidget]:
    """The widget class of a module's file; created on first use, so that importing gemmascope imports no ipywidgets."""
    import anywidget
    import traitlets

    from gemmascope.views.module import module_text

    body: dict[str, object] = {
        "__module__": __name__,
        "_esm": module_text(module),
        "fallback": traitlets.Unicode().tag(sync=True),
    }
    body |= {name: traitlets.Bytes().tag(sync=True) for name in bytes_traits}
    body |= {name: traitlets.Dict().tag(sync=True) for name in dict_traits}
    created: type[AnyWidget] = type("LiveLab", (anywidget.AnyWidget,), body)
    return created


class LabWidget:
    """Pushes a lab's values to its page, and gives the page's messages to the lab's handlers.

    snapshot: the traits as they are now. fallback: the id by which the page hides the lab's static fallback. late: what to
    do about a message that is about an older question, by its type; others are dropped.
    """

    def __init__(
        self,
        module: str,
        session: Session,
        snapshot: Callable[[], dict[str, Trait]],
        handlers: Handlers,
        fallback: str,
        late: Handlers = MappingProxyType({}),
    ) -> None:
        self.session, self.snapshot, self.late = session, snapshot, late
        self.handlers = {"cancel": lambda _: session.cancel(), "poll": self._answer_poll, **handlers}
        self._pushing = threading.RLock()
        self._pushed = 0.0
        traits = snapshot()
        bytes_traits = tuple(name for name, value in traits.items() if isinstance(value, bytes))
        created = widget_class(module, bytes_traits, tuple(name for name in traits if name not in bytes_traits))
        self.widget = created(**traits, fallback=fallback)
        self.widget.on_msg(self._receive)

    def hear(self, event: Event) -> None:
        """Push what an event changed, unless the last push was a moment ago and more is to come."""
        is_end = event["kind"] in ENDS
        if is_end or event["kind"] == "number" or time.perf_counter() - self._pushed >= PUSH_INTERVAL:
            self.push()
        if is_end:
            self.widget.send({"type": "event", **event})

    def push(self) -> None:
        """Send the traits that changed in one message, so that labels and numbers arrive together."""
        with self._pushing, self.widget.hold_sync():
            for name, value in self.snapshot().items():
                if getattr(self.widget, name) != value:
                    setattr(self.widget, name, value)
            self._pushed = time.perf_counter()

    def _receive(self, _: object, message: object, __: object) -> None:
        """Handle a message. An error is shown on the page, because nobody in Python waits for it."""
        kind = message.get("type") if isinstance(message, dict) else None
        handler = self.handlers.get(str(kind))
        if handler is None or not isinstance(message, dict):
            logging.getLogger(__name__).warning("a lab was sent something it does not know: %r", message)
            return
        if message.get("seq", self.session.seq) != self.session.seq and kind != "poll":
            handler = self.late.get(str(kind))
        if handler is None:
            return self._answer(message, None, "late")
        try:
            self._answer(message, handler(cast("Message", message)))
        except Exception as error:
            self.session.show_error(error)
            self._answer(message, None, "refused")

    def _answer(self, message: dict[str, object], reply: object, otherwise: str = "done") -> None:
        """Send what a handler returned. A request gets an answer with its number in any case: its page asks until then."""
        number = {"request": message["request"]} if "request" in message else {}
        if isinstance(reply, dict):
            self.widget.send({**reply, **number})
        elif number:
            self.widget.send({"type": otherwise, **number})

    def _answer_poll(self, message: Message) -> dict[str, object]:
        """Send again what the page has not seen: a push from a thread may not have arrived."""
        if message.get("number") != self.session.number:
            self.push()
            # Pictures are large: they are sent again only if the page has others.
            has_pictures = message.get("pictures") == getattr(self.widget, "pictures", {}).get("number")
            self.widget.send_state([name for name in self.snapshot() if name != "pictures" or not has_pictures])
        return {"type": "polled", "number": self.session.number, "busy": self.session.is_busy}

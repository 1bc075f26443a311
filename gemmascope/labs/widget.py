"""The live end of a lab that follows its settings: an anywidget whose trait `state` is what its page shows.

The worker's thread pushes; where pushes from threads do not arrive, the page asks ("poll") while something is under way.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from gemmascope.labs.recompute import Follower
from gemmascope.labs.static_fallback import Still

if TYPE_CHECKING:
    from anywidget import AnyWidget

# Pushes that come faster than this are left to the next one, in seconds.
SOONEST = 0.04

Wishes = Mapping[str, Callable[[dict[str, Any]], object]]


@cache
def follower_class(live: str) -> type[AnyWidget]:
    """The class of a widget, by the file that its module begins with."""
    import anywidget
    import traitlets

    from gemmascope.views.module import module_text

    class Follows(anywidget.AnyWidget):  # type: ignore[misc,unused-ignore]
        _esm = module_text(live)
        state = traitlets.Dict().tag(sync=True)
        pictures = traitlets.Dict().tag(sync=True)
        still = traitlets.Unicode().tag(sync=True)

    return Follows


class FollowerEnd:
    """Carries what a lab shows to its page, and the page's wishes to the lab.

    state_of: what the page shows, without its pictures. pictures_of: these, as {"number": n, ...}; sent when n is another.
    wishes: what a message of a type asks for.
    """

    def __init__(
        self,
        live: str,
        follower: Follower,
        state_of: Callable[[], dict[str, Any]],
        wishes: Wishes,
        still: Still,
        pictures_of: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self.follower, self.wishes, self.still = follower, wishes, still
        self.state_of, self.pictures_of = state_of, pictures_of
        self._pushing = threading.RLock()
        self._pushed = 0.0
        self.widget = follower_class(live)(state=self._state(), pictures=pictures_of(), still=still.name)
        self.widget.on_msg(self._heard)
        follower.listener = self.hear

    def _state(self) -> dict[str, Any]:
        own = {"number": self.follower.number, "busy": self.follower.is_busy, "error": self.follower.error}
        return {**self.state_of(), **own}

    def hear(self) -> None:
        """There is something new: push it, unless that was done a moment ago and more is to come."""
        if not self.follower.is_busy or time.perf_counter() - self._pushed >= SOONEST:
            self.push()
        if not self.follower.is_busy:
            self.still.later()

    def push(self) -> None:
        with self._pushing, self.widget.hold_sync():
            pictures = self.pictures_of()
            if pictures.get("number") != self.widget.pictures.get("number"):
                self.widget.pictures = pictures
            self.widget.state = self._state()
            self._pushed = time.perf_counter()

    def _heard(self, _: Any, message: Any, __: Any) -> None:
        """A message of the page. A wish that cannot be met is shown where it was made."""
        kind = message.get("type") if isinstance(message, dict) else None
        if kind == "poll":
            self._polled(message)
        elif wish := self.wishes.get(str(kind)):
            try:
                wish(message)
            except Exception as error:  # in a handler nobody would see it
                self.follower.refuse(error)
        else:
            logging.getLogger(__name__).warning("a lab was sent something that it does not know: %r", message)

    def _polled(self, message: dict[str, Any]) -> None:
        """What the page has not seen is sent once more: what a thread pushed may not have arrived."""
        if message.get("number") != self.follower.number:
            self.push()
            behind = message.get("pictures") != self.widget.pictures.get("number")
            self.widget.send_state(["state", "pictures"] if behind else ["state"])
        self.widget.send({"type": "polled", "number": self.follower.number, "busy": self.follower.is_busy})

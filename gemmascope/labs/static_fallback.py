"""A still of a lab: what stands in a notebook in the place of a live widget, once its kernel is gone.

A front end shows a saved widget only while its kernel runs. So a lab is two outputs: the still, which is a page part of
its own and is hidden by the live widget for as long as that is there, and the widget. The still follows what is found.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Any

from gemmascope.errors import LabError, MissingPackageError, warn

# How long nothing new must have come before the still is made anew, in seconds: it is drawn again by the front end.
SETTLED = 1.0


class Still:
    """html_of: the page part as it is now, "" for none yet; text_of: the same as text, for terminals.

    name: by which the live widget hides it.
    """

    def __init__(self, html_of: Callable[[], str], text_of: Callable[[], str]) -> None:
        self.html_of, self.text_of = html_of, text_of
        self.name = uuid.uuid4().hex[:12]
        self._handle: Any = None
        self._timer: threading.Timer | None = None
        self._shown: dict[str, str] = {}

    def show(self, live: Callable[[], Any]) -> None:
        """Show the still and the live widget as outputs of the cell that runs. live: makes it.

        Where it cannot be made, a warning says why, and the still stands alone.
        """
        from IPython.display import display

        try:
            widget = live()
        except LabError:
            widget = None
        except MissingPackageError as error:
            warn(f"{error}; what stands here does not answer to clicks")
            widget = None
        self._shown = self._data()
        self._handle = display(self._shown, raw=True, display_id=True)
        if widget is not None:
            display(widget)

    def later(self) -> None:
        """There is something new: make the still anew, once no more has come for a moment."""
        if self._handle is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(SETTLED, self.update)
        self._timer.daemon = True
        self._timer.start()

    def end(self) -> None:
        """Leave the one that was shown as it is."""
        if self._timer is not None:
            self._timer.cancel()
        self._handle = self._timer = None

    def update(self) -> None:
        """Put the still as it is now in the place of the one that was shown."""
        now = self._data()
        if self._handle is not None and now != self._shown:
            self._shown = now
            self._handle.update(now, raw=True)

    def _data(self) -> dict[str, str]:
        html = self.html_of()
        part = {"text/html": f'<div data-gs-still="{self.name}">{html}</div>'} if html else {}
        return {**part, "text/plain": self.text_of()}

"""The static fallback of a lab: what a notebook shows in the live widget's place once its kernel is gone.

A front end shows a saved widget only while its kernel runs. So a lab has two outputs: the widget, and a static page part
that the widget hides while it is alive. The page part follows what the lab computes.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

from gemmascope.errors import LabError, MissingPackageError, warn

if TYPE_CHECKING:
    import ipywidgets
    from IPython.display import DisplayHandle

# How long a lab must be quiet before its fallback is drawn again, in seconds: the front end draws it anew each time.
QUIET_SECONDS = 1.0


class StaticFallback:
    """html_of: the page part as it is now, "" if there is none yet; text_of: the same as text, for terminals.

    id: by which the live widget hides it.
    """

    def __init__(self, html_of: Callable[[], str], text_of: Callable[[], str]) -> None:
        self.html_of, self.text_of = html_of, text_of
        self.id = uuid.uuid4().hex[:12]
        self._handle: DisplayHandle | None = None
        self._timer: threading.Timer | None = None
        self._displayed: dict[str, str] = {}

    def show(self, widget_of: Callable[[], ipywidgets.Widget]) -> None:
        """Show the fallback and the live widget as outputs of the running cell.

        If the widget cannot be created, a warning says why and the fallback is shown alone.
        """
        from IPython.display import display

        try:
            widget = widget_of()
        except LabError:
            widget = None
        except MissingPackageError as error:
            warn(f"{error}; what stands here does not answer to clicks")
            widget = None
        self._displayed = self._data()
        self._handle = display(self._displayed, raw=True, display_id=True)
        if widget is not None:
            display(widget)

    def update_soon(self) -> None:
        """Draw the fallback again once the lab has been quiet for a moment."""
        if self._handle is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(QUIET_SECONDS, self.update)
        self._timer.daemon = True
        self._timer.start()

    def stop(self) -> None:
        """Leave the fallback as it was last shown."""
        if self._timer is not None:
            self._timer.cancel()
        self._handle = self._timer = None

    def update(self) -> None:
        """Replace the shown fallback with the present one."""
        now = self._data()
        if self._handle is not None and now != self._displayed:
            self._displayed = now
            self._handle.update(now, raw=True)

    def _data(self) -> dict[str, str]:
        html = self.html_of()
        part = {"text/html": f'<div data-gs-fallback="{self.id}">{html}</div>'} if html else {}
        return {**part, "text/plain": self.text_of()}

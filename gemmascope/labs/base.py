"""LabBase: what gs.patching_lab, gs.head_lab, gs.steer_lab and gs.graph_lab share: showing a lab, and freeing it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, SupportsIndex, TypeVar

from gemmascope.errors import GemmascopeError, LabError
from gemmascope.labs.choice import ChoosingSession
from gemmascope.labs.display import lab_box
from gemmascope.labs.fallback import StaticFallback
from gemmascope.labs.session import Event
from gemmascope.labs.worker import CLOSED
from gemmascope.packages import requires_package

if TYPE_CHECKING:
    import ipywidgets

    from gemmascope.labs.fields import Fields
    from gemmascope.labs.widget import Handlers, Trait

# How long a notebook waits for a lab's first picture, in seconds. Later ones appear in the live widget.
FIRST_PICTURE_SECONDS = 2.0

LabT = TypeVar("LabT", bound="LabBase")


class LabBase(ChoosingSession):
    """A lab that can be shown in a notebook.

    A subclass names its page's module (MODULE) and says what the page shows (`_snapshot`), which messages it may send
    (`_handlers`), the controls above it (`_fields`), and the HTML of its static fallback. Its widgets are created when they
    are first shown, and closed with the lab or when the cell that shows them runs again. Then its jobs end as well; the lab
    itself is collected once nothing refers to it.
    """

    MODULE: ClassVar[str]
    _box: ipywidgets.Widget = None
    _is_closed = False

    def set(self, **changes: Any) -> None:
        raise NotImplementedError

    def _snapshot(self) -> dict[str, Trait]:
        raise NotImplementedError

    def _handlers(self) -> Handlers:
        return {}

    def _late_handlers(self) -> Handlers:
        """What a message about an older question may still ask for, such as a click made while a prompt was typed."""
        return {}

    def _fields(self) -> Fields | None:
        """Controls above the page; None for a lab whose page has its own."""
        return None

    def _fallback_html(self) -> str:
        raise NotImplementedError

    def _end(self) -> None:
        """End the jobs for good and let go of large values."""
        raise NotImplementedError

    @property
    def is_closed(self) -> bool:
        """Whether the lab was closed."""
        return self._is_closed

    @property
    def widget(self) -> ipywidgets.Widget:
        """The live widget; created anew after it was closed. MissingPackageError without ipywidgets or anywidget."""
        if self._is_closed:
            raise LabError(CLOSED)
        if self._box is None:
            with requires_package("the live widget", "ipywidgets", "anywidget"):
                self._box = lab_box(self, self._widgets(), self._on_box_closed)
            self._on_shown()
        return self._box

    def hide(self) -> None:
        """Close the lab's widgets, wherever they are shown. The lab stays usable; showing it again creates new ones."""
        if self._box is not None:
            self._box.close()

    def close(self) -> None:
        """Free the lab: end its jobs, close its widgets, and let go of its runs. Closing it twice does no harm.

        Numbers that were computed can still be read; whatever would compute is a LabError. `with gs.patching_lab(...) as
        lab:` closes it at the end.
        """
        if not self._is_closed:
            self._is_closed = True
            self._end()
        self.hide()

    def __enter__(self: LabT) -> LabT:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """LabError, for pickle and copy: a lab belongs to this process, with a thread and widgets."""
        raise LabError(
            f"a {type(self).__name__} cannot be pickled or copied: it is live, with a thread and widgets of its own. Make "
            "it again where it is needed: lab.code() says how to repeat what it shows"
        )

    def _ipython_display_(self) -> None:
        """The live widget, and a fallback for notebooks that are saved, exported or have no front end for it."""
        self.wait_until_prepared(FIRST_PICTURE_SECONDS)
        self._fallback.show(lambda: self.widget)

    @cached_property
    def _fallback(self) -> StaticFallback:
        return StaticFallback(self._fallback_html, lambda: repr(self))

    @property
    def _closed_text(self) -> str:
        return " (closed)" if self._is_closed else ""

    def _widgets(self) -> Sequence[ipywidgets.Widget]:
        """The controls and the page below them."""
        from gemmascope.labs.widget import ENDS, LabWidget

        fields = self._fields()  # first: events between the page's first values and its listener would be lost
        handlers = {**self._choice_handlers(), **self._handlers()}
        page = LabWidget(self.MODULE, self, self._page_values, handlers, self._fallback.id, self._late_handlers())

        def hear(event: Event) -> None:
            if event["kind"] == "settings" and fields is not None:
                fields.model = self.model
                fields.show()
            page.hear(event)
            if event["kind"] in ENDS:
                self._fallback.update_soon()

        self.listener = hear
        return [page.widget] if fields is None else [fields.box(), page.widget]

    def _page_values(self) -> dict[str, Trait]:
        return {**self._snapshot(), "choice": self.choice_data()}

    def _choice_handlers(self) -> Handlers:
        """What the list of models asks for."""
        return {
            "find_models": lambda _: self.find_models(),
            "choose_model": lambda m: self.start_choosing(m["load"]),
            "keep_model": lambda _: self.keep_model(),
        }

    def _on_shown(self) -> None:
        """Called once the widgets are there: what only they show can now be computed."""

    def _on_box_closed(self) -> None:
        self._box = self.listener = None
        self._fallback.stop()

    def _typed(self, name: str, read: Callable[[], object]) -> None:
        """Change a setting from its control. A value that cannot be read or set is shown in the lab."""
        self._is_typed = True
        try:
            self.set(**{name: read()})
        except GemmascopeError as error:
            self.show_error(error)
        finally:
            self._is_typed = False

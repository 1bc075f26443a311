"""The widget end of a lab: made when it is first shown, freed with the lab or when the cell that showed it is run again.

ipywidgets keeps every widget that is not closed, and with it whatever its handlers hold. So a lab's widgets stand in one
box, and closing the box closes all of them. The lab itself goes on without it, and makes another when it is shown again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from gemmascope.errors import LabError
from gemmascope.labs.worker import CLOSED
from gemmascope.packages import requires_package

if TYPE_CHECKING:
    import ipywidgets

ShownT = TypeVar("ShownT", bound="Shown")


class Shown:
    """A lab that can be shown. A lab of this kind says what stands in its box, how it falls silent, and how it ends."""

    _box: Any = None
    _is_closed = False

    def cancel(self) -> None:
        raise NotImplementedError

    def _parts(self) -> tuple[Sequence[Any], Callable[[], None]]:
        """The widgets that are shown, and what to do when they are closed."""
        raise NotImplementedError

    def _end(self) -> None:
        """End what is under way and let go of what is large."""
        raise NotImplementedError

    def __reduce_ex__(self, protocol: Any) -> Any:
        """LabError, for pickle and copy: a lab is of this process, with a thread and widgets."""
        raise LabError(
            f"a {type(self).__name__} cannot be pickled or copied: it is live, with a thread and widgets of its own. Make "
            "it again where it is needed: lab.code() says how to repeat what it shows"
        )

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    @property
    def widget(self) -> ipywidgets.Widget:
        """The live widget. Made once; anew after it was closed. MissingPackageError without ipywidgets or anywidget."""
        if self._is_closed:
            raise LabError(CLOSED)
        if self._box is None:
            with requires_package("the live widget", "ipywidgets", "anywidget"):
                parts, silent = self._parts()
                self._box = box_class()(parts)
            self._box.parts = list(_within(self._box))
            self._box.owner, self._box.on_close = self, lambda: self._hidden(silent)
            if kernel() is None:
                _unlist(self._box)
        return self._box

    @property
    def _closed_text(self) -> str:
        return " (closed)" if self._is_closed else ""

    def hide(self) -> None:
        """Close the widgets of the lab, wherever they are shown. The lab goes on; showing it again makes new ones."""
        if self._box is not None:
            self._box.close()

    def close(self) -> None:
        """Free the lab: end what is under way, close its widgets, and let go of its runs. Closing it twice does no harm.

        What was found, in numbers, can still be read; whatever would be computed is a LabError. `with gs.patching_lab(...)
        as lab:` closes it at the end.
        """
        if not self._is_closed:
            self._is_closed = True
            self._end()
        self.hide()

    def __enter__(self: ShownT) -> ShownT:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _hidden(self, silent: Callable[[], None]) -> None:
        self._box = None
        silent()


@cache
def box_class() -> type[ipywidgets.VBox]:
    """The class of the box, made when it is first needed: importing gemmascope imports no ipywidgets."""
    import ipywidgets

    class LabBox(ipywidgets.VBox):  # type: ignore[misc,unused-ignore]
        owner: Shown | None = None
        parts: Sequence[Any] = ()
        on_close: Callable[[], None] | None = None

        def close(self) -> None:
            on_close, self.on_close, self.owner = self.on_close, None, None
            forget(self)
            if on_close is not None:
                on_close()
            super().close()
            for part in self.parts:
                part.close()

        def _repr_mimebundle_(self, **kwargs: Any) -> Any:
            remember(self)
            return super()._repr_mimebundle_(**kwargs)

    return LabBox


def _within(widget: Any) -> Iterator[Any]:
    """The widgets that a widget is made of, however deep: its children, their layouts and styles."""
    import ipywidgets

    for name in widget.keys:
        value = getattr(widget, name)
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, ipywidgets.Widget):
                yield one
                yield from _within(one)


def _unlist(box: Any) -> None:
    """Take a box out of the lists of what a front end can speak to: there is none, so the box goes when its lab does.

    Only where its messages go nowhere: other front ends than Jupyter's bring messages of their own.
    """
    from comm import DummyComm, get_comm_manager
    from ipywidgets.widgets.widget import _instances

    for widget in (box, *box.parts):
        comm = widget.comm
        if isinstance(comm, DummyComm):
            comm.on_msg(None)
            get_comm_manager().comms.pop(comm.comm_id, None)
            comm._closed = True
            _instances.pop(comm.comm_id, None)


# -- which cell shows which box --

# By the cell's id; "" for cells that are not known.
_BOXES: dict[str, list[Any]] = {}
_HEARD: WeakSet[Any] = WeakSet()


def kernel() -> Any:
    """The Jupyter kernel that this runs in; None outside of one."""
    return getattr(_shell(), "kernel", None)


def _shell() -> Any:
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    return get_ipython()


def _cell() -> str:
    """The id of the cell that runs, as the front end gives it with what it asks to be run; "" where it gives none."""
    try:
        found = _shell().get_parent()["metadata"]["cellId"]
    except (AttributeError, KeyError, TypeError):
        return ""
    return found if isinstance(found, str) else ""


def remember(box: Any) -> None:
    """The cell that runs shows a box. When it is run again its output is gone from the page, and the box is closed.

    A box that is shown where the cell is not known stays until it, or its lab, is closed.
    """
    boxes = _BOXES.setdefault(_cell(), [])
    if not any(one is box for one in boxes):
        boxes.append(box)
    shell = _shell()
    if hasattr(shell, "events") and shell not in _HEARD:
        shell.events.register("pre_run_cell", _run_again)
        _HEARD.add(shell)


def forget(box: Any) -> None:
    """A box is closed: no cell shows it."""
    for cell, boxes in list(_BOXES.items()):
        _BOXES[cell] = [one for one in boxes if one is not box]
        if not _BOXES[cell]:
            del _BOXES[cell]


def _run_again(*_: Any) -> None:
    """A cell is about to run, so what it showed before is gone. What its lab was computing for nobody ends with it."""
    for box in _BOXES.pop(_cell(), []) if _cell() else []:
        if not _is_seen_elsewhere(box):
            owner = box.owner
            box.close()
            owner.cancel()
            _forget_outputs(_shell(), (owner, box))


def _is_seen_elsewhere(box: Any) -> bool:
    """Whether another cell shows it, or another widget holds it."""
    from ipywidgets.widgets.widget import _instances

    if any(one is box for boxes in _BOXES.values() for one in boxes):
        return True
    return any(one is box for other in list(_instances.values()) for one in getattr(other, "children", ()))


def _forget_outputs(shell: Any, gone: Sequence[Any]) -> None:
    """Take what a cell showed out of IPython's Out, _ and their like: they would keep the lab of every earlier run.

    What a user has given a name, or keeps in a list, stays where it is.
    """

    def is_gone(value: Any) -> bool:
        return any(value is one for one in gone)

    outputs, spaces = shell.user_ns.get("_oh", {}), (shell.user_ns, shell.user_ns_hidden)
    for number in [number for number, value in outputs.items() if is_gone(value)]:
        del outputs[number]
        for space in spaces:
            space.pop(f"_{number}", None)
    for name in ("_", "__", "___"):
        if is_gone(getattr(shell.displayhook, name, None)):
            setattr(shell.displayhook, name, "")
        for space in spaces:
            if is_gone(space.get(name)):
                space[name] = ""

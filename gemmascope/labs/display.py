"""The box of widgets that shows a lab, and which notebook cells show which box.

ipywidgets keeps every widget that is not closed, and with it whatever its handlers refer to. So a lab's widgets stand in one
box, and closing the box closes all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Protocol, cast
from weakref import WeakSet

from gemmascope.packages import ipython

if TYPE_CHECKING:
    import ipywidgets

    from gemmascope.labs.session import Session


class Events(Protocol):
    def register(self, event: str, function: Callable[..., None]) -> None: ...


class Shell(Protocol):
    """IPython's shell, as far as it is used here. kernel: None outside Jupyter."""

    kernel: object
    events: Events
    user_ns: MutableMapping[str, object]
    user_ns_hidden: MutableMapping[str, object]
    displayhook: object

    def get_parent(self) -> Mapping[str, Mapping[str, object]]: ...


# What stands in the live lab's place where widgets are not drawn.
LIVE = "a live lab: run this cell to use it"


def lab_box(lab: Session, widgets: Sequence[ipywidgets.Widget], on_close: Callable[[], None]) -> ipywidgets.Widget:
    """A box that shows a lab. on_close: called when it is closed, by whomever."""
    box = box_class()(widgets)
    box.parts = list(_widgets_within(box))
    box.lab, box.on_close = lab, on_close
    if getattr(_shell(), "kernel", None) is None:
        _unregister(box)
    return box


@cache
def box_class() -> type[ipywidgets.VBox]:
    """The class of the box; created on first use, so that importing gemmascope imports no ipywidgets."""
    import ipywidgets

    class LabBox(ipywidgets.VBox):  # type: ignore[misc,unused-ignore]
        lab: Session | None = None
        parts: Sequence[ipywidgets.Widget] = ()
        on_close: Callable[[], None] | None = None

        def close(self) -> None:
            on_close, self.on_close, self.lab = self.on_close, None, None
            forget(self)
            if on_close is not None:
                on_close()
            super().close()
            for part in self.parts:
                part.close()

        def _repr_mimebundle_(self, **kwargs: object) -> object:
            remember(self)
            data = super()._repr_mimebundle_(**kwargs)
            # ipywidgets' own text is a list of all widgets, which exported notebooks would show below the lab's picture.
            return {**data, "text/plain": LIVE} if isinstance(data, dict) else data

    return LabBox


def _widgets_within(widget: ipywidgets.Widget) -> Iterator[ipywidgets.Widget]:
    """The widgets that a widget consists of, however deep: its children, their layouts and styles."""
    import ipywidgets

    for name in widget.keys:
        value = getattr(widget, name)
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, ipywidgets.Widget):
                yield one
                yield from _widgets_within(one)


def _unregister(box: ipywidgets.Widget) -> None:
    """Take a box out of the registries of widgets, which would keep it alive. Only where there is no front end.

    A comm that is not a DummyComm belongs to a front end other than Jupyter's.
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

# By the cell's id; "" for cells whose id is not known.
_BOXES: dict[str, list[ipywidgets.Widget]] = {}
# The shells that tell this module when a cell is about to run.
_SHELLS: WeakSet[Shell] = WeakSet()


def _shell() -> Shell | None:
    return cast("Shell | None", ipython())


def _cell_id() -> str:
    """The id of the running cell, as the front end sends it with the code; "" if it sends none."""
    shell = _shell()
    try:
        cell_id = None if shell is None else shell.get_parent()["metadata"]["cellId"]
    except (AttributeError, KeyError, TypeError):
        return ""
    return cell_id if isinstance(cell_id, str) else ""


def remember(box: ipywidgets.Widget) -> None:
    """Note that the running cell shows a box, which is closed when the cell runs again.

    A box in a cell without a known id stays until it, or its lab, is closed.
    """
    boxes = _BOXES.setdefault(_cell_id(), [])
    if not any(one is box for one in boxes):
        boxes.append(box)
    shell = _shell()
    if shell is not None and hasattr(shell, "events") and shell not in _SHELLS:
        shell.events.register("pre_run_cell", _close_boxes_of_cell)
        _SHELLS.add(shell)


def forget(box: ipywidgets.Widget) -> None:
    """Note that no cell shows a box any more."""
    for cell_id, boxes in list(_BOXES.items()):
        _BOXES[cell_id] = [one for one in boxes if one is not box]
        if not _BOXES[cell_id]:
            del _BOXES[cell_id]


def _close_boxes_of_cell(*_: object) -> None:
    """Close what the cell that is about to run showed before, and end what its labs compute."""
    shell, cell_id = _shell(), _cell_id()
    for box in _BOXES.pop(cell_id, []) if cell_id else []:
        if not _is_shown_elsewhere(box):
            lab = box.lab
            box.close()
            lab.cancel()
            if shell is not None:
                _drop_outputs(shell, (lab, box))


def _is_shown_elsewhere(box: ipywidgets.Widget) -> bool:
    """Whether another cell shows it, or another widget contains it."""
    from ipywidgets.widgets.widget import _instances

    if any(one is box for boxes in _BOXES.values() for one in boxes):
        return True
    return any(one is box for other in list(_instances.values()) for one in getattr(other, "children", ()))


def _drop_outputs(shell: Shell, outputs: Sequence[object]) -> None:
    """Take these out of IPython's Out, _ and their like, which would keep the lab of every earlier run.

    A lab that a user has given a name, or keeps in a list, stays there.
    """

    def is_dropped(value: object) -> bool:
        return any(value is one for one in outputs)

    history, spaces = shell.user_ns.get("_oh", {}), (shell.user_ns, shell.user_ns_hidden)
    if isinstance(history, dict):
        for number in [number for number, value in history.items() if is_dropped(value)]:
            del history[number]
            for space in spaces:
                space.pop(f"_{number}", None)
    for name in ("_", "__", "___"):
        if is_dropped(getattr(shell.displayhook, name, None)):
            setattr(shell.displayhook, name, "")
        for space in spaces:
            if is_dropped(space.get(name)):
                space[name] = ""
